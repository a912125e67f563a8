//! One optimizer step, from samples to updated parameters. It reads top to bottom; everything it calls is one hop away.

use super::batch::{self, PairWork};
use super::reference::{List, Reference};
use super::spread::Spread;
use super::state::State;
use super::validate::Validated;
use crate::data::Mixture;
use crate::error::Result;
use crate::kernels::{clock, LossSums};
use crate::liveness::inject::Inject;
use crate::liveness::{Phase, Progress};
use crate::model::{Accumulate, Llama, PairSums, StepOptions};
use crate::optim::{clip_factor, learning_rate};
use crate::parallel::pipeline::{Pipeline, StageWork};
use crate::plan::Plan;
use crate::serve::eval::TaskScore;
use crate::topology::Axis;
use crate::wire::CommTiming;
use crate::world::World;
use std::time::Duration;

/// What a step needs besides the state it changes.
pub struct Stage<'a> {
    pub plan: &'a Plan,
    pub world: &'a World,
    pub model: &'a Llama,
    pub pipeline: &'a Pipeline,
    pub corpus: &'a Mixture,
    /// Of preference pairs: what they are compared with.
    pub reference: Option<&'a Reference>,
    pub progress: &'a Progress,
    pub inject: &'a Inject,
}

/// What a step found, the same on every rank.
pub struct Outcome {
    /// Mean cross-entropy over the tokens of the global batch that count, nats per token; of preference pairs their mean loss.
    pub loss: f64,
    /// Sums over the preference pairs of the global batch, where it is made of them.
    pub pairs: Option<PairSums>,
    pub lr: f64,
    /// Norm of the global gradient before clipping.
    pub grad_norm: f64,
    /// Loss or norm was not finite: nothing was updated.
    pub skipped: bool,
    /// Some rank has been asked to stop.
    pub stop: bool,
    /// Mean (log Z)² per token.
    pub z: f64,
    pub comm: CommTiming,
    /// Time in which this rank waited for other pipeline stages.
    pub pipeline_wait: Duration,
    /// Time in the linear layers' matrix products on this rank.
    pub matmul: Duration,
    /// How own work differs between the ranks; None with one rank.
    pub spread: Option<Spread>,
    /// Filled in by the loop in steps that validate.
    pub validation: Option<Validated>,
    /// What came of the tasks, on the rank that writes.
    pub tasks: Vec<TaskScore>,
}

/// Runs one step on `state`. `stop` is this rank's wish to stop; the outcome's is everybody's.
pub fn step(stage: &Stage, state: &mut State, stop: bool) -> Result<Outcome> {
    let Stage { plan, world, model, pipeline, corpus, reference, progress, inject } = stage;
    let config = &plan.config;
    let products = clock::matmul();
    let lr = learning_rate(&config.optim, state.step, config.train.steps);
    let tokens = plan.tokens_per_step() as f64;
    let options = StepOptions { grad_scale: 1.0 / tokens, z_loss: config.train.z_loss, grads: Accumulate::Replace };

    // ─── gradients: sum over micro-batches; units leave for the other ranks while the backward pass goes on ───
    let now = state.step;
    state.units.begin(plan.accumulation);
    let pairs = PairWork::of(plan, *reference, List::Train);
    let mut load = |micro| {
        progress.at(Phase::Data);
        let batch = batch::train(plan, corpus, now, micro, pairs.as_ref())?;
        inject.begin_work(progress);
        Ok(batch.micro(model))
    };
    let sequences = |_| plan.micro_batch;
    let work = StageWork { model, units: &mut state.units, load: &mut load, sequences: &sequences, progress };
    let (sums, passes) = pipeline.train(work, options, inject)?;
    progress.at(Phase::Reduce);
    state.units.finish()?;

    // ─── agreement: loss, tokens (or preference pairs) that count, gradient norm, wish to stop, summed over all ranks ───
    progress.at(Phase::Agree);
    // Tensor ranks know the same loss, stages before the last know none.
    let tells = plan.topology.coord(Axis::Tensor) == 0;
    let sums = if tells { sums } else { LossSums::default() };
    let squares = state.optimizer.grad_sum_squares();
    // The device has come this far: by itself, or because an operation was given up, whose sums nothing may be made of.
    state.units.groups().sound()?;
    model.axes.sound()?;
    pipeline.sound()?;
    let own = progress.own_so_far();
    let mine = vec![sums.loss, sums.z, sums.tokens as f64, squares, stop as u8 as f64, own.as_secs_f64()];
    let (all, pairs) = batch::sum_with_pairs(world, mine, pairs.as_ref(), tells)?;
    let spread = Spread::over(world, own, all[5])?;
    let (loss, z, stop) = (all[0] / all[2], all[1] / all[2], all[4] > 0.0);
    // The gradients are of the sum over all that counts / `tokens`; where some do not count the mean is larger by this much.
    let scale = tokens / all[2];
    let grad_norm = all[3].sqrt() * scale;
    let skipped = !(loss.is_finite() && grad_norm.is_finite());

    // ─── update: each rank what it owns, then everybody gets the new parameters ───
    if !skipped {
        progress.at(Phase::Optimizer);
        state.updates += 1;
        state.optimizer.step(lr, state.updates, clip_factor(grad_norm, config.train.clip_norm) * scale);
        progress.at(Phase::Gather);
        state.units.publish()?;
    }

    state.step += 1;
    state.tokens += tokens as u64;
    state.skipped += skipped as u64;
    let mut comm = state.units.spent();
    comm += model.axes.take_spent();
    let matmul = clock::matmul() - products;
    let pipeline_wait = passes.waited;
    let (validation, tasks) = (None, Vec::new());
    Ok(Outcome { loss, pairs, lr, grad_norm, skipped, stop, z, comm, pipeline_wait, matmul, spread, validation, tasks })
}

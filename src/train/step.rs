//! One optimizer step, from samples to updated parameters. It reads top to bottom; everything it calls is one hop away.

use super::batch;
use super::state::State;
use crate::data::Mixture;
use crate::error::Result;
use crate::kernels::clock;
use crate::liveness::inject::Inject;
use crate::liveness::{Phase, Progress};
use crate::model::{Accumulate, Chunk, Documents, Llama, StepOptions};
use crate::optim::{clip_factor, learning_rate};
use crate::parallel::CommTiming;
use crate::plan::Plan;
use crate::wire::{Op, World};
use std::time::Duration;

/// What a step needs besides the state it changes.
pub struct Stage<'a> {
    pub plan: &'a Plan,
    pub world: &'a World,
    pub model: &'a Llama,
    pub corpus: &'a Mixture,
    pub progress: &'a Progress,
    pub inject: &'a Inject,
}

/// What a step found, the same on every rank.
pub struct Outcome {
    /// Mean cross-entropy over the global batch, nats per token.
    pub loss: f64,
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
    /// Time in the linear layers' matrix products on this rank.
    pub matmul: Duration,
    /// Filled in by the loop in steps that validate.
    pub validation_loss: Option<f64>,
}

/// Runs one step on `state`. `stop` is this rank's wish to stop; the outcome's is everybody's.
pub fn step(stage: &Stage, state: &mut State, stop: bool) -> Result<Outcome> {
    let Stage { plan, world, model, corpus, progress, inject } = stage;
    let config = &plan.config;
    let products = clock::matmul();
    let lr = learning_rate(&config.optim, state.step, config.train.steps);
    let tokens = (config.batch.global * config.data.sequence_length) as f64;
    let options =
        StepOptions { grad_scale: 1.0 / tokens, z_loss: config.train.z_loss, grads: Accumulate::Replace };

    // ─── gradients: sum over micro-batches; units leave for the other ranks while the backward pass goes on ───
    let (mut loss, mut z) = (0.0, 0.0);
    let _guard = tch::no_grad_guard();
    let chunk = Chunk::whole(model.layers);
    state.units.begin(plan.accumulation);
    for micro in 0..plan.accumulation {
        progress.at(Phase::Data);
        let batch = batch::train(plan, corpus, state.step, micro)?;
        inject.begin_work(progress);
        let micro = model.micro(&batch.tokens, &batch.targets, &Documents::whole());
        progress.at(Phase::Forward);
        let (_, kept) = model.forward(&chunk, &mut state.units, &micro, None)?;
        progress.at(Phase::Backward);
        let options = StepOptions { grad_scale: if inject.spoils() { f64::NAN } else { options.grad_scale }, ..options };
        let (_, found) = model.backward(&chunk, &mut state.units, &micro, kept, None, &options)?;
        loss += found.loss;
        z += found.z;
    }
    progress.at(Phase::Reduce);
    state.units.finish()?;

    // ─── agreement: loss, gradient norm, wish to stop, summed over all ranks ───
    progress.at(Phase::Agree);
    let squares = state.optimizer.grad_sum_squares();
    let all = world.all_reduce_f64(&[loss, z, squares, stop as u8 as f64], Op::Sum)?;
    let (loss, z, grad_norm, stop) = (all[0] / tokens, all[1] / tokens, all[2].sqrt(), all[3] > 0.0);
    let skipped = !(loss.is_finite() && grad_norm.is_finite());

    // ─── update: each rank what it owns, then everybody gets the new parameters ───
    if !skipped {
        progress.at(Phase::Optimizer);
        state.updates += 1;
        state.optimizer.step(lr, state.updates, clip_factor(grad_norm, config.train.clip_norm));
        progress.at(Phase::Gather);
        state.units.publish()?;
    }

    state.step += 1;
    state.tokens += tokens as u64;
    state.skipped += skipped as u64;
    let comm = state.units.spent();
    let matmul = clock::matmul() - products;
    Ok(Outcome { loss, lr, grad_norm, skipped, stop, z, comm, matmul, validation_loss: None })
}

//! Loss on held-out text: fixed samples in fixed order, shared out over the data ranks.

use super::batch;
use super::state::State;
use crate::data::Mixture;
use crate::error::Result;
use crate::kernels::LossSums;
use crate::liveness::Progress;
use crate::model::Llama;
use crate::parallel::pipeline::{Pipeline, StageWork};
use crate::plan::Plan;
use crate::topology::Axis;
use crate::world::{Op, World};

/// Mean cross-entropy in nats per token over the first `validation.sequences` samples (or all there are).
pub fn validate(
    plan: &Plan, world: &World, model: &Llama, pipeline: &Pipeline, corpus: &Mixture, state: &mut State,
    progress: &Progress,
) -> Result<f64> {
    let (rank, ranks) = (plan.topology.coord(Axis::Data) as u64, plan.topology.size(Axis::Data) as u64);
    let count = (plan.config.validation.sequences as u64).min(corpus.epoch_len());
    let own: Vec<u64> = (rank..count).step_by(ranks as usize).collect();
    // Every rank makes as many passes as the first, which has most: under ZeRO 3 each pass gathers the parameters.
    let passes = count.div_ceil(ranks).div_ceil(plan.micro_batch as u64) as usize;
    let samples = |pass: usize| own.chunks(plan.micro_batch).nth(pass).unwrap_or_default();
    let mut load = |pass| {
        let (own, none) = (samples(pass), [0]);
        let indices = if own.is_empty() { &none } else { own };
        let mut batch = batch::collect(plan, indices.iter().map(|&i| corpus.sequential(i)))?;
        if own.is_empty() {
            let _ = batch.targets.fill_(-1);
        }
        Ok(model.micro(&batch.tokens, &batch.targets, &batch.documents))
    };
    let sequences = |pass| samples(pass).len().max(1);
    let work = StageWork { model, units: &mut state.units, load: &mut load, sequences: &sequences, progress };
    let sums = pipeline.evaluate(work, passes)?;
    // Tensor ranks know the same loss, stages before the last know none.
    let sums = if plan.topology.coord(Axis::Tensor) == 0 { sums } else { LossSums::default() };
    let all = world.all_reduce_f64(&[sums.loss, sums.tokens as f64], Op::Sum)?;
    Ok(all[0] / all[1])
}

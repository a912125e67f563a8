//! Loss on held-out text: fixed samples in fixed order, shared out over the data ranks.

use super::batch;
use super::state::State;
use crate::data::Mixture;
use crate::error::Result;
use crate::model::Llama;
use crate::plan::Plan;
use crate::topology::Axis;
use crate::wire::{Op, World};

/// Mean cross-entropy in nats per token over the first `validation.sequences` samples (or all there are).
pub fn validate(plan: &Plan, world: &World, model: &Llama, corpus: &Mixture, state: &State) -> Result<f64> {
    let (rank, ranks) = (plan.topology.coord(Axis::Data) as u64, plan.topology.size(Axis::Data) as u64);
    let count = (plan.config.validation.sequences as u64).min(corpus.epoch_len());
    let own: Vec<u64> = (rank..count).step_by(ranks as usize).collect();
    let (mut loss, mut tokens) = (0.0, 0.0);
    for indices in own.chunks(plan.micro_batch) {
        let batch = batch::collect(plan, indices.iter().map(|&i| corpus.sequential(i)))?;
        let sums = model.loss(&state.params, &batch.tokens, &batch.targets)?;
        loss += sums.loss;
        tokens += sums.tokens as f64;
    }
    let all = world.all_reduce_f64(&[loss, tokens], Op::Sum)?;
    Ok(all[0] / all[1])
}

//! Loss on held-out text: fixed samples in fixed order, shared out over the data ranks.

use super::batch;
use super::state::State;
use crate::data::Mixture;
use crate::error::Result;
use crate::liveness::Progress;
use crate::model::{Chunk, Documents, Llama};
use crate::plan::Plan;
use crate::topology::Axis;
use crate::wire::{Op, World};

/// Mean cross-entropy in nats per token over the first `validation.sequences` samples (or all there are).
pub fn validate(
    plan: &Plan, world: &World, model: &Llama, corpus: &Mixture, state: &mut State, progress: &Progress,
) -> Result<f64> {
    let (rank, ranks) = (plan.topology.coord(Axis::Data) as u64, plan.topology.size(Axis::Data) as u64);
    let count = (plan.config.validation.sequences as u64).min(corpus.epoch_len());
    let own: Vec<u64> = (rank..count).step_by(ranks as usize).collect();
    // Every rank makes as many passes as the first, which has most: under ZeRO 3 each pass gathers the parameters.
    let passes = count.div_ceil(ranks).div_ceil(plan.micro_batch as u64);
    let (mut loss, mut tokens) = (0.0, 0.0);
    let _guard = tch::no_grad_guard();
    let chunk = Chunk::whole(model.layers);
    for pass in 0..passes as usize {
        let indices: Vec<u64> = own.iter().copied().skip(pass * plan.micro_batch).take(plan.micro_batch).collect();
        let counts = !indices.is_empty();
        let indices = if counts { indices } else { vec![0] };
        let batch = batch::collect(indices.iter().map(|&i| corpus.sequential(i)), plan.device)?;
        let micro = model.micro(&batch.tokens, &batch.targets, &Documents::whole());
        let (_, sums) = model.evaluate(&chunk, &mut state.units, &micro, None)?;
        if counts {
            loss += sums.loss;
            tokens += sums.tokens as f64;
        }
        progress.tick();
    }
    let all = world.all_reduce_f64(&[loss, tokens], Op::Sum)?;
    Ok(all[0] / all[1])
}

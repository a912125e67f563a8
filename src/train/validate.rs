//! Loss on held-out text: fixed samples in fixed order, shared out over the data ranks.

use super::batch::{self, PairWork};
use super::reference::{List, Reference};
use super::state::State;
use crate::data::Mixture;
use crate::error::Result;
use crate::kernels::LossSums;
use crate::liveness::Progress;
use crate::model::{Llama, PairSums};
use crate::parallel::pipeline::{Pipeline, StageWork};
use crate::plan::Plan;
use crate::topology::Axis;
use crate::world::{Op, World};

/// What validation reads.
pub struct HeldOut<'a> {
    pub corpus: &'a Mixture,
    /// Of preference pairs: what they are compared with.
    pub reference: Option<&'a Reference>,
}

/// What validation found, the same on every rank.
pub struct Validated {
    pub loss: f64,
    /// Sums over the held-out preference pairs, where it is made of them.
    pub pairs: Option<PairSums>,
}

/// Mean cross-entropy in nats per token over the first `validation.sequences` samples (or all there are); of preference pairs
/// their mean loss.
pub fn validate(
    plan: &Plan, world: &World, model: &Llama, pipeline: &Pipeline, held_out: &HeldOut, state: &mut State,
    progress: &Progress,
) -> Result<Validated> {
    let corpus = held_out.corpus;
    let pairs = PairWork::of(plan, held_out.reference, List::Validation);
    let (rank, ranks) = (plan.topology.coord(Axis::Data) as u64, plan.topology.size(Axis::Data) as u64);
    let count = (plan.config.validation.sequences as u64).min(corpus.epoch_len());
    let own: Vec<u64> = (rank..count).step_by(ranks as usize).collect();
    // Every rank makes as many passes as the first, which has most: under ZeRO 3 each pass gathers the parameters.
    let passes = count.div_ceil(ranks).div_ceil(plan.micro_batch as u64) as usize;
    let samples = |pass: usize| own.chunks(plan.micro_batch).nth(pass).unwrap_or_default();
    let mut load = |pass| {
        let (own, none) = (samples(pass), [0]);
        let indices = if own.is_empty() { &none } else { own };
        let mut batch = batch::collect(plan, indices.iter().map(|&i| corpus.sequential(i)), pairs.as_ref())?;
        if own.is_empty() {
            batch.empty();
        }
        Ok(batch.micro(model))
    };
    let sequences = |pass| samples(pass).len().max(1);
    let work = StageWork { model, units: &mut state.units, load: &mut load, sequences: &sequences, progress };
    let sums = pipeline.evaluate(work, passes)?;
    // Tensor ranks know the same loss, stages before the last know none.
    let tells = plan.topology.coord(Axis::Tensor) == 0;
    let sums = if tells { sums } else { LossSums::default() };
    let judged = pairs.map(|p| if tells { p.found.borrow().sums } else { PairSums::default() });
    let mut mine = vec![sums.loss, sums.tokens as f64];
    mine.extend(judged.iter().flat_map(|sums| sums.words()));
    let all = world.all_reduce_f64(&mine, Op::Sum)?;
    let pairs = judged.map(|_| PairSums::of_words(std::array::from_fn(|i| all[2 + i])));
    Ok(Validated { loss: all[0] / all[1], pairs })
}

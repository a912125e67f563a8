//! Loss on held-out text: fixed samples in fixed order, shared out over the data ranks.

use super::batch::{self, PairWork, Portion};
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
use crate::world::World;

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
    let count = (plan.config.validation.sequences as u64).min(corpus.epoch_len());
    let portion = Portion::of(plan, count);
    let mut load = |pass| Ok(portion.batch(pass, |i| corpus.sequential(i), pairs.as_ref())?.micro(model));
    let sequences = |pass| portion.sequences(pass);
    let work = StageWork { model, units: &mut state.units, load: &mut load, sequences: &sequences, progress };
    let sums = pipeline.evaluate(work, portion.passes)?;
    // Tensor ranks know the same loss, stages before the last know none.
    let tells = plan.topology.coord(Axis::Tensor) == 0;
    let sums = if tells { sums } else { LossSums::default() };
    let (all, pairs) = batch::sum_with_pairs(world, vec![sums.loss, sums.tokens as f64], pairs.as_ref(), tells)?;
    Ok(Validated { loss: all[0] / all[1], pairs })
}

//! The reference of a run of preference pairs: taken from disk, or computed with the weights that the run begins with.

use super::batch::{PairWork, Portion};
use super::reference::{List, Reference, ReferencePlace};
use super::state::State;
use crate::checkpoint::base::BaseSum;
use crate::checkpoint::Group;
use crate::data::{Mixture, PairId, Sample};
use crate::error::{Error, Exit, Result};
use crate::kernels::host::floats;
use crate::liveness::{Phase, Progress};
use crate::model::{Llama, PairLoss, PairsFound};
use crate::parallel::pipeline::{Pipeline, StageWork};
use crate::plan::Plan;
use crate::text::grouped;
use crate::topology::Axis;
use crate::world::{Op, World};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;
use tch::Device;

/// Passes of every replica between two collections.
const ROUND: usize = 64;
/// Bytes of a result: the pair's number, two log-probabilities.
const RESULT: usize = 24;

/// What the passes of a measurement need.
pub struct Measurement<'a> {
    pub plan: &'a Plan,
    pub world: &'a World,
    pub model: &'a Llama,
    pub pipeline: &'a Pipeline,
    pub progress: &'a Progress,
}

/// A checksum of the model that `state` holds, adapters included; of a run whose adapters begin at the seed they change nothing
/// and do not count. Collective.
pub fn weights_sum(plan: &Plan, world: &World, state: &State) -> Result<String> {
    let frozen = state.base.as_ref().map(|b| b.sum.clone());
    let fresh = plan.config.lora.as_ref().is_some_and(|l| l.weights.is_none());
    let mut sum = BaseSum::default();
    for piece in state.saved().iter().filter(|p| p.group == Group::Param && !fresh) {
        let values = piece.data().to_device(Device::Cpu).contiguous();
        sum.add(piece.param, piece.range.start, floats(&values));
    }
    let sum = BaseSum::of_words(&world.all_reduce_f64(&sum.words(), Op::Sum)?).text();
    let scale = plan.config.lora.as_ref().filter(|_| !fresh).map(|l| format!("x{}", l.scale()));
    Ok([Some(sum), scale, frozen].into_iter().flatten().collect::<Vec<_>>().join("-"))
}

impl Measurement<'_> {
    /// Log-probabilities of all pairs under the model that `state` holds, put down at `place`. Collective.
    pub fn make(&self, place: &ReferencePlace, state: &mut State, lists: [Option<&Mixture>; 2]) -> Result<Reference> {
        let pairs: u64 = lists.iter().flatten().flat_map(|m| m.pairs()).sum();
        let began = Instant::now();
        self.progress.at(Phase::Validate);
        if self.world.rank() == 0 {
            let place = place.dir().display();
            tracing::info!("computing the reference log-probabilities of {} pairs once, for {place}", grouped(pairs));
        }
        let mut values: [Vec<Vec<[f64; 2]>>; 2] = Default::default();
        for (list, mixture) in List::ALL.into_iter().zip(lists) {
            for (corpus, pairs) in mixture.map(Mixture::pairs).unwrap_or_default().into_iter().enumerate() {
                let pairs = if self.world.rank() == 0 { pairs } else { 0 };
                let mut of_corpus = vec![[f64::NAN; 2]; pairs as usize];
                if let Some(mixture) = mixture {
                    self.corpus(mixture, corpus, state, &mut of_corpus)?;
                }
                values[list as usize].push(of_corpus);
            }
        }
        let mine = if self.world.rank() == 0 { place.write(&values) } else { Ok(()) };
        self.world.agree(mine)?;
        if self.world.rank() == 0 {
            tracing::info!("the reference took {:.1} s", began.elapsed().as_secs_f64());
        }
        self.progress.at(Phase::Start);
        let made = place.find(self.world)?;
        made.ok_or_else(|| Error::new(Exit::Storage, format!("{} was written and is gone", place.dir().display())))
    }

    /// Into `values`, on rank 0, the pairs of one corpus.
    fn corpus(&self, mixture: &Mixture, corpus: usize, state: &mut State, values: &mut [[f64; 2]]) -> Result<()> {
        let Measurement { plan, world, .. } = self;
        let ranks = plan.topology.size(Axis::Data) as u64;
        let samples = mixture.samples(corpus);
        let portion = Portion::of(plan, samples);
        for first in (0..portion.passes).step_by(ROUND) {
            let count = ROUND.min(portion.passes - first);
            let read = |sample| mixture.of_corpus(corpus, sample);
            let measured = self.round(&portion, first, count, &read, state)?;
            let bytes: Vec<u8> = measured.iter().flat_map(|(id, logps)| packed(id, logps)).collect();
            for result in
                world.gather_bytes(&bytes, 0)?.iter().flat_map(|all| all.iter()).flat_map(|b| b.chunks_exact(RESULT))
            {
                let (number, logps) = unpacked(result);
                if let Some(value) = values.get_mut(number) {
                    *value = logps;
                }
            }
            let done = ((first + count) as u64 * ranks * plan.micro_batch as u64).min(samples);
            if world.rank() == 0 && count == ROUND {
                tracing::info!("reference: {} of {} samples", grouped(done), grouped(samples));
            }
        }
        Ok(())
    }

    /// `count` passes from `first` on, with what this rank is to say of them.
    fn round(
        &self, portion: &Portion, first: usize, count: usize, read: &dyn Fn(u64) -> Result<Sample>, state: &mut State,
    ) -> Result<Vec<(PairId, [f64; 2])>> {
        let Measurement { plan, model, pipeline, progress, .. } = self;
        let found = Rc::new(RefCell::new(PairsFound::default()));
        let dpo = plan.config.dpo.clone().unwrap_or_default();
        let work = PairWork { loss: PairLoss::of(&dpo), reference: None, found: found.clone() };
        let mut load = |pass| Ok(portion.batch(first + pass, read, Some(&work))?.micro(model));
        let sequences = |pass| portion.sequences(first + pass);
        let passes = StageWork { model, units: &mut state.units, load: &mut load, sequences: &sequences, progress };
        pipeline.evaluate(passes, count)?;
        // Tensor ranks know the same.
        let mut found = found.borrow_mut();
        Ok(if plan.topology.coord(Axis::Tensor) == 0 { std::mem::take(&mut found.measured) } else { Vec::new() })
    }
}

fn packed(id: &PairId, logps: &[f64; 2]) -> Vec<u8> {
    [id.number.to_le_bytes(), logps[0].to_le_bytes(), logps[1].to_le_bytes()].concat()
}

fn unpacked(bytes: &[u8]) -> (usize, [f64; 2]) {
    let word = |n: usize| std::array::from_fn(|i| bytes[8 * n + i]);
    (u64::from_le_bytes(word(0)) as usize, [f64::from_le_bytes(word(1)), f64::from_le_bytes(word(2))])
}

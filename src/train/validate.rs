//! Loss on held-out text: fixed samples in fixed order, shared out over the data ranks.

use super::batch::{self, PairWork, Portion};
use super::reference::{List, Reference};
use super::state::State;
use crate::data::Mixture;
use crate::error::Result;
use crate::events::{CorpusLoss, RunEvent};
use crate::kernels::LossSums;
use crate::liveness::Progress;
use crate::model::{Llama, Micro, PairSums, TokenGroups, TokenSums};
use crate::parallel::pipeline::{Pipeline, StageWork};
use crate::plan::Plan;
use crate::topology::Axis;
use crate::world::World;
use std::cell::RefCell;
use std::rc::Rc;

/// What validation reads.
pub struct HeldOut<'a> {
    pub corpus: &'a Mixture,
    /// Of preference pairs: what they are compared with.
    pub reference: Option<&'a Reference>,
}

/// What validation found, the same on every rank.
pub struct Validated {
    /// Nats per token that counts; of preference pairs their mean loss.
    pub loss: f64,
    /// Share of the tokens that count which the model thinks likeliest; `None` of pairs.
    pub accuracy: Option<f64>,
    /// By corpus, in the order of `data.validation`; none of pairs.
    corpora: Vec<TokenSums>,
    /// Sums over the held-out preference pairs, where it is made of them.
    pub pairs: Option<PairSums>,
}

impl Validated {
    /// What is written down of it after `step` steps; a corpus that is alone has no line of its own.
    pub fn event(&self, step: u64, corpus: &Mixture) -> RunEvent {
        let of = |(path, sums): (String, &TokenSums)| CorpusLoss {
            path,
            loss: sums.mean_loss(),
            accuracy: sums.accuracy(),
            tokens: sums.tokens as u64,
        };
        let corpora = match self.corpora.len() {
            0 | 1 => Vec::new(),
            _ => corpus.paths().zip(&self.corpora).map(of).collect(),
        };
        let (validation_loss, validation_accuracy) = (Some(self.loss), self.accuracy);
        RunEvent::Validation { step, validation_loss, validation_accuracy, corpora }
    }
}

/// Mean cross-entropy in nats per token over the first `validation.sequences` samples (or all there are), and over those of each
/// corpus; of preference pairs their mean loss.
pub fn validate(
    plan: &Plan, world: &World, model: &Llama, pipeline: &Pipeline, held_out: &HeldOut, state: &mut State,
    progress: &Progress,
) -> Result<Validated> {
    let corpus = held_out.corpus;
    let pairs = PairWork::of(plan, held_out.reference, List::Validation);
    let count = (plan.config.validation.sequences as u64).min(corpus.epoch_len());
    let portion = Portion::of(plan, count);
    let by_corpus = if pairs.is_some() { 0 } else { corpus.paths().len() };
    let found = Rc::new(RefCell::new(vec![TokenSums::default(); by_corpus]));
    let mut load = |pass| {
        let micro = portion.batch(pass, |i| corpus.sequential(i), pairs.as_ref())?.micro(model);
        let of = |i| vec![corpus.corpus_of(i) as i64; plan.config.data.sequence_length];
        let groups = pairs.is_none().then(|| TokenGroups { of: portion.places(pass, of), sums: found.clone() });
        Ok(Micro { groups, ..micro })
    };
    let sequences = |pass| portion.sequences(pass);
    let work = StageWork { model, units: &mut state.units, load: &mut load, sequences: &sequences, progress };
    let sums = pipeline.evaluate(work, portion.passes)?;
    // Tensor ranks know the same loss, stages before the last know none.
    let tells = plan.topology.coord(Axis::Tensor) == 0;
    let sums = if tells { sums } else { LossSums::default() };
    let mut mine = vec![sums.loss, sums.tokens as f64];
    let own = |s: &TokenSums| if tells { s.words() } else { TokenSums::default().words() };
    mine.extend(found.borrow().iter().flat_map(own));
    let (all, pairs) = batch::sum_with_pairs(world, mine, pairs.as_ref(), tells)?;
    let corpora: Vec<TokenSums> =
        all[2..2 + 3 * by_corpus].chunks_exact(3).map(|w| TokenSums::of_words([w[0], w[1], w[2]])).collect();
    let right: f64 = corpora.iter().map(|c| c.right).sum();
    Ok(Validated { loss: all[0] / all[1], accuracy: (by_corpus > 0).then(|| right / all[1]), corpora, pairs })
}

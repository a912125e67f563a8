//! Which samples a rank reads: a pure function of (step, rank, micro-batch), so that changing the number of ranks or the
//! accumulation changes who reads a sample, never which samples a step is made of.

use super::reference::{List, Reference};
use crate::data::{Mixture, Sample};
use crate::error::Result;
use crate::model::{dropout, positions, Documents, Llama, Micro, PairBatch, PairLoss, PairSums, PairsFound};
use crate::plan::Plan;
use crate::topology::Axis;
use crate::world::{Op, World};
use std::cell::RefCell;
use std::rc::Rc;
use tch::Tensor;

/// One micro-batch of B sequences of S tokens, as far as this rank of the context axis (c ranks) holds them.
pub struct Batch {
    /// [B,S/c] i64.
    pub tokens: Tensor,
    /// [B,S/c] i64, one position ahead in the whole sequence; of conversations −1 where a token does not count.
    pub targets: Tensor,
    /// Of the whole sequences, where `data.document_mask` asks for it, and of conversations.
    pub documents: Documents,
    /// [B·S/c] i32, what tells the tokens apart for dropout; None where there is none.
    pub noise: Option<Tensor>,
    /// The preference pairs in it; None where nothing is done with any.
    pub pairs: Option<PairBatch>,
}

impl Batch {
    /// As the layers of `model` read it.
    pub fn micro(self, model: &Llama) -> Micro {
        let micro = model.micro(&self.tokens, &self.targets, &self.documents);
        Micro { noise: self.noise, pairs: self.pairs, ..micro }
    }
}

/// What is done with the preference pairs of a list of corpora.
pub struct PairWork<'a> {
    pub loss: PairLoss,
    /// What they are compared with; None: their log-probabilities are measured.
    pub reference: Option<(&'a Reference, List)>,
    /// Where findings go.
    pub found: Rc<RefCell<PairsFound>>,
}

impl<'a> PairWork<'a> {
    /// Of the run of `plan`, if it has pairs and a reference.
    pub fn of(plan: &Plan, reference: Option<&'a Reference>, list: List) -> Option<PairWork<'a>> {
        let dpo = plan.config.dpo.as_ref()?;
        let reference = Some((reference?, list));
        Some(PairWork { loss: PairLoss::of(dpo), reference, found: Rc::default() })
    }
}

/// `mine` summed over all ranks, and the sums over the pairs that were judged; `tells`: whether those that this rank found count.
/// Collective.
pub fn sum_with_pairs(
    world: &World, mut mine: Vec<f64>, pairs: Option<&PairWork>, tells: bool,
) -> Result<(Vec<f64>, Option<PairSums>)> {
    let own = mine.len();
    let judged = pairs.map(|p| if tells { p.found.borrow().sums } else { PairSums::default() });
    mine.extend(judged.iter().flat_map(PairSums::words));
    let all = world.all_reduce_f64(&mine, Op::Sum)?;
    let pairs = judged.map(|_| PairSums::of_words(std::array::from_fn(|i| all[own + i])));
    Ok((all, pairs))
}

/// Samples 0, 1, … shared out over the data ranks, for passes without gradients.
pub struct Portion<'a> {
    plan: &'a Plan,
    own: Vec<u64>,
    /// Every rank makes as many passes as the first, which has most: under ZeRO 3 each pass gathers the parameters.
    pub passes: usize,
}

impl Portion<'_> {
    /// Of `count` samples.
    pub fn of(plan: &Plan, count: u64) -> Portion<'_> {
        let (rank, ranks) = (plan.topology.coord(Axis::Data) as u64, plan.topology.size(Axis::Data) as u64);
        let passes = count.div_ceil(ranks).div_ceil(plan.micro_batch as u64) as usize;
        Portion { plan, own: (rank..count).step_by(ranks as usize).collect(), passes }
    }

    fn samples(&self, pass: usize) -> &[u64] {
        self.own.chunks(self.plan.micro_batch).nth(pass).unwrap_or_default()
    }

    /// Sequences of a pass.
    pub fn sequences(&self, pass: usize) -> usize {
        self.samples(pass).len().max(1)
    }

    /// Of each place of a pass, as far as this rank holds them, what `of` says of the S places of a sample: [N] i64.
    pub fn places(&self, pass: usize, of: impl Fn(u64) -> Vec<i64>) -> Tensor {
        let s = self.plan.config.data.sequence_length as i64;
        let rows: Vec<i64> = self.indices(pass).iter().flat_map(|&i| of(i)).collect();
        own_part(self.plan, &Tensor::from_slice(&rows).view([-1, s])).reshape([-1]).to_device(self.plan.device)
    }

    /// Where no sample is left, the first stands in.
    fn indices(&self, pass: usize) -> &[u64] {
        match self.samples(pass) {
            [] => &[0],
            own => own,
        }
    }

    /// The batch of a pass. Where this rank has no sample left, it is one of which nothing counts.
    pub fn batch(&self, pass: usize, read: impl Fn(u64) -> Result<Sample>, pairs: Option<&PairWork>) -> Result<Batch> {
        let mut batch = collect(self.plan, self.indices(pass).iter().map(|&i| read(i)), pairs)?;
        if self.samples(pass).is_empty() {
            let _ = batch.targets.fill_(-1);
            batch.pairs = None;
        }
        Ok(batch)
    }
}

/// Global sample index of row `row` of micro-batch `micro` on data rank `rank` in `step`.
///
/// Step s is made of samples `s·G .. (s+1)·G`; rank r of R reads the r-th run of G/R of them.
pub fn sample_index(plan: &Plan, step: u64, rank: usize, micro: usize, row: usize) -> u64 {
    let global = plan.config.batch.global as u64;
    let per_rank = (plan.micro_batch * plan.accumulation) as u64;
    step * global + rank as u64 * per_rank + (micro * plan.micro_batch + row) as u64
}

/// The micro-batch `micro` of `step` for this rank.
pub fn train(plan: &Plan, corpus: &Mixture, step: u64, micro: usize, pairs: Option<&PairWork>) -> Result<Batch> {
    let rank = plan.topology.coord(Axis::Data);
    let index = |row| sample_index(plan, step, rank, micro, row);
    (0..plan.micro_batch).for_each(|row| tracing::trace!(step, sample = index(row), "read"));
    let batch = collect(plan, (0..plan.micro_batch).map(|row| corpus.sample(index(row))), pairs)?;
    let dropped = plan.config.lora.as_ref().is_some_and(|l| l.dropout > 0.0);
    let noise = dropped.then(|| noise(plan, (0..plan.micro_batch).map(index)));
    Ok(Batch { noise, ..batch })
}

/// Of each token of samples of S tokens, as far as this rank holds them: a word of its own.
fn noise(plan: &Plan, samples: impl Iterator<Item = u64>) -> Tensor {
    let (s, seed) = (plan.config.data.sequence_length, plan.config.seed);
    let words = samples.flat_map(|i| (0..s as u64).map(move |place| dropout::token(seed, i, place)));
    let all = Tensor::from_slice(&words.collect::<Vec<i32>>()).view([-1, s as i64]);
    own_part(plan, &all).reshape([-1]).to_device(plan.device)
}

/// Of whole sequences [B,S] what this rank of the context axis holds, [B,S/c].
fn own_part(plan: &Plan, all: &Tensor) -> Tensor {
    positions::share(all, plan.topology.coord(Axis::Context), plan.topology.size(Axis::Context))
}

/// Stacks samples of S + 1 ids.
fn collect(plan: &Plan, samples: impl Iterator<Item = Result<Sample>>, pairs: Option<&PairWork>) -> Result<Batch> {
    let samples = samples.collect::<Result<Vec<_>>>()?;
    let stack = |rows: Vec<Tensor>| Tensor::stack(&rows, 0).to_device(plan.device);
    let ids = stack(samples.iter().map(|s| Tensor::from_slice(&s.ids)).collect());
    let s = ids.size()[1] - 1;
    let own = |rows: &Tensor| own_part(plan, rows).contiguous();
    let pairs = pairs.map(|work| of_pairs(&samples, work, |rows| own(&stack(rows)).reshape([-1]))).transpose()?;
    // Conversations say of each target whether it counts; of running text every next token is one.
    let masked: Option<Vec<Tensor>> =
        samples.iter().map(|s| s.targets.as_ref().map(|t| Tensor::from_slice(t))).collect();
    let restart = masked.is_some();
    let targets = masked.map_or_else(|| ids.narrow(1, 1, s), stack);
    let documents = match plan.config.data.document_mask || restart {
        true => Documents { starts: samples.into_iter().map(|s| s.starts).collect(), restart },
        false => Documents::whole(),
    };
    Ok(Batch { tokens: own(&ids.narrow(1, 0, s)), targets: own(&targets), documents, noise: None, pairs })
}

/// The preference pairs of `samples`; `own` stacks rows of S numbers and takes this rank's part, [N].
fn of_pairs(samples: &[Sample], work: &PairWork, own: impl Fn(Vec<Tensor>) -> Tensor) -> Result<PairBatch> {
    let ids: Vec<_> = samples.iter().flat_map(|s| s.pairs.iter().copied()).collect();
    let (mut counts, mut rows, mut before) = (vec![[0.0; 2]; ids.len()], Vec::new(), 0);
    for sample in samples {
        let targets = sample.targets.as_deref().unwrap_or_default();
        let mut begins = sample.starts.iter().peekable();
        let mut document = 0;
        let row = targets.iter().enumerate().map(|(place, target)| {
            document += begins.next_if(|&&start| start == place).is_some() as usize;
            if document >= 2 * sample.pairs.len() {
                return 2 * ids.len() as i64;
            }
            let number = 2 * before + document;
            counts[number / 2][number % 2] += (*target >= 0) as u8 as f64;
            number as i64
        });
        rows.push(Tensor::from_slice(&row.collect::<Vec<_>>()));
        before += sample.pairs.len();
    }
    let against = match work.reference {
        Some((reference, list)) => {
            let all = ids.iter().map(|&id| reference.of(list, id)).collect::<Result<Vec<_>>>()?;
            Some((work.loss, all))
        }
        None => None,
    };
    Ok(PairBatch { ids, documents: own(rows), counts, against, found: work.found.clone() })
}

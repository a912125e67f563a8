//! Which samples a rank reads: a pure function of (step, rank, micro-batch), so that changing the number of ranks or the
//! accumulation changes who reads a sample, never which samples a step is made of.

use crate::data::{Mixture, Sample};
use crate::error::Result;
use crate::model::{dropout, positions, Documents};
use crate::plan::Plan;
use crate::topology::Axis;
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
pub fn train(plan: &Plan, corpus: &Mixture, step: u64, micro: usize) -> Result<Batch> {
    let rank = plan.topology.coord(Axis::Data);
    let index = |row| sample_index(plan, step, rank, micro, row);
    (0..plan.micro_batch).for_each(|row| tracing::trace!(step, sample = index(row), "read"));
    let batch = collect(plan, (0..plan.micro_batch).map(|row| corpus.sample(index(row))))?;
    let dropped = plan.config.lora.as_ref().is_some_and(|l| l.dropout > 0.0);
    let noise = dropped.then(|| noise(plan, (0..plan.micro_batch).map(index)));
    Ok(Batch { noise, ..batch })
}

/// Of each token of samples of S tokens, as far as this rank holds them: a word of its own.
fn noise(plan: &Plan, samples: impl Iterator<Item = u64>) -> Tensor {
    let (s, seed) = (plan.config.data.sequence_length, plan.config.seed);
    let words = samples.flat_map(|i| (0..s as u64).map(move |place| dropout::token(seed, i, place)));
    let all = Tensor::from_slice(&words.collect::<Vec<i32>>()).view([-1, s as i64]);
    let (rank, size) = (plan.topology.coord(Axis::Context), plan.topology.size(Axis::Context));
    positions::share(&all, rank, size).reshape([-1]).to_device(plan.device)
}

/// Stacks samples of S + 1 ids.
pub fn collect(plan: &Plan, samples: impl Iterator<Item = Result<Sample>>) -> Result<Batch> {
    let samples = samples.collect::<Result<Vec<_>>>()?;
    let stack = |rows: Vec<Tensor>| Tensor::stack(&rows, 0).to_device(plan.device);
    let ids = stack(samples.iter().map(|s| Tensor::from_slice(&s.ids)).collect());
    let s = ids.size()[1] - 1;
    let (rank, size) = (plan.topology.coord(Axis::Context), plan.topology.size(Axis::Context));
    let own = |rows: &Tensor| positions::share(rows, rank, size).contiguous();
    // Conversations say of each target whether it counts; of running text every next token is one.
    let masked: Option<Vec<Tensor>> =
        samples.iter().map(|s| s.targets.as_ref().map(|t| Tensor::from_slice(t))).collect();
    let restart = masked.is_some();
    let targets = masked.map_or_else(|| ids.narrow(1, 1, s), stack);
    let documents = match plan.config.data.document_mask || restart {
        true => Documents { starts: samples.into_iter().map(|s| s.starts).collect(), restart },
        false => Documents::whole(),
    };
    Ok(Batch { tokens: own(&ids.narrow(1, 0, s)), targets: own(&targets), documents, noise: None })
}

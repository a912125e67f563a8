//! Which samples a rank reads: a pure function of (step, rank, micro-batch), so that changing the number of ranks or the
//! accumulation changes who reads a sample, never which samples a step is made of.

use crate::data::Mixture;
use crate::error::Result;
use crate::plan::Plan;
use crate::topology::Axis;
use tch::{Device, Tensor};

/// One micro-batch: `tokens` and `targets` [B,S] i64, `targets` one position ahead.
pub struct Batch {
    pub tokens: Tensor,
    pub targets: Tensor,
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
    collect((0..plan.micro_batch).map(|row| corpus.sample(index(row))), plan.device)
}

/// Stacks samples of S + 1 ids.
pub fn collect(samples: impl Iterator<Item = Result<Vec<i64>>>, device: Device) -> Result<Batch> {
    let rows = samples.map(|s| Ok(Tensor::from_slice(&s?))).collect::<Result<Vec<_>>>()?;
    let ids = Tensor::stack(&rows, 0).to_device(device);
    let s = ids.size()[1] - 1;
    Ok(Batch { tokens: ids.narrow(1, 0, s).contiguous(), targets: ids.narrow(1, 1, s).contiguous() })
}

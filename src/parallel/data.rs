//! The data axis: replicas that each see a part of the batch.
//!
//! After the backward pass of the last micro-batch a rank owns the summed gradient of its shard of every unit
//! (reduce-scatter), updates that shard, and the ranks give each other the new parameters (all-gather): ZeRO stage 1,
//! arXiv:1910.02054 §5. Units are reduced in buckets while the backward pass goes on. The loss is scaled by 1 / tokens
//! of the global batch, so sums are all there is to do. An axis of one rank starts nothing.

use crate::error::{Error, Exit, Result};
use crate::layout::{Layout, Unit};
use crate::model::{Flat, Params};
use crate::wire::{Wire, Work};
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;
use tch::{Device, Kind, Tensor};

/// What communication of one step cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommTiming {
    /// Time the wire was busy, waiting for slower ranks included.
    pub busy: Duration,
    /// Part of it that the step waited for.
    pub exposed: Duration,
    /// Part of it that computation covered: `busy - exposed`.
    pub hidden: Duration,
    /// Bytes of the tensors that were reduced or gathered, on this rank.
    pub bytes: u64,
    /// Groups of collectives.
    pub buckets: usize,
}

impl AddAssign for CommTiming {
    fn add_assign(&mut self, o: CommTiming) {
        self.busy += o.busy;
        self.exposed += o.exposed;
        self.hidden += o.hidden;
        self.bytes += o.bytes;
        self.buckets += o.buckets;
    }
}

/// Zero-filled parameters and gradients of `layout`, placed where `wire` reaches them fastest. Collective.
///
/// Use it instead of [`Params::zeros`] before anything holds a view of the buffers (the optimizer does in fp32).
pub fn place(layout: &Layout, dtype: Kind, device: Device, wire: &dyn Wire) -> Result<Params> {
    if wire.size() == 1 || device != Device::Cpu {
        return Ok(Params::zeros(layout, dtype, device));
    }
    let total = layout.units.iter().map(|u| u.len).sum();
    let (param, grad) = (wire.tensor(total, dtype)?, wire.tensor(total, Kind::Float)?);
    let mut start = 0;
    let mut units = Vec::with_capacity(layout.units.len());
    for u in &layout.units {
        let piece = |t: &Tensor| t.narrow(0, start, u.len as i64);
        units.push(Flat { layout: Arc::new(u.clone()), param: piece(&param), grad: piece(&grad) });
        start += u.len as i64;
    }
    Ok(Params { units })
}

/// Whole units, adjacent in backward order, whose reduction starts together.
struct Bucket {
    /// Indices into [`Reducer::units`].
    units: Vec<usize>,
    /// Units not yet complete in this step.
    missing: usize,
}

struct ReducedUnit {
    unit: Unit,
    grad: Tensor,
    param: Tensor,
    bucket: usize,
    complete: bool,
}

/// Reduces gradients into shards, and gathers parameters, over the data axis.
pub struct Reducer {
    wire: Arc<dyn Wire>,
    units: Vec<ReducedUnit>,
    buckets: Vec<Bucket>,
    overlap: bool,
    under_way: Vec<Work>,
    started: CommTiming,
}

impl Reducer {
    /// For the buffers of `params`, which must stay the same ones. Units are put together, from the last to the first,
    /// until their gradients reach `bucket_mib` MiB. Without `overlap` nothing starts before [`Reducer::finish`].
    pub fn new(params: &Params, wire: Arc<dyn Wire>, bucket_mib: usize, overlap: bool) -> Reducer {
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut room = 0;
        let mut units = Vec::new();
        for (i, f) in params.units.iter().rev().enumerate() {
            if room == 0 {
                buckets.push(Bucket { units: Vec::new(), missing: 0 });
                room = (bucket_mib << 20).max(1);
            }
            let bucket = buckets.len() - 1;
            buckets[bucket].units.push(i);
            buckets[bucket].missing += 1;
            room = room.saturating_sub(f.layout.len * 4);
            let (grad, param) = (f.grad.shallow_clone(), f.param.shallow_clone());
            units.push(ReducedUnit { unit: f.layout.unit, grad, param, bucket, complete: false });
        }
        Reducer { wire, units, buckets, overlap, under_way: Vec::new(), started: CommTiming::default() }
    }

    /// The gradient of `unit` is complete: from here to [`Reducer::finish`] the buffer is the wire's. Call it in the
    /// last micro-batch of a step only, in the same order on every rank.
    pub fn unit_ready(&mut self, unit: Unit) -> Result<()> {
        if self.wire.size() == 1 {
            return Ok(());
        }
        let Some(u) = self.units.iter_mut().find(|u| u.unit == unit).filter(|u| !u.complete) else {
            return Err(Error::new(Exit::Internal, format!("the gradient of {unit:?} was complete twice in one step")));
        };
        u.complete = true;
        let b = u.bucket;
        self.buckets[b].missing -= 1;
        match self.overlap && self.buckets[b].missing == 0 {
            true => self.reduce(b),
            false => Ok(()),
        }
    }

    /// Starts what has not been started and waits for all: the shards of this rank then hold the sums over the axis;
    /// the rest of the gradients is undefined.
    pub fn finish(&mut self) -> Result<CommTiming> {
        if self.wire.size() == 1 {
            return Ok(CommTiming::default());
        }
        for b in 0..self.buckets.len() {
            if !(self.overlap && self.buckets[b].missing == 0) {
                self.reduce(b)?;
            }
            self.buckets[b].missing = self.buckets[b].units.len();
        }
        self.units.iter_mut().for_each(|u| u.complete = false);
        self.wait()
    }

    /// Every rank ends with the parameters that their owners updated.
    pub fn gather_params(&mut self) -> Result<CommTiming> {
        if self.wire.size() == 1 {
            return Ok(CommTiming::default());
        }
        for u in self.units.iter().rev() {
            let own = shard(&u.param, &*self.wire);
            self.under_way.push(self.wire.all_gather(&own, &u.param)?);
            self.started.bytes += bytes(&u.param);
        }
        self.started.buckets += 1;
        self.wait()
    }

    fn reduce(&mut self, b: usize) -> Result<()> {
        for &i in &self.buckets[b].units {
            let grad = &self.units[i].grad;
            self.under_way.push(self.wire.reduce_scatter(grad, &shard(grad, &*self.wire))?);
            self.started.bytes += bytes(grad);
        }
        self.started.buckets += 1;
        Ok(())
    }

    fn wait(&mut self) -> Result<CommTiming> {
        let mut total = std::mem::take(&mut self.started);
        for work in self.under_way.drain(..) {
            let t = work.wait()?;
            total.busy += t.busy;
            total.exposed += t.exposed;
        }
        total.hidden = total.busy.saturating_sub(total.exposed);
        Ok(total)
    }
}

/// This rank's chunk of a flat buffer, as [`crate::layout::UnitLayout::shard`] has it.
fn shard(flat: &Tensor, wire: &dyn Wire) -> Tensor {
    let n = flat.numel() as i64 / wire.size() as i64;
    flat.narrow(0, n * wire.rank() as i64, n)
}

fn bytes(t: &Tensor) -> u64 {
    (t.numel() * t.kind().elt_size_in_bytes()) as u64
}

/// Compares a hash of every unit's parameters over the replicas, bit for bit. Collective.
///
/// A difference means that memory was corrupted on some rank, or a bug: [`Exit::Internal`], on every rank, with the
/// first unit that differs and the ranks of this axis that do not hold what most hold.
pub fn sync_check(params: &Params, wire: &dyn Wire) -> Result<()> {
    if wire.size() == 1 {
        return Ok(());
    }
    let hashes: Vec<i64> = params.units.iter().map(|f| hash(&f.param)).collect();
    let all = Tensor::zeros([(hashes.len() * wire.size()) as i64], (Kind::Int64, Device::Cpu));
    wire.all_gather(&Tensor::from_slice(&hashes), &all)?.wait()?;
    let all = Vec::<i64>::try_from(&all)?;
    for (i, f) in params.units.iter().enumerate() {
        let column: Vec<i64> = all.iter().skip(i).step_by(hashes.len()).copied().collect();
        if let Some(who) = odd_ones(&column) {
            return Err(Error::new(
                Exit::Internal,
                format!("the parameters of {:?} differ between {} replicas: {who}", f.layout.unit, wire.size()),
            )
            .hint("suspect memory or the network of those ranks' nodes; start again from a checkpoint"));
        }
    }
    Ok(())
}

/// Which entries are not what most are; `None` when all are equal.
fn odd_ones(column: &[i64]) -> Option<String> {
    let count = |x: i64| column.iter().filter(|&&y| y == x).count();
    let most = column.iter().copied().max_by_key(|&x| count(x))?;
    if count(most) == column.len() {
        return None;
    }
    if 2 * count(most) <= column.len() {
        return Some("no majority among them".into());
    }
    let odd: Vec<String> = (0..column.len()).filter(|&r| column[r] != most).map(|r| r.to_string()).collect();
    Some(format!("data rank {} against all others", odd.join(", ")))
}

fn hash(t: &Tensor) -> i64 {
    let host = t.to_device(Device::Cpu).contiguous();
    // SAFETY: a contiguous host tensor of that many bytes, alive until after the hash.
    let raw = unsafe { std::slice::from_raw_parts(host.data_ptr().cast::<u8>(), bytes(&host) as usize) };
    xxhash_rust::xxh3::xxh3_64(raw) as i64
}

#[cfg(test)]
mod tests {
    use super::odd_ones;

    #[test]
    fn a_replica_that_differs_is_named() {
        assert_eq!(odd_ones(&[5, 5, 5]), None);
        assert_eq!(odd_ones(&[5, 7, 5, 8]).as_deref(), Some("no majority among them"));
        assert_eq!(odd_ones(&[5, 7, 5]).as_deref(), Some("data rank 1 against all others"));
        assert_eq!(odd_ones(&[5, 7]).as_deref(), Some("no majority among them"));
    }
}

//! Gradients of stages 2 and 3: a rank keeps the sum of its part alone.
//!
//! A whole unit's buffer exists from the first hold that writes to it until the unit is complete for a micro-batch; then it
//! is reduced into the part of each rank while the next unit's backward pass goes on. Where enough buffers exist the next
//! unit waits for one to come back: two for the blocks and one for embedding and head ([`super::pool`]). A schedule that
//! splits the backward pass keeps the buffers of the units in between as well.

use super::pool::{Buffer, Pool};
use super::{miscounted, ZeroOptions};
use crate::error::{Error, Exit, Result};
use crate::kernels;
use crate::layout::{Unit, UnitLayout};
use crate::model::{Accumulate, Flat, Use, Written};
use crate::parallel::Groups;
use crate::wire::{CommTiming, Wire, Work};
use crate::world::Op;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

pub(super) struct ZeroShards {
    units: Vec<ShardUnit>,
    pool: Pool,
    device: Device,
    micro_batches: usize,
    overlap: bool,
    shard: Arc<dyn Wire>,
    across: Arc<dyn Wire>,
    reducing: VecDeque<Reducing>,
    under_way: Vec<Work>,
}

struct ShardUnit {
    layout: Arc<UnitLayout>,
    range: Range<usize>,
    /// The sum over replicas and micro-batches so far.
    own: Tensor,
    buffer: Option<Buffer>,
    written: Written,
    completed: usize,
}

/// One micro-batch's sum over the replicas.
struct Reducing {
    unit: usize,
    buffer: Buffer,
    work: Work,
    /// The sum lies in the buffer and is to be added to what is there; else it goes to its place at once.
    add: bool,
    last: bool,
}

impl ZeroShards {
    pub fn new(layouts: &[Arc<UnitLayout>], how: &ZeroOptions, groups: &Groups) -> Result<ZeroShards> {
        let unit = |u: &Arc<UnitLayout>| {
            let range = how.sharding.range(u);
            let own = Tensor::zeros([range.len() as i64], (Kind::Float, how.device));
            ShardUnit { layout: u.clone(), own, range, buffer: None, written: Written::default(), completed: 0 }
        };
        Ok(ZeroShards {
            units: layouts.iter().map(unit).collect(),
            pool: Pool::new(layouts),
            device: how.device,
            micro_batches: 0,
            overlap: how.overlap,
            shard: groups.shard.clone(),
            across: groups.across.clone(),
            reducing: VecDeque::new(),
            under_way: Vec::new(),
        })
    }

    pub fn own(&self, i: usize) -> Tensor {
        self.units[i].own.shallow_clone()
    }

    pub fn begin(&mut self, micro_batches: usize) {
        self.micro_batches = micro_batches;
        self.units.iter_mut().for_each(|u| u.completed = 0);
    }

    pub fn hold(&mut self, i: usize, usage: Use, flat: &mut Flat, spent: &mut CommTiming) -> Result<Accumulate> {
        if self.units[i].buffer.is_none() {
            let len = self.units[i].layout.len;
            while self.pool.should_wait(len) && !self.reducing.is_empty() {
                self.settle(self.reducing.len() - 1, spent)?;
            }
            let (wire, device) = (&self.shard, self.device);
            let buffer = self.pool.take(len, |len| match device {
                Device::Cpu => wire.tensor(len, Kind::Float),
                _ => Ok(Tensor::zeros([len as i64], (Kind::Float, device))),
            })?;
            let u = &mut self.units[i];
            let used = u.layout.used as i64;
            let _ = buffer.tensor.narrow(0, used, u.layout.len as i64 - used).zero_();
            (u.buffer, u.written) = (Some(buffer), Written::default());
        }
        let u = &mut self.units[i];
        if let Some(buffer) = &u.buffer {
            flat.grad = buffer.tensor.shallow_clone();
        }
        Ok(u.written.accumulate(usage, flat))
    }

    pub fn complete(&mut self, i: usize, spent: &mut CommTiming) -> Result<()> {
        let micro_batches = self.micro_batches;
        let u = &mut self.units[i];
        u.completed += 1;
        if u.completed > micro_batches {
            return Err(miscounted(u.layout.unit, u.completed, micro_batches));
        }
        let Some(buffer) = u.buffer.take() else {
            return Err(Error::new(Exit::Internal, format!("{:?} is complete but was not held", u.layout.unit)));
        };
        let grad = buffer.tensor.shallow_clone();
        // A schedule may have come to the norms of a micro-batch but not to its matrices.
        let layout = u.layout.clone();
        u.written.clear_rest(&Flat { layout, param: Tensor::new(), grad: grad.shallow_clone(), adapter: None });
        let add = u.completed > 1;
        let into = match add {
            true => part(&grad, &u.range),
            false => u.own.shallow_clone(),
        };
        let work = self.shard.reduce_scatter(&grad, &into)?;
        spent.moved(&grad);
        spent.buckets += 1;
        let last = u.completed == micro_batches;
        self.reducing.push_back(Reducing { unit: i, buffer, work, add, last });
        match self.overlap {
            true => Ok(()),
            false => self.settle(0, spent),
        }
    }

    /// Waits for everything: the own parts then hold the sums of the step.
    pub fn finish(&mut self, spent: &mut CommTiming) -> Result<()> {
        if let Some(u) = self.units.iter().find(|u| u.completed != self.micro_batches) {
            let unit: Unit = u.layout.unit;
            return Err(miscounted(unit, u.completed, self.micro_batches));
        }
        self.settle(0, spent)?;
        self.under_way.drain(..).try_for_each(|work| spent.wait(work))
    }

    /// Waits for all but the newest `keep` reductions.
    fn settle(&mut self, keep: usize, spent: &mut CommTiming) -> Result<()> {
        while self.reducing.len() > keep {
            let Some(r) = self.reducing.pop_front() else { break };
            spent.wait(r.work)?;
            let u = &self.units[r.unit];
            if r.add {
                kernels::accumulate(&u.own, &part(&r.buffer.tensor, &u.range));
            }
            if r.last && self.across.size() > 1 {
                self.under_way.push(self.across.all_reduce(&u.own, Op::Sum)?);
                spent.moved(&u.own);
            }
            self.pool.give(r.buffer);
        }
        Ok(())
    }
}

fn part(flat: &Tensor, range: &Range<usize>) -> Tensor {
    flat.narrow(0, range.start as i64, range.len() as i64)
}

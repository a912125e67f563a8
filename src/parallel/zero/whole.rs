//! Gradients of stages 0 and 1: whole on every replica, summed once a step in buckets of units.

use super::{miscounted, ZeroOptions};
use crate::error::Result;
use crate::layout::{Unit, UnitLayout};
use crate::model::{Accumulate, Flat, Use, Written};
use crate::parallel::Groups;
use crate::wire::{CommTiming, Wire, Work};
use crate::world::Op;
use std::collections::VecDeque;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

pub(super) struct Whole {
    units: Vec<WholeUnit>,
    buckets: Vec<Bucket>,
    micro_batches: usize,
    overlap: bool,
    /// Over the ranks of a copy of the state: each gets the sum of its part.
    shard: Arc<dyn Wire>,
    /// Over the copies: sums of parts.
    across: Arc<dyn Wire>,
    /// Buckets whose parts are being summed inside the group, and then go across.
    inside: VecDeque<(usize, Vec<Work>)>,
    under_way: Vec<Work>,
}

struct WholeUnit {
    unit: Unit,
    grad: Tensor,
    /// Its part that this rank updates.
    own: Tensor,
    bucket: usize,
    written: Written,
    completed: usize,
}

/// Whole units, adjacent in backward order, whose reduction starts together.
struct Bucket {
    units: Vec<usize>,
    /// Units not yet complete in this step.
    missing: usize,
    started: bool,
}

impl Whole {
    pub fn new(layouts: &[Arc<UnitLayout>], how: &ZeroOptions, groups: &Groups) -> Result<Whole> {
        let Groups { shard, across, .. } = groups.clone();
        let total: usize = layouts.iter().map(|u| u.len).sum();
        let all = match how.device {
            Device::Cpu if total > 0 && shard.size() > 1 => shard.tensor(total, Kind::Float)?,
            Device::Cpu if total > 0 && across.size() > 1 => across.tensor(total, Kind::Float)?,
            device => Tensor::zeros([total as i64], (Kind::Float, device)),
        };
        let mut at = 0;
        let mut units = Vec::with_capacity(layouts.len());
        for u in layouts {
            let grad = all.narrow(0, at, u.len as i64);
            let range = how.sharding.range(u);
            let own = grad.narrow(0, range.start as i64, range.len() as i64);
            units.push(WholeUnit { unit: u.unit, grad, own, bucket: 0, written: Written::default(), completed: 0 });
            at += u.len as i64;
        }
        // From the last unit to the first: the order in which the backward pass completes them.
        let mut buckets: Vec<Bucket> = Vec::new();
        let mut room = 0;
        for (i, u) in layouts.iter().enumerate().rev() {
            if room == 0 {
                buckets.push(Bucket { units: Vec::new(), missing: 0, started: false });
                room = (how.bucket_mib << 20).max(1);
            }
            units[i].bucket = buckets.len() - 1;
            if let Some(b) = buckets.last_mut() {
                b.units.push(i);
            }
            room = room.saturating_sub(u.len * 4);
        }
        Ok(Whole {
            units,
            buckets,
            micro_batches: 0,
            overlap: how.overlap,
            shard,
            across,
            inside: VecDeque::new(),
            under_way: Vec::new(),
        })
    }

    pub fn own(&self, i: usize) -> Tensor {
        self.units[i].own.shallow_clone()
    }

    pub fn begin(&mut self, micro_batches: usize) {
        self.micro_batches = micro_batches;
        for u in &mut self.units {
            (u.completed, u.written) = (0, Written::default());
        }
        for b in &mut self.buckets {
            (b.missing, b.started) = (b.units.len(), false);
        }
    }

    pub fn hold(&mut self, i: usize, usage: Use, flat: &mut Flat) -> Accumulate {
        let u = &mut self.units[i];
        flat.grad = u.grad.shallow_clone();
        u.written.accumulate(usage, flat)
    }

    /// After the last micro-batch the buffer is the wire's until [`Whole::finish`].
    pub fn complete(&mut self, i: usize, spent: &mut CommTiming) -> Result<()> {
        let micro_batches = self.micro_batches;
        let u = &mut self.units[i];
        u.completed += 1;
        if u.completed > micro_batches {
            return Err(miscounted(u.unit, u.completed, micro_batches));
        }
        if u.completed < micro_batches {
            return Ok(());
        }
        let b = u.bucket;
        self.buckets[b].missing -= 1;
        match self.overlap && self.buckets[b].missing == 0 {
            true => self.reduce(b, spent),
            false => Ok(()),
        }
    }

    /// Starts what has not been started and waits for all: the own parts then hold the sums; the rest is undefined.
    pub fn finish(&mut self, spent: &mut CommTiming) -> Result<()> {
        if let Some(u) = self.units.iter().find(|u| u.completed != self.micro_batches) {
            return Err(miscounted(u.unit, u.completed, self.micro_batches));
        }
        for b in 0..self.buckets.len() {
            if !self.buckets[b].started {
                self.reduce(b, spent)?;
            }
        }
        self.go_across(0, spent)?;
        self.under_way.drain(..).try_for_each(|work| spent.wait(work))
    }

    fn reduce(&mut self, b: usize, spent: &mut CommTiming) -> Result<()> {
        self.buckets[b].started = true;
        if self.shard.size() == 1 && self.across.size() == 1 {
            return Ok(());
        }
        spent.buckets += 1;
        let mut inside = Vec::new();
        if self.shard.size() > 1 {
            for &i in &self.buckets[b].units {
                let WholeUnit { grad, own, .. } = &self.units[i];
                inside.push(self.shard.reduce_scatter(grad, own)?);
                spent.moved(grad);
            }
        }
        if self.across.size() == 1 {
            self.under_way.append(&mut inside);
            return Ok(());
        }
        self.inside.push_back((b, inside));
        // The bucket before has had the time that this one's backward pass took.
        self.go_across(if self.shard.size() > 1 { 1 } else { 0 }, spent)
    }

    /// Sends all but the newest `keep` buckets on to the other copies.
    fn go_across(&mut self, keep: usize, spent: &mut CommTiming) -> Result<()> {
        while self.inside.len() > keep {
            let Some((b, inside)) = self.inside.pop_front() else { break };
            inside.into_iter().try_for_each(|work| spent.wait(work))?;
            for &i in &self.buckets[b].units {
                let own = &self.units[i].own;
                self.under_way.push(self.across.all_reduce(own, Op::Sum)?);
                spent.moved(own);
            }
        }
        Ok(())
    }
}

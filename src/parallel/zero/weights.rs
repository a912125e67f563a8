//! Where parameters lie and when they are gathered.
//!
//! Stages 0 to 2 keep them whole and gather each unit after the update. Under stage 3 a rank keeps its part. Where the
//! ranks of a copy share memory, the parts of a unit lie back to back there and are the whole unit without a gather, once a
//! node ([`crate::wire::Wire::window`]). Elsewhere a unit is gathered into a buffer when it is held, the one after it
//! while it is used, and the buffer goes when nobody holds the unit. A quantized unit lies in its bits on every rank, and is made
//! into such a buffer when it is held.

use super::blockwise::BlockwiseUnit;
use super::order::UnitOrder;
use super::pool::{Buffer, Pool};
use super::ZeroOptions;
use crate::error::{Error, Exit, Result};
use crate::kernels;
use crate::layout::{Param, UnitLayout};
use crate::model::Use;
use crate::wire::{CommTiming, Wire, Work};
use crate::world::Op;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

pub(super) struct UnitWeights {
    units: Vec<WeightUnit>,
    pub order: UnitOrder,
    lie: Placement,
    pool: Pool,
    dtype: Kind,
    device: Device,
    overlap: bool,
    /// The ranks that share one copy of the state.
    wire: Arc<dyn Wire>,
    /// Under way since the update: one rank's word that it has written its parts.
    written: Option<(Work, Tensor)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Placement {
    /// Whole on every rank.
    Whole,
    /// Whole once a node.
    Window,
    /// In parts.
    Parts,
}

struct WeightUnit {
    layout: Arc<UnitLayout>,
    /// The part that this rank updates.
    own: Tensor,
    /// The whole unit where it lies whole.
    whole: Option<Tensor>,
    /// The whole unit in fewer bits; `own` is empty then.
    quantized: Option<BlockwiseUnit>,
    gathered: Option<Buffer>,
    gather: Option<Work>,
    holds: usize,
}

impl UnitWeights {
    pub fn new(layouts: &[Arc<UnitLayout>], how: &ZeroOptions, wire: Arc<dyn Wire>) -> Result<UnitWeights> {
        let (dtype, device) = (how.dtype, how.device);
        let window = how.sharding.stage == 3 && device == Device::Cpu;
        let mut lie = if how.sharding.stage == 3 { Placement::Parts } else { Placement::Whole };
        let mut units = Vec::new();
        if window {
            for u in layouts {
                // The answer is the same for each.
                let Some(whole) = wire.window(u.len / how.sharding.group, dtype)? else { break };
                units.push(unit(u, how, Some(whole), None));
                lie = Placement::Window;
            }
        }
        if lie != Placement::Window {
            let len = |u: &UnitLayout| match lie {
                _ if how.quantizes(u).is_some() => 0,
                Placement::Parts => u.len / how.sharding.group,
                _ => u.len,
            };
            let total: usize = layouts.iter().map(|u| len(u)).sum();
            let all = match device {
                Device::Cpu if wire.size() > 1 => wire.tensor(total, dtype)?,
                _ => Tensor::zeros([total as i64], (dtype, device)),
            };
            let mut at = 0;
            for u in layouts {
                let piece = all.narrow(0, at, len(u) as i64);
                at += len(u) as i64;
                units.push(match lie {
                    _ if how.quantizes(u).is_some() => unit(u, how, None, Some(piece)),
                    Placement::Parts => unit(u, how, None, Some(piece)),
                    _ => unit(u, how, Some(piece), None),
                });
            }
        }
        let pool = Pool::new(layouts);
        let (order, overlap) = (UnitOrder::default(), how.overlap);
        Ok(UnitWeights { units, order, lie, pool, dtype, device, overlap, wire, written: None })
    }

    pub fn own(&self, i: usize) -> Tensor {
        self.units[i].own.shallow_clone()
    }

    /// Unit `i` where it is quantized.
    pub fn quantized(&self, i: usize) -> Option<&BlockwiseUnit> {
        self.units[i].quantized.as_ref()
    }

    /// Rounds values into a parameter of unit `i`, from its local element `start` on; the part that this rank keeps begins at `own`.
    pub fn set(&mut self, i: usize, own: usize, p: &Param, start: usize, values: &[f32]) {
        let u = &mut self.units[i];
        if let Some(unit) = &mut u.quantized {
            return unit.set(p, start, values);
        }
        let part = u.own.narrow(0, (p.start + start - own) as i64, values.len() as i64);
        kernels::cast(&part, &Tensor::from_slice(values).to_device(part.device()));
    }

    /// What lies on this rank between steps.
    pub fn resident(&self, i: usize) -> Tensor {
        let u = &self.units[i];
        if let Some(unit) = &u.quantized {
            return unit.stored();
        }
        u.whole.as_ref().filter(|_| self.lie == Placement::Whole).unwrap_or(&u.own).shallow_clone()
    }

    /// The whole unit; nothing for a use that reads no parameters.
    pub fn hold(&mut self, i: usize, usage: Use, spent: &mut CommTiming) -> Result<Tensor> {
        if let Some((work, _)) = self.written.take() {
            spent.wait(work)?;
        }
        if self.units[i].quantized.is_some() {
            return self.unpacked(i, usage);
        }
        if self.lie != Placement::Parts {
            let u = &mut self.units[i];
            if let Some(work) = u.gather.take() {
                spent.wait(work)?;
            }
            let whole = u.whole.as_ref().map(Tensor::shallow_clone);
            return whole.ok_or_else(|| Error::new(Exit::Internal, "a unit that lies whole has no buffer"));
        }
        if usage == Use::BackwardWeight {
            return Ok(Tensor::empty([0], (self.dtype, self.device)));
        }
        self.order.want(i);
        let whole = self.gather(i, spent)?;
        if let Some(work) = self.units[i].gather.take() {
            spent.wait(work)?;
        }
        self.units[i].holds += 1;
        if let (true, Some(next)) = (self.overlap, self.order.next()) {
            let _ = self.gather(next, spent)?;
        }
        Ok(whole)
    }

    /// The same of a quantized unit.
    fn unpacked(&mut self, i: usize, usage: Use) -> Result<Tensor> {
        let options = (self.dtype, self.device);
        if usage == Use::BackwardWeight {
            return Ok(Tensor::empty([0], options));
        }
        self.order.want(i);
        let u = &mut self.units[i];
        u.holds += 1;
        if let (None, Some(unit)) = (&u.gathered, &u.quantized) {
            let buffer = self.pool.take(u.layout.len, |len| Ok(Tensor::zeros([len as i64], options)))?;
            unit.get(&buffer.tensor);
            u.gathered = Some(buffer);
        }
        let made = u.gathered.as_ref().map(|buffer| buffer.tensor.shallow_clone());
        made.ok_or_else(|| Error::new(Exit::Internal, "a quantized unit has no buffer"))
    }

    pub fn release(&mut self, i: usize, usage: Use) {
        let lies = self.lie != Placement::Parts && self.units[i].quantized.is_none();
        if lies || usage == Use::BackwardWeight {
            return;
        }
        let u = &mut self.units[i];
        u.holds = u.holds.saturating_sub(1);
        if u.holds == 0 && self.order.next() != Some(i) {
            if let Some(buffer) = u.gathered.take() {
                self.pool.give(buffer);
            }
        }
    }

    /// The owners have written the units that are trained, or those that are `frozen`: starts what it takes until every rank reads the new
    /// parameters. What was started before and never waited for ends first: it would bring old ones.
    pub fn publish(&mut self, frozen: bool, spent: &mut CommTiming) -> Result<()> {
        if self.wire.size() == 1 {
            return Ok(());
        }
        self.settle(spent)?;
        match self.lie {
            Placement::Whole => {
                for u in self.units.iter_mut().filter(|u| u.layout.frozen == frozen) {
                    if let Some(whole) = &u.whole {
                        u.gather = Some(self.wire.all_gather(&u.own, whole)?);
                        spent.moved(whole);
                    }
                }
                spent.buckets += 1;
            }
            Placement::Window => {
                let word = Tensor::zeros([1], (Kind::Float, Device::Cpu));
                self.written = Some((self.wire.all_reduce(&word, Op::Sum)?, word));
                spent.buckets += 1;
            }
            // What was gathered ahead of the update would be old.
            Placement::Parts => {
                for i in 0..self.units.len() {
                    if self.units[i].holds == 0 && self.units[i].layout.frozen == frozen {
                        if let Some(work) = self.units[i].gather.take() {
                            spent.wait(work)?;
                        }
                        if let Some(buffer) = self.units[i].gathered.take() {
                            self.pool.give(buffer);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    pub fn settle(&mut self, spent: &mut CommTiming) -> Result<()> {
        if let Some((work, _)) = self.written.take() {
            spent.wait(work)?;
        }
        for u in self.units.iter_mut() {
            if let Some(work) = u.gather.take() {
                spent.wait(work)?;
            }
        }
        Ok(())
    }

    /// Starts to gather unit `i` unless that was done.
    fn gather(&mut self, i: usize, spent: &mut CommTiming) -> Result<Tensor> {
        let u = &mut self.units[i];
        if let Some(buffer) = &u.gathered {
            return Ok(buffer.tensor.shallow_clone());
        }
        let options = (self.dtype, self.device);
        let buffer = self.pool.take(u.layout.len, |len| Ok(Tensor::zeros([len as i64], options)))?;
        let whole = buffer.tensor.shallow_clone();
        u.gather = Some(self.wire.all_gather(&u.own, &whole)?);
        u.gathered = Some(buffer);
        spent.moved(&whole);
        spent.buckets += 1;
        Ok(whole)
    }
}

/// A unit of which this rank owns a part of `whole`, or `part`.
fn unit(layout: &Arc<UnitLayout>, how: &ZeroOptions, whole: Option<Tensor>, part: Option<Tensor>) -> WeightUnit {
    let range = how.sharding.range(layout);
    let own = match (&whole, part) {
        (_, Some(part)) => part,
        (Some(whole), None) => whole.narrow(0, range.start as i64, range.len() as i64),
        (None, None) => Tensor::new(),
    };
    let quantized = how.quantizes(layout).map(|format| BlockwiseUnit::new(format, layout, how.device));
    WeightUnit { layout: layout.clone(), own, whole, quantized, gathered: None, gather: None, holds: 0 }
}

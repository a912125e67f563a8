//! ZeRO stages 0 to 3 (arXiv:1910.02054 §5) and hybrid sharding: the units of one rank, shared out over its replicas.
//!
//! | stage | optimizer | gradients | parameters | collectives of a unit |
//! | --- | --- | --- | --- | --- |
//! | 0 | whole | whole | whole | all-reduce of gradients once a step |
//! | 1 | shard | whole | whole | reduce-scatter once a step, all-gather of parameters after the update |
//! | 2 | shard | shard | whole | reduce-scatter each micro-batch, all-gather after the update |
//! | 3 | shard | shard | shard | reduce-scatter each micro-batch, all-gather before each forward and backward use |
//!
//! - `whole`: gradients of stages 0 and 1, reduced in buckets while the last backward pass goes on
//! - `shards`: gradients of stages 2 and 3, reduced unit by unit
//! - `weights`: where parameters lie, when they are gathered
//! - `frozen`, `blockwise`: what is read only, and may lie in fewer bits
//! - `order`: what will be gathered next
//! - `pool`: buffers that come and go

mod blockwise;
mod frozen;
mod order;
mod pool;
mod shards;
mod weights;
mod whole;

use super::Groups;
use crate::config::BlockFormat;
use crate::error::{Error, Exit, Result};
use crate::layout::{Layout, Sharding, Unit, UnitLayout};
use crate::model::units::adapter_of;
use crate::model::{Accumulate, Flat, Held, Owned, Units, Use};
use crate::plan::Plan;
use crate::wire::CommTiming;
use shards::ZeroShards;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};
use weights::UnitWeights;
use whole::Whole;

/// What the buffers are like and how they move.
#[derive(Clone, Copy, Debug)]
pub struct ZeroOptions {
    /// Which part of each unit this rank keeps and updates.
    pub sharding: Sharding,
    /// Of parameters, gathered or not; gradients are fp32.
    pub dtype: Kind,
    /// Where parameters and gradients of this rank lie.
    pub device: Device,
    /// Gradients of whole units are put together until they reach this (stages 0 and 1).
    pub bucket_mib: usize,
    /// Communication goes on while the caller computes; without it nothing starts before it is waited for.
    pub overlap: bool,
    /// How the matrices of frozen blocks lie; None: in `dtype`. Of stages 0 to 2.
    pub quantize: Option<BlockFormat>,
}

impl ZeroOptions {
    /// As the plan's configuration, topology, dtype and device have it.
    pub fn of(plan: &Plan) -> ZeroOptions {
        ZeroOptions {
            sharding: Sharding::new(&plan.config.parallel, &plan.topology),
            dtype: plan.dtype,
            device: plan.device,
            bucket_mib: plan.config.parallel.bucket_mib,
            overlap: plan.config.parallel.overlap,
            quantize: plan.config.quantize(),
        }
    }

    /// The bits in which a unit lies.
    fn quantizes(&self, unit: &UnitLayout) -> Option<BlockFormat> {
        self.quantize.filter(|_| unit.frozen && unit.is_block())
    }
}

/// The units of one rank: [`Units`] over its replicas.
///
/// A step is [`Sharded::begin`], the passes, [`Sharded::finish`], an update of what [`Sharded::owned`] shows, and
/// [`Sharded::publish`]. Holds outside of a step only read. All replicas make the same calls in the same order.
pub struct Sharded {
    how: ZeroOptions,
    groups: Groups,
    index: HashMap<Unit, usize>,
    layouts: Vec<std::sync::Arc<crate::layout::UnitLayout>>,
    /// Of each unit its number among those that are trained.
    trained: Vec<Option<usize>>,
    weights: UnitWeights,
    gradients: Gradients,
    spent: CommTiming,
}

enum Gradients {
    Whole(Whole),
    ZeroShards(ZeroShards),
}

impl Sharded {
    /// Zero-filled units of `layout`, placed where the wires reach them fastest. Collective over `groups`.
    pub fn new(layout: &Layout, how: ZeroOptions, groups: Groups) -> Result<Sharded> {
        let layouts: Vec<_> = layout.units.iter().map(|u| std::sync::Arc::new(u.clone())).collect();
        let mut count = 0;
        let number = |u: &std::sync::Arc<crate::layout::UnitLayout>| {
            count += !u.frozen as usize;
            (!u.frozen).then(|| count - 1)
        };
        let trained = layouts.iter().map(number).collect();
        let moving: Vec<_> = layouts.iter().filter(|u| !u.frozen).cloned().collect();
        Ok(Sharded {
            index: layouts.iter().enumerate().map(|(i, u)| (u.unit, i)).collect(),
            weights: UnitWeights::new(&layouts, &how, groups.gather.clone())?,
            gradients: match how.sharding.stage {
                0 | 1 => Gradients::Whole(Whole::new(&moving, &how, &groups)?),
                _ => Gradients::ZeroShards(ZeroShards::new(&moving, &how, &groups)?),
            },
            how,
            groups,
            trained,
            layouts,
            spent: CommTiming::default(),
        })
    }

    /// Which part of each unit this rank keeps and updates.
    pub fn sharding(&self) -> &Sharding {
        &self.how.sharding
    }

    /// What this rank updates, in forward order; nothing of frozen units. The tensors stay the same ones.
    pub fn owned(&self) -> Vec<Owned> {
        let grad = |n| match &self.gradients {
            Gradients::Whole(g) => g.own(n),
            Gradients::ZeroShards(g) => g.own(n),
        };
        let places = (0..self.layouts.len()).filter_map(|i| Some((i, self.trained[i]?)));
        places.map(|(i, n)| self.part(i, grad(n))).collect()
    }

    fn part(&self, i: usize, grad: Tensor) -> Owned {
        let layout = &self.layouts[i];
        Owned {
            layout: layout.clone(),
            range: self.how.sharding.range(layout),
            counted: self.how.sharding.counted(layout),
            param: self.weights.own(i),
            grad,
        }
    }

    /// A step of `micro_batches` starts: that many times each unit's gradients will be complete.
    pub fn begin(&mut self, micro_batches: usize) {
        self.weights.order.begin();
        match &mut self.gradients {
            Gradients::Whole(g) => g.begin(micro_batches),
            Gradients::ZeroShards(g) => g.begin(micro_batches),
        }
    }

    /// Waits for all sums: the owned gradients are then those of the global batch.
    pub fn finish(&mut self) -> Result<()> {
        self.weights.order.end();
        match &mut self.gradients {
            Gradients::Whole(g) => g.finish(&mut self.spent)?,
            Gradients::ZeroShards(g) => g.finish(&mut self.spent)?,
        }
        self.groups.sum_copies(&self.owned(), &mut self.spent)
    }

    /// What communication has cost since the last call; of what is still under way, the bytes.
    pub fn spent(&mut self) -> CommTiming {
        std::mem::take(&mut self.spent)
    }

    /// The owners have written their parameters: every rank will read the new ones. With overlap the gathers go on during
    /// the next pass, and each hold waits for its unit.
    pub fn publish(&mut self) -> Result<()> {
        self.publish_of(false)
    }

    fn publish_of(&mut self, frozen: bool) -> Result<()> {
        self.weights.publish(frozen, &mut self.spent)?;
        if self.how.overlap {
            return Ok(());
        }
        self.settle()
    }

    /// Waits for what [`Sharded::publish`] started: before parameters are read otherwise than through holds, and at the
    /// end.
    pub fn settle(&mut self) -> Result<()> {
        self.weights.settle(&mut self.spent)
    }

    /// The parameters of every unit that lie on this rank anyway: whole units, or under stage 3 its shards.
    pub(super) fn resident(&self) -> impl Iterator<Item = (&crate::layout::UnitLayout, Tensor)> {
        self.layouts.iter().enumerate().map(|(i, u)| (&**u, self.weights.resident(i)))
    }

    /// The wires between this rank and those that hold the same.
    pub(crate) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// One unit, without what comes with it.
    fn one(&mut self, i: usize, usage: Use) -> Result<Held> {
        let param = self.weights.hold(i, usage, &mut self.spent)?;
        let grad = Tensor::empty([0], (Kind::Float, Device::Cpu));
        let mut flat = Flat { layout: self.layouts[i].clone(), param, grad, adapter: None };
        let grads = match (self.trained[i], &mut self.gradients) {
            (None, _) => Accumulate::Add,
            _ if usage == Use::Forward => Accumulate::Add,
            (Some(n), Gradients::Whole(g)) => g.hold(n, usage, &mut flat),
            (Some(n), Gradients::ZeroShards(g)) => g.hold(n, usage, &mut flat, &mut self.spent)?,
        };
        Ok(Held { flat, grads })
    }

    /// The adapters beside a unit, if it has any.
    fn beside(&self, unit: Unit) -> Option<usize> {
        adapter_of(unit).and_then(|a| self.index.get(&a).copied())
    }

    fn place(&self, unit: Unit) -> Result<usize> {
        let found = self.index.get(&unit).copied();
        found.ok_or_else(|| Error::new(Exit::Internal, format!("{unit:?} is not on this rank")))
    }
}

impl Units for Sharded {
    fn hold(&mut self, unit: Unit, usage: Use) -> Result<Held> {
        let mut held = self.one(self.place(unit)?, usage)?;
        if let Some(adapter) = self.beside(unit) {
            held.join(self.one(adapter, usage)?);
        }
        Ok(held)
    }

    fn release(&mut self, unit: Unit, usage: Use) -> Result<()> {
        self.weights.release(self.place(unit)?, usage);
        if let Some(adapter) = self.beside(unit) {
            self.weights.release(adapter, usage);
        }
        Ok(())
    }

    fn complete(&mut self, unit: Unit) -> Result<()> {
        let places = [Some(self.place(unit)?), self.beside(unit)];
        for n in places.into_iter().flatten().filter_map(|i| self.trained[i]) {
            match &mut self.gradients {
                Gradients::Whole(g) => g.complete(n, &mut self.spent)?,
                Gradients::ZeroShards(g) => g.complete(n, &mut self.spent)?,
            }
        }
        Ok(())
    }
}

/// `unit` had another number of complete micro-batches than the step has.
fn miscounted(unit: Unit, completed: usize, micro_batches: usize) -> Error {
    let fact =
        format!("the gradient of {unit:?} was complete {completed} times in a step of {micro_batches} micro-batches");
    Error::new(Exit::Internal, fact)
}

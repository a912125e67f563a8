//! Everything that a step changes: what a checkpoint holds, and which of it this rank keeps.
//!
//! A rank makes, reads and saves only the part of each unit that it owns; what others need of it they get through
//! [`Sharded::publish`]. So no rank ever has more of the model in memory than training itself asks for.

use crate::checkpoint::{self, weights::Weights, Checkpoint, Group, Meta, Piece};
use crate::error::Result;
use crate::kernels::host::{floats, floats_mut};
use crate::layout::Param;
use crate::model::init;
use crate::optim::{Optimizer, Slots};
use crate::parallel::{Groups, How, Sharded};
use crate::plan::Plan;
use crate::wire::World;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Parameters, optimizer state and counters of one rank.
pub struct State {
    pub units: Sharded,
    pub optimizer: Optimizer,
    /// Steps finished, skipped ones included.
    pub step: u64,
    /// Optimizer updates made.
    pub updates: u64,
    /// Training tokens read, all ranks together.
    pub tokens: u64,
    /// Steps skipped because something was not finite.
    pub skipped: u64,
    pub best_validation: Option<f64>,
}

impl State {
    /// Zero-filled state of the plan's shape. Collective over the world.
    pub fn new(plan: &Plan, groups: Groups) -> Result<State> {
        let units = Sharded::new(&plan.layout, How::of(plan), groups)?;
        let optimizer = Optimizer::new(units.owned(), &plan.config.optim);
        Ok(State { units, optimizer, step: 0, updates: 0, tokens: 0, skipped: 0, best_validation: None })
    }

    /// Fresh weights from the seed. This and the two below fill what this rank owns; [`State::publish`] must follow, on
    /// every rank.
    pub fn initialise(&mut self, plan: &Plan) -> Result<()> {
        let std = plan.model.initializer_range;
        self.fill(Group::Param, |param, start, out| {
            init::fill_range(param, start, out, plan.config.seed, std);
            Ok(())
        })
    }

    /// Weights from a model on disk; moments stay zero.
    pub fn start_from(&mut self, weights: &Weights) -> Result<()> {
        self.fill(Group::Param, |p, start, out| weights.read_range(&p.name, &p.offset, &p.extent, start, out))
    }

    /// Takes parameters, optimizer state and counters from a checkpoint written on any topology.
    pub fn restore(&mut self, from: &Checkpoint) -> Result<()> {
        for group in Group::ALL {
            self.fill(group, |p, start, out| from.read(group, &p.name, &p.offset, &p.extent, start, out))?;
        }
        let meta = from.meta();
        self.step = meta.step;
        self.updates = meta.updates;
        self.tokens = meta.tokens;
        self.skipped = meta.skipped;
        self.best_validation = meta.best_validation;
        Ok(())
    }

    /// Rounds the master weights into the parameters and lets every rank have them. Collective over the replicas.
    pub fn publish(&mut self) -> Result<()> {
        self.optimizer.publish();
        self.units.publish()
    }

    /// Fills the owned part of every parameter, one after the other: `f` gets the local elements from a position on.
    fn fill(&mut self, group: Group, mut f: impl FnMut(&Param, usize, &mut [f32]) -> Result<()>) -> Result<()> {
        for slots in &self.optimizer.slots {
            for (param, range) in slots.owned.layout.pieces(&slots.owned.range) {
                let mut values = Tensor::zeros([range.len() as i64], (Kind::Float, Device::Cpu));
                f(param, range.start, floats_mut(&mut values))?;
                let flat = param.start + range.start..param.start + range.end;
                slots.owned.part(slots.tensor(group), &flat).copy_(&values);
            }
        }
        Ok(())
    }

    /// The pieces of a checkpoint that this rank writes, with its counters.
    pub fn save(&self, plan: &Plan, world: &World, mut meta: Meta) -> Result<checkpoint::Saved> {
        meta.step = self.step;
        meta.updates = self.updates;
        meta.tokens = self.tokens;
        meta.skipped = self.skipped;
        meta.next_sample = self.step * plan.config.batch.global as u64;
        meta.best_validation = self.best_validation;
        let saved = self.saved();
        let hosts: Vec<Tensor> = saved.iter().map(|s| s.data().to_device(Device::Cpu).contiguous()).collect();
        let pieces: Vec<Piece> = saved.iter().zip(&hosts).map(|(s, host)| s.piece(floats(host))).collect();
        checkpoint::save(&plan.config.run_dir.join("checkpoints"), &pieces, &meta, world)
    }

    /// What this rank saves: over all ranks each element of each tensor once. Tensor and pipeline ranks save what they own
    /// ([`Param::owner`]), replicas each their range of it ([`crate::model::Owned::counted`]).
    pub fn saved(&self) -> Vec<SavedPiece<'_>> {
        let mut out = Vec::new();
        for slots in &self.optimizer.slots {
            for group in Group::ALL {
                let mine = slots.owned.layout.pieces(&slots.owned.counted).filter(|(p, _)| p.owner);
                out.extend(mine.map(|(param, range)| SavedPiece { slots, group, param, range }));
            }
        }
        out
    }
}

/// Some elements of one tensor that this rank saves.
pub struct SavedPiece<'a> {
    slots: &'a Slots,
    pub group: Group,
    pub param: &'a Param,
    /// Local elements of the parameter.
    pub range: Range<usize>,
}

impl SavedPiece<'_> {
    /// [range.len()] f32, on the device.
    pub fn data(&self) -> Tensor {
        let flat = self.param.start + self.range.start..self.param.start + self.range.end;
        self.slots.owned.part(self.slots.tensor(self.group), &flat)
    }

    /// With its elements on the host.
    pub fn piece<'b>(&'b self, data: &'b [f32]) -> Piece<'b> {
        let Param { name, shape, offset, extent, .. } = self.param;
        Piece { group: self.group, name, shape, offset, extent, start: self.range.start, data }
    }
}

//! Everything that a step changes: what a checkpoint holds, and which of it this rank keeps.
//!
//! A rank makes, reads and saves only the part of each unit that it owns; what others need of it they get through
//! [`Sharded::publish`]. So no rank ever has more of the model in memory than training itself asks for.

use crate::checkpoint::base::BaseSum;
use crate::checkpoint::{self, BaseNote, Group, Meta, Rules, Slice, Spec, Team};
use crate::convert::peft::AdapterFiles;
use crate::convert::weights::Weights;
use crate::error::Result;
use crate::kernels::host::{floats, floats_mut};
use crate::layout::Param;
use crate::model::init;
use crate::optim::{Optimizer, Slots};
use crate::parallel::{Groups, Sharded, ZeroOptions};
use crate::plan::Plan;
use crate::tiers::snapshot::slot::Take;
use crate::tiers::Source;
use crate::world::World;
use std::ops::Range;
use std::path::Path;
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
    /// Validation loss after this very step, if it was measured.
    pub validation: Option<f64>,
    /// The frozen weights, where some are.
    pub base: Option<BaseNote>,
}

impl State {
    /// Zero-filled state of the plan's shape. Collective over the world.
    pub fn new(plan: &Plan, groups: Groups) -> Result<State> {
        let units = Sharded::new(&plan.layout, ZeroOptions::of(plan), groups)?;
        let optimizer = Optimizer::new(units.owned(), &plan.config.optim);
        Ok(State {
            units,
            optimizer,
            step: 0,
            updates: 0,
            tokens: 0,
            skipped: 0,
            best_validation: None,
            validation: None,
            base: None,
        })
    }

    /// As [`State::new`] left it: what was read of a checkpoint that turned out damaged is forgotten.
    pub fn clear(&mut self) {
        for slots in &mut self.optimizer.slots {
            for group in Group::ALL {
                slots.keep(group, &slots.whole(group).zero_());
            }
        }
        (self.step, self.updates, self.tokens, self.skipped) = (0, 0, 0, 0);
        (self.best_validation, self.validation) = (None, None);
    }

    /// Fresh weights from the seed. This and the two below fill what this rank saves: over the replicas each element once.
    /// [`State::publish`] must follow, on every rank.
    pub fn initialise(&mut self, plan: &Plan) -> Result<()> {
        let std = plan.model.initializer_range;
        self.fill(Group::Param, |param, start, out| {
            // Of adapters B is zero, and A has the variance that PEFT's has: uniform in ±1/√in.
            match param.name.ends_with("lora_B.weight") {
                true => out.fill(0.0),
                false if param.name.ends_with("lora_A.weight") => {
                    init::fill_range(param, start, out, plan.config.seed, 1.0 / (3.0 * param.shape[1] as f64).sqrt())
                }
                false => init::fill_range(param, start, out, plan.config.seed, std),
            }
            Ok(())
        })
    }

    /// Adapters from PEFT's form; moments stay zero.
    pub fn start_from_adapter(&mut self, files: &AdapterFiles) -> Result<()> {
        self.fill(Group::Param, |p, start, out| files.read_range(&p.name, &p.offset, &p.extent, start, out))
    }

    /// Reads the part of the frozen weights that this rank keeps, over the replicas each element once, rounds it into the
    /// parameters, and adds it up. [`Sharded::share_frozen`] must follow.
    pub fn fill_frozen(&mut self, weights: &Weights) -> Result<BaseSum> {
        let mut sum = BaseSum::default();
        self.units.fill_frozen(|p, start, values| {
            weights.read_range(&p.name, &p.offset, &p.extent, start, values)?;
            if p.owner {
                sum.add(p, start, values);
            }
            Ok(())
        })?;
        Ok(sum)
    }

    /// Weights from a model on disk; moments stay zero.
    pub fn start_from(&mut self, weights: &Weights) -> Result<()> {
        self.fill(Group::Param, |p, start, out| weights.read_range(&p.name, &p.offset, &p.extent, start, out))
    }

    /// The slices that this rank saves, in the order in which [`State::give`] numbers them.
    pub fn specs(&self) -> Vec<Spec> {
        let spec = |s: &SavedPiece| {
            let Param { name, shape, offset, extent, .. } = s.param.clone();
            Spec {
                group: s.group,
                name,
                span: Slice { shape, offset, extent, start: s.range.start, len: s.range.len() },
            }
        };
        self.saved().iter().map(spec).collect()
    }

    /// Hands over those slices in host memory, some megabytes at a time where they come from a device.
    pub fn give(&self, take: Take) -> Result<()> {
        let saved = self.saved();
        let (mut first, mut room) = (0, BATCH);
        for (i, s) in saved.iter().enumerate() {
            room = room.saturating_sub(s.range.len());
            if room == 0 || i + 1 == saved.len() {
                let batch = &saved[first..=i];
                let hosts: Vec<Tensor> = batch.iter().map(|s| s.data().to_device(Device::Cpu).contiguous()).collect();
                let slices: Vec<(usize, &[f32])> = hosts.iter().map(floats).zip(first..).map(|(d, n)| (n, d)).collect();
                take(&slices);
                (first, room) = (i + 1, BATCH);
            }
        }
        Ok(())
    }

    /// `meta` with this state's counters.
    pub fn describe(&self, plan: &Plan, meta: &Meta) -> Meta {
        Meta {
            step: self.step,
            updates: self.updates,
            tokens: self.tokens,
            skipped: self.skipped,
            next_sample: self.step * plan.config.batch.global as u64,
            best_validation: self.best_validation,
            validation: self.validation,
            base: self.base.clone(),
            ..meta.clone()
        }
    }

    /// Writes a checkpoint into the directory `checkpoints` while the caller waits. Collective.
    pub fn save(&self, checkpoints: &Path, world: &World, meta: &Meta, rules: &Rules) -> Result<checkpoint::Saved> {
        checkpoint::save_by(rules, checkpoints, self.specs(), meta, Team(Some(world)), &mut |file| {
            let mut written = Ok(());
            self.give(&mut |slices| {
                for (i, data) in slices {
                    if written.is_ok() {
                        written = file.append(*i, data);
                    }
                }
            })?;
            written
        })
    }

    /// Takes master weights, optimizer state and counters from a state written on any topology.
    pub fn restore(&mut self, from: &Source) -> Result<()> {
        for group in Group::ALL {
            self.fill(group, |p, start, out| from.read(group, &p.name, &p.offset, &p.extent, start, out))?;
        }
        let meta = from.meta();
        self.step = meta.step;
        self.updates = meta.updates;
        self.tokens = meta.tokens;
        self.skipped = meta.skipped;
        self.best_validation = meta.best_validation;
        self.validation = meta.validation;
        Ok(())
    }

    /// Hands what was filled to the replicas that keep the same, rounds the master weights into the parameters and lets every
    /// rank have them. Collective over the replicas.
    pub fn publish(&mut self) -> Result<()> {
        self.share()?;
        self.optimizer.publish();
        self.units.publish()
    }

    /// Replicas that keep the same part of the state have each read a part of it: it is gathered, not read by each.
    fn share(&mut self) -> Result<()> {
        let across = self.units.groups().across.clone();
        if across.size() == 1 {
            return Ok(());
        }
        for slots in &mut self.optimizer.slots {
            for group in Group::ALL {
                let whole = slots.whole(group);
                across.all_gather(&slots.owned.part(&whole, &slots.owned.counted), &whole)?.wait()?;
                slots.keep(group, &whole);
            }
        }
        Ok(())
    }

    /// Fills the counted part of every parameter, one after the other: `f` gets the local elements from a position on.
    fn fill(&mut self, group: Group, mut f: impl FnMut(&Param, usize, &mut [f32]) -> Result<()>) -> Result<()> {
        for slots in &mut self.optimizer.slots {
            let whole = slots.whole(group);
            for (param, range) in slots.owned.layout.pieces(&slots.owned.counted) {
                let flat = param.start + range.start..param.start + range.end;
                let mut part = slots.owned.part(&whole, &flat);
                if part.device() == Device::Cpu {
                    f(param, range.start, floats_mut(&mut part))?;
                    continue;
                }
                let mut values = Tensor::zeros([range.len() as i64], (Kind::Float, Device::Cpu));
                f(param, range.start, floats_mut(&mut values))?;
                part.copy_(&values);
            }
            slots.keep(group, &whole);
        }
        Ok(())
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

/// Elements that are brought from a device at a time.
const BATCH: usize = 16 << 20;

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
        self.slots.part(self.group, &flat)
    }
}

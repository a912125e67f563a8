//! Everything that a step changes: what a checkpoint holds.

use crate::checkpoint::{self, weights::Weights, Group, Meta, Rules, Source, Span, Spec, Team};
use crate::error::Result;
use crate::kernels::host::{floats, floats_mut};
use crate::layout::Param;
use crate::model::{init, Flat, Params};
use crate::optim::{Optimizer, Slots};
use crate::parallel::data::place;
use crate::plan::Plan;
use crate::topology::Axis;
use crate::wire::{Wire, World};
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Parameters, optimizer state and counters of one rank.
pub struct State {
    pub params: Params,
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
}

impl State {
    /// Zero-filled state of the plan's shape. Collective over the data axis.
    pub fn new(plan: &Plan, wire: &dyn Wire) -> Result<State> {
        let params = place(&plan.layout, plan.dtype, plan.device, wire)?;
        let (rank, ranks) = (plan.topology.coord(Axis::Data), plan.topology.size(Axis::Data));
        let optimizer = Optimizer::new(&params, &plan.config.optim, rank, ranks);
        Ok(State {
            params,
            optimizer,
            step: 0,
            updates: 0,
            tokens: 0,
            skipped: 0,
            best_validation: None,
            validation: None,
        })
    }

    /// Fresh weights from the seed.
    pub fn initialise(&mut self, plan: &Plan) -> Result<()> {
        let std = plan.model.initializer_range;
        self.fill_params(|param, out| {
            init::fill(param, out, plan.config.seed, std);
            Ok(())
        })
    }

    /// Weights from a model on disk; moments stay zero.
    pub fn start_from(&mut self, weights: &Weights) -> Result<()> {
        self.fill_params(|param, out| weights.read(&param.name, &param.offset, &param.extent, out))
    }

    /// Fills whole local parameters in fp32, then takes the owned shard as master weights.
    fn fill_params(&mut self, mut f: impl FnMut(&Param, &mut [f32]) -> Result<()>) -> Result<()> {
        for (flat, slots) in self.params.units.iter().zip(&self.optimizer.slots) {
            let mut values = Tensor::zeros([flat.layout.len as i64], (Kind::Float, Device::Cpu));
            for param in &flat.layout.params {
                f(param, &mut floats_mut(&mut values)[param.start..param.start + param.len()])?;
            }
            flat.param.shallow_clone().copy_(&values);
            if flat.param.kind() != Kind::Float {
                slots.master.shallow_clone().copy_(&shard(&values, slots));
            }
        }
        Ok(())
    }

    /// The slices that this rank saves, in the order in which [`State::give`] numbers them. Over all ranks they hold each
    /// element of each tensor exactly once.
    pub fn specs(&self) -> Vec<Spec> {
        let mut specs = Vec::new();
        for (flat, slots) in self.params.units.iter().zip(&self.optimizer.slots) {
            for group in Group::ALL {
                for (p, range) in saved(flat, slots) {
                    let (offset, extent) = (p.offset.clone(), p.extent.clone());
                    let span = Span { offset, extent, start: range.start, len: range.len(), shape: p.shape.clone() };
                    specs.push(Spec { group, name: p.name.clone(), span });
                }
            }
        }
        specs
    }

    /// Hands over those slices, one tensor of one unit in host memory at a time.
    pub fn give(&self, take: &mut dyn FnMut(&[(usize, &[f32])])) -> Result<()> {
        let mut n = 0;
        for (flat, slots) in self.params.units.iter().zip(&self.optimizer.slots) {
            for tensor in [&slots.master, &slots.exp_avg, &slots.exp_avg_sq] {
                let host = tensor.to_device(Device::Cpu).contiguous();
                let data = floats(&host);
                let slices = saved(flat, slots).zip(n..).map(|((p, range), n)| {
                    let at = p.start + range.start - slots.range.start;
                    (n, &data[at..at + range.len()])
                });
                let slices: Vec<(usize, &[f32])> = slices.collect();
                n += slices.len();
                take(&slices);
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
            ..meta.clone()
        }
    }

    /// Writes a checkpoint while the caller waits. Collective.
    pub fn save(&self, plan: &Plan, world: &World, meta: &Meta, rules: &Rules) -> Result<checkpoint::Saved> {
        let checkpoints = plan.config.run_dir.join("checkpoints");
        checkpoint::save_by(rules, &checkpoints, self.specs(), meta, Team(Some(world)), &mut |file| {
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

    /// Takes master weights, optimizer state and counters from a state written on any topology. The parameters follow with
    /// [`State::gather`].
    pub fn restore(&mut self, from: &Source) -> Result<()> {
        for (flat, slots) in self.params.units.iter().zip(&self.optimizer.slots) {
            let tensors = [&slots.master, &slots.exp_avg, &slots.exp_avg_sq];
            for (group, tensor) in Group::ALL.into_iter().zip(tensors) {
                let mut values = Tensor::zeros([slots.range.len() as i64], (Kind::Float, Device::Cpu));
                for (p, range) in flat.layout.pieces(&slots.range) {
                    let at = p.start + range.start - slots.range.start;
                    let out = &mut floats_mut(&mut values)[at..at + range.len()];
                    from.read(group, &p.name, &p.offset, &p.extent, range.start, out)?;
                }
                tensor.shallow_clone().copy_(&values);
            }
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

    /// Parameters from the master weights of all owners: what an update ends with. Collective over the data axis.
    pub fn gather(&self, wire: &dyn Wire) -> Result<()> {
        self.optimizer.publish(&self.params);
        let own = |f: &Flat, s: &Slots| f.param.narrow(0, s.range.start as i64, s.range.len() as i64);
        let pairs = self.params.units.iter().zip(&self.optimizer.slots);
        let work: Vec<_> = pairs.map(|(f, s)| wire.all_gather(&own(f, s), &f.param)).collect::<Result<_>>()?;
        work.into_iter().try_for_each(|w| w.wait().map(drop))
    }
}

/// The parts of a unit that this rank saves: of what it updates, what no other rank of another axis saves as well.
fn saved<'a>(flat: &'a Flat, slots: &Slots) -> impl Iterator<Item = (&'a Param, Range<usize>)> {
    flat.layout.pieces(&slots.range).filter(|(p, _)| p.owner)
}

fn shard(whole: &Tensor, slots: &Slots) -> Tensor {
    whole.narrow(0, slots.range.start as i64, slots.range.len() as i64)
}

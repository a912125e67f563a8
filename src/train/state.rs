//! Everything that a step changes: what a checkpoint holds.

use crate::checkpoint::{self, weights::Weights, Checkpoint, Group, Meta, Piece};
use crate::error::Result;
use crate::kernels::host::{floats, floats_mut};
use crate::layout::Param;
use crate::model::{init, Params};
use crate::optim::{Optimizer, Slots};
use crate::parallel::data::place;
use crate::plan::Plan;
use crate::topology::Axis;
use crate::wire::{Wire, World};
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
}

impl State {
    /// Zero-filled state of the plan's shape. Collective over the data axis.
    pub fn new(plan: &Plan, wire: &dyn Wire) -> Result<State> {
        let params = place(&plan.layout, plan.dtype, plan.device, wire)?;
        let (rank, ranks) = (plan.topology.coord(Axis::Data), plan.topology.size(Axis::Data));
        let optimizer = Optimizer::new(&params, &plan.config.optim, rank, ranks);
        Ok(State { params, optimizer, step: 0, updates: 0, tokens: 0, skipped: 0, best_validation: None })
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

    /// The pieces of a checkpoint that this rank writes: its shards of master weights and moments, on the host.
    pub fn save(&self, plan: &Plan, world: &World, mut meta: Meta) -> Result<checkpoint::Saved> {
        meta.step = self.step;
        meta.updates = self.updates;
        meta.tokens = self.tokens;
        meta.skipped = self.skipped;
        meta.next_sample = self.step * plan.config.batch.global as u64;
        meta.best_validation = self.best_validation;
        let hosts: Vec<[Tensor; 3]> = self.optimizer.slots.iter().map(host).collect();
        let mut pieces = Vec::new();
        for ((flat, slots), tensors) in self.params.units.iter().zip(&self.optimizer.slots).zip(&hosts) {
            for (group, tensor) in [Group::Param, Group::ExpAvg, Group::ExpAvgSq].into_iter().zip(tensors) {
                let data = floats(tensor);
                for (param, range) in flat.layout.pieces(&slots.range) {
                    let at = param.start + range.start - slots.range.start;
                    pieces.push(Piece {
                        group,
                        name: &param.name,
                        shape: &param.shape,
                        offset: &param.offset,
                        extent: &param.extent,
                        start: range.start,
                        data: &data[at..at + range.len()],
                    });
                }
            }
        }
        checkpoint::save(&plan.config.run_dir.join("checkpoints"), &pieces, &meta, world)
    }

    /// Takes parameters, optimizer state and counters from a checkpoint written on any topology.
    pub fn restore(&mut self, from: &Checkpoint) -> Result<()> {
        self.fill_params(|p, out| from.read(Group::Param, &p.name, &p.offset, &p.extent, 0, out))?;
        for (flat, slots) in self.params.units.iter().zip(&self.optimizer.slots) {
            for (group, tensor) in [(Group::ExpAvg, &slots.exp_avg), (Group::ExpAvgSq, &slots.exp_avg_sq)] {
                let mut values = Tensor::zeros([slots.range.len() as i64], (Kind::Float, Device::Cpu));
                for (p, range) in flat.layout.pieces(&slots.range) {
                    let at = p.start + range.start - slots.range.start;
                    from.read(
                        group,
                        &p.name,
                        &p.offset,
                        &p.extent,
                        range.start,
                        &mut floats_mut(&mut values)[at..at + range.len()],
                    )?;
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
        Ok(())
    }
}

/// Master weights and both moments in host memory (no copy where they are there already).
fn host(slots: &Slots) -> [Tensor; 3] {
    [&slots.master, &slots.exp_avg, &slots.exp_avg_sq].map(|t| t.to_device(Device::Cpu).contiguous())
}

fn shard(whole: &Tensor, slots: &Slots) -> Tensor {
    whole.narrow(0, slots.range.start as i64, slots.range.len() as i64)
}

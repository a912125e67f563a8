//! Peak memory of one rank's training step, from the configuration alone: the sum of what tensors ask for at the worst
//! moment (`kernels::memory::peak`) and of shared windows, of which a rank counts its own part; not what the process holds
//! from the system.
//!
//! With e the bytes of the compute dtype, P the local parameters (each unit padded) and g the replicas that share a copy of
//! the state (`layout::Sharding`):
//!
//! | term | ZeRO 0 (g = 1), 1 | ZeRO 2 | ZeRO 3 |
//! | --- | --- | --- | --- |
//! | parameters | P·e | P·e | P/g·e, and buffers·e where ranks of a copy are on several nodes or on devices |
//! | gradients | P·4 | P/g·4 + buffers·4 | P/g·4 + buffers·4 |
//! | master weights (none in fp32) | P/g·4 | P/g·4 | P/g·4 |
//! | moments | P/g·8 | P/g·8 | P/g·8 |
//!
//! Moments in 8 bits (`optim.moments`) take 2.25 bytes in the place of 8. With `optim.offload` a device has neither master weights nor moments.
//!
//! Of frozen units only the parameters exist: P is then those that are trained in all other terms, and the adapters are units beside
//! the blocks. Quantized blocks take their bits on every rank, and one of them e·P while it is held.
//!
//! Buffers hold units that are whole for a while: two of the blocks' length and one for embedding and head
//! (`layout::sharding::buffers_at_once`); gradients of all blocks under a schedule that puts weight gradients off.
//! Activations and what is short-lived are in `work`, what a CUDA device adds in `device`; in which form operations run, in [`forms`].

mod device;
pub mod forms;
mod work;

pub use device::BesideTensors;
pub use forms::{KernelForm, KernelForms};

use crate::config::{BlockFormat, MomentFormat, PipelineSchedule};
use crate::kernels::blockwise::Blockwise;
use crate::kernels::moments::Moment8;
use crate::layout::sharding::{buffer_lengths, buffers_at_once};
use crate::layout::{Sharding, Unit, UnitLayout};
use crate::plan::Plan;
use crate::topology::Axis;
use serde::Serialize;
use tch::{Device, Kind};
use work::ActivationWork;

/// Bytes at the peak of a training step, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// In the compute dtype, with what ZeRO 3 holds of whole units for a while.
    pub parameters: u64,
    /// In fp32, with what ZeRO 2 and 3 hold of whole units for a while.
    pub gradients: u64,
    /// fp32 master weights of this rank's part.
    pub master: u64,
    /// Both moments of this rank's part.
    pub moments: u64,
    /// Token ids and rotary tables.
    pub inputs: u64,
    /// What the blocks keep for the backward pass, of all micro-batches under way.
    pub activations: u64,
    /// Everything short-lived at the worst moment.
    pub working: u64,
    /// On a CUDA device, beside tensors.
    pub beside: BesideTensors,
}

impl Memory {
    /// Of one rank of `plan`, with the kernels that its device has.
    pub fn peak(plan: &Plan) -> Memory {
        Memory::with(plan, KernelForms::of(plan.device))
    }

    /// As [`Memory::peak`] with other kernels.
    pub fn with(plan: &Plan, forms: KernelForms) -> Memory {
        let work = ActivationWork::new(plan, forms);
        let worst = work.worst();
        let inputs = clip(work.inputs(worst.alive));
        let state = Memory { inputs, beside: BesideTensors::of(plan), ..Memory::state(plan) };
        // Between steps, when no activation is alive.
        let working = worst.working.max(saving(plan).saturating_sub(worst.activations));
        Memory { activations: clip(worst.activations), working: clip(working), ..state }
    }

    /// Parameters, gradients and optimizer state alone.
    fn state(plan: &Plan) -> Memory {
        let sharding = Sharding::new(&plan.config.parallel, &plan.topology);
        let (units, e) = (&plan.layout.units, plan.dtype.elt_size_in_bytes() as u128);
        let format = plan.config.quantize();
        let quantized = |u: &&UnitLayout| format.is_some() && u.frozen && u.is_block();
        let all: u128 = units.iter().filter(|u| !quantized(u)).map(|u| u.len as u128).sum();
        let of_quantized = |format| {
            let held = units.iter().filter(quantized).map(|u| u.len as u128 * e).max();
            held.unwrap_or(0) + units.iter().filter(quantized).map(|u| stored(format, u)).sum::<u128>()
        };
        let part = all / sharding.group as u128;
        let trained: Vec<UnitLayout> = units.iter().filter(|u| !u.frozen).cloned().collect();
        let moving: u128 = trained.iter().map(|u| u.len as u128).sum();
        let own = moving / sharding.group as u128;
        let puts_off =
            plan.config.parallel.schedule == PipelineSchedule::ZeroBubble && plan.topology.size(Axis::Pipeline) > 1;
        Memory {
            parameters: clip(match sharding.stage {
                3 if shares_memory(plan, &sharding) => part * e,
                3 => (part + buffers(units, false)) * e,
                _ => all * e + format.map_or(0, of_quantized),
            }),
            gradients: clip(if sharding.stage < 2 { moving * 4 } else { (own + buffers(&trained, puts_off)) * 4 }),
            master: if plan.dtype == Kind::Float || plan.offloads() { 0 } else { clip(own * 4) },
            moments: if plan.offloads() { 0 } else { clip(moments(plan, &trained, &sharding)) },
            ..Memory::default()
        }
    }

    /// Of herd's tensors: what an allocator counts.
    pub fn tensors(&self) -> u64 {
        let parts = [self.parameters, self.gradients, self.master, self.moments];
        parts.into_iter().chain([self.inputs, self.activations, self.working]).fold(0, u64::saturating_add)
    }

    /// On a device everything that must lie on the card; on a CPU [`Memory::tensors`].
    pub fn total(&self) -> u64 {
        self.tensors().saturating_add(self.beside.total())
    }

    /// Every term with its name, in bytes; those that are zero on a CPU are left out there.
    pub fn terms(&self) -> Vec<(&'static str, u64)> {
        let optimizer = self.master.saturating_add(self.moments);
        let mut out = vec![("parameters", self.parameters), ("gradients", self.gradients), ("optimizer", optimizer)];
        out.extend([("activations", self.activations), ("working", self.working.saturating_add(self.inputs))]);
        let beside = [
            ("cuBLAS", self.beside.workspace),
            ("NCCL", self.beside.communicators),
            ("CUDA context", self.beside.context),
        ];
        out.extend(beside.into_iter().filter(|term| term.1 > 0));
        out
    }
}

/// Bytes of 8-bit moments as a save has them in fp32 on a CPU: some megabytes at a time (`train::state`).
fn saving(plan: &Plan) -> u128 {
    let part = plan.layout.units.iter().filter(|u| !u.frozen).map(|u| u.len as u128).sum::<u128>();
    let own = part / Sharding::new(&plan.config.parallel, &plan.topology).group as u128;
    match (plan.config.optim.moments, plan.device) {
        (MomentFormat::Bits8, Device::Cpu) => 8 * own.min(8 << 20),
        _ => 0,
    }
}

/// Bytes of both moments of this rank's parts.
fn moments(plan: &Plan, trained: &[UnitLayout], sharding: &Sharding) -> u128 {
    let own = trained.iter().map(|u| u.len / sharding.group);
    own.map(|len| match plan.config.optim.moments {
        MomentFormat::Fp32 => 8 * len as u128,
        MomentFormat::Bits8 => 2 * Moment8::bytes(len) as u128,
    })
    .sum()
}

/// Bytes of a unit whose matrices are quantized (`parallel::zero::blockwise`).
fn stored(format: BlockFormat, unit: &UnitLayout) -> u128 {
    let vectors = unit.params.iter().filter(|p| p.kind == crate::layout::Kind::Vector);
    (Blockwise::bytes(format, unit.len) + vectors.map(|p| p.len() * size_of::<f32>()).sum::<usize>()) as u128
}

/// Whether the ranks of a copy are on one node and on the CPU: then their parts are one window.
fn shares_memory(plan: &Plan, sharding: &Sharding) -> bool {
    let node = |rank: usize| rank / plan.local_size.max(1);
    let here = node(plan.topology.rank);
    plan.device == Device::Cpu && sharding.shard_ranks(&plan.topology).into_iter().all(|r| node(r) == here)
}

/// Elements of the buffers for whole units; of all blocks at a time where `all_blocks`.
fn buffers(units: &[UnitLayout], all_blocks: bool) -> u128 {
    let lengths = buffer_lengths(units.iter().map(|u| u.len));
    let blocks = units.iter().filter(|u| matches!(u.unit, Unit::Block(_) | Unit::Adapter(_))).count();
    let count = |&l: &usize| match buffers_at_once(units, &lengths, l) {
        2 if all_blocks => blocks,
        n => n,
    };
    lengths.iter().map(|l| *l as u128 * count(l) as u128).sum()
}

/// Sizes far beyond any machine must not wrap round.
fn clip(n: u128) -> u64 {
    n.min(u64::MAX as u128) as u64
}

#[cfg(test)]
mod tests;

//! What a run will take and cost on machines that need not be at hand: memory, time, faults. Pure arithmetic on a [`Plan`].
//!
//! - `hardware`: devices, links, storage, fault rates; the table
//! - `shape`: a step as it is cut into ranks
//! - `compute`, `collectives`, `replicas`: a roofline of the layers, the rings of each axis, what replicas exchange
//! - `step`: all of it played through the pipeline's schedule
//! - `stages`: the memory formula on the stage that needs most
//! - `saves`, `faults`: tiers, intervals, goodput, spares
//! - `search`: every way to cut a run into ranks, ranked
//! - `advice`: what does not fit, and what would
//! - `published`: figures that others have published, each predicted from the others
//! - `calibrate`: efficiencies from what a run measured
//!
//! docs/planning.md explains the formulas.

pub mod advice;
pub mod calibrate;
pub mod collectives;
pub mod compute;
pub mod faults;
pub mod hardware;
mod parts;
pub mod published;
mod replicas;
pub mod saves;
pub mod search;
mod shape;
mod stages;
pub mod step;
#[cfg(test)]
mod tests;

pub use hardware::{DeviceKind, Hardware};
pub use parts::StepParts;
pub use shape::{ChunkSize, StepShape};
pub use stages::{memory_of_stages, StageMemory};

use super::memory::KernelForms;
use super::{flops, Plan, Ranks};
use crate::config::{CheckpointSection, Partner};
use crate::error::Result;
use crate::layout;
use faults::{FaultEstimate, Intervals};
use saves::SaveEstimate;
use serde::Serialize;
use step::StepEstimate;
use tch::Kind;

/// So many nodes of so many devices, a rank each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// All with the same number of devices.
    pub nodes: usize,
    /// Devices, and so ranks, on each node.
    pub per_node: usize,
}

impl Allocation {
    /// Ranks in all.
    pub fn world(&self) -> usize {
        self.nodes * self.per_node
    }

    /// As seen by `rank` on a node that has what `hardware` says.
    pub fn ranks(&self, rank: usize, hardware: &Hardware) -> Ranks {
        let cuda_devices = if hardware.device == DeviceKind::Cuda { self.per_node } else { 0 };
        let cores = hardware.cores.map_or(1, |c| (c / self.per_node).max(1));
        let local_rank = rank % self.per_node;
        Ranks { rank, size: self.world(), local_rank, local_size: self.per_node, cuda_devices, cores }
    }
}

/// Everything that can be said of a run before it starts.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Ranks in all.
    pub world: usize,
    /// tensor, context, pipeline, data.
    pub axes: [usize; 4],
    /// Of the whole model, adapters not counted.
    pub parameters: usize,
    /// Tokens of an optimizer step over all ranks.
    pub tokens_per_step: usize,
    /// Of one rank of the pipeline stage that needs most.
    pub memory: StageMemory,
    /// Kernels that memory and time were counted with.
    pub forms: KernelForms,
    /// Time of an optimizer step, and what it goes to.
    pub step: StepEstimate,
    /// Tokens a second and MFU.
    pub speed: SpeedEstimate,
    /// Steps and days to the last token.
    pub run: RunEstimate,
    /// Snapshots and checkpoints, with the configuration's settings.
    pub saves: SaveEstimate,
    /// Faults to expect, the best intervals, goodput.
    pub faults: FaultEstimate,
}

/// Throughput without faults.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SpeedEstimate {
    /// Over all devices.
    pub tokens_per_s: f64,
    /// Of one device.
    pub tokens_per_s_device: f64,
    /// Share of the compute dtype's peak that model FLOPs take, with attention counted below the diagonal.
    pub mfu_causal: f64,
    /// The same with attention counted in full.
    pub mfu_full: f64,
}

/// The whole run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RunEstimate {
    /// Tokens to train on in all.
    pub tokens: f64,
    /// Optimizer steps for them, not rounded.
    pub steps: f64,
    /// Without faults.
    pub tokens_per_day: f64,
    /// Without faults.
    pub days: f64,
    /// With faults, under the configuration's own intervals.
    pub days_with_faults: f64,
    /// Of all devices together, with faults.
    pub device_hours: f64,
}

/// Steps of `step_s` seconds between checkpoints on shared storage, by `every` or `every_minutes`, whichever comes first; 0: never.
pub fn checkpoint_steps(c: &CheckpointSection, step_s: f64) -> u64 {
    let timed = (c.every_minutes > 0.0).then(|| (c.every_minutes * 60.0 / step_s).ceil().max(1.0) as u64);
    let counted = (c.every > 0).then_some(c.every);
    timed.into_iter().chain(counted).min().unwrap_or(0)
}

/// Of `plan` (any rank's) on `hardware`, to `tokens` in all (None: the configuration's steps).
///
/// # Errors
/// Those of the pipeline's simulator.
pub fn estimate(
    plan: &Plan, allocation: Allocation, hardware: &Hardware, forms: KernelForms, tokens: Option<f64>,
) -> Result<Estimate> {
    let shape = StepShape::of(plan, forms);
    let step = step::estimate(&shape, hardware)?;
    let parameters = layout::count(&plan.model);
    let c = &plan.config.checkpoint;
    let saves = saves::estimate(&shape, c, hardware, parameters as f64, allocation.nodes);
    let every = checkpoint_steps(c, step.seconds);
    let copied = c.partner == Partner::Node && allocation.nodes > 1;
    let own = Intervals { snapshot: c.snapshot_every, checkpoint: every, background: c.background, copied };
    let world = allocation.world();
    let without_saves = step.seconds - step.snapshot;
    let faults = faults::estimate(hardware, world, allocation.nodes, without_saves, &saves, own);
    let per_step = plan.tokens_per_step();
    let tokens = tokens.unwrap_or(per_step as f64 * plan.config.train.steps as f64);
    let tokens_per_s = per_step as f64 / step.seconds;
    let days = tokens / tokens_per_s / 86_400.0;
    // Snapshots are in the step already, and goodput counts them once more.
    let days_with_faults = tokens / (per_step as f64 / without_saves) / 86_400.0 / faults.goodput;
    Ok(Estimate {
        world,
        axes: plan.topology.sizes,
        parameters,
        tokens_per_step: per_step,
        memory: memory_of_stages(plan, hardware, forms),
        forms,
        speed: speed(plan, &shape, hardware, tokens_per_s),
        step,
        run: RunEstimate {
            tokens,
            steps: tokens / per_step as f64,
            tokens_per_day: tokens_per_s * 86_400.0,
            days,
            days_with_faults,
            device_hours: days_with_faults * 24.0 * world as f64,
        },
        saves,
        faults,
    })
}

fn speed(plan: &Plan, shape: &StepShape, hardware: &Hardware, tokens_per_s: f64) -> SpeedEstimate {
    let share = shape.share(hardware);
    let device = tokens_per_s / plan.topology.world() as f64;
    let per_token = flops::PerToken::of(&plan.config, &plan.model);
    let peak = hardware.peak(plan.dtype == Kind::BFloat16) * share.speed / share.crowd.max(1.0);
    SpeedEstimate {
        tokens_per_s,
        tokens_per_s_device: device,
        mfu_causal: flops::utilisation(device, per_token.causal, peak),
        mfu_full: flops::utilisation(device, per_token.full, peak),
    }
}

//! Configuration + world → [`Plan`]: every value resolved, every cross-field mistake reported at once. After it, only I/O
//! and hardware can fail.

use crate::config::{Config, ModelConfig};
use crate::layout::Layout;
use crate::topology::Topology;
use tch::{Device, Kind};

/// What a run will do, on this rank. Having one means that the configuration fits the world, the model and the data.
#[derive(Clone, Debug)]
pub struct Plan {
    pub config: Config,
    pub model: ModelConfig,
    pub topology: Topology,
    pub layout: Layout,
    pub device: Device,
    /// Compute dtype: `Kind::BFloat16` or `Kind::Float`.
    pub dtype: Kind,
    /// Sequences per forward pass.
    pub micro_batch: usize,
    /// Forward passes per optimizer step on this rank.
    pub accumulation: usize,
    /// CPU threads of this rank.
    pub threads: usize,
}

//! The `liveness` section: how soon silence and standstill become a verdict.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Probes between ranks and the watch over progress (docs/liveness.md).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LivenessSection {
    /// Watch the ranks. Without it a rank that hangs holds the others until Slurm ends the job.
    pub enabled: bool,
    /// Seconds between probes.
    #[schemars(range(min = 0.05, max = 3600))]
    pub interval_s: f64,
    /// Probes missed in a row, by the receiver's clock, after which a rank is given up.
    #[schemars(range(min = 2, max = 100))]
    pub misses: u32,
    /// Seconds from a verdict to the hard exit of a rank, whatever it hangs in.
    #[schemars(range(min = 0.1, max = 3600))]
    pub grace_s: f64,
    /// A rank without progress is stuck after this many times the slow decile of its recent steps.
    #[schemars(range(min = 1.5, max = 10000))]
    pub progress_factor: f64,
    /// Seconds without progress below which no rank is called stuck.
    #[schemars(range(min = 0.1, max = 86400))]
    pub progress_floor_s: f64,
    /// Seconds without progress allowed until the first step after a start has ended.
    #[schemars(range(min = 1, max = 86400))]
    pub first_step_s: f64,
    /// Seconds without progress allowed where a rank reads or writes storage, which may block and come back.
    #[schemars(range(min = 1, max = 86400))]
    pub storage_s: f64,
    /// Report a rank whose own work takes this many times the median of the ranks with the same work.
    #[schemars(range(min = 1.05, max = 1000))]
    pub slow_factor: f64,
    /// Give up a rank that stays that slow, instead of only reporting it.
    pub evict_slow: bool,
}

impl Default for LivenessSection {
    fn default() -> Self {
        LivenessSection {
            enabled: true,
            interval_s: 5.0,
            misses: 3,
            grace_s: 5.0,
            progress_factor: 10.0,
            progress_floor_s: 30.0,
            first_step_s: 600.0,
            storage_s: 600.0,
            slow_factor: 1.5,
            evict_slow: false,
        }
    }
}

//! The `checkpoint.store` section: a copy of checkpoints in an object store.

use super::limit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An object store that committed checkpoints are copied to, behind training. Credentials come from the environment or
/// the store's usual files only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StoreSection {
    /// Place of this run's checkpoints, and of no other run's: `s3://bucket/prefix`, `gs://bucket/prefix`,
    /// `az://container/prefix`, `file:///path`.
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub url: String,
    /// Upload the checkpoints of every n-th step and the run's last; 0 uploads each that is saved.
    #[serde(default)]
    #[schemars(range(max = limit::STEPS))]
    pub every: u64,
    /// Newest checkpoints to keep there; 0 keeps all.
    #[serde(default = "default_keep")]
    #[schemars(range(max = limit::STEPS))]
    pub keep: usize,
    /// Most MiB per second that uploads send; 0 sets no limit.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub bandwidth_mib_s: f64,
    /// Parts of a file under way at once; each is held in memory, 8 MiB or more.
    #[serde(default = "default_parallel")]
    #[schemars(range(min = 1, max = 64))]
    pub parallel: usize,
    /// Tries at one checkpoint, with growing pauses, before it is left until the next one or the next start.
    #[serde(default = "default_attempts")]
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
    /// Longest wait for uploads when the run is done, in seconds; what is left then goes on at the next start, or by
    /// `herd checkpoint upload`.
    #[serde(default = "default_drain")]
    #[schemars(range(max = 604800))]
    pub drain_s: u64,
}

impl StoreSection {
    /// `url` with every other value at its default.
    pub fn new(url: &str) -> StoreSection {
        StoreSection {
            url: url.into(),
            every: 0,
            keep: default_keep(),
            bandwidth_mib_s: 0.0,
            parallel: default_parallel(),
            attempts: default_attempts(),
            drain_s: default_drain(),
        }
    }
}

fn default_keep() -> usize {
    3
}
fn default_parallel() -> usize {
    4
}
fn default_attempts() -> u32 {
    6
}
fn default_drain() -> u64 {
    600
}

//! The `checkpoint` section: what is saved when, and where it goes.

use super::limit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When checkpoints are written to the run directory, and how many stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Save every n steps and after the last; 0 only after the last.
    #[schemars(range(max = limit::STEPS))]
    pub every: u64,
    /// Newest checkpoints to keep; 0 keeps all.
    #[schemars(range(max = limit::STEPS))]
    pub keep: usize,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        CheckpointSection { every: 0, keep: 3 }
    }
}

//! The `checkpoint` section: what is saved when, and where it goes.

use super::{limit, StoreSection};
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
    /// Export the checkpoint of every n-th step to `exports/step-N` of the run directory, in Hugging Face's layout, in the
    /// background; a multiple of `every`. 0 never.
    #[schemars(range(max = limit::STEPS))]
    pub export_every: u64,
    /// Newest exports to keep; 0 keeps all.
    #[schemars(range(max = limit::STEPS))]
    pub export_keep: usize,
    /// A copy of checkpoints in an object store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreSection>,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        CheckpointSection { every: 0, keep: 3, export_every: 0, export_keep: 3, store: None }
    }
}

//! The `checkpoint` section: what is saved when, and where it goes.

use super::{limit, StoreSection};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// When the state is kept, where, and how many checkpoints stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Save every n steps and after the last; 0 only after the last.
    #[schemars(range(max = limit::STEPS))]
    pub every: u64,
    /// Save also when this many minutes have passed since the last save; 0 never.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub every_minutes: f64,
    /// Write periodic checkpoints behind the steps that follow; false stops the ranks until each is written.
    pub background: bool,
    /// Newest checkpoints to keep; 0 keeps all.
    #[schemars(range(max = limit::STEPS))]
    pub keep: usize,
    /// Keep also every checkpoint whose step is a multiple of this; 0 none.
    #[schemars(range(max = limit::STEPS))]
    pub keep_every: u64,
    /// Keep also the checkpoint with the lowest validation loss.
    pub keep_best: bool,
    /// On a disk of this host (ext4, XFS), keep the files of the checkpoint that goes for the next save to write over: faster
    /// where storage is given out as it is first written to. It is the room that the next save needs anyway.
    pub recycle: bool,
    /// Copy the state into memory of the node every n steps, where it outlives the processes; 0 never.
    #[schemars(range(max = limit::STEPS))]
    pub snapshot_every: u64,
    /// Directory for snapshots, on a filesystem in memory (tmpfs).
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub snapshot_dir: PathBuf,
    /// Where the second copy of each snapshot goes.
    pub partner: Partner,
    /// Ranks of one node that write to disk at the same time; 0 all.
    #[schemars(range(max = limit::RANKS))]
    pub writers_per_node: usize,
    /// Lustre stripes of a checkpoint's files (`lfs setstripe -c`): -1 all targets, 0 the directory's own setting.
    #[schemars(range(min = -1, max = 2000))]
    pub stripe_count: i64,
    /// Lustre stripe size in MiB (`lfs setstripe -S`); 0 the directory's own setting.
    #[schemars(range(max = 4096))]
    pub stripe_size_mib: u64,
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

/// Where the second copy of each snapshot goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Partner {
    /// No second copy: a lost node costs the steps since the last checkpoint on disk.
    Off,
    /// To a rank of another node, behind another switch where Slurm knows them; none where there is one node.
    #[default]
    Node,
    /// To another rank of any node: saves nothing when a node is lost; for tests and measurements on one node.
    Rank,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        CheckpointSection {
            every: 0,
            every_minutes: 0.0,
            background: true,
            keep: 3,
            keep_every: 0,
            keep_best: false,
            recycle: true,
            snapshot_every: 0,
            snapshot_dir: "/dev/shm".into(),
            partner: Partner::Node,
            writers_per_node: 0,
            stripe_count: 0,
            stripe_size_mib: 0,
            export_every: 0,
            export_keep: 3,
            store: None,
        }
    }
}

//! What a keeper is told when it begins, and what it tells.

use crate::checkpoint::meta::{Meta, Saved};
use crate::config::CheckpointSection;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Something a person may want to read about.
#[derive(Debug)]
pub enum Happened {
    /// A checkpoint was written, in the background or not.
    Saved(Saved, u64),
    /// A checkpoint could not be written; training goes on.
    SaveFailed {
        step: u64,
        error: Error,
    },
    /// A checkpoint was due while the last one was being written, and was left out.
    SaveSlow {
        step: u64,
        running: u64,
        took: Duration,
        since_due: Duration,
    },
    /// A snapshot was due while the copy of the last one was under way, or no slot was free.
    SnapshotSkipped {
        step: u64,
        skipped: u64,
    },
    /// The second copy did not arrive; the one before it stays.
    PartnerFailed {
        error: Error,
    },
    PruneFailed {
        error: Error,
    },
    /// There was no room beside what an earlier start left, which was removed.
    OldSnapshotsRemoved {
        dir: PathBuf,
    },
    /// Some node has room for its own snapshots and not for a second copy of others'.
    NoSecondCopy {
        error: Error,
    },
    /// Some node has no room for snapshots at all, or nowhere to put them.
    NoSnapshots {
        error: Error,
    },
}

/// Where the run came from: its snapshot must not be overwritten before there is another.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResumePoint {
    pub session: u64,
    pub step: u64,
}

/// What the run is and where.
pub struct Setup<'a> {
    pub config: &'a CheckpointSection,
    pub run_dir: &'a Path,
    /// The run's identity.
    pub run: u64,
    /// Number of this start.
    pub attempt: u64,
    /// A description as long as those to come.
    pub meta: &'a Meta,
    /// Snapshot that the state was restored from.
    pub from: Option<ResumePoint>,
    /// Asked before a checkpoint takes its name.
    pub fence: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    /// Whether steps are computed on the cores that a save behind them needs too.
    pub on_cores: bool,
}

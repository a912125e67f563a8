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
        /// Step of the checkpoint that is missing.
        step: u64,
        /// Why.
        error: Error,
    },
    /// A checkpoint was due while the last one was being written, and was left out.
    SaveSlow {
        /// Step whose checkpoint was left out.
        step: u64,
        /// Step of the save under way on this rank; 0 where only other ranks still write.
        running: u64,
        /// Time since that save began, on this rank.
        took: Duration,
        /// Time since the save before this one was due.
        since_due: Duration,
    },
    /// A snapshot was due while the copy of the last one was under way, or no slot was free.
    SnapshotSkipped {
        /// Step whose snapshot was left out.
        step: u64,
        /// Snapshots left out since this start, this one counted.
        skipped: u64,
    },
    /// The second copy did not arrive; the one before it stays.
    PartnerFailed {
        /// What was wrong with a copy that this rank received.
        error: Error,
    },
    /// Old checkpoints could not be removed; training goes on.
    PruneFailed {
        /// Why.
        error: Error,
    },
    /// There was no room beside what an earlier start left, which was removed.
    OldSnapshotsRemoved {
        /// Directory on this node in which they lay.
        dir: PathBuf,
    },
    /// Some node has room for its own snapshots and not for a second copy of others'.
    NoSecondCopy {
        /// Why; as a rule, how many bytes are needed and how many are free.
        error: Error,
    },
    /// Some node has no room for snapshots at all, or nowhere to put them.
    NoSnapshots {
        /// Why; as a rule, how many bytes are needed and how many are free.
        error: Error,
    },
}

/// Where the run came from: its snapshot must not be overwritten before there is another.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResumePoint {
    /// Start of the run that wrote it, a random number; 0 unknown.
    pub session: u64,
    /// Steps finished.
    pub step: u64,
}

/// What the run is and where.
pub struct Setup<'a> {
    /// The configuration's `checkpoint` section.
    pub config: &'a CheckpointSection,
    /// The run directory, in which the checkpoints are written.
    pub run_dir: &'a Path,
    /// The run's identity.
    pub run: u64,
    /// Number of this start.
    pub attempt: u64,
    /// A description as long as those to come.
    pub meta: &'a Meta,
    /// What the state was restored from: a snapshot, or a checkpoint on disk.
    pub from: Option<ResumePoint>,
    /// Asked before a checkpoint takes its name.
    pub fence: Arc<dyn Fn() -> Result<()> + Send + Sync>,
    /// Whether steps are computed on the cores that a save behind them needs too.
    pub on_cores: bool,
}

//! `attempts.json`: every start of the ranks, on which nodes, how far it came and how it ended. The budget of retries is
//! counted from it, so it holds over requeues.

use crate::durable::write_atomic;
use crate::error::{Error, Exit, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// All steps are done.
    Done,
    /// Saved and left because it was asked to: time limit, preemption, requeue, a signal.
    Stopped,
    /// Saved and left at `train.stop_at`.
    StopAt,
    /// The user's mistake: starting again does not help.
    User,
    /// A node is lost, cut off, or has a broken device.
    Node,
    /// A process died, hung or found a bug; its node answers.
    Process,
    /// The filesystem refused.
    Storage,
    /// Nobody can be named: communication broke, or Slurm did not start the step.
    Unknown,
    /// The supervisor itself was lost.
    Supervisor,
}

/// Reason of an attempt that ended because a node cannot run the ranks, while others can.
pub const UNFIT: &str = "cannot_run";

impl Class {
    /// Whether the attempt ended by a fault, and not by its own or somebody's wish.
    pub fn is_fault(self) -> bool {
        !matches!(self, Class::Done | Class::Stopped | Class::StopAt)
    }
}

/// One start of the ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub attempt: u64,
    pub job: u64,
    /// Requeues of the job before it.
    pub restarts: u32,
    /// Nodes by slot: slot i holds ranks i × ranks_per_node and following.
    pub nodes: Vec<String>,
    /// Data-parallel replicas, where they are fewer than configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrunk_to: Option<usize>,
    /// When srun was started, by the supervisor's clock.
    pub started: Timestamp,
    /// Its process on the supervisor's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub srun: Option<u32>,
    /// When the end was noticed.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// Last finished step when it ended; steps are counted from 1.
    #[serde(default)]
    pub last_step: u64,
    #[serde(default)]
    pub class: Option<Class>,
    /// Short word for the cause, as in the ledger.
    #[serde(default)]
    pub reason: String,
    /// One line for people.
    #[serde(default)]
    pub fact: String,
    #[serde(default)]
    pub blamed: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    pub attempts: Vec<Record>,
    /// Attempts before this index are no longer counted: the run was stopped after them, and a person has started it again.
    #[serde(default)]
    pub counted_from: usize,
    /// Steps whose batch is left out, because it crashed the ranks twice.
    #[serde(default)]
    pub skip_steps: Vec<u64>,
}

pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("attempts.json")
}

impl History {
    /// # Errors
    /// [`Exit::Storage`]: it cannot be read or is damaged.
    pub fn read(run_dir: &Path) -> Result<History> {
        let path = path(run_dir);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::new(Exit::Storage, format!("{} is damaged: {e}", path.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(History::default()),
            Err(e) => Err(Error::io(&path, "read", &e, Exit::Storage)),
        }
    }

    /// # Errors
    /// [`Exit::Storage`].
    pub fn write(&self, run_dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
        write_atomic(&path(run_dir), format!("{text}\n").as_bytes())
    }

    /// Highest step that any attempt finished.
    pub fn high_water(attempts: &[Record]) -> u64 {
        attempts.iter().map(|a| a.last_step).max().unwrap_or(0)
    }
}

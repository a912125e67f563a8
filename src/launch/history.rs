//! `attempts.json`: every start of the ranks, on which nodes, how far it came and how it ended. The budget of retries is
//! counted from it, so it holds over requeues.

use crate::durable::write_atomic;
use crate::error::{Error, Exit, Result};
pub use crate::events::Class;
use crate::run_dir::RunDir;
use crate::slurm::Job;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Reason of an attempt that ended because a node cannot run the ranks, while others can.
pub const UNFIT: &str = "cannot_run";

/// Reason of a node that did not answer in time. It may be slow, or the cluster busy: that is no failure by which a node is given
/// up.
pub const NO_ANSWER: &str = "no_answer";

/// One start of the ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number in the run, from 1; where too few nodes were left to start, that of the start before.
    pub attempt: u64,
    /// Slurm's number of the job (SLURM_JOB_ID).
    pub job: u64,
    /// Requeues of the job before it.
    pub restarts: u32,
    /// Nodes by slot: slot i holds ranks i × ranks_per_node and following. In the file, this and `blamed` are lists of hosts as
    /// Slurm writes them; arrays of names are read too.
    #[serde(with = "hosts")]
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
    /// How it ended; `None` while it runs.
    #[serde(default)]
    pub class: Option<Class>,
    /// Short word for the cause, as in the ledger.
    #[serde(default)]
    pub reason: String,
    /// One line for people.
    #[serde(default)]
    pub fact: String,
    /// Nodes that the failure is counted against; empty while it runs, without blame, and where the supervisor was lost.
    #[serde(default, with = "hosts")]
    pub blamed: Vec<String>,
}

impl Record {
    /// Whether it is one of this start of this job.
    pub fn is_of(&self, job: &Job) -> bool {
        self.job == job.id && self.restarts == job.restarts
    }
}

/// Names of nodes as one string: `n[001-512]`.
mod hosts {
    use crate::slurm::{compress, expand};
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        List(String),
        Each(Vec<String>),
    }

    pub fn serialize<S: Serializer>(names: &[String], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&compress(names))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
        match Names::deserialize(from)? {
            Names::List(list) => expand(&list).map_err(D::Error::custom),
            Names::Each(names) => Ok(names),
        }
    }
}

/// All starts of a run, as `attempts.json` holds them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Oldest first, of all jobs of the run; only the last may still run.
    pub attempts: Vec<Record>,
    /// Attempts before this index are no longer counted: the run was stopped after them, and a person has started it again.
    #[serde(default)]
    pub counted_from: usize,
    /// Steps whose batch is left out, because it crashed the ranks twice.
    #[serde(default)]
    pub skip_steps: Vec<u64>,
}

impl History {
    /// # Errors
    /// [`Exit::Storage`]: it cannot be read or is damaged.
    pub fn read(run_dir: &Path) -> Result<History> {
        let path = RunDir::new(run_dir).attempts();
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
        write_atomic(&RunDir::new(run_dir).attempts(), format!("{text}\n").as_bytes())
    }

    /// Highest step that any attempt finished.
    pub fn high_water(attempts: &[Record]) -> u64 {
        attempts.iter().map(|a| a.last_step).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_thousand_nodes_are_a_line_and_older_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let nodes: Vec<String> = (1..=2048).map(|i| format!("rack{}n{:04}", i / 512, i)).collect();
        let old = serde_json::json!({ "attempts": [{
            "attempt": 1, "job": 7, "restarts": 0, "nodes": nodes, "started": "2026-01-01T00:00:00Z", "blamed": ["rack0n0003"],
        }] });
        std::fs::write(RunDir::new(dir.path()).attempts(), old.to_string()).unwrap();
        let history = History::read(dir.path()).unwrap();
        assert_eq!(
            (&history.attempts[0].nodes, &history.attempts[0].blamed[..]),
            (&nodes, &["rack0n0003".to_string()][..])
        );
        history.write(dir.path()).unwrap();
        let text = std::fs::read_to_string(RunDir::new(dir.path()).attempts()).unwrap();
        assert!(text.len() < 1000 && text.contains("rack1n[0512-1023]"), "{text}");
        assert_eq!(History::read(dir.path()).unwrap(), history);
        std::fs::write(RunDir::new(dir.path()).attempts(), text.replace("[0512-1023]", "[0512-")).unwrap();
        assert_eq!(History::read(dir.path()).unwrap_err().exit, Exit::Storage);
    }
}

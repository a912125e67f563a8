//! A process's own record of the error it leaves with, beside its exit code.
//!
//! An exit code alone does not say whose it is: MPI, PMIx and Slurm end ranks with codes of their own (Open MPI 5 with 14,
//! `slurmstepd` with the errno of an exec that failed), which are herd's too. So the supervisor names a folder for each start,
//! and takes a code for herd's where a record in it says the same. An error that merely follows from another rank's
//! ([`Exit::Peer`], [`Exit::Fenced`]) leaves none; of one that all ranks share the first rank's is the only one.
//!
//! One file a node and code, the first: `code-CODE-NODE.json`. Who was gone without a record, neighbours write down ([`Lost`]).

use crate::error::{Error, Exit, Result};
use crate::host;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Environment variable with the folder for this start's records; the supervisor sets it.
pub const FOLDER: &str = "HERD_EXIT_RECORDS";
/// How long a slow filesystem may hold up a process that leaves.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why one process left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code, of [`Exit::TABLE`].
    pub code: i32,
    /// SLURM_PROCID: the rank, where Slurm started the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// SLURMD_NODENAME, else the host's name.
    pub node: String,
    /// All ranks have the same error; this one speaks for them.
    pub agreed: bool,
    /// The error, one line.
    pub fact: String,
}

/// Writes down the error that this process is about to leave with. Nothing is written outside a supervisor's start, and
/// nothing here is an error: the process is leaving anyway.
pub fn write(e: &Error) {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let rank = std::env::var("SLURM_PROCID").ok().and_then(|r| r.parse().ok());
    if !speaks(e, rank) {
        return;
    }
    let record = ExitRecord {
        code: e.exit.code(),
        rank,
        node: host::node(),
        agreed: e.agreed,
        fact: e.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
    };
    let (done, wait) = channel();
    let write = move || {
        let _ = record.write(Path::new(&folder));
        let _ = done.send(());
    };
    if std::thread::Builder::new().name("herd-record".into()).spawn(write).is_ok() {
        let _ = wait.recv_timeout(PATIENCE);
    }
}

/// Whether a rank leaves a record. Of an error that all share the first does: else there would be a file a node.
fn speaks(e: &Error, rank: Option<usize>) -> bool {
    !(matches!(e.exit, Exit::Ok | Exit::Peer | Exit::Fenced) || e.agreed && rank.is_some_and(|r| r > 0))
}

impl ExitRecord {
    fn write(&self, folder: &Path) -> std::io::Result<()> {
        let name = format!("code-{}-{}.json", self.code, self.node.replace('/', "_"));
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(folder.join(name))?;
        // one write: a reader that comes meanwhile finds nothing, or all of it
        file.write_all(format!("{}\n", serde_json::to_string(self)?).as_bytes())
    }
}

/// A node whose leader was gone without a word, as a neighbour saw (`liveness`, its witnesses).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Name of the node that was lost: Slurm's, else the host's.
    pub node: String,
    /// The node that saw it.
    pub by: String,
    /// When, by that node's clock.
    pub time: jiff::Timestamp,
}

/// How many of them a start has at most: the first few say all there is to say.
pub const SLOTS: usize = 3;

impl Lost {
    /// Takes the next free place: `lost-1.json` is whose end was seen first. Nothing is written where all are taken, or where
    /// the folder takes nothing.
    pub fn write(&self, folder: &Path) {
        let Ok(text) = serde_json::to_string(self) else { return };
        for slot in 1..=SLOTS {
            let place = folder.join(format!("lost-{slot}.json"));
            match std::fs::OpenOptions::new().write(true).create_new(true).open(place) {
                Ok(mut file) => return drop(file.write_all(text.as_bytes())),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(_) => return,
            }
        }
    }

    /// Those in `folder`, the first first.
    pub fn all(folder: &Path) -> Vec<Lost> {
        let read = |slot| std::fs::read(folder.join(format!("lost-{slot}.json"))).ok();
        (1..=SLOTS).filter_map(read).filter_map(|text| serde_json::from_slice(&text).ok()).collect()
    }
}

/// The records in `folder`, by rank; none where it does not exist. One that is being written is not there yet.
///
/// # Errors
/// [`Exit::Storage`]: the folder cannot be read.
pub fn read_all(folder: &Path) -> Result<Vec<ExitRecord>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(folder, "read", &e, Exit::Storage)),
    };
    let texts = entries.flatten().filter_map(|e| std::fs::read(e.path()).ok());
    let mut records: Vec<ExitRecord> = texts.filter_map(|t| serde_json::from_slice(&t).ok()).collect();
    records.sort_by(|a, b| (a.rank, &a.node, a.code).cmp(&(b.rank, &b.node, b.code)));
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(code: i32, rank: usize, node: &str) -> ExitRecord {
        ExitRecord { code, rank: Some(rank), node: node.into(), agreed: false, fact: format!("fact {rank}") }
    }

    #[test]
    fn an_error_of_all_is_the_first_rank_s_to_record() {
        let agreed = Error { agreed: true, ..Error::new(Exit::Data, "x") };
        assert_eq!([None, Some(0), Some(3)].map(|rank| speaks(&agreed, rank)), [true, true, false]);
        assert!(speaks(&Error::new(Exit::Storage, "x"), Some(3)) && !speaks(&Error::new(Exit::Peer, "x"), Some(0)));
    }

    #[test]
    fn the_first_of_a_node_and_code_counts_and_parts_of_files_do_not() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_all(&dir.path().join("absent")).unwrap().is_empty());
        record(14, 5, "n2").write(dir.path()).unwrap();
        assert!(record(14, 6, "n2").write(dir.path()).is_err());
        record(14, 0, "n1").write(dir.path()).unwrap();
        std::fs::write(dir.path().join("code-1-n3.json"), "{\"code\": 1").unwrap();
        assert_eq!(read_all(dir.path()).unwrap(), [record(14, 0, "n1"), record(14, 5, "n2")]);
    }
}

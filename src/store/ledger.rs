//! `uploads.json` in the run directory: which checkpoints are whole in the store, so that retention here knows what it may
//! remove, also after a crash and from another process.

use crate::checkpoint::disk;
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// What `uploads.json` of a run says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UploadLedger {
    /// Place of the run in the store, without a slash at the end; empty where the file was damaged.
    pub url: String,
    /// Steps that are due are multiples of it; 0: all.
    pub every: u64,
    /// Steps seen whole in the store.
    pub verified: BTreeSet<u64>,
}

impl UploadLedger {
    /// The ledger of a run; `None` for a run without a store. One that is damaged or cannot be read counts as
    /// empty, which keeps more.
    pub fn read(run: &Path) -> Option<UploadLedger> {
        let bytes = match std::fs::read(RunDir::new(run).uploads()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            other => other.unwrap_or_default(),
        };
        Some(serde_json::from_slice(&bytes).unwrap_or(UploadLedger {
            url: String::new(),
            every: 0,
            verified: [].into(),
        }))
    }

    /// The ledger of a run that uploads to `url`. Another URL starts an empty one.
    pub fn open(run: &Path, url: &str, every: u64) -> UploadLedger {
        let old = UploadLedger::read(run).filter(|l| l.url == url);
        UploadLedger { url: url.into(), every, verified: old.map(|l| l.verified).unwrap_or_default() }
    }

    /// Writes it to the run directory `run`, whole or not at all.
    pub fn write(&self, run: &Path) -> Result<()> {
        let path = RunDir::new(run).uploads();
        let json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::new(Exit::Internal, format!("{}: {e}", path.display())))?;
        disk::write_atomic(&path, &json)
    }

    /// Whether the checkpoint of `step` belongs in the store by `every`.
    pub fn due(&self, step: u64) -> bool {
        self.every == 0 || step.is_multiple_of(self.every)
    }

    /// Whether the local checkpoint of `step` may go: it, or a newer one, is verified in the store, or it is not for there.
    pub fn may_remove(&self, step: u64) -> bool {
        !self.due(step) || self.verified.range(step..).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_stays_until_it_or_a_newer_one_is_verified() {
        let dir = tempfile::tempdir().unwrap();
        let mut l = UploadLedger::open(dir.path(), "s3://b", 2);
        assert!(l.may_remove(3) && !l.may_remove(2) && !l.may_remove(4));
        l.verified.insert(4);
        assert!(l.may_remove(2) && l.may_remove(4) && !l.may_remove(6));
        l.write(dir.path()).unwrap();
        assert_eq!(UploadLedger::read(dir.path()), Some(l.clone()));
        assert_eq!(UploadLedger::open(dir.path(), "s3://b", 2), l);
        assert!(UploadLedger::open(dir.path(), "s3://other", 2).verified.is_empty());
        std::fs::write(RunDir::new(dir.path()).uploads(), "{").unwrap();
        assert!(!UploadLedger::read(dir.path()).unwrap().may_remove(2));
    }
}

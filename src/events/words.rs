//! What events say to the person who watches.

use super::RunEvent;
use crate::text;
use std::fmt;

impl RunEvent {
    /// Whether somebody should look.
    pub fn is_warning(&self) -> bool {
        use RunEvent::*;
        matches!(
            self,
            CheckpointFailed { .. }
                | CheckpointSlow { .. }
                | PruneFailed { .. }
                | PartnerFailed { .. }
                | NoSecondCopy { .. }
                | NoSnapshots { .. }
                | OldSnapshotsRemoved { .. }
                | ExportFailed { .. }
                | UploadFailed { .. }
                | UploadPending { .. }
                | RemoteRejected { .. }
                | StorePassedOver { .. }
        )
    }

    /// One line about what became of the state between two steps; `None` for other kinds, and what only the file is to hold.
    pub fn words(&self) -> Option<String> {
        use RunEvent::*;
        Some(match self {
            Checkpoint { path, bytes, seconds, .. } => {
                format!("saved {}, {} in {seconds:.2} s", path.display(), text::bytes(*bytes))
            }
            CheckpointFailed { step, error } => {
                format!("the checkpoint of step {step} failed, training goes on: {error}")
            }
            CheckpointSlow { step, running, save_s, interval_s } => {
                let before = match running {
                    0 => "other ranks have been writing the one before".to_string(),
                    n => format!("that of step {n} is being written"),
                };
                format!(
                    "no checkpoint of step {step}: {before} for {save_s:.1} s, and one was due {interval_s:.1} s ago \
                     (hint: raise checkpoint.every)"
                )
            }
            PruneFailed { error } => format!("old checkpoints could not be removed: {error}"),
            PartnerFailed { error } => format!("a second copy of the snapshots is missing: {error}"),
            NoSecondCopy { error } => format!("snapshots have no second copy, the run goes on: {error}"),
            NoSnapshots { error } => format!("no snapshots in memory, only checkpoints count: {error}"),
            OldSnapshotsRemoved { dir } => {
                format!("no room in {} beside the snapshots of an earlier start, which were removed", dir.display())
            }
            Export { path, bytes, seconds, .. } => {
                format!("exported {}, {} in {seconds:.2} s", path.display(), text::bytes(*bytes))
            }
            ExportFailed { step, error } => format!("the export of step {step} failed, training goes on: {error}"),
            _ => return self.store_words(),
        })
    }

    fn store_words(&self) -> Option<String> {
        use RunEvent::*;
        Some(match self {
            Upload { url, bytes, sent, seconds, .. } => {
                let (all, now) = (text::bytes(*bytes), text::bytes(*sent));
                format!("uploaded {url}: {all}, {now} of it now, verified after {seconds:.1} s")
            }
            UploadFailed { step, error, attempts, .. } => {
                format!("the upload of step {step} failed {attempts} times and is left for later: {error}")
            }
            UploadSkipped { step, newer } => {
                format!("step {step} is not uploaded: step {newer} was saved before its turn came")
            }
            UploadPending { step, url } => {
                format!("step {step} is not yet in {url}: the next start goes on, or `herd checkpoint upload`")
            }
            RemotePruned { url, steps } => format!("removed steps {steps:?} from {url}"),
            Fetched { url, path, .. } => format!("fetched {url} to {}", path.display()),
            RemoteRejected { url, reason, .. } => format!("{url} is not whole and is passed over: {reason}"),
            StorePassedOver { url, reason } => format!("{url} is passed over: {reason}"),
            _ => return None,
        })
    }
}

impl fmt::Display for RunEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words() {
            Some(words) => f.write_str(&words),
            None => f.write_str(&serde_json::to_string(self).unwrap_or_default()),
        }
    }
}

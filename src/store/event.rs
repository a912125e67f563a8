//! What the object store tier has to say: lines of `events.jsonl`.

use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StoreEvent {
    /// Whole and verified in the store.
    Upload { step: u64, url: String, bytes: u64, sent: u64, seconds: f64, attempts: u32 },
    /// Every try failed. The checkpoint stays here until a newer one is verified in the store.
    UploadFailed { step: u64, url: String, error: String, attempts: u32 },
    /// A newer checkpoint was saved before the upload of this one had begun.
    UploadSkipped { step: u64, newer: u64 },
    /// The run ended before the upload did.
    UploadPending { step: u64, url: String },
    /// Older checkpoints removed from the store.
    RemotePruned { url: String, steps: Vec<u64> },
    /// A checkpoint came from the store.
    Fetched { step: u64, url: String, path: PathBuf },
    /// A checkpoint of the store is not whole; the next older one is tried.
    RemoteRejected { step: u64, url: String, reason: String },
    /// The store does not answer, and something nearer is whole.
    StorePassedOver { url: String, reason: String },
}

impl StoreEvent {
    /// Kind and fields, as `events.jsonl` has them.
    pub fn parts(&self) -> (String, Value) {
        let mut fields = serde_json::to_value(self).unwrap_or_default();
        let kind = fields.as_object_mut().and_then(|map| map.shift_remove("kind"));
        (kind.and_then(|k| k.as_str().map(str::to_string)).unwrap_or_default(), fields)
    }

    /// Whether somebody should look.
    pub fn is_warning(&self) -> bool {
        use StoreEvent::*;
        matches!(self, UploadFailed { .. } | UploadPending { .. } | RemoteRejected { .. } | StorePassedOver { .. })
    }
}

impl fmt::Display for StoreEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreEvent::Upload { url, bytes, sent, seconds, .. } => {
                let (all, now) = (*bytes as f64 / 1e6, *sent as f64 / 1e6);
                write!(f, "uploaded {url}: {all:.1} MB, {now:.1} MB of it now, verified after {seconds:.1} s")
            }
            StoreEvent::UploadFailed { step, error, attempts, .. } => {
                write!(f, "the upload of step {step} failed {attempts} times and is left for later: {error}")
            }
            StoreEvent::UploadSkipped { step, newer } => {
                write!(f, "step {step} is not uploaded: step {newer} was saved before its turn came")
            }
            StoreEvent::UploadPending { step, url } => {
                write!(f, "step {step} is not yet in {url}: the next start goes on, or `herd checkpoint upload`")
            }
            StoreEvent::RemotePruned { url, steps } => write!(f, "removed steps {steps:?} from {url}"),
            StoreEvent::Fetched { url, path, .. } => write!(f, "fetched {url} to {}", path.display()),
            StoreEvent::RemoteRejected { url, reason, .. } => {
                write!(f, "{url} is not whole and is passed over: {reason}")
            }
            StoreEvent::StorePassedOver { url, reason } => write!(f, "{url} is passed over: {reason}"),
        }
    }
}

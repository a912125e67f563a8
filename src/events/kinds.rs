//! Every kind of event, in the form in which a line has it. [`super::markdown`] is made from this, and docs/events.md holds it.
//!
//! A line without a field is read as one with its default: herd has learned to say more over time.

use super::parts::{Class, Failure, Tally, Traffic};
use crate::config::AlertKind;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// The enum of all kinds, whose fields have defaults, and how many kinds each group has.
macro_rules! kinds {
    ($($group:literal {
        $($(#[$about:meta])* $kind:ident { $($(#[$note:meta])* $field:ident: $type:ty),* $(,)? },)*
    })*) => {
        /// What happened.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        pub enum RunEvent {
            $($($(#[$about])* $kind { $(#[serde(default)] $(#[$note])* $field: $type,)* },)*)*
        }

        /// Who writes, and how many of the kinds, in order.
        pub(super) const GROUPS: &[(&str, usize)] = &[$(($group, [$(stringify!($kind)),*].len())),*];
    };
}

kinds! {
    "The supervisor" {
        /// A supervisor begins, at the first start of a job or after a requeue.
        Launch {
            job: u64,
            /// Requeues of the job before.
            restarts: u32,
            nodes: String,
        },
        /// The ranks are started.
        AttemptStarted {
            attempt: u64,
            /// By slot.
            nodes: String,
            spares: String,
            /// Ranks.
            world: usize,
        },
        /// An attempt has ended, and not by anybody's wish.
        Fault {
            attempt: u64,
            /// The last that was finished.
            step: u64,
            /// As in `attempts.json`.
            #[serde(deserialize_with = "known")]
            class: Option<Class>,
            /// One word, as in the ledger.
            reason: String,
            fact: String,
            /// Those that the failure is counted against.
            nodes: Vec<String>,
            ranks: Vec<usize>,
        },
        /// The first step after a fault is done.
        Recovered {
            attempt: u64,
            step: u64,
            /// The step that was gone on from.
            resumed_at: u64,
            /// Steps done again.
            steps_lost: u64,
            /// Since the fault was noticed.
            seconds: f64,
        },
        /// Nodes did not answer a roll call before an attempt.
        NoAnswer { nodes: Vec<String>, attempt: u64 },
        /// A node has failed too often and is used no more.
        NodeGivenUp { node: String, failures: Vec<Failure> },
        /// A batch that crashed the ranks twice is left out.
        SkipBatch { step: u64 },
        /// The run goes on with fewer replicas.
        Shrunk { replicas: usize, before: usize, nodes: Vec<String> },
        /// The ranks were asked to save and stop.
        AskedToStop { attempt: u64 },
        /// A signal had ended the supervisor; the attempt has gone on meanwhile.
        SupervisorRestarted {
            signal: i32,
            /// Times that it was started again.
            starts: u32,
            attempt: u64,
            /// Process of the attempt's srun.
            srun: u32,
            node: String,
        },
        /// The standby is the supervisor now.
        TakenOver {
            job: u64,
            /// Node of the supervisor before.
            lost: String,
            /// Node of this one.
            by: String,
        },
        /// Snapshots in the memory of nodes go to disk: what came of it.
        Flush { nodes: Vec<String>, without: Vec<String>, result: String },
        /// Dead nodes were taken out of the job.
        GaveBack { nodes: Vec<String>, result: String },
        /// The job goes back into the queue.
        Requeue {
            job: String,
            why: String,
            /// `slurm` where Slurm does it by itself.
            #[serde(skip_serializing_if = "Option::is_none")]
            by: Option<String>,
        },
        /// The job was to go back into the queue, and Slurm has ended it already.
        NotRequeued { job: String, state: String, why: String },
        /// Another job was submitted, without the nodes that failed.
        Successor { job: String, exclude: Vec<String>, why: String },
        /// An alert went out, or could not.
        Alert {
            /// As in `alerts.events`.
            #[serde(deserialize_with = "known")]
            about: Option<AlertKind>,
            /// Its channel.
            by: String,
            failure: Option<String>,
        },
        /// The supervisor leaves, with this exit code.
        LaunchEnded { exit: i32, why: String },
        /// `herd config change` has changed keys for the next start.
        ConfigChanged { keys: Vec<String>, file: PathBuf },
    }
    "Training" {
        /// The ranks have found each other.
        Met { world: usize },
        /// The ranks look for a state.
        Restoring {
            /// What the first rank has to read.
            bytes: u64,
        },
        /// The Slurm job that the ranks are in.
        SlurmJob { job: u64, restarts: u32, nodes: String },
        /// A checkpoint is damaged; the next older one is tried.
        CheckpointRejected { path: PathBuf, reason: String },
        /// A snapshot is damaged; another copy or the next older one is tried.
        SnapshotRejected { step: u64, reason: String },
        /// Training begins at the first step.
        Start { world: usize, weights: Option<PathBuf> },
        /// Training goes on after a step.
        Resume {
            step: u64,
            /// The checkpoint, where it came from disk.
            path: Option<PathBuf>,
            /// Bytes by place.
            tiers: Tally,
            /// The most that one rank has opened.
            snapshots_opened: u64,
            /// Who wrote the state.
            from_attempt: u64,
            seconds: f64,
        },
        /// The corpora differ from those of the checkpoint, as `data.on_change` allows.
        DataChanged { changes: Vec<String> },
        /// The loss on held-out data.
        Validation { step: u64, validation_loss: Option<f64> },
        /// A step changed no parameter.
        SkippedStep {
            step: u64,
            /// Not finite, or the norm is not.
            #[serde(skip_serializing_if = "Option::is_none")]
            loss: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            grad_norm: Option<String>,
            /// The key that names the step.
            #[serde(skip_serializing_if = "Option::is_none")]
            why: Option<String>,
        },
        /// All steps are done.
        Finished {
            step: u64,
            /// The most that one rank has sent besides tensors.
            control_plane: Traffic,
        },
        /// Training has ended before its last step, with its state saved.
        Stopped {
            step: u64,
            /// The most that one rank has sent besides tensors.
            control_plane: Traffic,
        },
    }
    "Checkpoints and snapshots" {
        /// A checkpoint is on disk.
        Checkpoint { step: u64, path: PathBuf, bytes: u64, seconds: f64 },
        /// A checkpoint could not be written; training goes on.
        CheckpointFailed { step: u64, error: String },
        /// A checkpoint was due while the last one was being written, and was left out.
        CheckpointSlow {
            step: u64,
            /// The step that is being written.
            running: u64,
            /// So far.
            save_s: f64,
            /// Since one was due.
            interval_s: f64,
        },
        /// Old checkpoints could not be removed.
        PruneFailed { error: String },
        /// A snapshot was due while the last one was being copied.
        SnapshotSkipped {
            step: u64,
            /// So far.
            skipped: u64,
        },
        /// The second copy of a snapshot did not arrive; the one before it stays.
        PartnerFailed { error: String },
        /// Some node has no room for second copies.
        NoSecondCopy { error: String },
        /// Some node has no room for snapshots.
        NoSnapshots { error: String },
        /// There was no room beside the snapshots of an earlier start, which were removed.
        OldSnapshotsRemoved { dir: PathBuf },
        /// A model is written in Hugging Face form.
        Export { step: u64, path: PathBuf, bytes: u64, seconds: f64 },
        /// An export failed; training goes on.
        ExportFailed { step: u64, error: String },
        /// A newer checkpoint was due before this one's turn came.
        ExportSkipped { step: u64, newer: u64 },
        /// The run ended before an export did; the next start makes it.
        ExportPending {},
    }
    "The object store" {
        /// A checkpoint is whole and verified in the store.
        Upload {
            step: u64,
            url: String,
            bytes: u64,
            /// Bytes that were not there yet.
            sent: u64,
            seconds: f64,
            attempts: u32,
        },
        /// Every try failed. The checkpoint stays on disk until a newer one is verified in the store.
        UploadFailed { step: u64, url: String, error: String, attempts: u32 },
        /// A newer checkpoint was saved before the upload of this one had begun.
        UploadSkipped { step: u64, newer: u64 },
        /// The run ended before the upload did.
        UploadPending { step: u64, url: String },
        /// Older checkpoints were removed from the store.
        RemotePruned { url: String, steps: Vec<u64> },
        /// A checkpoint came from the store.
        Fetched { step: u64, url: String, path: PathBuf },
        /// A checkpoint of the store is not whole; the next older one is tried.
        RemoteRejected { step: u64, url: String, reason: String },
        /// The store does not answer, and something nearer is whole.
        StorePassedOver { url: String, reason: String },
    }
    "Liveness" {
        /// A rank's verdict, for people; what counts is the file in `verdicts/`.
        Verdict {
            reason: String,
            ranks: Vec<usize>,
            nodes: Vec<String>,
            step: u64,
            phase: String,
            /// The rank that says so.
            by: usize,
            fact: String,
        },
        /// A rank's own work takes much longer than the others'.
        SlowRank { rank: usize, own_s: f64, median_s: f64 },
        /// A rank does to itself what `herd drill` has ordered.
        Drill {
            fault: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            code: Option<i32>,
            /// `null` for a stop without end.
            #[serde(skip_serializing_if = "Option::is_none")]
            seconds: Option<Option<f64>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            steps: Option<u64>,
            rank: usize,
            step: u64,
        },
    }
}

impl RunEvent {
    /// What it says besides its kind.
    pub fn fields(&self) -> Value {
        let mut fields = serde_json::to_value(self).unwrap_or_default();
        fields.as_object_mut().and_then(|map| map.shift_remove("kind"));
        fields
    }
}

/// A word of another herd's that this one does not know is none, and the rest of the line is read.
fn known<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(from)?).ok())
}

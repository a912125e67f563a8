//! Every kind of event, in the form in which a line has it. [`super::markdown`] is made from this, and docs/events.md holds it.
//!
//! A line without a field is read as one with its default: herd has learned to say more over time.

use super::parts::{Class, CorpusLoss, Failure, Tally, Traffic};
use crate::config::AlertKind;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
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
            /// Number of the Slurm job.
            job: u64,
            /// Requeues of the job before.
            restarts: u32,
            /// Those of the job, as a list of hosts that Slurm reads.
            nodes: String,
        },
        /// The ranks are started.
        AttemptStarted {
            /// Number of this start, from 1.
            attempt: u64,
            /// By slot.
            nodes: String,
            /// Nodes in reserve, with commas between them.
            spares: String,
            /// Ranks.
            world: usize,
        },
        /// An attempt has ended, and not by anybody's wish.
        Fault {
            /// The one that has ended.
            attempt: u64,
            /// The last that was finished.
            step: u64,
            /// As in `attempts.json`.
            #[serde(deserialize_with = "known")]
            class: Option<Class>,
            /// One word, as in the ledger.
            reason: String,
            /// One line for people.
            fact: String,
            /// Those that the failure is counted against.
            nodes: Vec<String>,
            /// World ranks that have failed, as far as they are known.
            ranks: Vec<usize>,
        },
        /// The first step after a fault is done.
        Recovered {
            /// The one that trains.
            attempt: u64,
            /// The last that is finished.
            step: u64,
            /// The step that was gone on from.
            resumed_at: u64,
            /// Steps done again.
            steps_lost: u64,
            /// Since the fault was noticed.
            seconds: f64,
        },
        /// Nodes did not answer a roll call before an attempt.
        NoAnswer {
            /// Those that were silent.
            nodes: Vec<String>,
            /// The one that was to begin.
            attempt: u64,
        },
        /// A node has failed too often and is used no more.
        NodeGivenUp {
            /// Its name, as Slurm has it.
            node: String,
            /// All that the ledger has against it, the oldest first.
            failures: Vec<Failure>,
        },
        /// A batch that crashed the ranks twice is left out.
        SkipBatch {
            /// The step that it was for, from 1.
            step: u64,
        },
        /// The run goes on with fewer replicas.
        Shrunk {
            /// Data-parallel ones, from now on.
            replicas: usize,
            /// How many there were.
            before: usize,
            /// Those that are left.
            nodes: Vec<String>,
        },
        /// The ranks were asked to save and stop.
        AskedToStop {
            /// The one that runs.
            attempt: u64,
        },
        /// A signal had ended the supervisor; the attempt has gone on meanwhile.
        SupervisorRestarted {
            /// Its number.
            signal: i32,
            /// Times that it was started again.
            starts: u32,
            /// The one that has gone on.
            attempt: u64,
            /// Process of the attempt's srun.
            srun: u32,
            /// Where the supervisor is.
            node: String,
        },
        /// The standby is the supervisor now.
        TakenOver {
            /// Number of the Slurm job.
            job: u64,
            /// Node of the supervisor before.
            lost: String,
            /// Node of this one.
            by: String,
        },
        /// Snapshots in the memory of nodes go to disk: what came of it.
        Flush {
            /// Those that were told to.
            nodes: Vec<String>,
            /// Those that did not answer.
            without: Vec<String>,
            /// What the flush said, or why it failed.
            result: String,
        },
        /// Dead nodes were taken out of the job.
        GaveBack {
            /// Those that did not answer.
            nodes: Vec<String>,
            /// `given back`, or why they were not.
            result: String,
        },
        /// The job goes back into the queue.
        Requeue {
            /// Its number, as Slurm's commands take it: `7`, or `7_1` in an array.
            job: String,
            /// One line for people.
            why: String,
            /// `slurm` where Slurm does it by itself.
            #[serde(skip_serializing_if = "Option::is_none")]
            by: Option<String>,
        },
        /// The job was to go back into the queue, and Slurm has ended it already.
        NotRequeued {
            /// Its number, as Slurm's commands take it.
            job: String,
            /// In Slurm's word, such as `CANCELLED`.
            state: String,
            /// Why it was to: one line for people.
            why: String,
        },
        /// Another job was submitted, without the nodes that failed.
        Successor {
            /// Number of the new one.
            job: String,
            /// Nodes that it does not get.
            exclude: Vec<String>,
            /// One line for people.
            why: String,
        },
        /// An alert went out, or could not.
        Alert {
            /// As in `alerts.events`.
            #[serde(deserialize_with = "known")]
            about: Option<AlertKind>,
            /// Its channel.
            by: String,
            /// Why it could not; `null` where it went out.
            failure: Option<String>,
        },
        /// The supervisor leaves, with this exit code.
        LaunchEnded {
            /// As in `herd help exit-codes`.
            exit: i32,
            /// One line for people.
            why: String,
        },
        /// `herd config change` has changed keys for the next start.
        ConfigChanged {
            /// A line each: `key: before → after`.
            keys: Vec<String>,
            /// The job's configuration, below `launch/`.
            file: PathBuf,
        },
    }
    "Training" {
        /// The ranks have found each other.
        Met {
            /// Ranks.
            world: usize,
        },
        /// The ranks look for a state.
        Restoring {
            /// What the first rank has to read.
            bytes: u64,
        },
        /// The Slurm job that the ranks are in.
        SlurmJob {
            /// Its number.
            job: u64,
            /// Requeues of it before.
            restarts: u32,
            /// As a list of hosts that Slurm reads.
            nodes: String,
        },
        /// A checkpoint is damaged; the next older one is tried.
        CheckpointRejected {
            /// Its directory.
            path: PathBuf,
            /// What is wrong with it.
            reason: String,
        },
        /// A snapshot is damaged; another copy or the next older one is tried.
        SnapshotRejected {
            /// The last that is in it.
            step: u64,
            /// What is wrong with it.
            reason: String,
        },
        /// Training begins at the first step.
        Start {
            /// Ranks.
            world: usize,
            /// As in `model.weights`; `null` for random ones.
            weights: Option<PathBuf>,
        },
        /// Training goes on after a step.
        Resume {
            /// The last that is in the state.
            step: u64,
            /// The checkpoint, where it came from disk.
            path: Option<PathBuf>,
            /// Bytes by place.
            tiers: Tally,
            /// The most that one rank has opened.
            snapshots_opened: u64,
            /// Who wrote the state.
            from_attempt: u64,
            /// From the first look for a state to its last byte, on the first rank.
            seconds: f64,
        },
        /// The corpora differ from those of the checkpoint, as `data.on_change` allows.
        DataChanged {
            /// What differs, a line each.
            changes: Vec<String>,
        },
        /// The loss on held-out data.
        Validation {
            /// Steps done; 0 before the first.
            step: u64,
            /// Nats a token; `null` where it is not finite.
            validation_loss: Option<f64>,
            /// Share of the tokens that count which the model thinks likeliest; absent of preference pairs.
            #[serde(skip_serializing_if = "Option::is_none")]
            validation_accuracy: Option<f64>,
            /// The same of each corpus, where there are several: `path`, `loss`, `accuracy`, `tokens`.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            corpora: Vec<CorpusLoss>,
        },
        /// What came of a task.
        Evaluation {
            /// Steps done; 0 before the first.
            step: u64,
            /// Name of its file, without folders and ending.
            task: String,
            /// Rows that were scored.
            rows: u64,
            /// By name, as `herd eval` has them: `acc`, `acc_norm`, `perplexity`, `bits_per_byte`; `null` where one is not finite.
            measures: BTreeMap<String, Option<f64>>,
        },
        /// A step changed no parameter.
        SkippedStep {
            /// From 1.
            step: u64,
            /// Not finite, or the norm is not.
            #[serde(skip_serializing_if = "Option::is_none")]
            loss: Option<String>,
            /// Of all parameters, before clipping.
            #[serde(skip_serializing_if = "Option::is_none")]
            grad_norm: Option<String>,
            /// The key that names the step.
            #[serde(skip_serializing_if = "Option::is_none")]
            why: Option<String>,
        },
        /// All steps are done.
        Finished {
            /// The last.
            step: u64,
            /// The most that one rank has sent besides tensors.
            control_plane: Traffic,
        },
        /// Training has ended before its last step, with its state saved.
        Stopped {
            /// The last that is in the state.
            step: u64,
            /// The most that one rank has sent besides tensors.
            control_plane: Traffic,
        },
    }
    "Checkpoints and snapshots" {
        /// A checkpoint is on disk.
        Checkpoint {
            /// The last that is in it.
            step: u64,
            /// Its directory.
            path: PathBuf,
            /// In all its files.
            bytes: u64,
            /// For writing it, on the first rank.
            seconds: f64,
        },
        /// A checkpoint could not be written; training goes on.
        CheckpointFailed {
            /// The last that was to be in it.
            step: u64,
            /// What failed.
            error: String,
        },
        /// A checkpoint was due while the last one was being written, and was left out.
        CheckpointSlow {
            /// The one whose checkpoint was left out.
            step: u64,
            /// The step that is being written; 0 where only other ranks still write.
            running: u64,
            /// So far.
            save_s: f64,
            /// Since one was due.
            interval_s: f64,
        },
        /// Old checkpoints could not be removed.
        PruneFailed {
            /// What failed.
            error: String,
        },
        /// A snapshot was due while the last one was being copied, or no place was free for it.
        SnapshotSkipped {
            /// The one whose snapshot was left out.
            step: u64,
            /// So far.
            skipped: u64,
        },
        /// The second copy of a snapshot did not arrive; the one before it stays.
        PartnerFailed {
            /// What was wrong with a copy that arrived.
            error: String,
        },
        /// Some node has no room for second copies.
        NoSecondCopy {
            /// Why not; as a rule, the bytes needed and free.
            error: String,
        },
        /// Some node has no room for snapshots.
        NoSnapshots {
            /// Why not; as a rule, the bytes needed and free.
            error: String,
        },
        /// There was no room beside the snapshots of an earlier start, which were removed.
        OldSnapshotsRemoved {
            /// Theirs, on the first rank's node.
            dir: PathBuf,
        },
        /// A model is written in Hugging Face form.
        Export {
            /// That of the checkpoint.
            step: u64,
            /// Directory of the model.
            path: PathBuf,
            /// Of weights.
            bytes: u64,
            /// For making it.
            seconds: f64,
        },
        /// An export failed; training goes on.
        ExportFailed {
            /// That of the checkpoint.
            step: u64,
            /// What failed.
            error: String,
        },
        /// A newer checkpoint was due before this one's turn came.
        ExportSkipped {
            /// That of this checkpoint.
            step: u64,
            /// That of the newer one.
            newer: u64,
        },
        /// The run ended before an export did; the next start makes it.
        ExportPending {},
    }
    "The object store" {
        /// A checkpoint is whole and verified in the store.
        Upload {
            /// That of the checkpoint.
            step: u64,
            /// Its place in the store.
            url: String,
            /// In all its files.
            bytes: u64,
            /// Bytes that were not there yet.
            sent: u64,
            /// Of the last try.
            seconds: f64,
            /// Tries, the last one counted.
            attempts: u32,
        },
        /// An upload failed: at every try, where it was tried again. The checkpoint stays on disk until a newer one is verified in the store.
        UploadFailed {
            /// That of the checkpoint.
            step: u64,
            /// The store's.
            url: String,
            /// That of the last try.
            error: String,
            /// Tries that were made.
            attempts: u32,
        },
        /// A newer checkpoint was saved before the upload of this one had begun.
        UploadSkipped {
            /// That of this checkpoint.
            step: u64,
            /// That of the newer one.
            newer: u64,
        },
        /// The run ended before the upload did.
        UploadPending {
            /// That of the newest checkpoint that is not there.
            step: u64,
            /// The store's.
            url: String,
        },
        /// Older checkpoints were removed from the store.
        RemotePruned {
            /// The store's.
            url: String,
            /// Those of the checkpoints.
            steps: Vec<u64>,
        },
        /// A checkpoint came from the store.
        Fetched {
            /// That of the checkpoint.
            step: u64,
            /// Its place in the store.
            url: String,
            /// Its directory here.
            path: PathBuf,
        },
        /// A checkpoint of the store is not whole; the next older one is tried.
        RemoteRejected {
            /// That of the checkpoint.
            step: u64,
            /// Its place in the store.
            url: String,
            /// What is wrong with it.
            reason: String,
        },
        /// The store does not answer, and something nearer is whole.
        StorePassedOver {
            /// The store's.
            url: String,
            /// How it failed.
            reason: String,
        },
    }
    "Liveness" {
        /// A rank's verdict, for people; what counts is the file in `verdicts/`.
        Verdict {
            /// One word, as in the verdict.
            reason: String,
            /// World ranks that are given up; none where nobody can be named.
            ranks: Vec<usize>,
            /// Theirs, in order of rank.
            nodes: Vec<String>,
            /// Steps that the first of them has finished, as far as is known.
            step: u64,
            /// Where in the step it was last seen.
            phase: String,
            /// The rank that says so.
            by: usize,
            /// One line for people.
            fact: String,
        },
        /// A rank's own work takes much longer than the others'.
        SlowRank {
            /// World rank.
            rank: usize,
            /// Of its last step, without waiting.
            own_s: f64,
            /// That of the ranks of its pipeline stage.
            median_s: f64,
        },
        /// A rank does to itself what `herd drill` has ordered.
        Drill {
            /// One word, such as `slow`.
            fault: String,
            /// The exit code, of `exit` alone.
            #[serde(skip_serializing_if = "Option::is_none")]
            code: Option<i32>,
            /// `null` for a stop without end.
            #[serde(skip_serializing_if = "Option::is_none")]
            seconds: Option<Option<f64>>,
            /// For so many steps, of `slow` alone.
            #[serde(skip_serializing_if = "Option::is_none")]
            steps: Option<u64>,
            /// World rank.
            rank: usize,
            /// Steps done before.
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

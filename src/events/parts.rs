//! What events are made of, besides numbers and words.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
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

impl Class {
    /// Whether the attempt ended by a fault, and not by its own or somebody's wish.
    pub fn is_fault(self) -> bool {
        !matches!(self, Class::Done | Class::Stopped | Class::StopAt)
    }
}

/// One failure of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// When it was written down, by the writer's clock.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// Number of the Slurm job that it happened in.
    pub job: u64,
    /// The attempt that it was counted in; 0 for one before the first, or that `herd doctor` found.
    pub attempt: u64,
    /// One word, or what `herd doctor` found.
    pub reason: String,
}

/// Bytes taken from each place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Tally {
    /// Snapshots in this node's memory.
    pub node: u64,
    /// Second copies in this node's memory.
    pub node_partner: u64,
    /// Snapshots in another node's memory.
    pub remote: u64,
    /// Second copies in another node's memory.
    pub remote_partner: u64,
    /// Checkpoints on disk.
    pub disk: u64,
}

/// What validation found in one corpus.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CorpusLoss {
    /// Of its files, without their endings.
    pub path: String,
    /// Nats per token that counts; `null` where it is not finite, or no token counts.
    pub loss: Option<f64>,
    /// Share of these tokens that the model thinks likeliest; `null` of none.
    pub accuracy: Option<f64>,
    /// How many they are.
    pub tokens: u64,
}

/// What has been sent for one purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Traffic {
    /// Messages, one for each rank that gets one.
    pub messages: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Ranks that something was sent to.
    pub peers: u64,
}

//! The `launch` and `alerts` sections: what the supervisor may do by itself, and whom it tells.

use super::limit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// How `herd launch` places the ranks, when it starts them again, and when it gives up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LaunchSection {
    /// Ranks on each node; absent: what the job was submitted with (--ntasks-per-node), else 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limit::RANKS))]
    pub ranks_per_node: Option<usize>,
    /// Nodes of the allocation that wait for a fault; absent: all that the plan does not need.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = limit::RANKS))]
    pub spares: Option<usize>,
    /// Without a spare, go on with fewer data-parallel replicas (same global batch, more accumulation) instead of
    /// requeueing.
    pub shrink: bool,
    /// A standby on another node takes the supervisor's place when the supervisor's node is lost.
    pub standby: bool,
    /// Put the job back into the queue when it cannot go on here: time limit, preemption, no node left.
    pub requeue: bool,
    /// Instead of a requeue after lost nodes, submit a successor with `sbatch --exclude`.
    pub successor: bool,
    /// How ranks find each other: the argument of `srun --mpi`. `auto`: what Slurm has (`srun --mpi=list`) and the MPI that herd
    /// was built with can use: pmix for Open MPI, pmi2 for MPICH.
    #[schemars(length(min = 1))]
    pub mpi: String,
    /// Further arguments of srun for every step that runs herd: the ranks, a flush of snapshots, the standby.
    pub srun: Vec<String>,
    /// Most starts of the ranks over the life of the run, requeues included.
    #[schemars(range(min = 1, max = limit::STEPS))]
    pub max_attempts: u64,
    /// Most starts within `window_s`.
    #[schemars(range(min = 1, max = limit::STEPS))]
    pub window_attempts: u64,
    /// Length of the window, in seconds.
    #[schemars(range(min = 1.0))]
    pub window_s: f64,
    /// Starts in a row without a new finished step after which the run stops.
    #[schemars(range(min = 1, max = limit::STEPS))]
    pub no_progress: u64,
    /// Seconds to wait before the second start in a row without a new step; doubled for each further one.
    #[schemars(range(min = 0.0))]
    pub backoff_s: f64,
    /// Longest such wait, in seconds.
    #[schemars(range(min = 0.0))]
    pub backoff_max_s: f64,
    /// When the ranks crash twice in the same step, leave its batch out.
    pub skip_bad_batch: bool,
    /// Failures of a node after which it is never used again.
    #[schemars(range(min = 1, max = limit::STEPS))]
    pub node_failures: u64,
    /// Seconds for which a node that failed is used only where nothing better is left, and only if it answers.
    #[schemars(range(min = 0.0))]
    pub node_pause_s: f64,
    /// A ledger of nodes for all runs of the site, beside the run's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub ledger: Option<PathBuf>,
    /// Where the newest state is saved when the run directory is gone (removed, moved, unmounted), in a folder with that
    /// directory's name; absent: it is lost. On another filesystem than `run_dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub rescue_dir: Option<PathBuf>,
    /// Seconds within which started ranks must have met; what hangs longer is ended. Ranks that have met have as long again until
    /// they go on from a state, and what `restore_mb_s` adds.
    #[schemars(range(min = 1.0))]
    pub start_timeout_s: f64,
    /// The site's own health check, program and arguments, as in [/usr/sbin/nhc] or [dcgmi, diag, -r, '1']: `herd doctor` runs it on
    /// every node, and a node where it ends with another code than 0 is red. Empty: none.
    pub health_check: Vec<String>,
    /// Megabytes a second that each rank reads of its state at the slowest: a restore has the time that its bytes take at this
    /// speed, beyond `start_timeout_s` and beyond liveness.first_step_s.
    #[schemars(range(min = 0.001))]
    pub restore_mb_s: f64,
}

impl Default for LaunchSection {
    fn default() -> Self {
        LaunchSection {
            ranks_per_node: None,
            spares: None,
            shrink: false,
            standby: true,
            requeue: true,
            successor: false,
            mpi: "auto".into(),
            srun: Vec::new(),
            max_attempts: 500,
            window_attempts: 20,
            window_s: 3600.0,
            no_progress: 3,
            backoff_s: 5.0,
            backoff_max_s: 300.0,
            skip_bad_batch: false,
            node_failures: 3,
            node_pause_s: 86400.0,
            ledger: None,
            rescue_dir: None,
            start_timeout_s: 600.0,
            health_check: Vec::new(),
            restore_mb_s: 20.0,
        }
    }
}

impl LaunchSection {
    /// How long a rank may take to read this many bytes of state, at the slowest.
    pub fn restore_time(&self, bytes: u64) -> Duration {
        Duration::try_from_secs_f64(bytes as f64 / (self.restore_mb_s * 1e6)).unwrap_or(Duration::MAX / 4)
    }
}

/// Whom the supervisor tells when a run stops, a node is given up, or a job is requeued. Nothing is sent for a fault that
/// was mended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AlertsSection {
    /// Environment variable that holds a webhook's address (Slack's and compatible ones). The address is a secret: it
    /// stands nowhere else.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub webhook_env: Option<String>,
    /// File that holds a webhook's address, readable by you alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub webhook_file: Option<PathBuf>,
    /// Command that sends its standard input as mail, as in [mail, -s, '{subject}', ops@example.org].
    pub mail: Vec<String>,
    /// Program and arguments of yours; it gets the event as JSON on standard input.
    pub command: Vec<String>,
    /// Events to tell about.
    pub events: Vec<AlertKind>,
    /// Most alerts in an hour; what is left out is counted in the next one.
    #[schemars(range(min = 1, max = limit::STEPS))]
    pub per_hour: u64,
    /// Seconds after which an alert that hangs is given up.
    #[schemars(range(min = 1.0, max = 600.0))]
    pub timeout_s: f64,
}

/// What an alert can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    /// The run has stopped and will not go on by itself.
    Stopped,
    /// A node has failed too often and is out for good.
    NodeGivenUp,
    /// The job went back into the queue for want of nodes, or a successor was submitted.
    Requeued,
    /// The run goes on with fewer replicas.
    Shrunk,
    /// Every fault, also one that was mended.
    Fault,
    /// The last step is done.
    Finished,
}

impl Default for AlertsSection {
    fn default() -> Self {
        use AlertKind::*;
        AlertsSection {
            webhook_env: None,
            webhook_file: None,
            mail: Vec::new(),
            command: Vec::new(),
            events: vec![Stopped, NodeGivenUp, Requeued, Shrunk],
            per_hour: 12,
            timeout_s: 10.0,
        }
    }
}

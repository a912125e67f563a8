//! What is seen of an attempt's end, and what is found about it.

use super::history::Class;
use crate::error::Exit;
use crate::exit_record::{ExitRecord, Lost};
use crate::liveness::Verdict;
use crate::slurm::messages::SlurmMessage;

/// Signals by which Slurm or the supervisor ends tasks: they say nothing about who failed. SIGUSR1 is the warning of the time limit, which
/// ends a process that has no handler for it yet.
pub(super) const FROM_OUTSIDE: &[&str] = &["Terminated", "Hangup", "Interrupt", "User defined signal 1"];

/// Everything seen of the end of an attempt.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The ranks' own `finished` event, of this attempt.
    pub finished: bool,
    /// The ranks' own `stopped` event, of this attempt.
    pub stopped: bool,
    /// This Slurm leaves a step alone when one of its tasks or nodes dies: what ends it is MPI_Abort, by a rank that complains.
    pub leaves_steps: bool,
    /// The ranks have found each other, and a state to go on from.
    pub met: bool,
    /// The supervisor has passed a signal on.
    pub asked: bool,
    /// The plan stops at a step of its own, and that is where the run stands.
    pub at_stop: bool,
    /// How srun ended, if it has.
    pub code: Option<i32>,
    /// What srun and slurmstepd said, in order.
    pub said: Vec<SlurmMessage>,
    /// What else srun said of itself: the first lines.
    pub srun: Vec<String>,
    /// The first error that a rank printed.
    pub error: Option<String>,
    pub verdicts: Vec<Verdict>,
    /// Errors that ranks wrote down as they left.
    pub records: Vec<ExitRecord>,
    /// Nodes with a process that was gone without a word, in the order in which others saw it.
    pub lost: Vec<Lost>,
    /// The ranks did not meet within this many seconds.
    pub no_start_s: Option<f64>,
    /// The ranks met, but had no state to go on from within this many seconds, of which one had so many bytes to read.
    pub no_state: Option<(f64, u64)>,
    /// Nodes that did not answer while the ranks were starting, though others did.
    pub late: Vec<String>,
    /// Nodes of the attempt.
    pub nodes: usize,
    /// Nodes of the attempt that did not answer after its end, while others did.
    pub silent: Vec<String>,
}

/// What it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub class: Class,
    /// One word for ledger and events.
    pub reason: String,
    /// One line for people.
    pub fact: String,
    /// Nodes that the failure is counted against.
    pub nodes: Vec<String>,
    pub ranks: Vec<usize>,
    /// Exit code that the supervisor leaves with if it stops now.
    pub exit: Exit,
}

/// What a number stands for in herd's table; [`Exit::Internal`] where it is not there.
pub(super) fn exit_of(code: i32) -> Exit {
    Exit::TABLE.iter().map(|row| row.0).find(|e| e.code() == code && *e != Exit::Ok).unwrap_or(Exit::Internal)
}

//! Errors and exit codes.
//!
//! An error is a fact with every number that clashes, and a hint; it prints as one line. Its exit code is an
//! interface: batch scripts and the supervisor decide by it whether to retry, so the table lives here once and
//! `herd help exit-codes` prints it.

pub mod libtorch;

use crate::text::short_reason;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// Why the process ends. The numbers are stable; scripts may rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(i32)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// A bug in herd: never caused by input alone.
    Internal = 1,
    /// Wrong command line.
    Usage = 2,
    /// The configuration is wrong: unknown key, wrong type, values that clash.
    Config = 10,
    /// Training data or tokenizer is missing, truncated or does not fit the model.
    Data = 11,
    /// A model to import or export is missing, incomplete or of another shape.
    Model = 12,
    /// The MPI world is not the one that was asked for.
    World = 13,
    /// A device failed, or was asked for and this host does not have it.
    Device = 14,
    /// `herd doctor` found something red.
    Unhealthy = 15,
    /// No valid checkpoint where one is needed.
    Checkpoint = 20,
    /// The filesystem refused: full, quota, permission, I/O error.
    Storage = 21,
    /// The object store refused or cannot be reached.
    Store = 22,
    /// Two checkpoints that were compared are not the same.
    Different = 23,
    /// No step is whole in the memory of the nodes that were asked.
    NoSnapshot = 24,
    /// The run directory is gone.
    Gone = 25,
    /// Loss or gradient norm was not finite too many steps in a row.
    NonFinite = 30,
    /// Another rank failed or a communication call returned an error.
    Peer = 31,
    /// A newer attempt of the run has started, or a verdict names this process: it may neither write nor join.
    Fenced = 32,
    /// The supervisor gave the run up: no progress, or the budget of starts is spent.
    GaveUp = 40,
    /// Stopped on a signal after saving; submit or requeue to continue.
    Requeue = 75,
}

impl Exit {
    /// Every code with its meaning and what a supervisor should do, in numeric order.
    pub const TABLE: &'static [(Exit, &'static str, &'static str)] = &[
        (Exit::Ok, "done", "stop"),
        (Exit::Internal, "internal error: a bug in herd", "report; retry at most once"),
        (Exit::Usage, "wrong command line", "stop; never retry"),
        (Exit::Config, "the configuration is wrong", "stop; never retry"),
        (Exit::Data, "training data or tokenizer is missing, damaged or does not fit", "stop; never retry"),
        (Exit::Model, "a model to import or export is missing, incomplete or of another shape", "stop; never retry"),
        (Exit::World, "the MPI world is not the one asked for", "stop; fix the launch line"),
        (Exit::Device, "a device failed, or this host does not have the one asked for", "stop, or replace the node"),
        (
            Exit::Unhealthy,
            "herd doctor found what would make a run fail, slow or wrong",
            "cure what is red; nodes that are named are avoided by herd launch",
        ),
        (Exit::Checkpoint, "no valid checkpoint where one is needed", "stop; look at the run directory"),
        (Exit::Storage, "the filesystem refused: full, quota, permission or I/O error", "free space, then start again"),
        (
            Exit::Store,
            "the object store refused or cannot be reached",
            "check network and credentials, then start again",
        ),
        (Exit::Different, "the two checkpoints compared differ", "look at what was printed"),
        (Exit::NoSnapshot, "no snapshot in memory is whole", "start again from the newest checkpoint on disk"),
        (
            Exit::Gone,
            "the run directory is gone: removed, moved, or not mounted",
            "bring it back, or go on from launch.rescue_dir",
        ),
        (
            Exit::NonFinite,
            "loss or gradient norm not finite too many steps in a row",
            "stop; look at data and learning rate",
        ),
        (Exit::Peer, "another rank failed or communication broke", "start again from the newest checkpoint"),
        (
            Exit::Fenced,
            "a newer attempt of the run has started, or this process was given up",
            "ignore: the run goes on",
        ),
        (
            Exit::GaveUp,
            "the supervisor gave up: no progress, or all starts are spent",
            "stop; `herd status RUN` says why",
        ),
        (Exit::Requeue, "stopped by a signal after saving", "requeue to continue"),
    ];

    /// The number that the process leaves with.
    pub fn code(self) -> i32 {
        self as i32
    }
}

/// A failure a person will read: the fact (with all its numbers), a hint, and the exit code it leads to.
#[derive(Clone, Debug)]
pub struct Error {
    /// Exit code that it leads to.
    pub exit: Exit,
    /// What happened, with all its numbers; printed as one line.
    pub fact: String,
    /// What the reader can do about it, printed behind the fact.
    pub hint: Option<String>,
    /// Further facts, one printed line each, where one look found several mistakes.
    pub problems: Vec<String>,
    /// Every rank has this same error, so one of them speaks for all.
    pub agreed: bool,
    /// The one rank that the failure belongs to, where that is known to be another than the one that reports it, and its
    /// host.
    pub rank: Option<usize>,
    /// Node of that rank; `None` where `rank` is, or where nobody knows it.
    pub host: Option<String>,
}

/// What fails with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without a hint, of the rank that reports it.
    pub fn new(exit: Exit, fact: impl Into<String>) -> Self {
        Error { exit, fact: fact.into(), hint: None, problems: Vec::new(), agreed: false, rank: None, host: None }
    }

    /// Adds what the reader can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Everything that is wrong with `place` (a file) in one error. One problem stays one line.
    pub fn several(exit: Exit, place: impl fmt::Display, mut problems: Vec<String>) -> Self {
        match problems.len() {
            1 => Error::new(exit, format!("{place}: {}", problems.remove(0))),
            n => Error { problems, ..Error::new(exit, format!("{place}: {n} problems")) },
        }
    }

    /// Puts where it happened in front of the fact.
    pub fn context(mut self, place: impl fmt::Display) -> Self {
        self.fact = format!("{place}: {}", self.fact);
        self
    }

    /// An operating-system error on `path`. A missing file takes `missing` as its exit code (what the file was for);
    /// everything else is the filesystem's refusal.
    pub fn io(path: &Path, doing: &str, e: &std::io::Error, missing: Exit) -> Self {
        use std::io::ErrorKind as K;
        let fact = format!("cannot {doing} {}: {}", path.display(), short_reason(e));
        match e.kind() {
            K::NotFound => Error::new(missing, fact).hint("check the path"),
            K::StorageFull | K::QuotaExceeded => {
                Error::new(Exit::Storage, fact).hint("free space or raise the quota, then start again")
            }
            K::PermissionDenied | K::ReadOnlyFilesystem => {
                Error::new(Exit::Storage, fact).hint("check the owner and mode of the directory")
            }
            _ => Error::new(Exit::Storage, fact),
        }
    }
}

impl fmt::Display for Error {
    /// One line, `fact (hint: …)`, and one indented line for each further problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_line = |s: &str| s.split_whitespace().collect::<Vec<_>>().join(" ");
        write!(f, "{}", one_line(&self.fact))?;
        if let Some(h) = &self.hint {
            write!(f, " (hint: {})", one_line(h))?;
        }
        self.problems.iter().try_for_each(|p| write!(f, "\n  {}", one_line(p)))
    }
}

impl std::error::Error for Error {}

impl From<tch::TchError> for Error {
    /// libtorch's first line; the rest is a C++ backtrace.
    fn from(e: tch::TchError) -> Self {
        let text = e.to_string();
        let exit = match libtorch::LibtorchFailure::of(&text) {
            libtorch::LibtorchFailure::Device => Exit::Device,
            // Whose fault a want of memory is, the run knows (`train::device_failure`).
            _ => Exit::Internal,
        };
        Error::new(exit, format!("libtorch: {}", text.lines().next().unwrap_or("unknown error")))
    }
}

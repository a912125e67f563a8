//! What can happen in the cluster, as it is put on the agenda.

use super::{Micros, SimTask};

/// What happens at a moment, to whom.
pub(in crate::simulate) enum Happening {
    JobStarts { life: u64 },
    Fault { next: bool },
    Repaired { node: usize, life: u64 },
    Healed { node: usize },
    Down { node: usize, since: Micros },
    Speed { node: usize },
    Continue { id: usize },
    Ranks { id: usize, turn: u64, news: RankNews },
    Program { id: usize, next: ProgramNews },
    BatchMustEnd { task: SimTask },
    Person { life: u64 },
    Look,
}

/// What happens to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulate) enum RankNews {
    Met,
    Restored,
    FirstStep,
    /// A step's end in an attempt that another has overtaken.
    Boundary,
    Watch,
    Leave,
    Saved,
}

/// What happens to a program.
#[derive(Clone)]
pub(in crate::simulate) enum ProgramNews {
    /// The controller is asked.
    Asks,
    End(i32),
    Prints(Vec<usize>),
    Flushed,
    Standby,
    LaunchFailed(Vec<usize>),
}

//! Signals that ask for a checkpoint at the next step boundary. The handler only sets a flag; the loop reads it.
//!
//! SIGUSR1 comes from `sbatch --signal=USR1@N` ahead of the time limit, SIGTERM from preemption, `scontrol requeue` and
//! `scancel` (sbatch(1), scancel(1)).

use crate::error::{Error, Exit, Result};
use signal_hook::consts::{SIGTERM, SIGUSR1};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Whether the process has been asked to stop.
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Installs the handlers. Further signals change nothing: when the first rank has left with its code, srun sends SIGTERM
    /// to the others, and theirs must still be that code. What hangs is killed by Slurm after KillWait.
    pub fn install() -> std::io::Result<StopFlag> {
        let flag = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGTERM, flag.clone())?;
        signal_hook::flag::register(SIGUSR1, flag.clone())?;
        Ok(StopFlag(flag))
    }

    /// [`StopFlag::install`]. Errors: [`Exit::Internal`].
    pub fn of_a_run() -> Result<StopFlag> {
        StopFlag::install().map_err(|e| Error::new(Exit::Internal, format!("cannot install signal handlers: {e}")))
    }

    /// Whether a signal has come to this process since [`StopFlag::install`].
    pub fn raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

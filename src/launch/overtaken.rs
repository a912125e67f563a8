//! What a supervisor does whose run another one has taken over.

use super::history::History;
use super::ranks::TICK;
use crate::error::{Exit, Result};
use crate::host;
use crate::slurm::Job;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// A newer attempt is under way elsewhere: nothing may be written any more.
pub(super) fn overtaken(run_dir: &Path, job: &Job, asked: &AtomicBool) -> Result<Exit> {
    let last = History::read(run_dir)?.attempts.pop();
    if last.is_some_and(|r| r.is_of(job)) {
        // the end of the batch script would end the job, and with it what the standby has started
        tracing::error!("the standby has taken over the run; this one is silent until Slurm ends it");
        while !asked.load(Ordering::Relaxed) {
            host::wait(TICK);
        }
        return Ok(Exit::Fenced);
    }
    tracing::error!("another supervisor has taken over the run; this one leaves");
    Ok(Exit::Fenced)
}

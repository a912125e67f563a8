//! Many seeds, over all cores.

use super::{run, Settings, SimReport};
use crate::error::{Error, Exit, Result};
use crate::threads::lock;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Seeds in a row.
#[derive(Debug, Serialize)]
pub struct Sweep {
    /// By seed. After a violation no further seed is begun.
    pub runs: Vec<SimReport>,
}

/// Runs `count` seeds from `first` on, each with the settings that `of` gives it, until one shows a violation.
///
/// # Errors
/// Those of [`run`].
pub fn sweep(first: u64, count: u64, of: impl Fn(u64) -> Arc<Settings> + Sync) -> Result<Sweep> {
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let found: Mutex<Result<Vec<SimReport>>> = Mutex::new(Ok(Vec::new()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    #[cfg(test)]
    let planted = crate::host::planted();
    let worker = || {
        #[cfg(test)]
        crate::host::plant(planted);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count || stop.load(Ordering::Relaxed) {
                return;
            }
            let report = run(&of(seed), seed);
            if report.as_ref().map_or(true, |r| r.violation.is_some()) {
                stop.store(true, Ordering::Relaxed);
            }
            let mut all = lock(&found);
            match (all.as_mut(), report) {
                (Ok(all), Ok(report)) => all.push(report),
                (Ok(_), Err(e)) => *all = Err(e),
                _ => {}
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..cores {
            let thread = std::thread::Builder::new().spawn_scoped(scope, worker);
            if thread.is_err() {
                worker();
            }
        }
    });
    let mut runs = found.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    runs.sort_by_key(|r| r.seed);
    if runs.is_empty() && count > 0 {
        return Err(Error::new(Exit::Internal, "no seed was run"));
    }
    Ok(Sweep { runs })
}

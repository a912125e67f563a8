//! The thread that brings committed checkpoints to the object store while training goes on.
//!
//! It runs in rank 0's process and reads the files of all ranks from the shared filesystem. At most one checkpoint waits:
//! one that is saved while another is under way takes the place of one that waits, and that is said.

use crate::config::StoreSection;
use crate::error::{Exit, Result};
use crate::events::RunEvent;
use crate::progress::Meter;
use crate::run_dir::RunDir;
use crate::store::ledger::UploadLedger;
use crate::store::pace::{pause, Pace};
use crate::store::remote::Remote;
use crate::store::upload::{retain, upload, Uploaded, Way};
use crate::threads;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest stop between two looks at the flag that cancels a pause.
const LOOK: Duration = Duration::from_millis(100);
/// What a cancelled upload gets to free its parts.
const CANCELLED: Duration = Duration::from_secs(5);

/// The upload thread, and what waits for it.
pub struct Uploader {
    run: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    cancel: AtomicBool,
}

struct State {
    ledger: UploadLedger,
    waiting: Option<(u64, PathBuf)>,
    under_way: Option<u64>,
    /// Older checkpoints in the store are being removed.
    tidying: bool,
    events: Vec<RunEvent>,
    /// No more checkpoints will come.
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic ends the process (the panic hook), so a poisoned lock is never seen.
        threads::lock(&self.state)
    }
}

impl Uploader {
    /// Starts the thread. `run` is the run directory; the newest checkpoint in it that should be in the store and is not
    /// (a run that died with an upload pending) is uploaded first.
    ///
    /// Errors: a URL that is none, a run directory that cannot be written. The store itself is not asked yet.
    pub fn start(section: &StoreSection, run: &Path) -> Result<Uploader> {
        let remote = Remote::open(&section.url)?;
        let ledger = UploadLedger::open(run, remote.url(), section.every);
        ledger.write(run)?;
        let (waiting, tidying) = (pending(run, &ledger)?, !ledger.verified.is_empty());
        let state = State { ledger, waiting, under_way: None, tidying, events: Vec::new(), closing: false };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), cancel: AtomicBool::new(false) });
        let (theirs, section, its_run) = (shared.clone(), section.clone(), run.to_path_buf());
        let thread = threads::start("herd-upload", "the upload thread", move || {
            lower_priority();
            work(&theirs, &remote, &section, &its_run)
        })?;
        Ok(Uploader { run: run.into(), shared, thread: Some(thread) })
    }

    /// A checkpoint was committed. `last`: upload it whatever its number.
    pub fn committed(&self, step: u64, path: &Path, last: bool) {
        let mut state = self.shared.lock();
        if !(last || state.ledger.due(step)) {
            return;
        }
        // Saved again, after a return to an older one: what is in the store is another's.
        if !state.ledger.verified.split_off(&step).is_empty() {
            if let Err(e) = state.ledger.write(&self.run) {
                tracing::warn!("{e}");
            }
        }
        if let Some((old, _)) = state.waiting.replace((step, path.into())) {
            state.events.push(RunEvent::UploadSkipped { step: old, newer: step });
        }
        self.shared.changed.notify_all();
    }

    /// Whether retention may remove the local checkpoint of `step`.
    pub fn may_remove(&self, step: u64) -> bool {
        let state = self.shared.lock();
        let busy = state.under_way == Some(step) || state.waiting.as_ref().is_some_and(|(s, _)| *s == step);
        !busy && state.ledger.may_remove(step)
    }

    /// What happened since the last call.
    pub fn events(&self) -> Vec<RunEvent> {
        std::mem::take(&mut self.shared.lock().events)
    }

    /// Whether nothing waits and nothing is under way.
    pub fn idle(&self) -> bool {
        let state = self.shared.lock();
        state.waiting.is_none() && state.under_way.is_none() && !state.tidying
    }

    /// Waits up to `limit` for what is pending, stops the thread, and returns the last events.
    pub fn finish(mut self, limit: Duration) -> Vec<RunEvent> {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        self.join(limit);
        self.shared.cancel.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        self.join(CANCELLED);
        let mut state = self.shared.lock();
        let left = state.under_way.into_iter().chain(state.waiting.as_ref().map(|(s, _)| *s)).max();
        let url = state.ledger.url.clone();
        state.events.extend(left.map(|step| RunEvent::UploadPending { step, url }));
        std::mem::take(&mut state.events)
    }

    fn join(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        while self.thread.as_ref().is_some_and(|t| !t.is_finished()) && Instant::now() < end {
            std::thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
        }
        if let Some(thread) = self.thread.take_if(|t| t.is_finished()) {
            let _ = thread.join();
        }
    }
}

/// The newest local checkpoint that is due and newer than all in the store.
fn pending(run: &Path, ledger: &UploadLedger) -> Result<Option<(u64, PathBuf)>> {
    let newest = ledger.verified.last().copied();
    let all = crate::checkpoint::list(&RunDir::new(run).checkpoints())?.into_iter();
    let whole = all.filter_map(|(path, c)| Some((c.ok()?.meta().step, path)));
    Ok(whole.into_iter().find(|(step, _)| ledger.due(*step) && newest.is_none_or(|n| *step > n)))
}

/// Uploads compete with training for cores; training goes first.
fn lower_priority() {
    // SAFETY: plain system call; on Linux a thread's own id is meant by 0, not the process.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

fn work(shared: &Shared, remote: &Remote, section: &StoreSection, run: &Path) {
    let mut pace = Pace::new(section.bandwidth_mib_s);
    // A process that died in it has left more than is to be kept.
    let newest = shared.lock().ledger.verified.last().copied();
    newest.iter().for_each(|&step| clean_up(shared, remote, section.keep, step));
    loop {
        let mut state = shared.lock();
        let (step, path) = loop {
            if shared.cancel.load(Ordering::Relaxed) {
                return;
            }
            if let Some(next) = state.waiting.take() {
                state.under_way = Some(next.0);
                break next;
            }
            if state.closing {
                return;
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let mut way =
            Way { pace: &mut pace, parallel: section.parallel, cancel: &shared.cancel, meter: &Meter::default() };
        let (done, attempts) = persist(remote, &path, section.attempts, &mut way);
        let event = match done {
            Ok(u) => {
                let Uploaded { step, url, bytes, sent, seconds } = u;
                RunEvent::Upload { step, url, bytes, sent, seconds, attempts }
            }
            Err(_) if shared.cancel.load(Ordering::Relaxed) => return,
            Err(e) => RunEvent::UploadFailed { step, url: remote.url().into(), error: e.to_string(), attempts },
        };
        let verified = matches!(event, RunEvent::Upload { .. });
        let mut state = shared.lock();
        if verified {
            state.ledger.verified.insert(step);
            if let Err(e) = state.ledger.write(run) {
                tracing::warn!("{e}");
            }
        }
        (state.under_way, state.tidying) = (None, verified);
        state.events.push(event);
        drop(state);
        if verified {
            clean_up(shared, remote, section.keep, step);
        }
    }
}

/// Removes what is older than the newest `keep`; step `verified` is known to be whole.
fn clean_up(shared: &Shared, remote: &Remote, keep: usize, verified: u64) {
    let removed = retain(remote, keep, false, &mut |step| Ok(step == verified));
    let mut state = shared.lock();
    state.tidying = false;
    match removed {
        Ok(steps) if steps.is_empty() => {}
        Ok(steps) => state.events.push(RunEvent::RemotePruned { url: remote.url().into(), steps }),
        // Costs space there; the next upload or start tries again.
        Err(e) => tracing::warn!("old checkpoints stay in the store: {e}"),
    }
}

/// [`upload`] with up to `attempts` tries, as long as it is the store that fails; and how many were made.
pub fn persist(remote: &Remote, from: &Path, attempts: u32, way: &mut Way) -> (Result<Uploaded>, u32) {
    let mut attempt = 1;
    loop {
        let done = upload(remote, from, way);
        match &done {
            Err(e) if e.exit == Exit::Store && attempt < attempts && !way.cancel.load(Ordering::Relaxed) => {
                tracing::warn!("upload, try {attempt} of {attempts}: {e}");
                wait(pause(attempt), way.cancel);
                attempt += 1;
            }
            _ => return (done, attempt),
        }
    }
}

fn wait(pause: Duration, cancel: &AtomicBool) {
    let end = Instant::now() + pause;
    while Instant::now() < end && !cancel.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
    }
}

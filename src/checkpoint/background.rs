//! Saving behind the steps: a thread of its own writes a checkpoint from a slot that nobody changes meanwhile.

use super::meta::{Meta, Saved};
use super::prune::{prune, Keep};
use super::save::{save_by, Rules};
use super::snapshot::slot::Slot;
use super::team::Team;
use crate::error::{Error, Exit, Result};
use crate::wire::World;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The writer of one run; at most one save is under way.
pub struct Writer {
    jobs: Sender<(Arc<Slot>, Meta)>,
    done: Receiver<Ended>,
    running: Option<(u64, Instant)>,
}

/// A save that has ended.
pub struct Ended {
    pub step: u64,
    pub result: Result<Saved>,
    /// Why old checkpoints could not be removed.
    pub prune_failed: Option<Error>,
}

impl Writer {
    /// `world` is the thread's own; every rank has a writer.
    pub fn start(world: World, checkpoints: PathBuf, rules: Rules, keep: Keep) -> Result<Writer> {
        let (jobs, queue) = channel::<(Arc<Slot>, Meta)>();
        let (report, done) = channel();
        let thread = std::thread::Builder::new().name("herd-save".into()).spawn(move || {
            polite();
            for (slot, meta) in queue {
                let result = save_slot(&checkpoints, &slot, &meta, &world, &rules);
                drop(slot);
                let ended = finish(&checkpoints, meta.step, result, &world, keep);
                let _ = report.send(ended);
            }
        });
        thread.map_err(|e| Error::new(Exit::Internal, format!("cannot start a thread that saves: {e}")))?;
        Ok(Writer { jobs, done, running: None })
    }

    /// Starts a save. All ranks do, none while one is under way anywhere.
    pub fn save(&mut self, slot: Arc<Slot>, meta: Meta) {
        self.running = Some((meta.step, Instant::now()));
        // A thread that is gone shows when the end is waited for.
        let _ = self.jobs.send((slot, meta));
    }

    /// Step of the save under way on this rank and how long it has been.
    pub fn running(&self) -> Option<(u64, Duration)> {
        self.running.map(|(step, began)| (step, began.elapsed()))
    }

    /// A save that has ended since the last call.
    pub fn poll(&mut self) -> Option<Ended> {
        self.running?;
        let ended = self.done.try_recv().ok()?;
        self.running = None;
        Some(ended)
    }

    /// The end of the save under way, if there is one.
    pub fn wait(&mut self) -> Option<Ended> {
        let (step, _) = self.running.take()?;
        let gone = || Error::new(Exit::Internal, "the thread that saves has ended");
        Some(self.done.recv().unwrap_or_else(|_| Ended { step, result: Err(gone()), prune_failed: None }))
    }
}

/// Old checkpoints go after a save that succeeded. What cannot be removed costs space, not the run.
pub fn finish(checkpoints: &Path, step: u64, result: Result<Saved>, world: &World, keep: Keep) -> Ended {
    let mine = result.is_ok() && world.rank() == 0;
    let prune_failed = mine.then(|| prune(checkpoints, keep).err()).flatten();
    Ended { step, result, prune_failed }
}

/// Saves what a slot holds. Collective over `world`.
fn save_slot(checkpoints: &Path, slot: &Slot, meta: &Meta, world: &World, rules: &Rules) -> Result<Saved> {
    let specs = slot.table().specs.clone();
    let n = specs.len();
    save_by(rules, checkpoints, specs, meta, Team(Some(world)), &mut |file| {
        (0..n).try_for_each(|i| file.append(i, slot.slice(i)))
    })
}

/// Leaves the cores to threads that compute. Advice: where it is not taken, a save costs more of the step.
fn polite() {
    // SAFETY: on Linux this changes the calling thread alone (setpriority(2), C library/kernel differences).
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

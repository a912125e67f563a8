//! Saving behind the steps: a thread of its own writes a checkpoint from a slot that nobody changes meanwhile.

use crate::checkpoint::meta::{Meta, Saved};
use crate::checkpoint::save::{save_by, Rules};
use crate::checkpoint::Team;
use crate::checkpoint::{prune_after, Keep};
use crate::error::{Error, Exit, Result};
use crate::threads;
use crate::tiers::snapshot::slot::Slot;
use crate::world::World;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The writer of one run; at most one save is under way.
pub struct BackgroundWriter {
    /// `None` once no more will come.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    done: Receiver<Ended>,
    prune_failed: Receiver<Error>,
    running: Option<(u64, Instant)>,
    /// Saves need not spare the cores: somebody waits, or one took longer than its interval.
    hurry: Arc<AtomicBool>,
}

/// Bytes that a save writes before it looks at how much of the cores it takes.
const SMALL: usize = 16 << 20;
/// Bytes between two looks.
const STRIDE: usize = 4 << 20;
/// Share of a core that a save may use beside steps that are computed on the cores. What a save costs in all is given, so
/// this says over how many steps it is spread.
const SHARE: f64 = 0.01;

enum Job {
    Save(Arc<Slot>, Box<Meta>),
    /// On rank 0: after the save of this step old checkpoints go, but for these steps.
    Prune(Keep, u64, Vec<u64>),
}

/// A save that has ended.
pub struct Ended {
    pub step: u64,
    pub result: Result<Saved>,
}

impl BackgroundWriter {
    /// `world` is the thread's own; every rank has a writer. `on_cores`: the steps are computed on the cores, which a save
    /// must then leave to them.
    pub fn start(world: World, checkpoints: PathBuf, rules: Rules, on_cores: bool) -> Result<BackgroundWriter> {
        let rules = Rules { direct: on_cores, ..rules };
        let hurry = Arc::new(AtomicBool::new(false));
        let asked = hurry.clone();
        let (jobs, queue) = channel();
        let (report, done) = channel();
        let (complain, prune_failed) = channel();
        let thread = threads::start("herd-save", "a thread that saves", move || {
            polite();
            for job in queue {
                match job {
                    Job::Save(slot, meta) => {
                        let result =
                            save_slot(&checkpoints, &slot, &meta, &world, &rules, &Pace::new(on_cores, &asked));
                        drop(slot);
                        let _ = report.send(Ended { step: meta.step, result });
                    }
                    Job::Prune(keep, saved, spared) => {
                        if let Err(e) = prune_after(&checkpoints, keep, saved, &|step| !spared.contains(&step)) {
                            let _ = complain.send(e);
                        }
                    }
                }
            }
        })?;
        Ok(BackgroundWriter { jobs: Some(jobs), thread: Some(thread), done, prune_failed, running: None, hurry })
    }

    /// Starts a save. All ranks do, none while one is under way anywhere.
    pub fn save(&mut self, slot: Arc<Slot>, meta: Meta) {
        self.running = Some((meta.step, Instant::now()));
        // A thread that is gone shows when the end is waited for.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(Job::Save(slot, Box::new(meta))));
    }

    /// Removes old checkpoints behind the steps after the save of step `saved`, but for those of the steps `spared`.
    pub fn prune(&self, keep: Keep, saved: u64, spared: Vec<u64>) {
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(Job::Prune(keep, saved, spared)));
    }

    /// Why old checkpoints could not be removed, since the last call.
    pub fn prune_failed(&self) -> Option<Error> {
        self.prune_failed.try_recv().ok()
    }

    /// Waits for all that was asked for, and says why old checkpoints could not be removed.
    pub fn finish(&mut self) -> Vec<Error> {
        self.jobs = None;
        // A panic there has been said by the panic's own message.
        let _ = self.thread.take().map(JoinHandle::join);
        self.prune_failed.try_iter().collect()
    }

    /// Step of the save under way on this rank and how long it has been.
    pub fn running(&self) -> Option<(u64, Duration)> {
        self.running.map(|(step, began)| (step, began.elapsed()))
    }

    /// From now on no save is held back.
    pub fn hurry(&self) {
        self.hurry.store(true, Ordering::Relaxed);
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
        self.hurry();
        let gone = || Error::new(Exit::Internal, "the thread that saves has ended");
        Some(self.done.recv().unwrap_or_else(|_| Ended { step, result: Err(gone()) }))
    }
}

/// Saves what a slot holds. Collective over `world`.
fn save_slot(checkpoints: &Path, slot: &Slot, meta: &Meta, world: &World, rules: &Rules, pace: &Pace) -> Result<Saved> {
    let specs = slot.table().specs.clone();
    let n = specs.len();
    save_by(rules, checkpoints, specs, meta, Team(Some(world)), &mut |file| {
        let mut written = 0;
        for i in 0..n {
            for part in slot.slice(i).chunks(STRIDE / 4) {
                file.append(i, part)?;
                written += 4 * part.len();
                pace.rest(written);
            }
        }
        Ok(())
    })
}

/// Keeps a save to its share of the cores.
struct Pace<'a> {
    began: Instant,
    used: Duration,
    on_cores: bool,
    hurry: &'a AtomicBool,
}

impl Pace<'_> {
    fn new(on_cores: bool, hurry: &AtomicBool) -> Pace<'_> {
        Pace { began: Instant::now(), used: thread_time(), on_cores, hurry }
    }

    /// Called by the thread that saves, with the bytes written so far.
    fn rest(&self, written: usize) {
        if !self.on_cores || written <= SMALL {
            return;
        }
        let due = (thread_time() - self.used).div_f64(SHARE);
        while self.began.elapsed() < due && !self.hurry.load(Ordering::Relaxed) {
            std::thread::sleep((due - self.began.elapsed().min(due)).min(Duration::from_millis(50)));
        }
    }
}

/// CPU time of the calling thread.
fn thread_time() -> Duration {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the one value that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// Leaves the cores to threads that compute. Advice: where it is not taken, a save costs more of the step.
fn polite() {
    // SAFETY: on Linux this changes the calling thread alone (setpriority(2), C library/kernel differences).
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

//! What the training loop tells the watch: step, phase, signs of progress. One thread writes, others read; no locks.

use super::Phase;
use crate::config::LivenessSection;
use crate::world::CollectiveCounters;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Steps that the limit is made from.
const RECENT: usize = 32;

/// The progress of this process.
pub struct Progress {
    origin: Instant,
    meters: Arc<CollectiveCounters>,
    /// What callers had waited for wires when the phase began, nanoseconds.
    waited: AtomicU64,
    phase: AtomicU8,
    /// How much longer than other phases a restore may go without progress, milliseconds.
    restore: AtomicU64,
    /// Steps finished.
    step: AtomicU64,
    /// Signs of progress so far.
    count: AtomicU64,
    /// When the last came, in nanoseconds since `origin`.
    changed: AtomicU64,
    /// Own work in the step under way and in the last one, nanoseconds.
    own: AtomicU64,
    last_own: AtomicU64,
    /// Length of the last steps, nanoseconds, a ring.
    recent: [AtomicU64; RECENT],
    /// Steps finished by this process.
    finished: AtomicU64,
}

/// Progress at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProgressStatus {
    pub step: u64,
    pub phase: Phase,
    pub count: u64,
    /// Since the last sign of progress.
    pub stuck: Duration,
    /// How long that may be now.
    pub limit: Duration,
    /// Own work in the last step, waiting left out.
    pub own: Duration,
    /// The whole last step.
    pub last_step: Duration,
}

impl Default for Progress {
    /// For a process without wires.
    fn default() -> Self {
        Progress::new(Arc::default())
    }
}

impl Progress {
    /// Before the first step, in [`Phase::Start`]; `meters` say how long this process waits for its wires.
    pub fn new(meters: Arc<CollectiveCounters>) -> Progress {
        Progress {
            origin: Instant::now(),
            meters,
            waited: AtomicU64::default(),
            phase: AtomicU8::default(),
            restore: AtomicU64::default(),
            step: AtomicU64::default(),
            count: AtomicU64::default(),
            changed: AtomicU64::default(),
            own: AtomicU64::default(),
            last_own: AtomicU64::default(),
            recent: Default::default(),
            finished: AtomicU64::default(),
        }
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// The main thread enters a phase.
    pub fn at(&self, phase: Phase) {
        let now = self.now();
        let before = Phase::from_u8(self.phase.swap(phase as u8, Relaxed));
        let since = self.changed.swap(now, Relaxed);
        let waited = self.meters.waited().as_nanos() as u64;
        let waited_before = self.waited.swap(waited, Relaxed);
        if before.is_own_work() {
            let own = now.saturating_sub(since).saturating_sub(waited - waited_before);
            self.own.store(self.own.load(Relaxed) + own, Relaxed);
        }
        self.count.store(self.count.load(Relaxed) + 1, Relaxed);
    }

    /// The main thread begins to read its state, which takes this much longer than other phases may.
    pub fn restoring(&self, more: Duration) {
        self.restore.store(more.as_millis() as u64, Relaxed);
        self.at(Phase::Restore);
    }

    /// A sign of progress inside a long phase.
    pub fn tick(&self) {
        self.at(Phase::from_u8(self.phase.load(Relaxed)));
    }

    /// Where the run stands before its first step.
    pub fn begin(&self, step: u64) {
        self.step.store(step, Relaxed);
        self.tick();
    }

    /// A step has ended, `step` of the run, and took `took`.
    pub fn step_done(&self, step: u64, took: Duration) {
        let n = self.finished.load(Relaxed);
        self.recent[n as usize % RECENT].store(took.as_nanos() as u64, Relaxed);
        self.finished.store(n + 1, Relaxed);
        self.step.store(step, Relaxed);
        self.last_own.store(self.own.swap(0, Relaxed), Relaxed);
    }

    /// Own work of the step under way, up to the last change of phase.
    pub fn own_so_far(&self) -> Duration {
        Duration::from_nanos(self.own.load(Relaxed))
    }

    /// Steps finished, and the phase.
    pub fn place(&self) -> (u64, Phase) {
        (self.step.load(Relaxed), Phase::from_u8(self.phase.load(Relaxed)))
    }

    /// Lengths of the last steps, oldest first.
    pub fn recent(&self) -> Vec<Duration> {
        let n = self.finished.load(Relaxed) as usize;
        let at = |i: usize| Duration::from_nanos(self.recent[i % RECENT].load(Relaxed));
        (n.saturating_sub(RECENT)..n).map(at).collect()
    }

    /// The progress now, and how long none may come by `config` and the recent steps.
    pub fn status(&self, config: &LivenessSection) -> ProgressStatus {
        let changed = self.changed.load(Relaxed);
        let phase = Phase::from_u8(self.phase.load(Relaxed));
        let recent = self.recent();
        let more = if phase == Phase::Restore { self.restore.load(Relaxed) } else { 0 };
        ProgressStatus {
            step: self.step.load(Relaxed),
            phase,
            count: self.count.load(Relaxed),
            stuck: Duration::from_nanos(self.now().saturating_sub(changed)),
            limit: limit(config, phase, &recent) + Duration::from_millis(more),
            own: Duration::from_nanos(self.last_own.load(Relaxed)),
            last_step: recent.last().copied().unwrap_or_default(),
        }
    }
}

/// How long a rank may go without progress: long until its first step has ended and wherever storage may block, else
/// [`LivenessSection::progress_factor`] times the slow decile of its recent steps, above the floor.
pub fn limit(config: &LivenessSection, phase: Phase, recent: &[Duration]) -> Duration {
    let mut seconds = match slow_decile(recent) {
        None => config.first_step_s,
        Some(slow) => (config.progress_factor * slow.as_secs_f64()).max(config.progress_floor_s),
    };
    if phase.touches_storage() {
        seconds = seconds.max(config.storage_s);
    }
    Duration::from_secs_f64(seconds)
}

/// The length that nine of ten steps do not exceed. The first step of a start warms up and counts only while it is alone.
fn slow_decile(recent: &[Duration]) -> Option<Duration> {
    let mut sorted = recent.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() * 9).div_ceil(10).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(all: &[f64]) -> Vec<Duration> {
        all.iter().map(|&s| Duration::from_secs_f64(s)).collect()
    }

    #[test]
    fn the_limit_follows_the_steps() {
        let c = LivenessSection::default();
        let at = |phase, recent: &[f64]| limit(&c, phase, &seconds(recent)).as_secs_f64();
        assert_eq!(at(Phase::Forward, &[]), 600.0, "first step");
        assert_eq!(at(Phase::Forward, &[2.0]), 30.0, "never under the floor");
        assert_eq!(at(Phase::Forward, &[8.0; 20]), 80.0);
        let mut one_slow = [8.0; 20];
        one_slow[3] = 500.0;
        assert_eq!(at(Phase::Reduce, &one_slow), 80.0, "one slow step of twenty");
        one_slow[4..7].fill(12.0);
        assert_eq!(at(Phase::Reduce, &one_slow), 120.0);
        assert_eq!(at(Phase::Save, &[8.0; 20]), 600.0, "storage may block");
        assert_eq!(at(Phase::Save, &[100.0; 20]), 1000.0);
    }

    #[test]
    fn a_restore_has_the_time_of_its_bytes() {
        let (p, c) = (Progress::default(), LivenessSection::default());
        p.restoring(Duration::from_secs(850));
        assert_eq!(p.status(&c).limit, Duration::from_secs(1450));
        p.at(Phase::Start);
        assert_eq!(p.status(&c).limit, Duration::from_secs(600));
    }

    #[test]
    fn own_work_leaves_waiting_out() {
        let p = Progress::default();
        let c = LivenessSection::default();
        let nap = |ms| std::thread::sleep(Duration::from_millis(ms));
        p.at(Phase::Forward);
        nap(20);
        p.at(Phase::Reduce);
        nap(60);
        p.at(Phase::Optimizer);
        nap(10);
        p.at(Phase::Boundary);
        p.step_done(7, Duration::from_millis(90));
        let s = p.status(&c);
        assert_eq!((s.step, s.phase, s.count), (7, Phase::Boundary, 4));
        assert!(s.own >= Duration::from_millis(30) && s.own < s.last_step - Duration::from_millis(20), "{s:?}");
        nap(15);
        assert!(p.status(&c).stuck >= Duration::from_millis(15));
        p.tick();
        let s = p.status(&c);
        assert!(s.stuck < Duration::from_millis(15) && s.phase == Phase::Boundary && s.count == 5);
        for step in 0..100 {
            p.step_done(step, Duration::from_millis(step));
        }
        let recent = p.recent();
        assert_eq!((recent.len(), recent[31]), (32, Duration::from_millis(99)));
    }

    /// What the training loop pays, and what a round of the thread does, on this machine.
    #[test]
    fn saying_where_one_is_costs_next_to_nothing() {
        let p = Progress::default();
        let c = LivenessSection::default();
        let each = |n: u32, f: &mut dyn FnMut()| {
            let began = Instant::now();
            (0..n).for_each(|_| f());
            began.elapsed() / n
        };
        let at = each(200_000, &mut || p.at(Phase::Forward));
        let status = each(20_000, &mut || _ = p.status(&c));
        let dir = tempfile::tempdir().unwrap();
        let inject = super::super::inject::Inject::new(dir.path(), 0, Default::default());
        let boundary = each(20_000, &mut || inject.boundary(1).unwrap());
        let step = at * 20 + boundary;
        println!("a change of phase {at:?}, a look for orders {boundary:?}: {step:?} a step; a status {status:?}");
        assert!(step < Duration::from_micros(500), "0.5% of a step of 100 ms");
    }
}

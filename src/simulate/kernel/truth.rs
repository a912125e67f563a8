//! What the simulator knows and the supervisor cannot: what was lost and to what, and what must never be.

use super::{Micros, SECOND};
use serde::Serialize;
use std::collections::BTreeMap;

/// What the time goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Steps with what their saves take from them, steps that are done again included.
    Training,
    /// From a fault to the end of the attempt in the supervisor's books, and steps that stand for a while.
    Notice,
    /// From there to the next srun: roll calls, waits, a flush.
    Place,
    /// From srun to the ranks' meeting.
    Start,
    /// From there to a state.
    Restore,
    /// In Slurm's queue.
    Queue,
    /// Until a person has done something.
    Person,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Violation {
    /// Seed of the run, which shows it again.
    pub seed: u64,
    /// Simulated seconds since the start.
    pub at_s: f64,
    /// The rule that was broken and by what, in words.
    pub what: String,
    /// What had happened before, newest last.
    pub story: Vec<String>,
}

/// Lines of the story that a violation shows.
const STORY: usize = 60;

#[derive(Default)]
pub(in crate::simulate) struct Truth {
    pub seed: u64,
    pub story: std::collections::VecDeque<String>,
    pub violation: Option<Violation>,
    since: Micros,
    cause: Option<Cause>,
    pub time: BTreeMap<Cause, Micros>,
    pub faults: BTreeMap<&'static str, u64>,
    pub verdicts: u64,
    pub messages: u64,
    pub stood_at: Micros,
    high: u64,
    /// The newest attempt that has written a step.
    writer: u64,
    pub redone_s: f64,
    pub attempts: u64,
    pub requeues: u64,
    pub person: u64,
    pub spares_used: u64,
    pub evicted_healthy: u64,
    /// Snapshots could not be fetched: no controller, or a filesystem that refuses.
    pub flush_was_refused: bool,
    /// When something last happened that training has to get over.
    pub disturbed: Micros,
    stood: u64,
    /// The newest step whose second copies had all arrived when training stood, and where it stood.
    pub safe: u64,
    pub stood_slots: Vec<usize>,
}

impl Truth {
    pub fn of(seed: u64) -> Truth {
        Truth { seed, ..Default::default() }
    }

    pub fn tell(&mut self, now: Micros, line: String) {
        if self.story.len() == STORY {
            self.story.pop_front();
        }
        self.story.push_back(format!("{:12.3} s  {line}", now as f64 / 1e6));
    }

    /// From now on time goes to `cause`.
    pub fn mark(&mut self, now: Micros, cause: Cause) {
        if let Some(before) = self.cause.replace(cause) {
            *self.time.entry(before).or_default() += now - self.since;
        }
        self.since = now;
    }

    pub fn cause(&self) -> Option<Cause> {
        self.cause
    }

    pub fn violation(&mut self, now: Micros, what: String) {
        let story = self.story.iter().cloned().collect();
        self.violation.get_or_insert(Violation { seed: self.seed, at_s: now as f64 / 1e6, what, story });
    }

    /// A step was written down.
    pub fn committed(&mut self, now: Micros, attempt: u64, step: u64) {
        if attempt < self.writer {
            let text = format!("attempt {attempt} wrote step {step} after attempt {} had written", self.writer);
            self.violation(now, text);
        }
        self.writer = self.writer.max(attempt);
    }

    pub fn stands(&mut self, now: Micros, finished: u64) {
        (self.stood_at, self.stood, self.high) = (now, finished, self.high.max(finished));
        self.mark(now, Cause::Notice);
        self.tell(now, format!("training stands after step {finished}"));
    }

    pub fn resumed(&mut self, step: u64, step_s: f64) {
        self.redone_s += self.stood.saturating_sub(step) as f64 * step_s;
    }

    pub fn trains_again(&mut self, now: Micros) {
        self.flush_was_refused = false;
        self.disturbed = now;
        self.tell(now, "training goes on".into());
    }

    pub fn high(&self) -> u64 {
        self.high
    }

    /// Whether training should have gone on by now.
    pub fn check_bound(&mut self, now: Micros, bound: Micros, waits: bool) {
        let stands = !matches!(self.cause, Some(Cause::Training | Cause::Person));
        if waits || !stands {
            return;
        }
        if now.saturating_sub(self.disturbed) > bound {
            let text = format!(
                "training stands for {} s since the last disturbance, and {} s is the bound; it is at {:?}",
                (now - self.disturbed) / SECOND,
                bound / SECOND,
                self.cause
            );
            self.violation(now, text);
        }
    }
}

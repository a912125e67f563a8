//! What a rank knows of the others: who they are, whom it hears, and what they last said. The watch keeps it, the judge reads it.

use super::groups::WireGroups;
use super::message::{Message, Probe};
use super::roster::Roster;
use super::slow;
use super::verdict::Verdict;
use crate::config::LivenessSection;
use std::collections::BTreeMap;
use std::time::Duration;

/// A probe may be this much later than its interval before it counts as missed: scheduling, polling, the network.
const SLACK: Duration = Duration::from_millis(400);
/// A rank that has not been heard yet has at least this long: not all start at the same moment.
const FIRST: Duration = Duration::from_secs(30);

/// When a silent rank is late, given up, and when those who should have acted on it are given up too.
#[derive(Clone, Debug)]
pub struct ProbeTiming {
    /// Time between two probes.
    pub interval: Duration,
    /// Probes missed in a row after which a rank is given up.
    pub misses: u32,
    /// The configuration, for its limits of progress and slowness.
    pub progress: LivenessSection,
}

impl ProbeTiming {
    /// From `interval_s` and `misses` of the configuration.
    pub fn new(config: &LivenessSection) -> ProbeTiming {
        let interval = Duration::from_secs_f64(config.interval_s);
        ProbeTiming { interval, misses: config.misses, progress: config.clone() }
    }

    /// One miss short of the limit.
    pub fn late(&self) -> Duration {
        self.interval * (self.misses - 1) + SLACK / 2
    }

    /// Silence after which a rank is given up.
    pub fn limit(&self) -> Duration {
        self.interval * self.misses + SLACK
    }

    pub(super) fn alone(&self) -> Duration {
        self.limit() + self.interval * 2
    }
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchAction {
    /// Send a message.
    Send {
        /// World rank that it goes to.
        to: usize,
        /// What it is told.
        message: Message,
    },
    /// This rank has decided: write the verdict, give it to [`super::Watch::order`], leave.
    Verdict(Box<Verdict>),
    /// Another rank has decided: pass it on ([`super::Watch::relay`]), leave.
    Leave {
        /// What was decided.
        verdict: Box<Verdict>,
        /// Whether it is in the run directory, as the sender says.
        written: bool,
    },
    /// A rank is slow: an event, nothing more.
    Slow(slow::SlowRank),
}

/// A peer's last sign of life.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastHeard {
    pub(super) heard: Duration,
    pub(super) ever: bool,
    /// When its silence was last complained about.
    pub(super) told: Option<Duration>,
}

impl LastHeard {
    pub(super) fn new(now: Duration) -> LastHeard {
        LastHeard { heard: now, ever: false, told: None }
    }

    pub(super) fn hear(&mut self, now: Duration) {
        *self = LastHeard { heard: now, ever: true, told: None };
    }

    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard)
    }

    pub(super) fn over(&self, now: Duration, limit: Duration) -> bool {
        self.age(now) > if self.ever { limit } else { limit.max(FIRST) }
    }

    /// Whether it is time to complain, at most once an interval.
    pub(super) fn complain(&mut self, now: Duration, every: Duration) -> bool {
        let due = self.told.is_none_or(|t| now >= t + every);
        if due {
            self.told = Some(now);
        }
        due
    }
}

/// What a rank last said about itself, and when that was heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub at: Duration,
    pub probe: Probe,
}

/// The newest probe of each rank that this one hears about.
pub(super) type Board = BTreeMap<usize, Heard>;

/// One rank's knowledge.
pub(super) struct View {
    pub roster: Roster,
    pub timing: ProbeTiming,
    /// Those who report to this rank.
    pub below: BTreeMap<usize, LastHeard>,
    pub board: Board,
    /// Who shares which wire, as far as they are made.
    pub wires: Vec<WireGroups>,
}

impl View {
    /// Whether this rank judges the others: the monitor everybody, the deputy the monitor.
    pub fn is_monitor(&self) -> bool {
        self.roster.rank == self.roster.monitor()
    }
}

//! What every rank does about the others, as a function of time and messages: report upward, listen downward, turn to the
//! deputy when the one above is silent, and, on the two ranks that judge, decide.
//!
//! Nothing here reads a clock, waits or sends. `now` is a duration by this process's own monotonic clock; what a message
//! says about time is a duration by its sender's.

use super::message::{Message, Probe};
use super::monitor::Judge;
use super::roster::Roster;
use super::slow;
use super::verdict::{Reason, Verdict};
use crate::config::LivenessSection;
use crate::wire::Table;
use std::collections::BTreeMap;
use std::time::Duration;

/// A probe may be this much later than its interval before it counts as missed: scheduling, polling, the network.
const SLACK: Duration = Duration::from_millis(400);
/// A rank that has not been heard yet has at least this long: not all start at the same moment.
const FIRST: Duration = Duration::from_secs(30);

/// When a silent rank is late, given up, and when those who should have acted on it are given up too.
#[derive(Clone, Debug)]
pub struct Timing {
    pub interval: Duration,
    pub misses: u32,
    pub progress: LivenessSection,
}

impl Timing {
    pub fn new(config: &LivenessSection) -> Timing {
        let interval = Duration::from_secs_f64(config.interval_s);
        Timing { interval, misses: config.misses, progress: config.clone() }
    }

    /// One miss short of the limit.
    pub fn late(&self) -> Duration {
        self.interval * (self.misses - 1) + SLACK / 2
    }

    pub fn limit(&self) -> Duration {
        self.interval * self.misses + SLACK
    }

    fn alone(&self) -> Duration {
        self.limit() + self.interval * 2
    }
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Send {
        to: usize,
        message: Message,
    },
    /// This rank has decided: write the verdict, give it to [`Watch::order`], leave.
    Verdict(Box<Verdict>),
    /// Another rank has decided: pass it on ([`Watch::relay`]), leave.
    Leave {
        verdict: Box<Verdict>,
        written: bool,
    },
    /// A rank is slow: an event, nothing more.
    Slow(slow::Found),
}

/// A peer's last sign of life.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    heard: Duration,
    ever: bool,
    /// When its silence was last complained about.
    told: Option<Duration>,
}

impl Seen {
    fn new(now: Duration) -> Seen {
        Seen { heard: now, ever: false, told: None }
    }

    fn hear(&mut self, now: Duration) {
        *self = Seen { heard: now, ever: true, told: None };
    }

    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard)
    }

    fn over(&self, now: Duration, limit: Duration) -> bool {
        self.age(now) > if self.ever { limit } else { limit.max(FIRST) }
    }

    /// Whether it is time to complain, at most once an interval.
    fn complain(&mut self, now: Duration, every: Duration) -> bool {
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

/// One rank's part.
pub struct Watch {
    pub(super) roster: Roster,
    pub(super) timing: Timing,
    /// Those who report to this rank.
    pub(super) below: BTreeMap<usize, Seen>,
    /// The one it reports to.
    above: Option<(usize, Seen)>,
    second_heard: Duration,
    own: Probe,
    next: Duration,
    pub(super) board: Board,
    judge: Option<Judge>,
    /// Who shares which wire, as far as they are made.
    pub(super) wires: Vec<Table>,
    /// Decided, here or elsewhere.
    done: bool,
}

impl Watch {
    pub fn new(roster: Roster, timing: Timing, now: Duration) -> Watch {
        let me = roster.rank;
        let judges = me == roster.monitor() || Some(me) == roster.deputy();
        Watch {
            below: roster.below(me).into_iter().map(|r| (r, Seen::new(now))).collect(),
            above: roster.above(me).map(|r| (r, Seen::new(now))),
            second_heard: now,
            own: Probe { rank: me as u32, ..Default::default() },
            next: now,
            board: Board::new(),
            judge: judges.then(Judge::default),
            wires: Vec::new(),
            done: false,
            roster,
            timing,
        }
    }

    /// This process has slept: nobody is late by its clock.
    pub fn fresh(&mut self, now: Duration) {
        let renew = |s: &mut Seen| *s = Seen { heard: now.max(s.heard), told: None, ..*s };
        self.below.values_mut().for_each(renew);
        if let Some((_, s)) = &mut self.above {
            renew(s);
        }
        self.second_heard = now;
        if let Some(judge) = &mut self.judge {
            judge.forget();
        }
    }

    /// Wires that have been made since; a judge needs them.
    pub fn learn(&mut self, made: Vec<Table>) {
        self.wires.extend(made);
    }

    /// Number of wires known.
    pub fn wires(&self) -> usize {
        self.wires.len()
    }

    /// A message of `from`.
    pub fn hear(&mut self, now: Duration, from: usize, message: Message) -> Vec<Action> {
        if self.done {
            return Vec::new();
        }
        let (attempt_pid, space) = (self.own.pid, self.own.pid_space);
        let pong = || Action::Send { to: from, message: Message::Pong { pid: attempt_pid, pid_space: space } };
        match message {
            Message::Probe(p) => {
                self.heard_from(now, from, &[p]);
                vec![pong()]
            }
            Message::Report(all) => {
                self.heard_from(now, from, &all);
                vec![pong()]
            }
            Message::Pong { .. } => {
                match &mut self.above {
                    Some((above, seen)) if *above == from => seen.hear(now),
                    _ => self.second_heard = now,
                }
                Vec::new()
            }
            Message::Silent { rank, age_ms } => {
                let believed = self.believes(now, from, rank);
                if let (Some(judge), true) = (&mut self.judge, believed) {
                    judge.accuse(now, rank, Reason::MissedProbes, Duration::from_millis(age_ms), &self.timing);
                }
                Vec::new()
            }
            Message::Died { rank } => self.died(now, rank),
            Message::Stop { verdict, written } => {
                self.done = true;
                vec![Action::Leave { verdict, written }]
            }
        }
    }

    fn heard_from(&mut self, now: Duration, from: usize, probes: &[Probe]) {
        match (self.below.get_mut(&from), &mut self.judge) {
            (Some(seen), _) => seen.hear(now),
            // Past its leader, or past the monitor.
            (None, Some(judge)) => judge.turned_here(now, from),
            (None, None) => {}
        }
        for p in probes.iter().filter(|p| (p.rank as usize) < self.roster.size()) {
            self.board.insert(p.rank as usize, Heard { at: now, probe: *p });
        }
    }

    /// A leader knows about its own node. About a leader, or the monitor, this rank's own ears come first.
    fn believes(&self, now: Duration, from: usize, rank: usize) -> bool {
        if rank >= self.roster.size() || rank == self.roster.rank {
            return false;
        }
        let late = |seen: &Seen| seen.age(now) > self.timing.late();
        match (&self.above, self.below.get(&rank)) {
            (Some((above, seen)), _) if *above == rank => late(seen),
            (_, Some(seen)) => late(seen),
            _ => from == self.roster.leader(rank),
        }
    }

    /// A process of this node has ended, or another rank says so of its own.
    pub fn died(&mut self, now: Duration, rank: usize) -> Vec<Action> {
        if self.done || rank >= self.roster.size() || rank == self.roster.rank {
            return Vec::new();
        }
        let monitor = self.roster.monitor();
        if let Some(judge) = self.judge.as_mut().filter(|_| self.roster.rank == monitor || rank == monitor) {
            judge.accuse(now, rank, Reason::Signal, Duration::ZERO, &self.timing);
            return Vec::new();
        }
        let to = match &self.above {
            Some((above, _)) if *above == rank => self.roster.second(self.roster.rank),
            above => above.map(|(above, _)| above),
        };
        to.map(|to| Action::Send { to, message: Message::Died { rank } }).into_iter().collect()
    }

    /// Time passes. `own`: this rank's state. To be called several times an interval.
    pub fn tick(&mut self, now: Duration, own: Probe) -> Vec<Action> {
        self.own = own;
        self.board.insert(self.roster.rank, Heard { at: now, probe: own });
        let mut out = Vec::new();
        if self.done {
            return out;
        }
        let due = now >= self.next;
        if due {
            // Counted from now, not from when it was due: a late one is not made up for.
            self.next = now + self.timing.interval;
            out.extend(self.above.map(|(above, _)| Action::Send { to: above, message: self.report(now) }));
        }
        out.extend(self.look_up(now));
        out.extend(self.look_down(now));
        let (mut judge, monitor) = (self.judge.take(), self.roster.rank == self.roster.monitor());
        if let Some(judge) = &mut judge {
            out.extend(judge.tick(self, now, monitor && due));
        }
        self.judge = judge;
        self.done |= out.iter().any(|a| matches!(a, Action::Verdict(_)));
        out
    }

    /// This rank's report: about itself, or about its node.
    fn report(&self, now: Duration) -> Message {
        if !self.roster.is_leader(self.roster.rank) {
            return Message::Probe(self.own);
        }
        let ranks = self.roster.node(self.roster.rank).ranks.iter();
        let aged = |heard: &Heard| Probe { age_ms: millis(now.saturating_sub(heard.at)), ..heard.probe };
        Message::Report(ranks.filter_map(|r| self.board.get(r)).map(aged).collect())
    }

    fn look_up(&mut self, now: Duration) -> Vec<Action> {
        let me = self.roster.rank;
        let (Some((above, mut seen)), Some(second)) = (self.above, self.roster.second(me)) else { return Vec::new() };
        let timing = self.timing.clone();
        let mut out = Vec::new();
        if seen.over(now, timing.late()) {
            let silent = seen.over(now, timing.limit());
            if second == me {
                // The deputy about the monitor.
                if let Some(judge) = self.judge.as_mut().filter(|_| silent) {
                    judge.accuse(now, above, Reason::MissedProbes, seen.age(now), &timing);
                }
            } else if seen.complain(now, if silent { timing.interval / 2 } else { timing.interval }) {
                out.push(Action::Send { to: second, message: self.report(now) });
                let age_ms = seen.age(now).as_millis() as u64;
                let message = Message::Silent { rank: above, age_ms };
                out.extend(silent.then_some(Action::Send { to: second, message }));
            }
            if second != me && seen.over(now, timing.alone()) {
                out.push(Action::Verdict(Box::new(self.alone(now, above, seen.age(now), second))));
            }
        }
        self.above = Some((above, seen));
        out
    }

    /// Those who should have decided are silent too: this rank decides for itself.
    fn alone(&self, now: Duration, above: usize, age: Duration, second: usize) -> Verdict {
        let whole = |r: usize| match self.roster.is_leader(self.roster.rank) {
            true => self.roster.node(r).ranks.clone(),
            false => vec![r],
        };
        let mut ranks = whole(above);
        if now.saturating_sub(self.second_heard) > self.timing.limit() {
            ranks.extend(whole(second));
        }
        super::monitor::silence(self, now, Reason::MissedProbes, ranks, age, 1)
    }

    fn look_down(&mut self, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        let (limit, every) = (self.timing.limit(), self.timing.interval);
        let (me, above) = (self.roster.rank, self.above);
        for (&rank, seen) in &mut self.below {
            if !seen.over(now, limit) || !seen.complain(now, every) {
                continue;
            }
            let age = seen.age(now);
            match (&mut self.judge, above) {
                (Some(judge), None) => judge.accuse(now, rank, Reason::MissedProbes, age, &self.timing),
                (_, Some((above, up))) => {
                    let message = Message::Silent { rank, age_ms: age.as_millis() as u64 };
                    let second = self.roster.second(me).filter(|_| up.age(now) > self.timing.late());
                    let to = [Some(above), second].into_iter().flatten().filter(|&to| to != me);
                    out.extend(to.map(|to| Action::Send { to, message: message.clone() }));
                }
                (None, None) => {}
            }
        }
        out
    }

    /// To whom this rank's own verdict goes: every leader, its own node, and nodes whose leader cannot pass it on.
    pub fn order(&self, verdict: &Verdict, written: bool) -> Vec<Action> {
        let roster = &self.roster;
        let me = roster.rank;
        let mut to: Vec<usize> = match self.judge {
            Some(_) => roster.leaders().collect(),
            None => Vec::new(),
        };
        let orphans = |n: &&super::roster::Node| n.ranks[0] == me || verdict.ranks.contains(&n.ranks[0]);
        to.extend(roster.nodes.iter().filter(orphans).flat_map(|n| n.ranks.iter().copied()));
        to.sort_unstable();
        to.dedup();
        stop(to.into_iter().filter(|&r| r != me), verdict, written)
    }

    /// To whom another rank's verdict is passed on: this rank's node, if it leads.
    pub fn relay(&self, verdict: &Verdict) -> Vec<Action> {
        let me = self.roster.rank;
        let node = &self.roster.node(me).ranks;
        stop(node.iter().copied().filter(|&r| r != me && node[0] == me), verdict, true)
    }
}

fn stop(to: impl Iterator<Item = usize>, verdict: &Verdict, written: bool) -> Vec<Action> {
    let message = Message::Stop { verdict: Box::new(verdict.clone()), written };
    to.map(|to| Action::Send { to, message: message.clone() }).collect()
}

pub(super) fn millis(d: Duration) -> u32 {
    d.as_millis().min(u32::MAX as u128) as u32
}

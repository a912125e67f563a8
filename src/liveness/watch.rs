//! What every rank does about the others, as a function of time and messages: report upward, listen downward, turn to the
//! deputy when the one above is silent, and, on the two ranks that judge, decide.
//!
//! Nothing here reads a clock, waits or sends. `now` is a duration by this process's own monotonic clock; what a message
//! says about time is a duration by its sender's.

use super::groups::WireGroups;
use super::message::{Message, Probe};
use super::monitor::{silence, Judge};
use super::roster::Roster;
use super::tree;
use super::verdict::{Reason, Verdict};
use super::view::{Board, Heard, LastHeard, ProbeTiming, View, WatchAction};
use crate::world::WireMembers;
use std::time::Duration;

/// One rank's part.
pub struct Watch {
    pub(super) view: View,
    /// The one it reports to.
    above: Option<(usize, LastHeard)>,
    second_heard: Duration,
    own: Probe,
    next: Duration,
    judge: Option<Judge>,
    /// Decided, here or elsewhere.
    done: bool,
}

impl Watch {
    /// The part of `roster.rank`, from `now` on: silence is counted from here.
    pub fn new(roster: Roster, timing: ProbeTiming, now: Duration) -> Watch {
        let me = roster.rank;
        let judges = me == roster.monitor() || Some(me) == roster.deputy();
        let below = roster.below(me).into_iter().map(|r| (r, LastHeard::new(now))).collect();
        Watch {
            above: roster.above(me).map(|r| (r, LastHeard::new(now))),
            second_heard: now,
            own: Probe { rank: me as u32, ..Default::default() },
            next: now,
            judge: judges.then(Judge::default),
            done: false,
            view: View { roster, timing, below, board: Board::new(), wires: Vec::new() },
        }
    }

    /// This process has slept: nobody is late by its clock.
    pub fn fresh(&mut self, now: Duration) {
        let renew = |s: &mut LastHeard| *s = LastHeard { heard: now.max(s.heard), told: None, ..*s };
        self.view.below.values_mut().for_each(renew);
        if let Some((_, s)) = &mut self.above {
            renew(s);
        }
        self.second_heard = now;
        if let Some(judge) = &mut self.judge {
            judge.forget();
        }
    }

    /// Takes in the wires that have been made since the last call, which `made` gives when it is told how many are known. Only
    /// a judge asks: a table is as long as the world.
    pub fn learn(&mut self, made: impl FnOnce(usize) -> Vec<WireMembers>) {
        if self.judge.is_some() {
            let known = self.view.wires.len();
            self.view.wires.extend(made(known).iter().map(WireGroups::new));
        }
    }

    /// A message of `from`.
    pub fn hear(&mut self, now: Duration, from: usize, message: Message) -> Vec<WatchAction> {
        if self.done {
            return Vec::new();
        }
        let (attempt_pid, space) = (self.own.pid, self.own.pid_space);
        let pong = || WatchAction::Send { to: from, message: Message::Pong { pid: attempt_pid, pid_space: space } };
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
                    judge.accuse(now, rank, Reason::MissedProbes, Duration::from_millis(age_ms), &self.view.timing);
                }
                Vec::new()
            }
            Message::Died { rank } => self.died(now, rank),
            // the thread's own business
            Message::Witness(_) => Vec::new(),
            Message::Stop { verdict, written } => {
                self.done = true;
                vec![WatchAction::Leave { verdict, written }]
            }
        }
    }

    fn heard_from(&mut self, now: Duration, from: usize, probes: &[Probe]) {
        match (self.view.below.get_mut(&from), &mut self.judge) {
            (Some(seen), _) => seen.hear(now),
            // Past its leader, or past the monitor.
            (None, Some(judge)) => judge.turned_here(now, from),
            (None, None) => {}
        }
        for p in probes.iter().filter(|p| (p.rank as usize) < self.view.roster.size()) {
            self.view.board.insert(p.rank as usize, Heard { at: now, probe: *p });
        }
    }

    /// A leader knows about its own node. About a leader, or the monitor, this rank's own ears come first.
    fn believes(&self, now: Duration, from: usize, rank: usize) -> bool {
        if rank >= self.view.roster.size() || rank == self.view.roster.rank {
            return false;
        }
        let late = |seen: &LastHeard| seen.age(now) > self.view.timing.late();
        match (&self.above, self.view.below.get(&rank)) {
            (Some((above, seen)), _) if *above == rank => late(seen),
            (_, Some(seen)) => late(seen),
            _ => from == self.view.roster.leader(rank),
        }
    }

    /// A process of this node has ended, or another rank says so of its own.
    pub fn died(&mut self, now: Duration, rank: usize) -> Vec<WatchAction> {
        if self.done || rank >= self.view.roster.size() || rank == self.view.roster.rank {
            return Vec::new();
        }
        let monitor = self.view.roster.monitor();
        if let Some(judge) = self.judge.as_mut().filter(|_| self.view.roster.rank == monitor || rank == monitor) {
            judge.accuse(now, rank, Reason::Signal, Duration::ZERO, &self.view.timing);
            return Vec::new();
        }
        let to = match &self.above {
            Some((above, _)) if *above == rank => self.view.roster.second(self.view.roster.rank),
            above => above.map(|(above, _)| above),
        };
        to.map(|to| WatchAction::Send { to, message: Message::Died { rank } }).into_iter().collect()
    }

    /// Time passes. `own`: this rank's state. To be called several times an interval.
    pub fn tick(&mut self, now: Duration, own: Probe) -> Vec<WatchAction> {
        self.own = own;
        self.view.board.insert(self.view.roster.rank, Heard { at: now, probe: own });
        let mut out = Vec::new();
        if self.done {
            return out;
        }
        let due = now >= self.next;
        if due {
            // Ranks that began together stay in step, so that faults of one moment are seen in one moment; but what is late by more
            // than half an interval is not made up for.
            let interval = self.view.timing.interval;
            let from = if now - self.next <= interval / 2 { self.next } else { now };
            self.next = from + interval;
            out.extend(self.above.map(|(above, _)| WatchAction::Send { to: above, message: self.report(now) }));
        }
        out.extend(self.look_up(now));
        out.extend(self.look_down(now));
        if let Some(judge) = &mut self.judge {
            out.extend(judge.tick(&self.view, now, due && self.view.is_monitor()));
        }
        self.done |= out.iter().any(|a| matches!(a, WatchAction::Verdict(_)));
        out
    }

    /// This rank's report: about itself, or about its node.
    fn report(&self, now: Duration) -> Message {
        if !self.view.roster.is_leader(self.view.roster.rank) {
            return Message::Probe(self.own);
        }
        let ranks = self.view.roster.node(self.view.roster.rank).ranks.iter();
        let aged = |heard: &Heard| Probe { age_ms: millis(now.saturating_sub(heard.at)), ..heard.probe };
        Message::Report(ranks.filter_map(|r| self.view.board.get(r)).map(aged).collect())
    }

    fn look_up(&mut self, now: Duration) -> Vec<WatchAction> {
        let me = self.view.roster.rank;
        let (Some((above, mut seen)), Some(second)) = (self.above, self.view.roster.second(me)) else {
            return Vec::new();
        };
        let timing = self.view.timing.clone();
        let mut out = Vec::new();
        if seen.over(now, timing.late()) {
            let silent = seen.over(now, timing.limit());
            if second == me {
                // The deputy about the monitor.
                if let Some(judge) = self.judge.as_mut().filter(|_| silent) {
                    judge.accuse(now, above, Reason::MissedProbes, seen.age(now), &timing);
                }
            } else if seen.complain(now, if silent { timing.interval / 2 } else { timing.interval }) {
                out.push(WatchAction::Send { to: second, message: self.report(now) });
                let age_ms = seen.age(now).as_millis() as u64;
                let message = Message::Silent { rank: above, age_ms };
                out.extend(silent.then_some(WatchAction::Send { to: second, message }));
            }
            if second != me && seen.over(now, timing.alone()) {
                out.push(WatchAction::Verdict(Box::new(self.alone(now, above, seen.age(now), second))));
            }
        }
        self.above = Some((above, seen));
        out
    }

    /// Those who should have decided are silent too: this rank decides for itself.
    fn alone(&self, now: Duration, above: usize, age: Duration, second: usize) -> Verdict {
        let whole = |r: usize| match self.view.roster.is_leader(self.view.roster.rank) {
            true => self.view.roster.node(r).ranks.clone(),
            false => vec![r],
        };
        let mut ranks = whole(above);
        if now.saturating_sub(self.second_heard) > self.view.timing.limit() {
            ranks.extend(whole(second));
        }
        silence(&self.view, now, Reason::MissedProbes, ranks, age, 1)
    }

    fn look_down(&mut self, now: Duration) -> Vec<WatchAction> {
        let mut out = Vec::new();
        let (limit, every) = (self.view.timing.limit(), self.view.timing.interval);
        let (me, above) = (self.view.roster.rank, self.above);
        for (&rank, seen) in &mut self.view.below {
            if !seen.over(now, limit) || !seen.complain(now, every) {
                continue;
            }
            let age = seen.age(now);
            match (&mut self.judge, above) {
                (Some(judge), None) => judge.accuse(now, rank, Reason::MissedProbes, age, &self.view.timing),
                (_, Some((above, up))) => {
                    let message = Message::Silent { rank, age_ms: age.as_millis() as u64 };
                    let second = self.view.roster.second(me).filter(|_| up.age(now) > self.view.timing.late());
                    let to = [Some(above), second].into_iter().flatten().filter(|&to| to != me);
                    out.extend(to.map(|to| WatchAction::Send { to, message: message.clone() }));
                }
                (None, None) => {}
            }
        }
        out
    }

    /// To whom this rank's own verdict goes. A judge's goes down the tree to all. Another rank's, where all decide for themselves:
    /// to its node if it leads, and to nodes whose leader cannot pass it on.
    pub fn order(&self, verdict: &Verdict, written: bool) -> Vec<WatchAction> {
        let roster = &self.view.roster;
        let me = roster.rank;
        if self.judge.is_some() {
            return stop(tree::next(roster, me, verdict), verdict, written);
        }
        let orphans = |n: &&super::roster::RosterNode| n.ranks[0] == me || verdict.ranks.contains(&n.ranks[0]);
        let to = roster.nodes.iter().filter(orphans).flat_map(|n| n.ranks.iter().copied());
        stop(to.filter(|&r| r != me), verdict, written)
    }

    /// To whom another rank's verdict is passed on: down the tree, or, of one that decided for itself, to this rank's node if it
    /// leads.
    pub fn relay(&self, verdict: &Verdict, written: bool) -> Vec<WatchAction> {
        let roster = &self.view.roster;
        let me = roster.rank;
        if verdict.accuser == roster.monitor() || Some(verdict.accuser) == roster.deputy() {
            return stop(tree::next(roster, me, verdict), verdict, written);
        }
        let node = &roster.node(me).ranks;
        stop(node.iter().copied().filter(|&r| r != me && node[0] == me), verdict, written)
    }
}

fn stop(to: impl IntoIterator<Item = usize>, verdict: &Verdict, written: bool) -> Vec<WatchAction> {
    let message = Message::Stop { verdict: Box::new(verdict.clone()), written };
    to.into_iter().map(|to| WatchAction::Send { to, message: message.clone() }).collect()
}

pub(super) fn millis(d: Duration) -> u32 {
    d.as_millis().min(u32::MAX as u128) as u32
}

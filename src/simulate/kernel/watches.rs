//! The liveness of one attempt around a fault: the real [`Watch`] of every node's first rank, and of every rank of the nodes that a
//! fault has touched. Other ranks are heard by their first rank as long as they live. Before a fault nothing happens here: what each
//! last heard is set up when it is needed.

use super::{micros, Micros};
use crate::config::LivenessSection;
use crate::liveness::{Message, Probe, ProbeTiming, Roster, Verdict, Watch, WatchAction};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub(in crate::simulate) struct Watches {
    roster: Roster,
    timing: ProbeTiming,
    watches: BTreeMap<usize, Watch>,
    due: BTreeMap<usize, Duration>,
    letters: VecDeque<(usize, usize, Message)>,
    per_node: usize,
    /// Ranks that say nothing: stopped, or ended.
    pub silent: BTreeSet<usize>,
    /// Ranks that have left or ended.
    pub gone: BTreeSet<usize>,
    pub sent: u64,
}

/// What a watch decided.
pub(in crate::simulate) struct Decided {
    pub rank: usize,
    pub verdict: Box<Verdict>,
}

fn duration(at: Micros) -> Duration {
    // clocks begin long before
    Duration::from_micros(at + micros(1e6))
}

impl Watches {
    /// As the ranks stand at `now`, when all is still well. `touched`: nodes that a fault is about to touch.
    pub fn new(attempt: u64, names: &[String], per_node: usize, config: &LivenessSection, now: Micros) -> Watches {
        let places: Vec<(usize, String)> =
            (0..names.len() * per_node).map(|r| (r / per_node * per_node, names[r / per_node].clone())).collect();
        let roster = Roster::new(attempt, 0, [1, 1, 1, places.len()], &places);
        let mut w = Watches {
            roster,
            timing: ProbeTiming::new(config),
            watches: BTreeMap::new(),
            due: BTreeMap::new(),
            letters: VecDeque::new(),
            per_node,
            silent: BTreeSet::new(),
            gone: BTreeSet::new(),
            sent: 0,
        };
        let interval = w.timing.interval;
        let now = duration(now);
        // those that began together report together, within a tenth of an interval
        for node in 0..names.len() {
            let at = now - interval * (1 + (node % 10) as u32) / 12;
            w.add(node * per_node, at);
        }
        // one round in which everybody is heard
        let ranks: Vec<usize> = w.watches.keys().copied().collect();
        for rank in ranks {
            let at = w.due[&rank];
            w.step(rank, at);
            w.due.insert(rank, at + interval);
            w.deliver(at, &|_, _| true);
        }
        w
    }

    fn add(&mut self, rank: usize, at: Duration) {
        let mut roster = self.roster.clone();
        roster.rank = rank;
        self.watches.insert(rank, Watch::new(roster, self.timing.clone(), at));
        self.due.insert(rank, at);
    }

    /// Every rank of a node has a watch of its own from here on.
    pub fn touch(&mut self, node: usize, now: Micros) {
        let at = duration(now);
        for rank in node * self.per_node..(node + 1) * self.per_node {
            if !self.watches.contains_key(&rank) {
                self.add(rank, at);
                self.step(rank, at);
                self.deliver(at, &|_, _| true);
            }
        }
    }

    fn probe(rank: usize) -> Probe {
        Probe { rank: rank as u32, ..Default::default() }
    }

    fn speaks(&self, rank: usize) -> bool {
        !self.silent.contains(&rank) && !self.gone.contains(&rank)
    }

    /// One look of a rank's thread; verdicts.
    fn step(&mut self, rank: usize, now: Duration) -> Vec<Decided> {
        let own = self.roster.node(rank).ranks.clone();
        let leads = own[0] == rank;
        let beside: Vec<usize> =
            own.into_iter().filter(|&r| leads && !self.watches.contains_key(&r) && self.speaks(r)).collect();
        let Some(watch) = self.watches.get_mut(&rank) else { return Vec::new() };
        for r in beside {
            watch.hear(now, r, Message::Probe(Self::probe(r)));
        }
        let actions = watch.tick(now, Self::probe(rank));
        self.take(rank, actions)
    }

    fn take(&mut self, rank: usize, actions: Vec<WatchAction>) -> Vec<Decided> {
        let mut decided = Vec::new();
        for action in actions {
            match action {
                WatchAction::Send { to, message } => {
                    self.sent += 1;
                    self.letters.push_back((rank, to, message));
                }
                WatchAction::Verdict(verdict) => decided.push(Decided { rank, verdict }),
                // orders are carried out by the simulator at once
                WatchAction::Leave { .. } | WatchAction::Slow(_) => {}
            }
        }
        decided
    }

    fn deliver(&mut self, now: Duration, linked: &dyn Fn(usize, usize) -> bool) -> Vec<Decided> {
        let mut decided = Vec::new();
        while let Some((from, to, message)) = self.letters.pop_front() {
            let passes = linked(from / self.per_node, to / self.per_node) && self.speaks(to);
            if !passes {
                continue;
            }
            if let Some(watch) = self.watches.get_mut(&to) {
                let actions = watch.hear(now, from, message);
                decided.extend(self.take(to, actions));
            }
        }
        decided
    }

    /// A process has ended: its node's leader sees that.
    pub fn died(&mut self, rank: usize, now: Micros, linked: &dyn Fn(usize, usize) -> bool) -> Vec<Decided> {
        self.gone.insert(rank);
        let node = rank / self.per_node;
        let seer = (node * self.per_node..(node + 1) * self.per_node).find(|&r| self.speaks(r));
        let mut decided = Vec::new();
        if let Some(watch) = seer.and_then(|r| self.watches.get_mut(&r)) {
            let actions = watch.died(duration(now), rank);
            decided = self.take(seer.unwrap_or(0), actions);
        }
        decided.extend(self.deliver(duration(now), linked));
        decided
    }

    /// Time passes. `linked`: whether two nodes hear each other; `touched`: nodes whose ranks look each time.
    pub fn tick(
        &mut self, now: Micros, touched: &BTreeSet<usize>, linked: &dyn Fn(usize, usize) -> bool,
    ) -> Vec<Decided> {
        let at = duration(now);
        let (monitor, deputy) = (self.roster.monitor(), self.roster.deputy());
        let alarmed = [Some(monitor), deputy]
            .into_iter()
            .flatten()
            .any(|r| !self.speaks(r) || touched.contains(&(r / self.per_node)));
        let mut decided = Vec::new();
        let ranks: Vec<usize> = self.watches.keys().copied().filter(|&r| self.speaks(r)).collect();
        for rank in ranks {
            let due = at >= self.due[&rank];
            let looks = alarmed || rank == monitor || Some(rank) == deputy || touched.contains(&(rank / self.per_node));
            if due {
                self.due.insert(rank, at + self.timing.interval);
            }
            if due || looks {
                decided.extend(self.step(rank, at));
                decided.extend(self.deliver(at, linked));
            }
        }
        decided
    }

    /// Processes that slept go on: by their clock nobody is late.
    pub fn awake(&mut self, ranks: impl IntoIterator<Item = usize>, now: Micros) {
        for rank in ranks {
            self.silent.remove(&rank);
            if let Some(watch) = self.watches.get_mut(&rank) {
                watch.fresh(duration(now));
            }
        }
    }
}

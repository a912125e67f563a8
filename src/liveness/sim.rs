//! Whole runs of [`Watch`]es in simulated time: processes that stop, end, are cut off, start late, and clocks that disagree.
//! What must come of them is in `faults`.

mod faults;

use super::message::{Message, Probe};
use super::roster::tests::grid;
use super::roster::Roster;
use super::verdict::{choose, Reason, Verdict};
use super::view::{ProbeTiming, WatchAction};
use super::watch::Watch;
use crate::config::LivenessSection;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const POLL: u64 = 50;

/// One process.
struct Process {
    watch: Option<Watch>,
    /// Its clock is ahead of simulated time by this.
    offset: u64,
    starts: u64,
    last: Option<u64>,
    stopped: bool,
    dead: bool,
    /// When it left on a verdict.
    left: Option<u64>,
    inbox: Vec<(usize, Message)>,
}

/// Simulated time is in milliseconds.
struct Sim {
    timing: ProbeTiming,
    processes: Vec<Process>,
    wire: BTreeMap<(u64, u64), (usize, usize, Message)>,
    per_node: usize,
    cut: BTreeSet<usize>,
    now: u64,
    sent: u64,
    /// The seed of this run, and the generator's state.
    seed: u64,
    random: u64,
    verdicts: Vec<(u64, Verdict)>,
}

/// Whatever fails around a run, its seed is said.
impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let nodes = self.processes.len() / self.per_node;
            eprintln!("seed {} of {nodes} nodes × {} ranks", self.seed, self.per_node);
        }
    }
}

impl Sim {
    fn new(nodes: usize, per_node: usize, interval_s: f64, seed: u64) -> Sim {
        let config = LivenessSection { interval_s, ..Default::default() };
        let mut sim = Sim {
            timing: ProbeTiming::new(&config),
            processes: Vec::new(),
            wire: BTreeMap::new(),
            per_node,
            cut: BTreeSet::new(),
            now: 0,
            sent: 0,
            seed,
            random: seed * 2 + 1,
            verdicts: Vec::new(),
        };
        for _ in 0..nodes * per_node {
            let (starts, offset) = (sim.random(500), sim.random(1 << 40));
            let (watch, last, left) = (None, None, None);
            let process = Process { watch, offset, starts, last, stopped: false, dead: false, left, inbox: Vec::new() };
            sim.processes.push(process);
        }
        sim
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn roster(&self, rank: usize) -> Roster {
        grid(rank, self.processes.len() / self.per_node, self.per_node)
    }

    fn interval(&self) -> u64 {
        self.timing.interval.as_millis() as u64
    }

    fn run(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.now < end {
            self.now += POLL;
            let due: Vec<_> = self.wire.range(..(self.now, 0)).map(|(&k, _)| k).collect();
            for key in due {
                let Some((from, to, message)) = self.wire.remove(&key) else { continue };
                self.processes[to].inbox.push((from, message));
            }
            for rank in 0..self.processes.len() {
                self.wake(rank);
            }
        }
    }

    fn wake(&mut self, rank: usize) {
        let roster = self.roster(rank);
        let p = &mut self.processes[rank];
        if p.dead || p.stopped || p.left.is_some() || self.now < p.starts {
            return;
        }
        let now = Duration::from_millis(self.now + p.offset);
        let watch = p.watch.get_or_insert_with(|| Watch::new(roster, self.timing.clone(), now));
        let pause = self.now - p.last.unwrap_or(self.now);
        p.last = Some(self.now);
        if pause > self.timing.interval.as_millis() as u64 / 2 {
            watch.fresh(now);
        }
        let mut actions = Vec::new();
        for (from, message) in p.inbox.drain(..) {
            actions.extend(watch.hear(now, from, message));
        }
        actions.extend(watch.tick(now, Probe { rank: rank as u32, step: self.now / 1000, ..Default::default() }));
        for action in actions {
            self.act(rank, action);
        }
    }

    fn act(&mut self, rank: usize, action: WatchAction) {
        let watch = self.processes[rank].watch.as_ref().unwrap();
        let orders = match action {
            WatchAction::Send { to, message } => {
                // The wire carries bytes, and those of this attempt are understood.
                let message = Message::decode(2, &message.encode(2)).unwrap();
                let (a, b) = (rank / self.per_node, to / self.per_node);
                if a == b || !(self.cut.contains(&a) || self.cut.contains(&b)) {
                    let at = self.now + 1 + self.random(20);
                    self.sent += 1;
                    self.wire.insert((at, self.sent), (rank, to, message));
                }
                return;
            }
            WatchAction::Slow(found) => panic!("{found:?}"),
            WatchAction::Verdict(v) => {
                let orders = watch.order(&v, true);
                self.verdicts.push((self.now, *v));
                orders
            }
            WatchAction::Leave { verdict, written } => watch.relay(&verdict, written),
        };
        self.processes[rank].left = Some(self.now);
        for order in orders {
            self.act(rank, order);
        }
    }

    fn each(&mut self, ranks: &[usize], f: impl Fn(&mut Process)) {
        ranks.iter().for_each(|&r| f(&mut self.processes[r]));
    }

    /// From a fault now: within how many milliseconds the first verdict came, and what the supervisor makes of all.
    fn outcome(&mut self) -> (u64, Verdict) {
        let fault = self.now;
        self.run(10 * self.interval());
        let first = self.verdicts.first().expect("a verdict").0;
        let all: Vec<Verdict> = self.verdicts.iter().map(|(_, v)| v.clone()).collect();
        (first - fault, choose(&all).unwrap())
    }

    /// Within this many milliseconds of the first verdict every rank that runs has left.
    fn all_leave_within(&self, ms: u64) {
        let first = self.verdicts[0].0;
        for (r, p) in self.processes.iter().enumerate().filter(|(_, p)| !p.dead && !p.stopped) {
            let left = p.left.unwrap_or_else(|| panic!("rank {r} stayed"));
            assert!(left <= first + ms, "rank {r} left {} ms after the verdict", left - first);
        }
    }
}

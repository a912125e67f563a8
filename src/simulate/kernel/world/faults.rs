//! Faults of a seed: which, where and when. Each costs one look at the nodes that it touches.

use super::super::news::Happening;
use super::super::{micros, Agenda, SECOND};
use super::ranks::StepPhase;
use super::Cluster;
use serde::Serialize;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SimFault {
    /// SIGKILL of a rank, an out-of-memory killer, a crash.
    Kill,
    /// SIGSTOP, SIGCONT some minutes later.
    Stop,
    /// A node dies with all that is in its memory.
    Crash,
    /// A node's link is cut for a while.
    Cut,
    /// All nodes of a switch are cut off for a while.
    Switch,
    /// A node does its work more slowly for a while.
    Slow,
    /// The run's filesystem is full for a while.
    Full,
    /// It blocks for a while.
    Block,
    /// Slurm's controller does not answer for a while.
    Controller,
    /// A node takes long to answer roll calls and to take steps.
    Late,
    /// The signal ahead of a time limit or a preemption.
    Warning,
    /// `scontrol requeue` by a person.
    Requeue,
    /// The node of the supervisor is cut off and comes back: two supervisors.
    Supervisor,
}

use SimFault::*;

impl SimFault {
    /// Every kind, in order.
    pub const ALL: [SimFault; 13] =
        [Kill, Stop, Crash, Cut, Switch, Slow, Full, Block, Controller, Late, Warning, Requeue, Supervisor];

    /// The key under which reports count it.
    pub fn name(self) -> &'static str {
        match self {
            Kill => "kill",
            Stop => "stop",
            Crash => "crash",
            Cut => "cut",
            Switch => "switch",
            Slow => "slow",
            Full => "full",
            Block => "block",
            Controller => "controller",
            Late => "late",
            Warning => "warning",
            Requeue => "requeue",
            Supervisor => "supervisor",
        }
    }

    /// Share among faults. Of a large cluster: nodes and processes mostly (arXiv:2407.21783, table 5: 78% hardware).
    pub fn usual(self) -> f64 {
        match self {
            Kill => 22.0,
            Crash => 60.0,
            Cut => 8.0,
            Stop | Slow => 3.0,
            Switch | Full | Block | Controller | Late => 0.7,
            Warning | Requeue | Supervisor => 0.2,
        }
    }

    /// Share in a search for mistakes: every kind about as often.
    pub fn even(self) -> f64 {
        match self {
            Kill | Crash | Cut => 3.0,
            Switch | Warning | Requeue => 0.6,
            _ => 1.5,
        }
    }
}

impl Cluster {
    /// The next fault of the seed, and sometimes one more close behind it.
    pub(in crate::simulate) fn plan_fault(&mut self, agenda: &mut Agenda) {
        let wait = self.random.wait(self.c.faults_per_day / 86_400.0);
        agenda.after(wait, Happening::Fault { next: true });
        if self.random.unit() < self.c.pairs {
            let close = wait + self.random.between(0.0, 2.0 * self.c.start_s + 60.0);
            agenda.after(close, Happening::Fault { next: false });
        }
    }

    pub(in crate::simulate) fn fault(&mut self, agenda: &mut Agenda, next: bool) {
        if next {
            self.plan_fault(agenda);
        }
        let share = |k: SimFault| if self.c.even { k.even() } else { k.usual() };
        let mut point = self.random.unit() * SimFault::ALL.iter().map(|&k| share(k)).sum::<f64>();
        let kind = SimFault::ALL.into_iter().find(|&k| {
            point -= share(k);
            point < 0.0
        });
        self.strike(agenda, kind.unwrap_or(Kill));
    }

    /// One of the job's nodes, mostly one that trains.
    fn some_node(&mut self) -> Option<usize> {
        let active = self.steps.last().map(|s| s.slots.clone()).unwrap_or_default();
        let from = if active.is_empty() || self.random.unit() < 0.1 { &self.job.nodes } else { &active };
        let nodes: Vec<usize> = from.iter().copied().filter(|&n| self.nodes[n].alive).collect();
        (!nodes.is_empty()).then(|| nodes[self.random.below(nodes.len())])
    }

    fn strike(&mut self, agenda: &mut Agenda, kind: SimFault) {
        let now = agenda.now;
        let Some(node) = self.some_node() else { return };
        *self.truth.faults.entry(kind.name()).or_default() += 1;
        self.truth.disturbed = self.truth.disturbed.max(now);
        let name = self.nodes[node].name.clone();
        let per_node = self.c.ranks_per_node;
        let live = self.live_step();
        let slot = live.and_then(|id| self.steps[id].slots.iter().position(|&n| n == node));
        let length = |w: &mut Cluster, low: f64, high: f64| w.random.between(low, high);
        match kind {
            Kill | Stop => {
                let (Some(id), Some(slot)) = (live, slot) else { return };
                let rank = slot * per_node + self.random.below(per_node);
                self.touch(now, node);
                if kind == Kill {
                    self.truth.tell(now, format!("rank {rank} on {name} is killed"));
                    return self.ranks_die(agenda, id, &[rank], "Killed");
                }
                let seconds = length(self, 5.0, 400.0);
                self.truth.tell(now, format!("rank {rank} on {name} is stopped for {seconds:.0} s"));
                self.disturb(agenda, id, &[slot]);
                self.steps[id].stopped.insert(rank);
                if let Some(w) = &mut self.steps[id].watches {
                    w.silent.insert(rank);
                }
                agenda.after(seconds, Happening::Continue { id });
            }
            Crash => self.crash(agenda, node),
            Cut => {
                let seconds = length(self, 3.0, 900.0);
                self.cut(agenda, &[node], seconds);
            }
            Switch => {
                let switch = self.nodes[node].switch;
                let nodes: Vec<usize> =
                    self.job.nodes.iter().copied().filter(|&n| self.nodes[n].switch == switch).collect();
                let seconds = length(self, 3.0, 900.0);
                self.cut(agenda, &nodes, seconds);
            }
            Supervisor => {
                let seconds = length(self, 15.0, 200.0);
                if let Some(&first) = self.job.nodes.first() {
                    self.cut(agenda, &[first], seconds);
                }
            }
            Slow => {
                let (factor, seconds) = (length(self, 1.05, 2.0), length(self, 600.0, 7200.0));
                self.truth.tell(now, format!("{name} is {factor:.1} times as slow for {seconds:.0} s"));
                self.set_speed(agenda, node, factor);
                agenda.after(seconds, Happening::Speed { node });
            }
            Full | Block => {
                let until = now + micros(length(self, 3.0, 120.0));
                self.truth.tell(now, format!("the filesystem: {kind:?} for {} s", (until - now) / SECOND));
                let place = if kind == Full { &mut self.full_until } else { &mut self.blocked_until };
                *place = until.max(*place);
                self.truth.flush_was_refused |= self.steps.last().is_none_or(|s| s.phase != StepPhase::Training);
                self.truth.disturbed = until;
            }
            Controller => {
                let until = now + micros(length(self, 3.0, 400.0));
                self.truth.tell(now, format!("the controller is away for {} s", (until - now) / SECOND));
                self.away_until = until.max(self.away_until);
                self.truth.disturbed = until;
            }
            Late => {
                let until = now + micros(length(self, 60.0, 900.0));
                self.truth.tell(now, format!("{name} is late for {} s", (until - now) / SECOND));
                self.touch(now, node);
                self.nodes[node].late_until = until;
                self.truth.disturbed = until;
            }
            Warning => {
                self.truth.tell(now, "the job is warned".into());
                self.warn(agenda);
            }
            Requeue => {
                self.truth.tell(now, "a person requeues the job".into());
                self.requeue(agenda);
            }
        }
    }

    fn crash(&mut self, agenda: &mut Agenda, node: usize) {
        let now = agenda.now;
        self.truth.tell(now, format!("{} dies", self.nodes[node].name));
        self.touch(now, node);
        // what training has left is in memory before the node is gone
        let live: Vec<(usize, usize)> = self.slots_of(node);
        live.iter().for_each(|&(id, slot)| self.disturb(agenda, id, &[slot]));
        let per_node = self.c.ranks_per_node;
        for &(id, slot) in &live {
            if let Some(w) = &mut self.steps[id].watches {
                w.gone.extend(slot * per_node..(slot + 1) * per_node);
            }
        }
        let n = &mut self.nodes[node];
        (n.alive, n.life) = (false, n.life + 1);
        n.memory.clear();
        let life = n.life;
        self.unreachable(agenda, node);
        let repair = self.c.repair_h * 3600.0 * self.random.between(0.3, 1.7);
        agenda.after(repair.max(400.0), Happening::Repaired { node, life });
        let tasks: Vec<usize> = self.tasks.iter().filter(|(_, t)| t.node == node).map(|(&t, _)| t).collect();
        tasks.into_iter().for_each(|t| agenda.kill(t));
        for id in 0..self.programs.len() {
            if self.programs[id].node == node && self.programs[id].ended.is_none() {
                self.programs[id].ended = Some(137);
            }
        }
        self.watch_the_supervisors(agenda);
    }

    fn cut(&mut self, agenda: &mut Agenda, nodes: &[usize], seconds: f64) {
        let now = agenda.now;
        let names: Vec<&str> = nodes.iter().map(|&n| self.nodes[n].name.as_str()).collect();
        let line = format!("cut off for {seconds:.0} s: {}", crate::slurm::compress(&names));
        self.truth.tell(now, line);
        self.islands += 1;
        for &node in nodes {
            self.touch(now, node);
            for (id, slot) in self.slots_of(node) {
                self.disturb(agenda, id, &[slot]);
            }
            let n = &mut self.nodes[node];
            (n.cut_until, n.island) = (n.cut_until.max(now + micros(seconds)), self.islands);
            self.unreachable(agenda, node);
            agenda.at(self.nodes[node].cut_until, Happening::Healed { node });
        }
        self.truth.disturbed = self.truth.disturbed.max(now);
        self.watch_the_supervisors(agenda);
    }

    /// Steps that have not ended and a slot on this node.
    fn slots_of(&self, node: usize) -> Vec<(usize, usize)> {
        let live = self.steps.iter().filter(|s| s.phase != StepPhase::Ended);
        live.filter_map(|s| Some((s.id, s.slots.iter().position(|&n| n == node)?))).collect()
    }

    pub(in crate::simulate) fn set_speed(&mut self, agenda: &mut Agenda, node: usize, factor: f64) {
        for (id, _) in self.slots_of(node) {
            self.advance(agenda.now, id);
            if self.steps[id].phase == StepPhase::Training {
                self.steps[id].base = (self.steps[id].finished, agenda.now);
            }
        }
        self.nodes[node].slow = factor;
    }
}

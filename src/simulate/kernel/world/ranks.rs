//! One start of the ranks, as a model: they meet, restore, train at a rate, stand when one of them is missing, and leave as the real
//! ranks do. What they write into the run directory goes through the real files, and through the fence.

use super::super::truth::Cause;
use super::super::watches::{Decided, Watches};
use super::super::{micros, Agenda, Micros};
use super::memory::RestoreChoice;
use super::{Cluster, Happening};
use crate::attempt;
use crate::error::Exit;
use crate::events::{Events, RunEvent, Tally, Traffic};
use crate::run_dir::RunDir;
use crate::slurm::compress;
use std::collections::BTreeSet;
use std::io::Write;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulate) enum StepPhase {
    /// Finding each other.
    Starting,
    Restoring,
    Training,
    /// One of them is missing.
    Standing,
    Ended,
}

pub(in crate::simulate) struct RankStep {
    /// Its place in the world's list.
    pub id: usize,
    /// Its srun.
    pub program: usize,
    pub number: u64,
    /// Node of each slot.
    pub slots: Vec<usize>,
    pub phase: StepPhase,
    /// Step gone on from.
    pub from: u64,
    /// Finished steps at a moment of training.
    pub base: (u64, Micros),
    pub finished: u64,
    /// What was scheduled for an earlier number is void.
    pub turn: u64,
    pub watches: Option<Watches>,
    /// Slots that a fault has touched.
    pub touched: BTreeSet<usize>,
    pub stopped: BTreeSet<usize>,
    /// Asked to save and stop.
    pub asked: bool,
    /// Ranks have been heard to have left.
    pub left: bool,
    pub first_done: bool,
    /// A process has ended before anybody watched.
    pub broken: bool,
}

/// What happens to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulate) enum RankNews {
    Met,
    Restored,
    FirstStep,
    /// A step's end in an attempt that another has overtaken.
    Boundary,
    Watch,
    Leave,
    Saved,
}

impl Cluster {
    fn step_time(&self, slots: &[usize]) -> f64 {
        let slow = slots.iter().map(|&n| self.nodes[n].slow).fold(1.0, f64::max);
        let c = &self.c;
        let snapshot = if c.snapshot_every > 0 { c.snapshot_s / c.snapshot_every as f64 } else { 0.0 };
        let save = if c.checkpoint_every > 0 { c.checkpoint_stall_s / c.checkpoint_every as f64 } else { 0.0 };
        c.step_s * slow + snapshot + save
    }

    /// Whether the nodes of a step hear each other and all its processes run.
    pub(in crate::simulate) fn is_well(&self, id: usize) -> bool {
        let step = &self.steps[id];
        let nodes = step.slots.iter().all(|&n| self.nodes[n].alive && !self.is_cut(n));
        nodes
            && step.stopped.is_empty()
            && !step.left
            && !step.broken
            && step.watches.as_ref().is_none_or(|w| w.gone.is_empty())
    }

    pub(in crate::simulate) fn rank_news(&mut self, agenda: &mut Agenda, id: usize, turn: u64, news: RankNews) {
        if self.steps[id].turn != turn || self.steps[id].phase == StepPhase::Ended {
            return;
        }
        match news {
            RankNews::Met => self.met(agenda, id),
            RankNews::Restored => self.restored(agenda, id),
            RankNews::FirstStep => self.first_step(agenda, id),
            RankNews::Boundary => self.boundary(agenda, id),
            RankNews::Watch => self.watch(agenda, id),
            RankNews::Leave => self.leave(agenda, id, Exit::Peer),
            RankNews::Saved => self.saved(agenda, id),
        }
    }

    fn later(&mut self, agenda: &mut Agenda, id: usize, seconds: f64, news: RankNews) {
        let turn = self.steps[id].turn;
        agenda.after(seconds, Happening::Ranks { id, turn, news });
    }

    /// The tasks are on their nodes; they meet unless one of them is missing by then.
    pub(in crate::simulate) fn tasks_run(&mut self, agenda: &mut Agenda, id: usize) {
        let seconds = self.c.start_s * self.random.between(0.9, 1.2);
        self.later(agenda, id, seconds, RankNews::Met);
    }

    fn met(&mut self, agenda: &mut Agenda, id: usize) {
        if !self.is_well(id) {
            // whoever is there waits for the others
            return self.later(agenda, id, 1.0, RankNews::Met);
        }
        let (number, world) = (self.steps[id].number, self.steps[id].slots.len() * self.c.ranks_per_node);
        if !self.event(number, &RunEvent::Met { world }) {
            return self.leave(agenda, id, Exit::Fenced);
        }
        self.event(number, &RunEvent::Restoring { bytes: 1 });
        self.steps[id].phase = StepPhase::Restoring;
        self.truth.mark(agenda.now, Cause::Restore);
        let seconds = match self.choose(&self.steps[id].slots) {
            RestoreChoice::Memory(_) => self.c.restore_s,
            RestoreChoice::Disk(_) => self.c.restore_disk_s,
            RestoreChoice::Beginning => 1.0,
        };
        self.later(agenda, id, seconds, RankNews::Restored);
    }

    fn restored(&mut self, agenda: &mut Agenda, id: usize) {
        if !self.is_well(id) {
            return self.later(agenda, id, 1.0, RankNews::Restored);
        }
        let (number, slots) = (self.steps[id].number, self.steps[id].slots.clone());
        let chosen = self.choose(&slots);
        let step = chosen.step();
        let reachable = self.newest_reachable();
        if step < reachable && !self.truth.flush_was_refused {
            self.truth.violation(
                agenda.now,
                format!("attempt {number} goes on from step {step} ({chosen:?}), and every part of step {reachable} was in reach"),
            );
        }
        let said = match chosen {
            RestoreChoice::Beginning => {
                let world = slots.len() * self.c.ranks_per_node;
                self.event(number, &RunEvent::Start { world, weights: None })
            }
            _ => {
                let (path, tiers) = (None, Tally::default());
                let resume = RunEvent::Resume { step, path, tiers, snapshots_opened: 0, from_attempt: 0, seconds: 0.0 };
                self.event(number, &resume)
            }
        };
        if !said {
            return self.leave(agenda, id, Exit::Fenced);
        }
        self.truth.resumed(step, self.c.step_s);
        let s = &mut self.steps[id];
        (s.from, s.finished) = (step, step);
        self.train(agenda, id);
    }

    /// Training goes on from what is finished.
    fn train(&mut self, agenda: &mut Agenda, id: usize) {
        let seconds = self.step_time(&self.steps[id].slots);
        let s = &mut self.steps[id];
        let first_done = s.first_done;
        s.phase = StepPhase::Training;
        s.base = (s.finished, agenda.now);
        if !first_done {
            self.later(agenda, id, seconds + 0.001, RankNews::FirstStep);
        } else if self.steps[id].asked {
            let seconds = self.c.save_s;
            self.later(agenda, id, seconds, RankNews::Saved);
        }
        self.truth.mark(agenda.now, Cause::Training);
    }

    fn first_step(&mut self, agenda: &mut Agenda, id: usize) {
        if self.steps[id].phase != StepPhase::Training || self.steps[id].first_done {
            return;
        }
        self.advance(agenda.now, id);
        let (number, finished) = (self.steps[id].number, self.steps[id].finished);
        if finished <= self.steps[id].from {
            return self.later(agenda, id, 1.0, RankNews::FirstStep);
        }
        if !self.commit(agenda, number, finished) {
            return self.leave(agenda, id, Exit::Fenced);
        }
        self.steps[id].first_done = true;
        self.quiet_from = agenda.now + micros(3.0);
        self.truth.trains_again(agenda.now);
        // an order to stop that came before
        if self.steps[id].asked {
            self.later(agenda, id, self.c.save_s, RankNews::Saved);
        }
    }

    /// Counts the steps that are finished by now.
    pub(in crate::simulate) fn advance(&mut self, now: Micros, id: usize) {
        if self.steps[id].phase != StepPhase::Training {
            return;
        }
        let seconds = self.step_time(&self.steps[id].slots);
        let (step, at) = self.steps[id].base;
        self.steps[id].finished = step + ((now - at) as f64 / 1e6 / seconds) as u64;
    }

    /// A line of metrics, by the fence; whether it was written.
    fn commit(&mut self, agenda: &Agenda, number: u64, finished: u64) -> bool {
        if attempt::check_for(&self.run_dir, number).is_err() {
            return false;
        }
        let path = RunDir::new(&self.run_dir).metrics();
        let line = move || {
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)?
                .write_all(format!("{{\"step\":{finished}}}\n").as_bytes())
        };
        let _ = line();
        self.truth.committed(agenda.now, number, finished);
        true
    }

    /// One line in `events.jsonl` by an attempt's first rank; false where it was overtaken.
    pub(in crate::simulate) fn event(&self, number: u64, event: &RunEvent) -> bool {
        attempt::adopt(number);
        let said = Events::open(&self.run_dir).and_then(|mut e| e.write(event));
        !said.is_err_and(|e| e.exit == Exit::Fenced)
    }

    /// A step cannot go on: what was finished by now is on disk, what was kept is in memory.
    pub(in crate::simulate) fn stand(&mut self, agenda: &mut Agenda, id: usize) {
        if self.steps[id].phase != StepPhase::Training {
            return;
        }
        let now = agenda.now;
        self.advance(now, id);
        let seconds = self.step_time(&self.steps[id].slots);
        let s = &mut self.steps[id];
        s.phase = StepPhase::Standing;
        let (number, finished, from, base) = (s.number, s.finished, s.from, s.base);
        self.commit(agenda, number, finished);
        let since = |n: u64| (now - base.1) as f64 / 1e6 - (n.saturating_sub(base.0)) as f64 * seconds;
        let newest = |every: u64, after: f64| -> Option<u64> {
            let mut n = finished.checked_div(every)? * every;
            while n > from {
                if n <= base.0 || since(n) >= after {
                    return Some(n);
                }
                n -= every;
            }
            None
        };
        let (snapshot, whole) = (newest(self.c.snapshot_every, 0.0), newest(self.c.snapshot_every, self.c.partner_s));
        let saved = newest(self.c.checkpoint_every, self.c.save_s);
        if saved.is_some_and(|n| !self.is_full_at(now) || n <= base.0) {
            self.disk.extend(saved);
        }
        let slots = self.steps[id].slots.clone();
        self.leave_in_memory(number, &slots, snapshot, whole);
        if snapshot.is_some() {
            let one = self.c.config.checkpoint.partner == crate::config::Partner::Off;
            self.truth.safe = if one { finished } else { whole.unwrap_or(from) };
        }
        self.truth.stood_slots = slots;
        self.truth.stands(now, finished);
    }

    /// A fault has touched slots of a step.
    pub(in crate::simulate) fn disturb(&mut self, agenda: &mut Agenda, id: usize, slots: &[usize]) {
        self.stand(agenda, id);
        let per_node = self.c.ranks_per_node;
        let names: Vec<String> = self.steps[id].slots.iter().map(|&n| self.nodes[n].name.clone()).collect();
        let config = self.c.config.liveness.clone();
        let s = &mut self.steps[id];
        s.touched.extend(slots);
        if matches!(s.phase, StepPhase::Standing | StepPhase::Restoring) {
            let fresh = s.watches.is_none();
            let watches =
                s.watches.get_or_insert_with(|| Watches::new(s.number, &names, per_node, &config, agenda.now));
            slots.iter().for_each(|&slot| watches.touch(slot, agenda.now));
            if fresh {
                self.later(agenda, id, config.interval_s / 20.0, RankNews::Watch);
            }
        }
    }

    /// Processes have ended without a word.
    pub(in crate::simulate) fn ranks_die(&mut self, agenda: &mut Agenda, id: usize, ranks: &[usize], how: &str) {
        let per_node = self.c.ranks_per_node;
        let slots: Vec<usize> = ranks.iter().map(|r| r / per_node).collect();
        self.disturb(agenda, id, &slots);
        let program = self.steps[id].program;
        for &rank in ranks {
            let node = self.nodes[self.steps[id].slots[rank / per_node]].name.clone();
            self.say(agenda, program, &format!("srun: error: {node}: task {rank}: {how}\n"));
        }
        let linked = self.links(id);
        self.steps[id].broken |= self.steps[id].watches.is_none();
        let mut decided = Vec::new();
        if let Some(w) = &mut self.steps[id].watches {
            for &rank in ranks {
                decided.extend(w.died(rank, agenda.now, &linked));
            }
        }
        self.decided(agenda, id, decided);
    }

    /// Which slots hear each other.
    fn links(&self, id: usize) -> impl Fn(usize, usize) -> bool {
        let state: Vec<(bool, Option<usize>)> = self.steps[id]
            .slots
            .iter()
            .map(|&n| (self.nodes[n].alive, self.is_cut(n).then_some(self.nodes[n].island)))
            .collect();
        move |a, b| state[a].0 && state[b].0 && (a == b || state[a].1 == state[b].1)
    }

    fn watch(&mut self, agenda: &mut Agenda, id: usize) {
        if self.is_well(id) {
            // the fault has passed before anybody was given up
            self.steps[id].watches = None;
            self.steps[id].touched.clear();
            if self.steps[id].phase == StepPhase::Standing {
                self.train(agenda, id);
            }
            return;
        }
        let linked = self.links(id);
        let touched = self.steps[id].touched.clone();
        let mut decided = Vec::new();
        if let Some(w) = &mut self.steps[id].watches {
            decided = w.tick(agenda.now, &touched, &linked);
        }
        self.decided(agenda, id, decided);
        let interval = self.c.config.liveness.interval_s;
        self.later(agenda, id, interval / 10.0, RankNews::Watch);
    }

    fn decided(&mut self, agenda: &mut Agenda, id: usize, decided: Vec<Decided>) {
        for Decided { rank, mut verdict } in decided {
            let per_node = self.c.ranks_per_node;
            let slots = self.steps[id].slots.clone();
            for r in &verdict.ranks {
                let node = slots[r / per_node];
                if !self.was_touched(agenda.now, node) && !self.is_cut(slots[rank / per_node]) && !self.steps[id].left {
                    let text = format!(
                        "a verdict names rank {r} on {}, which no fault has touched: {}",
                        self.nodes[node].name, verdict.fact
                    );
                    self.truth.violation(agenda.now, text);
                }
            }
            verdict.time = crate::host::wall();
            let writer = slots[rank / per_node];
            let blocked = self.is_cut(writer) || self.blocked_until > agenda.now || self.is_full_at(agenda.now);
            if !blocked {
                let _ = verdict.write(&self.run_dir);
            }
            self.truth.verdicts += 1;
            // the word goes down the tree to everybody who hears the writer
            let linked = self.links(id);
            let leave: Vec<usize> = (0..slots.len())
                .filter(|&s| linked(rank / per_node, s))
                .flat_map(|s| s * per_node..(s + 1) * per_node)
                .collect();
            let stopped = self.steps[id].stopped.clone();
            if let Some(w) = &mut self.steps[id].watches {
                self.truth.messages = self.truth.messages.max(w.sent);
                w.gone.extend(leave.into_iter().filter(|r| !stopped.contains(r)));
            }
            if !self.is_cut(writer) {
                self.later(agenda, id, 0.3, RankNews::Leave);
            }
        }
    }

    /// All ranks that can leave do, and srun hears of those that it reaches.
    pub(in crate::simulate) fn leave(&mut self, agenda: &mut Agenda, id: usize, exit: Exit) {
        self.stand(agenda, id);
        self.steps[id].left = true;
        let per_node = self.c.ranks_per_node;
        let (program, slots) = (self.steps[id].program, self.steps[id].slots.clone());
        let home = self.programs[program].node;
        let reached: Vec<usize> = (0..slots.len())
            .filter(|&s| {
                self.reaches(home, slots[s])
                    && !(s * per_node..(s + 1) * per_node).any(|r| self.steps[id].stopped.contains(&r))
            })
            .collect();
        if !reached.is_empty() {
            let names: Vec<&str> = reached.iter().map(|&s| self.nodes[slots[s]].name.as_str()).collect();
            let ranks: Vec<String> =
                reached.iter().flat_map(|s| s * per_node..(s + 1) * per_node).map(|r| r.to_string()).collect();
            let ranks = compress(&ranks);
            let ranks = ranks.trim_start_matches('[').trim_end_matches(']');
            let line =
                format!("srun: error: {}: tasks {ranks}: Exited with exit code {}\n", compress(&names), exit.code());
            self.say(agenda, program, &line);
        }
        if reached.len() == slots.len() {
            self.end_step(agenda, id, exit.code());
        }
    }

    pub(in crate::simulate) fn end_step(&mut self, agenda: &mut Agenda, id: usize, code: i32) {
        self.stand(agenda, id);
        let s = &mut self.steps[id];
        (s.phase, s.watches, s.turn) = (StepPhase::Ended, None, s.turn + 1);
        let program = s.program;
        self.end_program(agenda, program, code);
    }

    /// SIGUSR1 by way of srun.
    pub(in crate::simulate) fn ask_ranks(&mut self, agenda: &mut Agenda, id: usize) {
        self.steps[id].asked = true;
        if self.steps[id].phase == StepPhase::Training && self.steps[id].first_done {
            let seconds = self.c.save_s;
            self.later(agenda, id, seconds, RankNews::Saved);
        }
    }

    fn saved(&mut self, agenda: &mut Agenda, id: usize) {
        if self.steps[id].phase != StepPhase::Training {
            return;
        }
        self.stand(agenda, id);
        let (number, finished) = (self.steps[id].number, self.steps[id].finished);
        if attempt::check_for(&self.run_dir, number).is_ok() && !self.is_full_at(agenda.now) {
            self.disk.insert(finished);
            self.event(number, &RunEvent::Stopped { step: finished, control_plane: Traffic::default() });
        }
        self.end_step(agenda, id, Exit::Requeue.code());
    }

    /// A newer attempt has been announced: whoever of an older one still trains finds that at the end of its step.
    pub(in crate::simulate) fn overtake(&mut self, agenda: &mut Agenda, number: u64) {
        for id in 0..self.steps.len() {
            if self.steps[id].number < number && self.steps[id].phase == StepPhase::Training {
                let seconds = self.c.step_s * self.random.unit();
                self.later(agenda, id, seconds, RankNews::Boundary);
            }
        }
    }

    fn boundary(&mut self, agenda: &mut Agenda, id: usize) {
        self.advance(agenda.now, id);
        let (number, finished) = (self.steps[id].number, self.steps[id].finished);
        match self.steps[id].phase == StepPhase::Training && self.commit(agenda, number, finished) {
            true => self.later(agenda, id, self.c.step_s, RankNews::Boundary),
            false => self.leave(agenda, id, Exit::Fenced),
        }
    }

    /// A node is back: what is left of earlier attempts there writes what it was about to, but for the fence, and ends.
    pub(in crate::simulate) fn leave_late(&mut self, agenda: &mut Agenda, node: usize) {
        for id in 0..self.steps.len() {
            let s = &self.steps[id];
            if s.phase == StepPhase::Ended || !s.left || !s.slots.contains(&node) {
                continue;
            }
            if s.slots[0] == node && s.finished > 0 {
                let (number, finished) = (s.number, s.finished);
                self.commit(agenda, number, finished);
            }
            if self.steps[id].slots.iter().all(|&n| self.nodes[n].alive && !self.is_cut(n)) {
                self.end_step(agenda, id, 128 + libc::SIGKILL);
            }
        }
    }

    /// Ranks that were stopped go on.
    pub(in crate::simulate) fn ranks_go_on(&mut self, agenda: &mut Agenda, id: usize) {
        let number = self.steps[id].number;
        let stopped = std::mem::take(&mut self.steps[id].stopped);
        if self.steps[id].phase == StepPhase::Ended {
            // SIGKILL does not wait; only a rank whose node was out of reach is still there, and it may write but for the fence
            return;
        }
        if self.steps[id].left {
            let finished = self.steps[id].finished;
            if stopped.contains(&0) && self.commit(agenda, number, finished) && self.newest_attempt() > number {
                self.truth.violation(
                    agenda.now,
                    format!("rank 0 of attempt {number} slept, and wrote after {} had begun", self.newest_attempt()),
                );
            }
            return;
        }
        if let Some(w) = &mut self.steps[id].watches {
            w.awake(stopped, agenda.now);
        }
    }
}

impl RankStep {
    pub(in crate::simulate) fn none() -> RankStep {
        RankStep {
            id: 0,
            program: 0,
            number: 0,
            slots: Vec::new(),
            phase: StepPhase::Starting,
            from: 0,
            base: (0, 0),
            finished: 0,
            turn: 0,
            watches: None,
            touched: BTreeSet::new(),
            stopped: BTreeSet::new(),
            asked: false,
            left: false,
            first_done: false,
            broken: false,
        }
    }
}

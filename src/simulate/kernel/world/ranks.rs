//! One start of the ranks, as a model: they meet, restore, train at a rate, stand when one of them is missing, and leave as the real
//! ranks do (`disturbed`). What they write into the run directory goes through the real files, and through the fence.

mod disturbed;

use super::super::news::{Happening, RankNews};
use super::super::truth::Cause;
use super::super::watches::Watches;
use super::super::{micros, Agenda, Micros};
use super::memory::RestoreChoice;
use super::Cluster;
use crate::attempt;
use crate::error::Exit;
use crate::events::{Events, RunEvent, Tally, Traffic};
use crate::run_dir::RunDir;
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

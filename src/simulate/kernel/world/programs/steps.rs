//! Steps that srun starts: roll calls, flushes, the ranks.

use super::super::super::news::{Happening, ProgramNews};
use super::super::super::truth::Cause;
use super::super::super::{micros, Agenda, Micros};
use super::super::ranks::{RankStep, StepPhase};
use super::super::Cluster;
use super::{Kind, LAUNCH_TIMEOUT, TREE};
use crate::error::Exit;
use std::collections::BTreeMap;

impl Cluster {
    /// SIGKILL of a step's tasks on the nodes that the controller reaches.
    pub fn kill_step(&mut self, agenda: &mut Agenda, step: usize) {
        if self.steps[step].phase == StepPhase::Ended {
            return;
        }
        self.stand(agenda, step);
        let all = self.steps[step].slots.iter().all(|&n| self.nodes[n].alive && !self.is_cut(n));
        match all {
            true => self.end_step(agenda, step, 128 + libc::SIGKILL),
            false => {
                self.steps[step].left = true;
                let per_node = self.c.ranks_per_node;
                let slots = self.steps[step].slots.clone();
                let cut: Vec<bool> = slots.iter().map(|&n| self.is_cut(n)).collect();
                self.steps[step].stopped.retain(|r| cut[r / per_node]);
            }
        }
    }

    pub(super) fn roll_call(&mut self, agenda: &mut Agenda, id: usize, nodes: &[usize], missing: &[usize]) {
        let size = nodes.len();
        let first = 0.1 + 0.0004 * size as f64 + self.random.between(0.0, 0.2);
        // a branch of the tree begins with every 50th node
        let behind: Vec<usize> = match size > TREE {
            true => {
                let branch = size.div_ceil(TREE);
                let held: Vec<usize> = (0..size).filter(|i| missing.contains(&nodes[*i])).map(|i| i / branch).collect();
                (0..size).filter(|i| held.contains(&(i / branch))).map(|i| nodes[i]).collect()
            }
            false => Vec::new(),
        };
        let now = agenda.now;
        let mut groups: BTreeMap<Micros, Vec<usize>> = BTreeMap::new();
        for &n in nodes.iter().filter(|n| !missing.contains(n)) {
            let mut at = now + micros(first);
            if behind.contains(&n) {
                at += micros(LAUNCH_TIMEOUT);
            }
            if self.nodes[n].late_until > now {
                at += micros(20.0);
            }
            groups.entry(at).or_default().push(n);
        }
        for (at, group) in groups {
            agenda.at(at, Happening::Program { id, next: ProgramNews::Prints(group) });
        }
    }

    pub(super) fn prints(&mut self, agenda: &mut Agenda, id: usize, nodes: Vec<usize>) {
        let home = self.programs[id].node;
        for n in nodes {
            if !self.reaches(home, n) {
                continue;
            }
            let line = format!("{}\n", self.nodes[n].name);
            self.programs[id].out.text.extend(line.as_bytes());
        }
        let Kind::RollCall { nodes } = &self.programs[id].kind else { return };
        let lines = self.programs[id].out.text.iter().filter(|b| **b == b'\n').count();
        if lines == nodes.len() {
            self.end_program(agenda, id, 0);
        }
    }

    pub(super) fn flushed(&mut self, agenda: &mut Agenda, id: usize) {
        let Kind::Flush { nodes, remove } = self.programs[id].kind.clone() else { return };
        if self.is_full_at(agenda.now) || self.blocked_until > agenda.now {
            self.truth.flush_was_refused = true;
            return self.end_program(agenda, id, Exit::Storage.code());
        }
        let code = match self.flush(&nodes, remove) {
            Some(step) => {
                self.truth.tell(agenda.now, format!("step {step} is flushed to disk"));
                0
            }
            None => Exit::NoSnapshot.code(),
        };
        self.end_program(agenda, id, code);
    }

    pub(super) fn start_ranks(
        &mut self, agenda: &mut Agenda, id: usize, nodes: Vec<usize>, missing: Vec<usize>, attempt: u64,
    ) {
        self.check_books(agenda);
        self.truth.attempts += 1;
        self.truth.mark(agenda.now, Cause::Start);
        let before = self.steps.last().map(|s| s.slots.clone()).unwrap_or_default();
        if before.len() == nodes.len() {
            self.truth.spares_used += nodes.iter().filter(|n| !before.contains(n)).count() as u64;
        }
        let names: Vec<&str> = nodes.iter().map(|&n| self.nodes[n].name.as_str()).collect();
        let line = format!("attempt {attempt} starts on {}", crate::slurm::compress(&names));
        self.truth.tell(agenda.now, line);
        let storage =
            self.blocked_until.max(self.full_until).max(self.away_until) + micros(self.c.roll_call_s) > agenda.now;
        for &n in &missing {
            if !storage && self.was_lost_long(agenda.now, n) {
                let text = format!(
                    "attempt {attempt} starts on {}, which had been dead before it was chosen",
                    self.nodes[n].name
                );
                self.truth.violation(agenda.now, text);
            }
        }
        let step = self.steps.len();
        self.programs[id].step = Some(step);
        self.steps.push(RankStep { id: step, program: id, number: attempt, slots: nodes, ..RankStep::none() });
        self.newest_began = agenda.now;
        self.overtake(agenda, attempt);
        self.quiet_from = Micros::MAX;
        if missing.is_empty() {
            return self.tasks_run(agenda, step);
        }
        agenda.after(LAUNCH_TIMEOUT, Happening::Program { id, next: ProgramNews::LaunchFailed(missing) });
    }

    /// A node that had been out of reach for longer than any roll call takes.
    pub(super) fn was_lost_long(&self, now: Micros, node: usize) -> bool {
        self.nodes[node].unreachable_since.is_some_and(|since| since + micros(self.c.roll_call_s) < now)
    }
}

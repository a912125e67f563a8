//! Nodes, what connects them, and the filesystem of the run.

use super::super::news::Happening;
use super::super::{micros, Agenda, Micros, SimTask, SECOND};
use super::ranks::StepPhase;
use super::{Cluster, FileAnswer};
use crate::host::FileAccess;
use std::io;
use std::path::Path;

/// After so long out of reach Slurm marks a node down (`SlurmdTimeout`).
const SLURMD_TIMEOUT: f64 = 300.0;
/// How long what a fault did to a node may still explain what is seen of it.
const TOUCHED: Micros = 1800 * SECOND;

impl Cluster {
    pub fn is_cut(&self, node: usize) -> bool {
        self.nodes[node].cut_until > self.now
    }

    /// Whether two nodes hear each other; Slurm's controller and the filesystem are on the main side.
    pub fn reaches(&self, a: usize, b: usize) -> bool {
        let alive = self.nodes[a].alive && self.nodes[b].alive;
        let island = |n: usize| self.is_cut(n).then_some(self.nodes[n].island);
        alive && (a == b || island(a) == island(b))
    }

    pub fn touch(&mut self, now: Micros, node: usize) {
        self.nodes[node].touched = Some(now);
        self.nodes[node].faults += 1;
    }

    /// Whether a fault of this node may explain what is seen.
    pub fn was_touched(&self, now: Micros, node: usize) -> bool {
        let n = &self.nodes[node];
        !n.alive
            || n.cut_until + TOUCHED > now && n.cut_until > 0
            || n.late_until + TOUCHED > now && n.late_until > 0
            || n.touched.is_some_and(|at| at + TOUCHED > now)
    }

    pub fn unreachable(&mut self, agenda: &mut Agenda, node: usize) {
        let since = *self.nodes[node].unreachable_since.get_or_insert(agenda.now);
        agenda.at(since + micros(SLURMD_TIMEOUT), Happening::Down { node, since });
    }

    pub(super) fn down(&mut self, agenda: &mut Agenda, node: usize, since: Micros) {
        if self.nodes[node].unreachable_since != Some(since) {
            return;
        }
        self.nodes[node].slurm_down = true;
        self.nodes[node].memory.clear();
        let name = self.nodes[node].name.clone();
        for id in 0..self.steps.len() {
            if self.steps[id].phase != StepPhase::Ended && self.steps[id].slots.contains(&node) {
                let program = self.steps[id].program;
                self.say(agenda, program, &format!("srun: error: Node failure on {name}\n"));
            }
        }
    }

    pub(super) fn healed(&mut self, agenda: &mut Agenda, node: usize) {
        let n = &mut self.nodes[node];
        if n.cut_until > agenda.now || !n.alive {
            return;
        }
        n.reached_since = agenda.now;
        n.unreachable_since = None;
        // Slurm ends what it had given up on a node that registers again (ReturnToService=1)
        let was_down = std::mem::take(&mut n.slurm_down);
        self.truth.disturbed = self.truth.disturbed.max(agenda.now);
        self.truth.tell(agenda.now, format!("{} is back", self.nodes[node].name));
        if was_down {
            let tasks: Vec<SimTask> = self.tasks.iter().filter(|(_, t)| t.node == node).map(|(&t, _)| t).collect();
            tasks.into_iter().for_each(|t| agenda.kill(t));
            self.watch_the_supervisors(agenda);
        }
        let tasks: Vec<SimTask> = self.tasks.iter().filter(|(_, t)| t.node == node).map(|(&t, _)| t).collect();
        tasks.into_iter().for_each(|t| agenda.tell(t));
        self.leave_late(agenda, node);
    }

    pub(super) fn repaired(&mut self, agenda: &mut Agenda, node: usize, life: u64) {
        let n = &mut self.nodes[node];
        if n.life != life || n.alive {
            return;
        }
        (n.alive, n.slow, n.reached_since, n.unreachable_since, n.slurm_down) = (true, 1.0, agenda.now, None, false);
        self.truth.tell(agenda.now, format!("{} is repaired", self.nodes[node].name));
        self.leave_late(agenda, node);
    }

    pub fn is_full_at(&self, now: Micros) -> bool {
        self.full_until > now
    }

    pub fn at_file(&mut self, agenda: &Agenda, _path: &Path, access: FileAccess) -> FileAnswer {
        if self.blocked_until > agenda.now {
            return FileAnswer::Later(self.blocked_until - agenda.now);
        }
        match access == FileAccess::Write && self.is_full_at(agenda.now) {
            true => FileAnswer::Refused(io::ErrorKind::StorageFull),
            false => FileAnswer::Well,
        }
    }

    /// A process on a node that is cut off stands in the next access to a file.
    pub fn frozen_until(&self, task: SimTask, now: Micros) -> Option<Micros> {
        let node = self.tasks.get(&task)?.node;
        Some(self.nodes[node].cut_until)
            .filter(|&until| until > now && self.supervisors.contains(&self.tasks[&task].root))
    }
}

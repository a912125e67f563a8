//! Ranks that a fault has touched: they stand, the watches decide, and whoever can leaves.

use super::super::super::news::RankNews;
use super::super::super::watches::{Decided, Watches};
use super::super::super::Agenda;
use super::super::Cluster;
use super::StepPhase;
use crate::error::Exit;
use crate::slurm::compress;

impl Cluster {
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
    pub(super) fn links(&self, id: usize) -> impl Fn(usize, usize) -> bool {
        let state: Vec<(bool, Option<usize>)> = self.steps[id]
            .slots
            .iter()
            .map(|&n| (self.nodes[n].alive, self.is_cut(n).then_some(self.nodes[n].island)))
            .collect();
        move |a, b| state[a].0 && state[b].0 && (a == b || state[a].1 == state[b].1)
    }

    pub(super) fn watch(&mut self, agenda: &mut Agenda, id: usize) {
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

    pub(super) fn decided(&mut self, agenda: &mut Agenda, id: usize, decided: Vec<Decided>) {
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

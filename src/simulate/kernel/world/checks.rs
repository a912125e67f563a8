//! What must never be, of that which takes a look at the run directory.

use super::super::news::Happening;
use super::super::{micros, Agenda};
use super::{Cluster, JobState, LOOK};
use crate::launch::history::History;
use crate::run_dir::RunDir;
use std::path::PathBuf;

impl Cluster {
    /// Whether the job has stood still for longer than the bound; looked at again every [`LOOK`].
    pub fn look(&mut self, agenda: &mut Agenda) {
        let now = agenda.now;
        let disturbed = self.job.state != JobState::Running
            || self.blocked_until > now
            || self.full_until > now
            || self.away_until > now;
        self.truth.check_bound(now, micros(self.c.bound_s), disturbed);
        agenda.after(LOOK, Happening::Look);
    }

    /// Called when an attempt's srun is started: what the last one ended as.
    pub fn check_books(&mut self, agenda: &Agenda) {
        let Ok(history) = History::read(&self.run_dir) else { return };
        let now = agenda.now;
        let counted = history.attempts.len() - history.counted_from.min(history.attempts.len());
        let most = self.c.config.launch.max_attempts as usize;
        if counted > most {
            self.truth.violation(now, format!("{counted} starts are counted, and launch.max_attempts is {most}"));
        }
        for i in self.checked..history.attempts.len() {
            let r = &history.attempts[i];
            let healthy: Vec<&String> =
                r.blamed.iter().filter(|n| self.by_name.get(*n).is_some_and(|&n| !self.was_touched(now, n))).collect();
            self.truth.evicted_healthy += healthy.len() as u64;
            if healthy.len() > self.c.healthy_per_fault {
                let text =
                    format!("attempt {} ({}) blames {healthy:?}, which no fault has touched", r.attempt, r.reason);
                self.truth.violation(now, text);
            }
        }
        self.checked = history.attempts.len();
        if let Ok(ledger) = crate::launch::ledger::read(&RunDir::new(&self.run_dir).ledger()) {
            for (name, node) in &ledger.nodes {
                let faults = self.by_name.get(name).map_or(0, |&n| self.nodes[n].faults);
                if node.given_up && (faults as u64) < self.c.config.launch.node_failures {
                    self.truth.violation(now, format!("{name} is given up after {faults} faults"));
                }
                if self.by_name.get(name).is_some_and(|&n| self.nodes[n].touched.is_none()) && !node.failures.is_empty()
                {
                    let reason = &node.failures[0].reason;
                    self.truth.violation(
                        now,
                        format!("the ledger has a failure of {name} ({reason}), which no fault ever touched"),
                    );
                }
            }
        }
        let run = RunDir::new(&self.run_dir);
        let files = |dir: PathBuf| std::fs::read_dir(dir).map_or(0, Iterator::count);
        let (launch, verdicts) = (files(run.launch()), files(run.verdicts()));
        let attempts = self.truth.attempts as usize;
        if launch > 12 + 4 * attempts || verdicts > attempts {
            self.truth.violation(
                now,
                format!("{launch} files in launch/ and {verdicts} in verdicts/ after {attempts} starts"),
            );
        }
    }

    /// A job that goes back for want of nodes wants nodes: healthy ones are not used up.
    pub(super) fn check_requeue(&mut self, agenda: &Agenda) {
        let history = History::read(&self.run_dir).unwrap_or_default();
        let wants = history
            .attempts
            .last()
            .is_some_and(|r| r.reason == "too_few_nodes" && r.restarts == self.job.restarts && r.job == self.job.id);
        let ledger = crate::launch::ledger::read(&RunDir::new(&self.run_dir).ledger()).unwrap_or_default();
        let given_up = |n: usize| ledger.nodes.get(&self.nodes[n].name).is_some_and(|n| n.given_up);
        let is_healthy = |n: usize| !self.was_touched(agenda.now, n) && !self.nodes[n].slurm_down && !given_up(n);
        let healthy = self.job.nodes.iter().filter(|&&n| is_healthy(n)).count();
        if wants && healthy >= self.c.nodes {
            self.truth.violation(
                agenda.now,
                format!("the job wants nodes, and {healthy} healthy ones are there for {} slots", self.c.nodes),
            );
        }
    }
}

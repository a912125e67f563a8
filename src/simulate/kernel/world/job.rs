//! The job in Slurm's books: it starts, ends, goes back into the queue, or waits for a person.

use super::super::news::Happening;
use super::super::truth::Cause;
use super::super::{Agenda, Kernel, Micros, SimTask};
use super::ranks::StepPhase;
use super::{Cluster, JobState};
use crate::launch::Supervisor;
use crate::slurm::Job;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

impl Cluster {
    pub fn start_job(&mut self, agenda: &mut Agenda, kernel: &Arc<Kernel>) {
        let need = self.c.nodes + self.c.spares;
        let usable = |n: &usize| !self.nodes[*n].slurm_down && !self.c.drained.contains(n);
        let mut nodes: Vec<usize> = self.job.nodes.iter().copied().filter(usable).collect();
        nodes.extend((0..self.nodes.len()).filter(usable).filter(|n| !self.job.nodes.contains(n)));
        if nodes.len() < need {
            // waits in the queue for a node that comes back
            return agenda.after(600.0, Happening::JobStarts { life: self.job.life });
        }
        nodes.truncate(need);
        nodes.sort_unstable();
        self.job.nodes = nodes;
        self.job.asked = Arc::new(AtomicBool::new(false));
        (self.job.state, self.job.requeued) = (JobState::Running, false);
        self.job.life += 1;
        self.truth.disturbed = agenda.now;
        self.truth.mark(agenda.now, Cause::Place);
        self.truth.tell(agenda.now, format!("job {} starts, restarts {}", self.job.id, self.job.restarts));
        let batch = self.job.nodes[0];
        if !self.nodes[batch].alive || self.is_cut(batch) {
            // Slurm finds that when it starts the script, marks the node down and puts the job back
            let since = agenda.now;
            self.nodes[batch].unreachable_since = Some(since);
            self.down(agenda, batch, since);
            self.job.restarts += 1;
            self.queue_again(agenda, 60.0);
            return;
        }
        let (c, kernel, job, asked) = (self.c.clone(), kernel.clone(), self.slurm_job(), self.job.asked.clone());
        let run_dir = self.run_dir.clone();
        let task = self.root(agenda, batch, move |task| {
            let ended = c.launch(&run_dir, &job).and_then(|l| Supervisor::open(l, job, asked, None)?.run());
            kernel.ask(task, |w, a, t| w.supervisor_left(a, t, ended));
        });
        self.job.batch = Some(task);
    }

    pub(super) fn slurm_job(&self) -> Job {
        Job {
            id: self.job.id,
            restarts: self.job.restarts,
            nodes: self.job.nodes.iter().map(|&n| self.nodes[n].name.clone()).collect(),
            tasks: None,
            tasks_per_node: Some(self.c.ranks_per_node),
            array: None,
            step: None,
        }
    }

    /// The job ends: processes on nodes that are reached are killed, and their memory is given back.
    pub(super) fn end_job(&mut self, agenda: &mut Agenda) {
        for id in 0..self.steps.len() {
            if self.steps[id].phase != StepPhase::Ended {
                self.end_step(agenda, id, 128 + libc::SIGKILL);
            }
        }
        self.job.asked.store(true, Ordering::SeqCst);
        let tasks: Vec<SimTask> = self.supervisors.iter().copied().collect();
        for task in tasks {
            // KillWait
            agenda.after(30.0, Happening::BatchMustEnd { task });
        }
        for node in &mut self.nodes {
            node.memory.clear();
        }
        self.quiet_from = Micros::MAX;
    }

    pub(super) fn queue_again(&mut self, agenda: &mut Agenda, seconds: f64) {
        (self.job.state, self.job.requeued) = (JobState::Pending, true);
        self.job.life += 1;
        self.truth.requeues += 1;
        self.truth.mark(agenda.now, Cause::Queue);
        agenda.after(seconds.max(31.0), Happening::JobStarts { life: self.job.life });
    }

    pub fn requeue(&mut self, agenda: &mut Agenda) {
        if self.job.state != JobState::Running {
            return;
        }
        self.truth.tell(agenda.now, "the job goes back into the queue".into());
        self.check_requeue(agenda);
        self.end_job(agenda);
        self.job.restarts += 1;
        let wait = self.c.requeue_s * self.random.between(0.5, 1.5);
        self.queue_again(agenda, wait);
    }

    /// The signal ahead of a time limit, to the batch script and so to the supervisor.
    pub fn warn(&mut self, agenda: &mut Agenda) {
        self.job.asked.store(true, Ordering::SeqCst);
        agenda.tell_all();
    }

    pub(in crate::simulate) fn give_to_a_person(&mut self, agenda: &mut Agenda) {
        self.end_job(agenda);
        self.job.state = JobState::Ended;
        self.job.life += 1;
        self.truth.person += 1;
        self.truth.mark(agenda.now, Cause::Person);
        agenda.after(self.c.person_s, Happening::Person { life: self.job.life });
    }

    /// A person submits the run again.
    pub(super) fn person(&mut self, agenda: &mut Agenda, life: u64) {
        if life != self.job.life {
            return;
        }
        (self.job.id, self.job.restarts) = (self.job.id + 1, 0);
        self.queue_again(agenda, 60.0);
    }
}

//! Processes of the supervisor's program: the supervisor of a job's start, and its standbys.

use super::super::truth::Cause;
use super::super::{Agenda, Kernel, SimTask, SECOND};
use super::ranks::StepPhase;
use super::{Cluster, JobState, TaskPlace};
use crate::error::{Exit, Result};
use crate::launch::{go_on, outlive, Launch, Outlived};
use crate::run_dir::RunDir;
use crate::simulate::Settings;
use crate::slurm::Job;
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::Arc;
use std::time::Duration;

impl Cluster {
    /// A process of the supervisor's program on a node.
    pub(super) fn root(
        &mut self, agenda: &mut Agenda, node: usize, work: impl FnOnce(SimTask) + Send + 'static,
    ) -> SimTask {
        let place = Arc::new(std::sync::OnceLock::new());
        let own = place.clone();
        let task = agenda.begin(Box::new(move || work(own.get().copied().unwrap_or(0))));
        let _ = place.set(task);
        self.tasks.insert(task, TaskPlace { node, root: task });
        self.supervisors.insert(task);
        task
    }

    pub fn is_thread_of(&mut self, thread: SimTask, task: SimTask) {
        let (node, root) = self.tasks.get(&task).map_or((0, task), |p| (p.node, p.root));
        self.tasks.insert(thread, TaskPlace { node, root });
    }

    pub fn node_of(&self, task: SimTask) -> String {
        self.tasks.get(&task).map_or_else(String::new, |p| self.nodes[p.node].name.clone())
    }

    /// srun has started a standby on a node.
    pub fn start_standby(
        &mut self, agenda: &mut Agenda, kernel: &Arc<Kernel>, node: usize, supervisor: SimTask,
    ) -> SimTask {
        let (c, job, asked) = (self.c.clone(), self.slurm_job(), self.job.asked.clone());
        let (kernel, run_dir) = (kernel.clone(), self.run_dir.clone());
        let lost = self.node_of(supervisor);
        let task = self.root(agenda, node, move |task| {
            let Ok(launch) = c.launch(&run_dir, &job) else { return };
            let hear = |most: Duration| match kernel.hear(task, supervisor, most) {
                None => Err(RecvTimeoutError::Disconnected),
                Some(true) => Ok(()),
                Some(false) => Err(RecvTimeoutError::Timeout),
            };
            if outlive(&launch, &job, &asked, &lost, hear) == Outlived::Lost {
                kernel.ask(task, |w, a, t| w.takes_over(a, t));
                let ended = go_on(launch, job, asked, &lost);
                kernel.ask(task, |w, a, t| w.supervisor_left(a, t, ended));
            }
        });
        self.standbys.insert(task, supervisor);
        task
    }

    pub(super) fn takes_over(&mut self, agenda: &mut Agenda, task: SimTask) {
        self.truth.tell(agenda.now, format!("the standby on {} takes over", self.node_of(task)));
        self.standbys.remove(&task);
    }

    /// Whether a standby's connection is there: `None` where it was closed.
    pub fn heard(&self, agenda: &Agenda, supervisor: SimTask) -> Option<()> {
        let node = self.tasks.get(&supervisor)?.node;
        (agenda.lives(supervisor) || !self.nodes[node].alive).then_some(())
    }

    pub fn is_connected(&self, standby: SimTask, supervisor: SimTask) -> bool {
        let node = |t: SimTask| self.tasks.get(&t).map_or(0, |p| p.node);
        self.reaches(node(standby), node(supervisor))
    }

    /// Whoever listens to somebody else looks again; a job that has lost both is a person's.
    pub fn watch_the_supervisors(&mut self, agenda: &mut Agenda) {
        let anybody = self
            .supervisors
            .iter()
            .any(|&t| agenda.lives(t) && self.tasks.get(&t).is_some_and(|p| self.nodes[p.node].alive));
        if !anybody && self.job.state == JobState::Running {
            self.truth.tell(agenda.now, "supervisor and standby are lost together".into());
            self.give_to_a_person(agenda);
        }
        agenda.tell_all();
    }

    pub(super) fn supervisor_left(&mut self, agenda: &mut Agenda, task: SimTask, ended: Result<Exit>) {
        self.truth.tell(agenda.now, format!("the supervisor on {} leaves: {ended:?}", self.node_of(task)));
        let stays = self.job.batch != Some(task) && self.job.state != JobState::Running;
        if stays || self.job.requeued {
            return;
        }
        match ended {
            Ok(Exit::Ok) => self.over = true,
            // another goes on in this job
            Ok(Exit::Fenced) if self.supervisors.iter().any(|&t| t != task && agenda.lives(t)) => {}
            Ok(_) | Err(_) => self.give_to_a_person(agenda),
        }
    }

    pub fn task_ended(&mut self, agenda: &mut Agenda, task: SimTask, bug: bool) {
        if bug {
            self.truth.violation(agenda.now, format!("the supervisor's code panicked on {}", self.node_of(task)));
        }
        if self.supervisors.remove(&task) {
            self.standbys.remove(&task);
            for program in self.programs.iter_mut().filter(|p| p.task == Some(task) && p.ended.is_none()) {
                program.ended = Some(0);
            }
            for id in 0..self.programs.len() {
                // a program ends with the one that started it, by its closed pipes
                if self.programs[id].owner == task
                    && self.programs[id].ended.is_none()
                    && self.programs[id].step.is_none()
                {
                    self.programs[id].ended = Some(137);
                }
            }
            agenda.tell_all();
        }
    }

    /// How long a task that listens sleeps at most: what is new wakes it. Deadlines of a start are looked at a few times a second,
    /// those of a run that trains not at all.
    pub fn listening(&mut self, task: SimTask, length: Duration, agenda: &Agenda) -> Duration {
        if length >= Duration::from_secs(86_400) || self.standbys.contains_key(&task) {
            return length;
        }
        let lives = |t: &&SimTask| agenda.lives(**t);
        let root = self.tasks.get(&task).map_or(task, |p| p.root);
        let owner = self.steps.last().map(|s| self.programs[s.program].owner);
        let has_owned = |t: SimTask| self.steps.iter().any(|s| self.programs[s.program].owner == t);
        if owner != Some(root) && has_owned(root) && self.newest_began + 120 * SECOND < agenda.now {
            // another has taken the run over, and this one has had the time to see it
            return Duration::from_secs(3600);
        }
        let alone = self
            .supervisors
            .iter()
            .filter(lives)
            .filter(|&&t| !self.standbys.contains_key(&t) && (t == root || !has_owned(t)))
            .count()
            == 1;
        let trains =
            self.live_step().is_some_and(|id| self.steps[id].phase == StepPhase::Training && !self.steps[id].asked);
        let quiet = alone && trains && agenda.now >= self.quiet_from && self.truth.cause() == Some(Cause::Training);
        match quiet {
            true => Duration::from_secs(3600),
            false => length * (2 + self.random.below(6) as u32),
        }
    }
}

impl Settings {
    /// What a supervisor is started with.
    pub(in crate::simulate) fn launch(&self, run_dir: &Path, job: &Job) -> Result<Launch> {
        let mut config = self.config.clone();
        config.run_dir = run_dir.to_path_buf();
        Launch::new(config, RunDir::new(run_dir).config(), Vec::new(), Some(self.spares), job)
    }
}

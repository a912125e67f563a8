//! The simulated cluster: nodes, switches, the job in Slurm's books, the run's filesystem, and what happens to them.

pub(in crate::simulate) mod faults;
mod memory;
mod programs;
mod ranks;

use super::{micros, Agenda, Kernel, Micros, SimTask, SECOND};

use super::truth::{Cause, Truth};
use crate::error::{Exit, Result};
use crate::host::FileAccess;
use crate::launch::history::History;
use crate::launch::{go_on, outlive, Launch, Outlived, Supervisor};
use crate::run_dir::RunDir;
use crate::simulate::random::Random;
use crate::simulate::Settings;
use crate::slurm::Job;
use memory::MemoryPart;
use programs::{ProgramNews, SimProgram};
use ranks::{RankNews, RankStep, StepPhase};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::Arc;
use std::time::Duration;

/// After so long out of reach Slurm marks a node down (`SlurmdTimeout`).
const SLURMD_TIMEOUT: f64 = 300.0;
/// How long what a fault did to a node may still explain what is seen of it.
const TOUCHED: Micros = 1800 * SECOND;
/// How often it is looked whether training should go on.
const LOOK: f64 = 300.0;

pub(in crate::simulate) enum Happening {
    JobStarts { life: u64 },
    Fault { next: bool },
    Repaired { node: usize, life: u64 },
    Healed { node: usize },
    Down { node: usize, since: Micros },
    Speed { node: usize },
    Continue { id: usize },
    Ranks { id: usize, turn: u64, news: RankNews },
    Program { id: usize, next: ProgramNews },
    BatchMustEnd { task: SimTask },
    Person { life: u64 },
    Look,
}

/// What came of touching a file.
pub(in crate::simulate) enum FileAnswer {
    Well,
    Refused(io::ErrorKind),
    Later(Micros),
}

pub(in crate::simulate) struct SimNode {
    pub name: String,
    pub switch: usize,
    pub alive: bool,
    pub cut_until: Micros,
    /// Nodes that were cut off together hear each other.
    pub island: usize,
    pub slurm_down: bool,
    pub late_until: Micros,
    pub slow: f64,
    pub memory: Vec<MemoryPart>,
    pub life: u64,
    pub touched: Option<Micros>,
    /// Faults that have touched it.
    pub faults: usize,
    pub unreachable_since: Option<Micros>,
    pub reached_since: Micros,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulate) enum JobState {
    Pending,
    Running,
    Ended,
}

pub(in crate::simulate) struct SimJob {
    pub id: u64,
    pub restarts: u32,
    pub nodes: Vec<usize>,
    pub state: JobState,
    pub batch: Option<SimTask>,
    pub asked: Arc<AtomicBool>,
    /// Events of an earlier start are void.
    pub life: u64,
    pub requeued: bool,
}

/// A thread of a simulated process.
pub(in crate::simulate) struct TaskPlace {
    pub node: usize,
    /// The process.
    pub root: SimTask,
}

pub(in crate::simulate) struct Cluster {
    pub c: Arc<Settings>,
    pub random: Random,
    pub nodes: Vec<SimNode>,
    pub by_name: BTreeMap<String, usize>,
    pub job: SimJob,
    pub tasks: BTreeMap<SimTask, TaskPlace>,
    /// Supervisors and their standbys.
    pub supervisors: BTreeSet<SimTask>,
    pub standbys: BTreeMap<SimTask, SimTask>,
    pub programs: Vec<SimProgram>,
    pub steps: Vec<RankStep>,
    pub disk: BTreeSet<u64>,
    pub run_dir: PathBuf,
    pub blocked_until: Micros,
    pub full_until: Micros,
    pub away_until: Micros,
    pub islands: usize,
    pub now: Micros,
    pub quiet_from: Micros,
    pub truth: Truth,
    over: bool,
    checked: usize,
    /// When the newest attempt was started.
    pub newest_began: Micros,
}

impl Cluster {
    pub fn new(c: Arc<Settings>, seed: u64, run_dir: &Path) -> Cluster {
        let all = c.nodes + c.spares + c.reserve();
        let width = all.to_string().len().max(2);
        let nodes: Vec<SimNode> = (0..all)
            .map(|i| SimNode {
                name: format!("n{:0width$}", i + 1),
                switch: i / c.nodes_per_switch,
                alive: true,
                cut_until: 0,
                island: 0,
                slurm_down: false,
                late_until: 0,
                slow: 1.0,
                memory: Vec::new(),
                life: 0,
                touched: None,
                faults: 0,
                unreachable_since: None,
                reached_since: 0,
            })
            .collect();
        let by_name = nodes.iter().enumerate().map(|(i, n)| (n.name.clone(), i)).collect();
        let asked = Arc::new(AtomicBool::new(false));
        let job = SimJob {
            id: 1,
            restarts: 0,
            nodes: (0..c.nodes + c.spares).collect(),
            state: JobState::Pending,
            batch: None,
            asked,
            life: 0,
            requeued: false,
        };
        Cluster {
            random: Random::new(seed),
            nodes,
            by_name,
            job,
            tasks: BTreeMap::new(),
            supervisors: BTreeSet::new(),
            standbys: BTreeMap::new(),
            programs: Vec::new(),
            steps: Vec::new(),
            disk: BTreeSet::new(),
            run_dir: run_dir.to_path_buf(),
            blocked_until: 0,
            full_until: 0,
            away_until: 0,
            islands: 0,
            now: 0,
            quiet_from: Micros::MAX,
            truth: Truth::of(seed),
            over: false,
            checked: 0,
            newest_began: 0,
            c,
        }
    }

    pub fn begin(&mut self, agenda: &mut Agenda, kernel: &Arc<Kernel>) {
        self.truth.mark(0, Cause::Queue);
        self.start_job(agenda, kernel);
        self.plan_fault(agenda);
        agenda.after(LOOK, Happening::Look);
    }

    pub fn is_over(&self) -> bool {
        self.over || self.truth.violation.is_some()
    }

    pub fn happen(&mut self, agenda: &mut Agenda, what: Happening, kernel: &Arc<Kernel>) {
        self.now = agenda.now;
        let quiet = matches!(what, Happening::Look);
        match what {
            Happening::JobStarts { life } if life == self.job.life => self.start_job(agenda, kernel),
            Happening::JobStarts { .. } => {}
            Happening::Fault { next } => self.fault(agenda, next),
            Happening::Repaired { node, life } => self.repaired(agenda, node, life),
            Happening::Healed { node } => self.healed(agenda, node),
            Happening::Down { node, since } => self.down(agenda, node, since),
            Happening::Speed { node } => self.set_speed(agenda, node, 1.0),
            Happening::Continue { id } => self.ranks_go_on(agenda, id),
            Happening::Ranks { id, turn, news } => self.rank_news(agenda, id, turn, news),
            Happening::Program { id, next } => self.program_news(agenda, id, next, kernel),
            Happening::BatchMustEnd { task } => {
                if agenda.lives(task) {
                    agenda.kill(task);
                }
            }
            Happening::Person { life } => self.person(agenda, life),
            Happening::Look => self.look(agenda),
        }
        if !quiet {
            agenda.tell_all();
        }
    }

    // Nodes

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

    fn down(&mut self, agenda: &mut Agenda, node: usize, since: Micros) {
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

    fn healed(&mut self, agenda: &mut Agenda, node: usize) {
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

    fn repaired(&mut self, agenda: &mut Agenda, node: usize, life: u64) {
        let n = &mut self.nodes[node];
        if n.life != life || n.alive {
            return;
        }
        (n.alive, n.slow, n.reached_since, n.unreachable_since, n.slurm_down) = (true, 1.0, agenda.now, None, false);
        self.truth.tell(agenda.now, format!("{} is repaired", self.nodes[node].name));
        self.leave_late(agenda, node);
    }

    // The filesystem of the run

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

    // The job

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

    fn slurm_job(&self) -> Job {
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

    /// A process of the supervisor's program on a node.
    fn root(&mut self, agenda: &mut Agenda, node: usize, work: impl FnOnce(SimTask) + Send + 'static) -> SimTask {
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

    fn takes_over(&mut self, agenda: &mut Agenda, task: SimTask) {
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

    fn supervisor_left(&mut self, agenda: &mut Agenda, task: SimTask, ended: Result<Exit>) {
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

    /// The job ends: processes on nodes that are reached are killed, and their memory is given back.
    fn end_job(&mut self, agenda: &mut Agenda) {
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

    fn queue_again(&mut self, agenda: &mut Agenda, seconds: f64) {
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
    fn person(&mut self, agenda: &mut Agenda, life: u64) {
        if life != self.job.life {
            return;
        }
        (self.job.id, self.job.restarts) = (self.job.id + 1, 0);
        self.queue_again(agenda, 60.0);
    }

    // What is looked at

    pub fn live_step(&self) -> Option<usize> {
        self.steps.iter().rev().find(|s| s.phase != StepPhase::Ended).map(|s| s.id)
    }

    pub fn newest_attempt(&self) -> u64 {
        self.steps.last().map_or(0, |s| s.number)
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

    /// Invariants that need a look at the run directory, once for each attempt that has ended.
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
    fn check_requeue(&mut self, agenda: &Agenda) {
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

impl Settings {
    /// What a supervisor is started with.
    pub(in crate::simulate) fn launch(&self, run_dir: &Path, job: &Job) -> Result<Launch> {
        let mut config = self.config.clone();
        config.run_dir = run_dir.to_path_buf();
        Launch::new(config, RunDir::new(run_dir).config(), Vec::new(), Some(self.spares), job)
    }
}

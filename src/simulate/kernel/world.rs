//! The simulated cluster: nodes, switches, the job in Slurm's books, the run's filesystem, and what happens to them.

mod checks;
pub(in crate::simulate) mod faults;
mod job;
mod memory;
mod nodes;
mod programs;
mod ranks;
mod supervisors;

use super::news::Happening;
use super::truth::{Cause, Truth};
use super::{Agenda, Kernel, Micros, SimTask};
use crate::simulate::random::Random;
use crate::simulate::Settings;
use memory::MemoryPart;
use programs::SimProgram;
use ranks::{RankStep, StepPhase};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

/// How often it is looked whether training should go on.
const LOOK: f64 = 300.0;

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

    pub fn live_step(&self) -> Option<usize> {
        self.steps.iter().rev().find(|s| s.phase != StepPhase::Ended).map(|s| s.id)
    }

    pub fn newest_attempt(&self) -> u64 {
        self.steps.last().map_or(0, |s| s.number)
    }
}

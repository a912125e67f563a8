//! What a supervisor is given and does not change, and where its run stands.

use super::history::Record;
use super::ranks::{RankStart, TICK};
use super::rollcall::{self, StartCalls};
use super::Launch;
use crate::error::Result;
use crate::host;
use crate::run_dir::RunDir;
use crate::slurm::{site, Job, Site, StepLine, Switches};
use crate::world::library;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long all nodes may take to answer a roll call, and what each of them adds.
pub(super) const ROLL_CALL: Duration = Duration::from_secs(3);
const ROLL_CALL_NODE: Duration = Duration::from_millis(10);
/// How often nodes are asked while the ranks start, and each of them adds [`ROLL_CALL_NODE`].
const START_CALL: Duration = Duration::from_secs(4);

/// What to launch, in which job, on which cluster.
pub(super) struct JobContext {
    pub launch: Launch,
    pub job: Job,
    pub run_dir: PathBuf,
    pub site: Site,
    pub switches: Switches,
    /// What `srun --mpi` is told, for ranks.
    pub mpi: String,
    /// The node of the supervisor whose place this one takes within the job.
    pub lost: Option<String>,
    /// Raised by a signal.
    pub asked: Arc<AtomicBool>,
}

/// Where the run stands.
pub(super) struct LaunchState {
    /// The newest attempt.
    pub number: u64,
    /// Replicas, where they are fewer than configured.
    pub shrunk_to: Option<usize>,
    /// Slots of the last attempt of this job.
    pub slots: Vec<String>,
    pub fault: Option<Fault>,
    /// Nodes that have just answered a roll call, and when.
    pub answered: Option<(Instant, Vec<String>)>,
}

impl LaunchState {
    /// At attempt `number`; `last`: this job's last one.
    pub fn after(number: u64, last: Option<&Record>) -> LaunchState {
        LaunchState {
            number,
            shrunk_to: last.and_then(|r| r.shrunk_to),
            slots: last.map_or_else(Vec::new, |r| r.nodes.clone()),
            fault: None,
            answered: None,
        }
    }
}

/// A fault that is being mended.
pub(super) struct Fault {
    pub noticed: Instant,
    pub step: u64,
}

impl Fault {
    /// One that is noticed now, while the run stands at `step`.
    pub fn at(step: u64) -> Fault {
        Fault { noticed: host::now(), step }
    }
}

/// `--job-name` of an attempt's step.
pub(super) fn step_name(attempt: u64) -> String {
    format!("herd-{attempt:04}")
}

impl JobContext {
    /// Asks Slurm about itself.
    pub fn new(launch: Launch, job: Job, asked: Arc<AtomicBool>) -> Result<JobContext> {
        let site = Site::ask();
        let library = library();
        let mpi = site.plugin(&launch.config.launch.mpi, &library)?;
        tracing::info!("Slurm {}, {}; ranks find each other by --mpi={mpi}", site.version, site::short(&library));
        let switches = Switches::ask();
        if switches.in_order(&job.nodes) != job.nodes {
            tracing::info!("slots are filled in the order of Slurm's switches (scontrol show topology)");
        }
        let run_dir = launch.config.run_dir.clone();
        Ok(JobContext { launch, job, run_dir, site, switches, mpi, lost: None, asked })
    }

    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits; false when a signal came meanwhile.
    pub fn pause(&self, wait: Duration) -> bool {
        let end = host::now() + wait;
        loop {
            if self.is_asked() {
                return false;
            }
            if host::now() >= end {
                return true;
            }
            host::sleep(TICK.min(wait));
        }
    }

    /// A step of this job with MPI.
    pub fn step_line<'a>(
        &'a self, name: &'a str, nodes: &'a [String], ranks_per_node: usize, hosts_file: &'a Path,
    ) -> StepLine<'a> {
        let (mpi, extra, tree_width) = (&*self.mpi, &*self.launch.config.launch.srun, self.site.tree_width);
        StepLine { job: &self.job, name, nodes, ranks_per_node, mpi, extra, hosts_file, tree_width }
    }

    /// The attempt `number`, whose step is called `name`, on `nodes`.
    pub fn rank_start<'a>(&'a self, number: u64, name: &'a str, nodes: &[String]) -> RankStart<'a> {
        RankStart {
            number,
            name,
            nodes: nodes.len(),
            run_dir: &self.run_dir,
            limits: &self.launch.config.launch,
            leaves_steps: self.site.leaves_steps(),
        }
    }

    /// Those of `nodes` that do not answer.
    pub fn roll_call(&self, nodes: &[String]) -> Vec<String> {
        rollcall::absent(&self.job, nodes, &RunDir::new(&self.run_dir).roll_call_hosts(), limit(nodes))
    }

    /// Roll calls of an attempt's nodes until its ranks have met: before, nobody else watches them.
    pub fn start_calls(&self, nodes: &[String]) -> StartCalls {
        StartCalls {
            job: self.job.clone(),
            nodes: nodes.to_vec(),
            hosts_file: RunDir::new(&self.run_dir).roll_call_hosts(),
            limit: limit(nodes),
            every: START_CALL + ROLL_CALL_NODE * nodes.len() as u32,
            last: host::now(),
            under_way: None,
        }
    }
}

fn limit(nodes: &[String]) -> Duration {
    ROLL_CALL + ROLL_CALL_NODE * nodes.len() as u32
}

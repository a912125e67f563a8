//! The real supervisor against a simulated cluster: whole runs of months in seconds, with every fault that a seed has for them.
//!
//! Real are the supervisor's loop and all that it decides by (`crate::launch`), its standby, roll calls, books and files, the watches
//! of liveness and their verdicts, the inventory of snapshots and the choice among them, and how Slurm's commands are called and read.
//! Modelled are the clock (`kernel`, its `agenda`, and the `hosts` of its tasks), and in `world` nodes, network and filesystem (`nodes`),
//! the job in Slurm's books (`job`), the processes of the supervisor (`supervisors`), Slurm's commands (`programs`), the ranks (`ranks`)
//! and what is in memory (`memory`); `watches` runs the liveness around faults. `faults` has the faults, `truth` and `checks` what must
//! never be. docs/simulation.md says more.

mod kernel;
mod random;
mod sweep;
#[cfg(test)]
mod tests;

pub use kernel::truth::{Cause, Violation};
pub use kernel::world::faults::SimFault;
pub use sweep::{sweep, Sweep};

use crate::config::Config;
use crate::error::{Error, Exit, Result};
use kernel::world::Cluster;
use kernel::{micros, Kernel};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// A run to simulate.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `launch`, `liveness` and `checkpoint` of it are gone by; `parallel.data` follows from the nodes.
    pub config: Config,
    /// Nodes that train.
    pub nodes: usize,
    /// Devices of a node, one rank each.
    pub ranks_per_node: usize,
    /// Nodes of the job that wait for a fault.
    pub spares: usize,
    /// Nodes on one switch, by their numbers: a fault of the switch cuts them off together.
    pub nodes_per_switch: usize,
    /// Simulated time, in days.
    pub days: f64,
    /// Mean number in the whole cluster, those close behind another (`pairs`) not counted.
    pub faults_per_day: f64,
    /// Share of faults with another close behind.
    pub pairs: f64,
    /// Every kind of fault about as often, to look for mistakes; else as often as they are.
    pub even: bool,
    /// A step without saves.
    pub step_s: f64,
    /// Steps between snapshots in memory; 0 never.
    pub snapshot_every: u64,
    /// What a snapshot takes from training.
    pub snapshot_s: f64,
    /// The copy to the partner.
    pub partner_s: f64,
    /// Steps between checkpoints on disk; 0 never.
    pub checkpoint_every: u64,
    /// What a checkpoint takes from training.
    pub checkpoint_stall_s: f64,
    /// Until a checkpoint is on disk.
    pub save_s: f64,
    /// From srun to the ranks' meeting.
    pub start_s: f64,
    /// To read the state from snapshots in memory.
    pub restore_s: f64,
    /// To read the state from a checkpoint on disk.
    pub restore_disk_s: f64,
    /// To write snapshots from memory to disk between two attempts.
    pub flush_s: f64,
    /// Mean hours until a node that died is back.
    pub repair_h: f64,
    /// Mean time in Slurm's queue after a requeue.
    pub requeue_s: f64,
    /// Until a person submits a run again that has stopped.
    pub person_s: f64,
    /// Training goes on within this after the last disturbance.
    pub bound_s: f64,
    /// Healthy nodes that a failure may be counted against with one fault.
    pub healthy_per_fault: usize,
    /// No roll call takes longer.
    pub roll_call_s: f64,
    /// Nodes that Slurm does not give out.
    pub drained: BTreeSet<usize>,
}

impl Settings {
    /// Of a small model on `nodes` nodes whose steps take a few seconds: for a search among seeds.
    pub fn small(nodes: usize, spares: usize) -> Result<Settings> {
        let document = serde_json::json!({
            "name": "simulated", "run_dir": "run",
            "model": { "shape": {
                "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2,
            } },
            "data": { "sequence_length": 32, "train": [{ "path": "data" }] },
            "batch": { "global": 8 * nodes * 8, "micro": 1 },
            "train": { "steps": 1_000_000_000_000u64 },
            "parallel": { "data": 0 },
            "checkpoint": { "snapshot_every": 1, "every": 200 },
        });
        let config: Config = serde_json::from_value(document).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
        Ok(Settings {
            config,
            nodes,
            ranks_per_node: 8,
            spares,
            nodes_per_switch: (nodes / 4).max(2),
            days: 1.0,
            faults_per_day: 4.0,
            pairs: 0.3,
            even: true,
            step_s: 5.0,
            snapshot_every: 1,
            snapshot_s: 0.2,
            partner_s: 1.0,
            checkpoint_every: 200,
            checkpoint_stall_s: 0.3,
            save_s: 20.0,
            start_s: 15.0,
            restore_s: 5.0,
            restore_disk_s: 20.0,
            flush_s: 10.0,
            repair_h: 6.0,
            requeue_s: 300.0,
            person_s: 3600.0,
            bound_s: 2400.0,
            healthy_per_fault: 0,
            roll_call_s: 60.0,
            drained: BTreeSet::new(),
        })
    }

    /// # Errors
    /// [`Exit::World`]: the configuration's ranks are no whole replicas on these nodes.
    pub fn check(&self) -> Result<()> {
        let job = crate::slurm::Job {
            id: 1,
            restarts: 0,
            nodes: (0..self.nodes + self.spares).map(|i| format!("n{i}")).collect(),
            tasks: None,
            tasks_per_node: Some(self.ranks_per_node),
            array: None,
            step: None,
        };
        let launch = self.launch(std::path::Path::new("run"), &job)?;
        let filled = launch.nodes_for(None);
        match filled == self.nodes {
            true => Ok(()),
            false => Err(Error::new(
                Exit::World,
                format!(
                    "{} nodes × {} ranks hold whole replicas on {filled} nodes only",
                    self.nodes, self.ranks_per_node
                ),
            )
            .hint("give --nodes that the configuration's axes fill")),
        }
    }

    /// Nodes of the cluster beyond the job's: what the queue replaces lost ones from.
    fn reserve(&self) -> usize {
        (self.nodes / 16).max(4)
    }
}

/// What came of one run.
#[derive(Clone, Debug, Serialize)]
pub struct SimReport {
    /// The same settings and seed have the same faults.
    pub seed: u64,
    /// Simulated days that went by: fewer than asked for where a violation ended the run.
    pub days: f64,
    /// Share of the time in steps that count.
    pub goodput: f64,
    /// Newest step that was finished, counted from 1: steps that were done again count once.
    pub steps: u64,
    /// Starts of the ranks.
    pub attempts: u64,
    /// Times that the job went back into the queue, those by a person included.
    pub requeues: u64,
    /// Times that a person had to submit the run again.
    pub by_person: u64,
    /// Nodes that an attempt had and the one before, on as many nodes, had not.
    pub spares_used: u64,
    /// Verdicts of liveness, also those that could not be written.
    pub verdicts: u64,
    /// [`SimFault::name`] → how many there were.
    pub faults: BTreeMap<String, u64>,
    /// Seconds, by what they went to.
    pub seconds: BTreeMap<String, f64>,
    /// Seconds of steps that were done twice.
    pub redone_s: f64,
    /// Most messages of liveness in one fault.
    pub messages: u64,
    /// The first thing that must not be, which ended the run; `None` where all was well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub violation: Option<Violation>,
}

/// Runs one seed.
///
/// # Errors
/// [`Exit::Storage`]: no directory in memory for the run's files; those of [`crate::launch::Launch::new`].
pub fn run(settings: &Arc<Settings>, seed: u64) -> Result<SimReport> {
    let folder = RunFolder::new(seed)?;
    let world = Cluster::new(settings.clone(), seed, &folder.0);
    let limit = micros(settings.days * 86_400.0);
    let world = Kernel::run(world, limit);
    Ok(world.report(limit))
}

impl Cluster {
    fn report(mut self, limit: u64) -> SimReport {
        let end = self.now.min(limit);
        if let Some(id) = self.live_step() {
            self.advance(end, id);
        }
        let steps = self.truth.high().max(self.live_step().map_or(0, |id| self.steps[id].finished));
        self.truth.mark(end, Cause::Training);
        let time = std::mem::take(&mut self.truth.time);
        let name =
            |c: &Cause| serde_json::to_value(c).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default();
        SimReport {
            seed: self.truth.seed,
            days: end as f64 / 86_400e6,
            goodput: steps as f64 * self.c.step_s / (end as f64 / 1e6).max(1e-9),
            steps,
            attempts: self.truth.attempts,
            requeues: self.truth.requeues,
            by_person: self.truth.person,
            spares_used: self.truth.spares_used,
            verdicts: self.truth.verdicts,
            faults: self.truth.faults.iter().map(|(k, n)| (k.to_string(), *n)).collect(),
            seconds: time.iter().map(|(c, t)| (name(c), *t as f64 / 1e6)).collect(),
            redone_s: self.truth.redone_s,
            messages: self.truth.messages,
            violation: self.truth.violation,
        }
    }
}

/// The run's directory, in memory where the host has such a filesystem.
struct RunFolder(PathBuf);

impl RunFolder {
    fn new(seed: u64) -> Result<RunFolder> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let memory = PathBuf::from("/dev/shm");
        let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = place.join(format!("herd-simulate-{}-{number}-{seed}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, "create", &e, Exit::Storage))?;
        Ok(RunFolder(path))
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

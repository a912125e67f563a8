//! `herd doctor`: what the nodes of a run are like, before it starts.

mod table;

use super::{logging, outcome};
use crate::config::{load, Config};
use crate::doctor::{self, Diagnosis, Inquiry, Light};
use crate::error::{Error, Exit, Result};
use crate::launch::preflight::{self, Preflight, Recorded, DIAGNOSIS};
use crate::slurm::Job;
use crate::world::World;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Examine the nodes of a job, or this host: what would make a run fail, slow or wrong, and its cure.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  sbatch --nodes=16 slurm/preflight.sbatch configs/llama3_70b.yaml
  herd doctor configs/llama3_70b.yaml        # in a batch script, before herd launch
  srun --mpi=pmix --ntasks-per-node=1 herd doctor --json
  herd doctor                                # this host alone

In a batch script it starts its own step on all nodes of the job. Exit code 15: something is red; 0: nothing is. Nodes that are red
go into the run's ledger, and herd launch avoids them. Every check, its threshold and its cure: docs/doctor.md.")]
pub struct Args {
    /// Configuration file (YAML); without it, what does not depend on a run is examined
    config: Option<PathBuf>,
    /// Override a key, as in run_dir=/scratch/me/run; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Do not tell the run's ledger of nodes
    #[arg(long)]
    no_ledger: bool,
    /// This process is a rank of the step that herd doctor starts in a batch script
    #[arg(long, hide = true)]
    step: bool,
    /// Print what this host finds without MPI
    #[arg(long, hide = true)]
    facts: bool,
}

pub fn run(args: Args) -> Result<()> {
    let load_s = since_start().unwrap_or(0.0);
    if args.facts {
        return facts(&args, load_s);
    }
    let job = Job::current().job;
    match job.filter(|j| j.step.is_none() && !args.step && !is_rank()) {
        Some(job) => in_batch_script(&args, &job),
        None => as_rank(&args, load_s),
    }
}

/// Whether mpirun or srun has started this process.
fn is_rank() -> bool {
    ["OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK"].iter().any(|k| std::env::var_os(k).is_some())
}

/// Seconds since this process was started (proc_pid_stat(5), starttime; its grain is 10 ms).
fn since_start() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    // SAFETY: a query without arguments to keep alive.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let up: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    Some((up - ticks / hertz).max(0.0))
}

fn in_batch_script(args: &Args, job: &Job) -> Result<()> {
    logging::init(true, None)?;
    let config = args.config.as_ref().map(|path| load::load(path, &args.set)).transpose()?;
    let program =
        std::env::current_exe().map_err(|e| Error::new(Exit::Internal, format!("where is this program? {e}")))?;
    let what = Preflight { job, config: config.as_ref(), path: args.config.as_deref(), sets: &args.set, program };
    let d = what.examine()?;
    let told = recorded(args, config.as_ref(), Some(job.id), &d);
    show(args, &d, told.as_ref())?;
    verdict(&d)
}

/// Where there is a run and a job, its ledger is told; that it could not be is no error of the examination.
fn recorded(args: &Args, config: Option<&Config>, job: Option<u64>, d: &Diagnosis) -> Option<Recorded> {
    let (config, job) = (config.filter(|_| !args.no_ledger)?, job?);
    preflight::record(d, config, job).inspect_err(|e| tracing::warn!("the ledger of nodes was not told: {e}")).ok()
}

/// A rank of a world that mpirun or srun has made, or of this process alone.
fn as_rank(args: &Args, load_s: f64) -> Result<()> {
    let began = Instant::now();
    let world = World::init()?;
    let started = (load_s, began.elapsed().as_secs_f64());
    match examined(args, &world, started) {
        Ok(None) => world.finalize(),
        Ok(Some(red)) | Err(red) => outcome::end(world, red),
    }
}

/// `Some`: what all ranks end with.
fn examined(args: &Args, world: &World, started: (f64, f64)) -> Result<Option<Error>> {
    logging::init(world.rank() == 0, None)?;
    let per_node = world.local_size();
    // in the step of a batch script the run has the job's nodes, also those that do not answer now
    let job = Job::current().job.filter(|_| args.step);
    let nodes = job.map_or(world.size().div_ceil(per_node), |j| j.nodes.len());
    let ask = || question(args.config.as_deref(), &args.set, nodes, per_node);
    let d = doctor::examine(world, ask, started)?;
    let finish = || -> Result<Option<(String, String)>> {
        let Some(d) = &d else { return Ok(None) };
        if args.step {
            super::print(&format!("{}\n", json!({ DIAGNOSIS: d })))?;
            return Ok(None);
        }
        let config = args.config.as_ref().map(|path| load::load(path, &args.set)).transpose()?;
        let told = recorded(args, config.as_ref(), Job::current().job.map(|j| j.id), d);
        show(args, d, told.as_ref())?;
        Ok(verdict(d).err().map(|e| (e.fact, e.hint.unwrap_or_default())))
    };
    let red = world.from_first(finish)?;
    Ok(red.map(|(fact, hint)| Error { agreed: true, ..Error::new(Exit::Unhealthy, fact).hint(hint) }))
}

fn question(config: Option<&Path>, sets: &[String], nodes: usize, per_node: usize) -> Result<Inquiry> {
    match config {
        Some(path) => Inquiry::of(path, sets, nodes, per_node),
        None => Ok(Inquiry::without_config()),
    }
}

fn facts(args: &Args, load_s: f64) -> Result<()> {
    let q = question(args.config.as_deref(), &args.set, 1, 1)?;
    super::print(&preflight::facts_lines(&doctor::alone(&q, &crate::host::node(), load_s)))
}

fn show(args: &Args, d: &Diagnosis, told: Option<&Recorded>) -> Result<()> {
    super::print(&match args.json {
        true => {
            let mut value = serde_json::to_value(d).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
            value["ledger"] = json!(told);
            format!("{value:#}\n")
        }
        false => table::human(d, told),
    })
}

/// Errors ([`Exit::Unhealthy`]): something is red.
fn verdict(d: &Diagnosis) -> Result<()> {
    let red: Vec<String> =
        d.checks.iter().filter(|c| c.light == Light::Red).map(|c| format!("{} ({})", c.name, c.who())).collect();
    match red.is_empty() {
        true => Ok(()),
        false => Err(Error::new(
            Exit::Unhealthy,
            format!("{} of {} checks are red: {}", red.len(), d.checks.len(), red.join(", ")),
        )
        .hint("the table says what cures each")),
    }
}

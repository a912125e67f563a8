//! `herd launch`: the supervisor of a training job, run by its batch script.

use super::logging;
use crate::error::{Error, Exit, Result};
use crate::launch::submitted::{self, Submitted};
use crate::launch::{standby, wait, Launch, Parent, Supervisor};
use crate::slurm::Job;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

/// Run a training job inside its Slurm allocation: start the ranks, replace nodes that fail, requeue when needed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  exec herd launch configs/llama3_70b.yaml                 # the last line of a batch script
  herd launch configs/llama3_70b.yaml --spares 2 --set run_dir=/scratch/me/run

The allocation's nodes beyond the plan's need are spares. What happens on which fault: docs/recovery.md.
`herd status RUN` shows how a run fares.")]
pub struct Args {
    /// Configuration file (YAML)
    pub config: PathBuf,
    /// Override a key, as in optim.lr=3e-4; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Nodes that wait for a fault (default: launch.spares, else all that the plan does not need)
    #[arg(long, value_name = "N")]
    pub spares: Option<usize>,
    /// Wait beside the supervisor on this node, and take its place when the node is lost; herd launch starts it by itself
    #[arg(long, value_name = "NODE", hide = true)]
    pub standby: Option<String>,
    /// Further arguments of `herd train`
    #[arg(last = true, value_name = "ARGUMENTS")]
    pub train: Vec<String>,
}

pub fn run(args: Args) -> Result<()> {
    // before anything is started or said: this command starts anew under its parent
    let parent = match args.standby {
        Some(_) => None,
        None => Some(Parent::of_this()),
    };
    logging::init(true, None)?;
    let parent = parent.and_then(|p| {
        p.inspect_err(|e| tracing::warn!("nothing will start this supervisor again if it is killed: no parent ({e})"))
            .ok()
    });
    let told = Job::current();
    told.notes.iter().for_each(|note| tracing::warn!("{note}"));
    let Some(job) = told.job else {
        return Err(Error::new(Exit::World, "herd launch runs inside a Slurm job, and SLURM_JOB_ID is not set")
            .hint("submit slurm/llama3_demo.sbatch; without Slurm, start the ranks by mpirun herd train"));
    };
    if let Ok(size) = std::env::var("SLURM_HET_SIZE") {
        return Err(Error::new(Exit::World, format!("job {} is heterogeneous, of {size} components (SLURM_HET_SIZE), and all ranks of a run have the same resources", job.id))
            .hint("submit one job without `hetjob` or `:` between resources"));
    }
    let job = if args.standby.is_some() { standby::whole(job)? } else { job };
    let Submitted { config, path, changed } = submitted::settle(&args.config, &args.set, &job)?;
    if !changed.is_empty() {
        tracing::warn!(
            "{} is not what job {} was submitted with ({}): what was submitted goes on; `herd config change` changes a key",
            args.config.display(),
            job.address(),
            changed.join("; ")
        );
    }
    let asked = Arc::new(AtomicBool::new(false));
    // before anything else is started: SIGUSR1 would end a process that has no handler
    for signal in [signal_hook::consts::SIGUSR1, signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, asked.clone())
            .map_err(|e| Error::new(Exit::Internal, format!("cannot install signal handlers: {e}")))?;
    }
    if let Some(parent) = &parent {
        parent.may_signal();
    }
    let launch = Launch::new(config, path, args.train, args.spares, &job)?;
    let exit = match &args.standby {
        Some(node) => wait(launch, job, asked, node)?,
        None => Supervisor::open(launch, job, asked, parent)?.run()?,
    };
    match exit {
        Exit::Ok => Ok(()),
        exit => std::process::exit(exit.code()),
    }
}

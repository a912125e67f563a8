//! `herd train`: one rank of a training run.

use super::logging::{self, RankLog};
use super::{devices, outcome};
use crate::checkpoint::Team;
use crate::config::DeviceChoice;
use crate::error::{Exit, Result};
use crate::kernels::{device, memory};
use crate::plan::{Plan, Ranks};
use crate::train::{self, End, StopFlag};
use crate::world::World;
use std::path::PathBuf;

/// Train a model; started once per rank by srun or mpirun.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  srun --mpi=pmix herd train configs/llama3_70b.yaml
  mpirun -n 2 herd train configs/llama3_demo.yaml --set train.steps=20
  herd train configs/llama3_demo.yaml --set optim.lr=1e-3 --set run_dir=runs/try

The run directory decides where it starts: from the newest valid checkpoint in it, else from model.weights, else fresh.")]
pub struct Args {
    /// Configuration file (YAML)
    pub config: PathBuf,
    /// Override a key, as in optim.lr=3e-4; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

pub fn run(args: Args) -> Result<()> {
    memory::install();
    // before anything takes time: SIGUSR1 would end a process that has no handler
    let stop = StopFlag::of_a_run()?;
    let world = World::init()?;
    match train(&args, &world, &stop) {
        Ok(End::Finished) => world.finalize(),
        Ok(End::Stopped) => {
            // together: the first rank to leave with a code that is not 0 makes srun end the others
            world.barrier()?;
            world.finalize()?;
            std::process::exit(Exit::Requeue.code())
        }
        Err(e) => outcome::end(world, e),
    }
}

fn train(args: &Args, world: &World, stop: &StopFlag) -> Result<End> {
    let ranks = Ranks::of(world, device::cuda_device_count(), cores(world.local_size()));
    let plan = Plan::read_together(&args.config, &args.set, &ranks, Team(Some(world))).map_err(devices::with_reason)?;
    let file = RankLog { run_dir: &plan.config.run_dir, node: world.host(), rank: world.rank() };
    logging::init(world.rank() == 0, Some(file))?;
    if let Some(line) = devices::fallen_back(plan.device, plan.config.train.device == DeviceChoice::Auto) {
        tracing::warn!("{line}");
    }
    tch::set_num_threads(plan.threads as i32);
    train::run_until(&plan, world, stop)
}

/// Cores this rank may use: those it is bound to (Slurm's --cpu-bind), or its share of the node where it is not bound.
pub(super) fn cores(local_size: usize) -> usize {
    let bound = std::thread::available_parallelism().map_or(1, |n| n.get());
    // SAFETY: a query without arguments to keep alive.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1) as usize;
    match bound < online {
        true => bound,
        false => (online / local_size).max(1),
    }
}

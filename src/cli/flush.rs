//! `herd checkpoint flush`: snapshots from memory to disk, after the training processes have died.

use super::outcome;
use super::progress::shown;
use crate::checkpoint::Rules;
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::run_dir::RunDir;
use crate::tiers::flush;
use crate::world::World;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write the newest whole snapshot in the nodes' memory to the run directory.
///
/// Run it with one process per surviving node. Ends with exit code 0 when the step is on disk, whether it was written now or
/// before; with 24 when no step is whole in the memory of the nodes that take part.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  srun --mpi=pmix --ntasks-per-node=1 herd checkpoint flush runs/llama70b
  herd checkpoint flush runs/demo --json
  srun --mpi=pmix --ntasks-per-node=1 herd checkpoint flush runs/llama70b --remove")]
pub struct Args {
    /// A run directory.
    run: PathBuf,
    /// Where snapshots are [default: as the run's config.yaml says, else /dev/shm]
    #[arg(long)]
    snapshot_dir: Option<PathBuf>,
    /// Afterwards remove this run's snapshots from these nodes' memory.
    #[arg(long)]
    remove: bool,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let world = World::init()?;
    match work(args, &world) {
        Ok(()) => world.finalize(),
        Err(e) => {
            // every rank finds alike that no step is whole
            let agreed = e.agreed || world.size() == 1 || e.exit == Exit::NoSnapshot;
            outcome::end(world, Error { agreed, ..e })
        }
    }
}

fn work(args: &Args, world: &World) -> Result<()> {
    let dir = world.agree(match &args.snapshot_dir {
        Some(dir) => Ok(dir.clone()),
        None => configured(&args.run),
    })?;
    let write = |meter: &Meter| {
        let rules = Rules { meter: meter.clone(), ..Rules::default() };
        flush::flush(&args.run, &dir, &rules, world)
    };
    let done = if world.rank() == 0 { shown(write) } else { write(&Meter::default()) };
    // parts that make no whole step are of no use to anybody either
    let settled = done.as_ref().err().is_none_or(|e| e.exit == Exit::NoSnapshot);
    if args.remove && settled {
        world.agree(if world.local_rank() == 0 { flush::remove(&args.run, &dir) } else { Ok(()) })?;
    }
    let done = done?;
    if world.rank() != 0 {
        return Ok(());
    }
    if args.json {
        return super::print(&format!("{}\n", json!(done)));
    }
    let passed = match done.passed_over.is_empty() {
        true => String::new(),
        false => format!("; newer but not whole: {:?}", done.passed_over),
    };
    let path = done.path.display();
    super::print(&match done.written {
        true => {
            let (bytes, copies) = (crate::text::bytes(done.bytes), done.from_partners);
            format!(
                "wrote {path}: step {}, {bytes} in {:.2} s, {copies} parts from second copies{passed}\n",
                done.step, done.seconds
            )
        }
        false => format!("{path} is on disk already{passed}\n"),
    })
}

/// `checkpoint.snapshot_dir` of the run.
fn configured(run: &Path) -> Result<PathBuf> {
    let path = RunDir::new(run).config();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && run.is_dir() => return Ok("/dev/shm".into()),
        Err(e) => return Err(Error::io(&path, "read", &e, Exit::Storage)),
    };
    let yaml: serde_yaml::Value =
        serde_yaml::from_str(&text).map_err(|e| Error::new(Exit::Config, format!("{}: {e}", path.display())))?;
    Ok(yaml["checkpoint"]["snapshot_dir"].as_str().unwrap_or("/dev/shm").into())
}

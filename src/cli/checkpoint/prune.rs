//! `herd checkpoint prune`

use super::places::{checkpoints_of, place, say, Place};
use crate::checkpoint::{prune_if, Checkpoint, Keep};
use crate::cli::progress::shown;
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::store::{self, UploadLedger};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Remove old checkpoints and what saves that died left behind. Never removes the only whole one, nor one that waits for
/// its upload.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint prune runs/demo --keep 2 --dry-run\n  herd checkpoint prune runs/demo --keep 2 --keep-every 1000 --keep-best\n  herd checkpoint prune s3://bucket/demo --keep 5"
)]
pub struct Args {
    /// A run directory, its `checkpoints`, or a URL.
    run: String,
    /// Newest whole checkpoints to keep.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    keep: u64,
    /// Keep also every checkpoint whose step is a multiple of this.
    #[arg(long, default_value_t = 0)]
    keep_every: u64,
    /// Keep also the one with the lowest validation loss.
    #[arg(long)]
    keep_best: bool,
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if let Place::Store(remote, _) = place(&args.run)? {
        if args.keep_every > 0 || args.keep_best {
            return Err(Error::new(Exit::Usage, "--keep-every and --keep-best are for run directories only")
                .hint("in an object store only the newest are kept: --keep"));
        }
        let whole = |step, meter: &Meter| match store::verify(&remote, step, meter) {
            Err(e) if e.exit == Exit::Store => Err(e),
            report => Ok(report.is_ok_and(|files| files.iter().all(|f| f.problem.is_none()))),
        };
        let keep = args.keep as usize;
        let steps = shown(|meter| store::retain(&remote, keep, args.dry_run, &mut |step| whole(step, meter)))?;
        let gone: Vec<PathBuf> = steps.iter().map(|s| remote.step_url(*s).into()).collect();
        return report(args, &gone, &[]);
    }
    let checkpoints = checkpoints_of(Path::new(&args.run))?;
    // Where the run has a store, what is not safe there stays here.
    // `.` and a link do not name the run, and a run's `checkpoints` may itself be a link elsewhere.
    let real = checkpoints.canonicalize().map_err(|e| Error::io(&checkpoints, "look at", &e, Exit::Checkpoint))?;
    let ledger = [checkpoints.parent(), real.parent()].into_iter().flatten().find_map(UploadLedger::read);
    let may_remove = |step| ledger.as_ref().is_none_or(|l| l.may_remove(step));
    let whole = |c: &Checkpoint, meter: &Meter| {
        meter.begin("verify", c.bytes());
        c.verify_metered(meter).iter().all(|f| f.problem.is_none())
    };
    let keep = Keep { newest: args.keep as usize, every: args.keep_every, best: args.keep_best, recycle: false };
    let gone = shown(|meter| prune_if(&checkpoints, keep, args.dry_run, &may_remove, &mut |c| whole(c, meter)))?;
    report(args, &gone.checkpoints, &gone.temporary)
}

fn report(args: &Args, checkpoints: &[PathBuf], temporary: &[PathBuf]) -> Result<()> {
    let word = if args.dry_run { "would remove" } else { "removed" };
    let all: Vec<_> = checkpoints.iter().chain(temporary).collect();
    let lines: String = all.iter().map(|p| format!("{word} {}\n", p.display())).collect();
    let value = json!({ "removed": !args.dry_run, "checkpoints": checkpoints, "temporary": temporary });
    say(args.json, value, if all.is_empty() { "nothing to remove\n" } else { &lines })
}

//! `herd checkpoint prune`

use super::places::{checkpoints_of, place, say, Place};
use crate::checkpoint::store::{self, Ledger};
use crate::checkpoint::{prune_if, Checkpoint};
use crate::error::Result;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Remove old checkpoints and what saves that died left behind. Never removes the only whole one, nor one that waits for
/// its upload.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint prune runs/demo --keep 2 --dry-run\n  herd checkpoint prune runs/demo --keep 2\n  herd checkpoint prune s3://bucket/demo --keep 5"
)]
pub struct Args {
    /// A run directory, its `checkpoints`, or a URL.
    run: String,
    /// Newest whole checkpoints to keep.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    keep: u64,
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if let Place::Store(remote, _) = place(&args.run)? {
        let steps = store::retain(&remote, args.keep as usize, args.dry_run)?;
        let gone: Vec<PathBuf> = steps.iter().map(|s| remote.step_url(*s).into()).collect();
        return report(args, &gone, &[]);
    }
    let checkpoints = checkpoints_of(Path::new(&args.run))?;
    // Where the run has a store, what is not safe there stays here.
    let ledger = checkpoints.parent().and_then(Ledger::read);
    let may_remove = |step| ledger.as_ref().is_none_or(|l| l.may_remove(step));
    let mut whole = |c: &Checkpoint| c.verify().iter().all(|f| f.problem.is_none());
    let gone = prune_if(&checkpoints, (args.keep as usize).into(), args.dry_run, &may_remove, &mut whole)?;
    report(args, &gone.checkpoints, &gone.temporary)
}

fn report(args: &Args, checkpoints: &[PathBuf], temporary: &[PathBuf]) -> Result<()> {
    let word = if args.dry_run { "would remove" } else { "removed" };
    let all: Vec<_> = checkpoints.iter().chain(temporary).collect();
    let lines: String = all.iter().map(|p| format!("{word} {}\n", p.display())).collect();
    let value = json!({ "removed": !args.dry_run, "checkpoints": checkpoints, "temporary": temporary });
    say(args.json, value, if all.is_empty() { "nothing to remove\n" } else { &lines })
}

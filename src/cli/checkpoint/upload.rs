//! `herd checkpoint upload`

use super::places::{checkpoints_of, is_step, say};
use crate::checkpoint::{list, newest_valid_alone};
use crate::cli::progress::shown;
use crate::config::StoreSection;
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::store::{persist_upload, Pace, Remote, UploadLedger, Uploaded, Way};
use crate::text;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Copy a checkpoint to an object store: files first, verified, then the manifest. What is there already is not sent again.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint upload runs/demo s3://bucket/demo\n  herd checkpoint upload runs/demo/checkpoints/step-00000200 gs://bucket/demo --bandwidth 100\n  herd checkpoint upload runs/demo file:///archive/demo --all"
)]
pub struct Args {
    /// A step directory, or a run directory (its newest whole checkpoint).
    from: PathBuf,
    /// Place of this run's checkpoints: s3://, gs://, az:// or file:///.
    url: String,
    /// Every valid checkpoint of the run, oldest first.
    #[arg(long)]
    all: bool,
    /// Most MiB per second; 0 sets no limit.
    #[arg(long, default_value_t = 0.0)]
    bandwidth: f64,
    /// Tries at one checkpoint.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: u32,
    /// One JSON array on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let remote = Remote::open(&args.url)?;
    let all = shown(|meter| upload_all(args, &remote, meter))?;
    let line = |done: &Uploaded| {
        let (all, sent) = (text::bytes(done.bytes), text::bytes(done.sent));
        format!("uploaded {}: {all}, {sent} of it now, verified after {:.1} s\n", done.url, done.seconds)
    };
    say(args.json, json!(all), &all.iter().map(line).collect::<String>())
}

fn upload_all(args: &Args, remote: &Remote, meter: &Meter) -> Result<Vec<Uploaded>> {
    let paths = checkpoints(args, meter)?;
    // Asked once without patience: a wrong bucket or key shows at once.
    remote.steps()?;
    let (mut pace, cancel) = (Pace::new(args.bandwidth), AtomicBool::new(false));
    let parallel = StoreSection::new(&args.url).parallel;
    let mut upload = |path: &PathBuf| {
        let mut way = Way { pace: &mut pace, parallel, cancel: &cancel, meter };
        let done = persist_upload(remote, path, args.attempts, &mut way).0?;
        remember(path, remote, done.step);
        Ok(done)
    };
    paths.iter().map(&mut upload).collect()
}

/// Oldest first, so that the newest is complete last and what is there in between is a prefix of the run.
fn checkpoints(args: &Args, meter: &Meter) -> Result<Vec<PathBuf>> {
    if is_step(&args.from) {
        return Ok(vec![args.from.clone()]);
    }
    let directory = checkpoints_of(&args.from)?;
    let found: Vec<PathBuf> = match args.all {
        true => list(&directory)?.into_iter().rev().filter(|(_, c)| c.is_ok()).map(|(path, _)| path).collect(),
        false => newest_valid_alone(&directory, meter, &mut |_| ())?.iter().map(|c| c.path().to_path_buf()).collect(),
    };
    match found.is_empty() {
        true => Err(Error::new(Exit::Checkpoint, format!("{} holds no whole checkpoint", directory.display()))
            .hint("`herd checkpoint verify` tells what is wrong with each")),
        false => Ok(found),
    }
}

/// Notes it in the run's ledger, if the run uploads to this very place.
fn remember(step_directory: &Path, remote: &Remote, step: u64) {
    let Some(run) = step_directory.parent().and_then(Path::parent) else { return };
    if let Some(mut ledger) = UploadLedger::read(run).filter(|l| l.url == remote.url()) {
        ledger.verified.insert(step);
        if let Err(e) = ledger.write(run) {
            tracing::warn!("{e}");
        }
    }
}

//! `herd checkpoint download`

use super::places::{place, say, steps_of, Place};
use crate::checkpoint::Checkpoint;
use crate::cli::progress::shown;
use crate::config::StoreSection;
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use crate::store::persist_fetch;
use crate::text;
use serde_json::json;
use std::path::PathBuf;

/// Copy a checkpoint from an object store into a run directory, verified before it gets its name.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint download s3://bucket/demo runs/demo\n  herd checkpoint download s3://bucket/demo runs/demo --step 200"
)]
pub struct Args {
    /// Place of a run's checkpoints, or one step of it: URL/step-NNNNNNNN.
    url: String,
    /// Run directory; the checkpoint goes to its `checkpoints`.
    run: PathBuf,
    /// The step to take instead of the newest.
    #[arg(long)]
    step: Option<u64>,
    /// Replace the run's checkpoint of the same step.
    #[arg(long)]
    replace: bool,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let Place::Store(remote, named) = place(&args.url)? else {
        return Err(Error::new(Exit::Usage, format!("{} is no URL", args.url))
            .hint("s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///path"));
    };
    let step = steps_of(&remote, args.step.or(named))?[0];
    let checkpoints = RunDir::new(&args.run).checkpoints();
    let path = checkpoints.join(format!("step-{step:08}"));
    if path.exists() && !args.replace {
        return Err(Error::new(Exit::Usage, format!("{} is there already", path.display()))
            .hint("pass --replace to put the store's in its place"));
    }
    let parallel = StoreSection::new(&args.url).parallel;
    let path = shown(|meter| persist_fetch(&remote, step, &checkpoints, parallel, meter))?
        .ok_or_else(|| Error::new(Exit::Checkpoint, format!("{} is gone", remote.step_url(step))))?;
    let bytes = Checkpoint::open(&path)?.bytes();
    let value = json!({ "path": path, "step": step, "bytes": bytes });
    say(args.json, value, &format!("downloaded {}: {}, verified\n", path.display(), text::bytes(bytes)))
}

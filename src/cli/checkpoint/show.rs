//! `herd checkpoint show`

use super::places::{one, place, steps_of, Place};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use serde_json::{json, Value};
use std::path::Path;

/// Show what a checkpoint says about itself, as JSON.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint show runs/demo/checkpoints/step-00000200\n  herd checkpoint show runs/demo --tensors\n  herd checkpoint show s3://bucket/demo/step-00000200"
)]
pub struct Args {
    /// A step directory, a run directory (its newest checkpoint), or a URL.
    path: String,
    /// List every tensor with its shape as well.
    #[arg(long)]
    tensors: bool,
    /// JSON is what this command prints anyway.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let c = match place(&args.path)? {
        Place::Step(path) => Checkpoint::open(&path)?,
        Place::Run(_) => one(Path::new(&args.path))?,
        Place::Store(remote, step) => remote.checkpoint(steps_of(&remote, step)?[0])?,
    };
    let files: Vec<Value> = c.file_names().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect();
    let tensors = c.tensors().count();
    let mut out = json!({
        "path": c.path(), "written": c.written(), "bytes": c.bytes(), "files": files, "tensors": tensors,
        "meta": c.meta(),
    });
    if args.tensors {
        let all = c.tensors().map(|(group, name, shape)| json!({ "group": group, "name": name, "shape": shape }));
        out["tensors"] = all.collect();
    }
    crate::cli::print(&format!("{out:#}\n"))
}

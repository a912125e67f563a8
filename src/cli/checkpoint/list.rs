//! `herd checkpoint list`

use super::places::{place, say, Place};
use crate::checkpoint::{list, Checkpoint};
use crate::error::Result;
use crate::store::Remote;
use crate::text;
use serde_json::{json, Value};
use std::path::Path;

/// List the checkpoints of a run or of an object store, newest first (sizes are checked, checksums are not: see `verify`).
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint list runs/demo\n  herd checkpoint list runs/demo --json\n  herd checkpoint list s3://bucket/demo"
)]
pub struct Args {
    /// A run directory, its `checkpoints`, or a URL.
    run: String,
    /// One JSON array on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let rows = match place(&args.run)? {
        Place::Step(path) => vec![row(&path, &Checkpoint::open(&path))],
        Place::Run(path) => list(&path)?.iter().map(|(path, c)| row(path, c)).collect(),
        Place::Store(remote, step) => remote_rows(&remote, step)?,
    };
    let mut out = format!("{:>10}  {:>9}  {:>5}  {:<20}  {}\n", "step", "size", "files", "written", "path");
    for r in &rows {
        let text = |key: &str| r[key].as_str().unwrap_or_default();
        out += &match r["valid"].as_bool() {
            Some(true) => {
                let (step, files) = (r["step"].as_u64().unwrap_or_default(), &r["files"]);
                let size = text::bytes(r["bytes"].as_u64().unwrap_or_default());
                let written = text("written").split('.').next().unwrap_or_default();
                format!("{step:>10}  {size:>9}  {files:>5}  {written:<20}  {}\n", text("path"))
            }
            _ => format!("{:>10}  {:>9}  {:>5}  {:<20}  {}\n", "-", "-", "-", "not valid", text("problem")),
        };
    }
    say(args.json, json!(rows), if rows.is_empty() { "no checkpoints\n" } else { &out })
}

fn row(path: &Path, c: &Result<Checkpoint>) -> Value {
    match c {
        Ok(c) => json!({
            "path": path, "valid": true, "step": c.meta().step, "tokens": c.meta().tokens, "bytes": c.bytes(),
            "files": c.file_names().count(), "written": c.written(),
        }),
        Err(e) => json!({ "path": path, "valid": false, "problem": e.fact }),
    }
}

fn remote_rows(remote: &Remote, step: Option<u64>) -> Result<Vec<Value>> {
    let steps = remote.steps()?;
    let wanted = steps.into_iter().filter(|s| step.is_none_or(|step| *s == step));
    wanted
        .map(|step| {
            let path = remote.step_url(step);
            match remote.checkpoint(step) {
                Err(e) if e.exit == crate::error::Exit::Store => Err(e),
                c => Ok(row(Path::new(&path), &c)),
            }
        })
        .collect()
}

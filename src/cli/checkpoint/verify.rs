//! `herd checkpoint verify`

use super::places::{place, say, steps_of, Place};
use crate::checkpoint::{list, Checkpoint, FileReport};
use crate::cli::progress::shown;
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::store;
use crate::text;
use serde_json::json;
use std::path::PathBuf;

/// Read every byte of one checkpoint, or of all of a run or an object store, and compare the checksums.
///
/// Ends with exit code 20 if any of them is not whole.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint verify runs/demo\n  herd checkpoint verify runs/demo/checkpoints/step-00000200 --json\n  herd checkpoint verify s3://bucket/demo"
)]
pub struct Args {
    /// A step directory, a run directory, or a URL.
    path: String,
    /// One JSON array on stdout.
    #[arg(long)]
    json: bool,
}

/// Where it is, and the report on its files, or why there is none.
type Checked = (String, Result<Vec<FileReport>>);

pub fn run(args: &Args) -> Result<()> {
    let place = place(&args.path)?;
    let all = shown(|meter| check(place, meter))?;
    let (mut rows, mut lines, mut damaged) = (Vec::new(), String::new(), 0);
    for (path, report) in &all {
        let (files, problem) = match report {
            Ok(files) => (&files[..], files.iter().find_map(|f| f.problem.clone())),
            Err(e) => (&[][..], Some(e.fact.clone())),
        };
        damaged += problem.is_some() as usize;
        lines += &match &problem {
            None => {
                let bytes = files.iter().map(|f| f.bytes).sum();
                format!("whole    {path}  ({} files, {})\n", files.len(), text::bytes(bytes))
            }
            Some(p) => format!("DAMAGED  {path}  {p}\n"),
        };
        rows.push(json!({ "path": path, "whole": problem.is_none(), "problem": problem, "files": files }));
    }
    say(args.json, json!(rows), &lines)?;
    match (all.len(), damaged) {
        (0, _) => Err(Error::new(Exit::Checkpoint, format!("{} holds no checkpoint", args.path))),
        (_, 0) => Ok(()),
        (n, d) => Err(Error::new(Exit::Checkpoint, format!("{d} of {n} checkpoints are not whole"))
            .hint("a resume uses the newest whole one")),
    }
}

fn check(place: Place, meter: &Meter) -> Result<Vec<Checked>> {
    match place {
        Place::Step(path) => {
            let opened = Checkpoint::open(&path);
            Ok(check_all(vec![(path, opened)], meter))
        }
        Place::Run(path) => Ok(check_all(list(&path)?, meter)),
        Place::Store(remote, step) => {
            let steps = steps_of(&remote, step)?;
            let check = |step: u64| match store::verify(&remote, step, meter) {
                Err(e) if e.exit == Exit::Store => Err(e),
                report => Ok((remote.step_url(step), report)),
            };
            steps.into_iter().map(check).collect()
        }
    }
}

fn check_all(opened: Vec<(PathBuf, Result<Checkpoint>)>, meter: &Meter) -> Vec<Checked> {
    let bytes: u64 = opened.iter().filter_map(|(_, c)| c.as_ref().ok()).map(Checkpoint::bytes).sum();
    meter.begin("verify", bytes);
    opened.into_iter().map(|(p, c)| (p.display().to_string(), c.map(|c| c.verify_metered(meter)))).collect()
}

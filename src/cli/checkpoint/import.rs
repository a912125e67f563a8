//! `herd checkpoint import`

use super::places::{human, say};
use crate::checkpoint::list;
use crate::cli::progress::shown;
use crate::convert::{hf, weights};
use crate::error::{Error, Exit, Result};
use serde_json::json;
use std::path::PathBuf;

/// Turn a Hugging Face directory, or one of Meta's originals, into step 0 of a new run, in a form that every topology can
/// load.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint import hf/Llama-3.2-1B runs/llama1b\n  herd checkpoint import Meta-Llama-3-70B/original runs/llama70b"
)]
pub struct Args {
    /// A directory with config.json and *.safetensors, or with params.json and consolidated.*.pth.
    from: PathBuf,
    /// Run directory; must hold no checkpoint yet.
    run: PathBuf,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let checkpoints = args.run.join("checkpoints");
    if let Some((path, _)) = list(&checkpoints)?.first() {
        return Err(Error::new(
            Exit::Usage,
            format!("{} has checkpoints already, {}", args.run.display(), path.display()),
        )
        .hint("import into a new run directory"));
    }
    let saved = shown(|meter| hf::import(&weights::open_metered(&args.from, meter)?, &checkpoints, meter))?;
    let (path, bytes, seconds) = (saved.path.display(), human(saved.bytes), saved.seconds);
    say(args.json, json!(saved), &format!("imported {path}: {bytes} in {seconds:.1} s\n"))
}

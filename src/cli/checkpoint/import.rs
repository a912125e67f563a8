//! `herd checkpoint import`

use super::places::say;
use crate::checkpoint::list;
use crate::cli::progress::shown;
use crate::convert::gguf::{is_gguf, tokenizer_of};
use crate::convert::hf::{Dtype, ExportOptions};
use crate::convert::{hf, weights};
use crate::durable::{refused, write_synced};
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use crate::text;
use serde_json::json;
use std::path::PathBuf;

/// Turn a Hugging Face directory, or one of Meta's originals, into step 0 of a new run, in a form that every topology can
/// load; or a GGUF file into a Hugging Face directory, with its tokenizer and chat template.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint import hf/Llama-3.2-1B runs/llama1b\n  herd checkpoint import Meta-Llama-3-70B/original runs/llama70b\n  herd checkpoint import SmolLM2-135M-Instruct.Q4_1.gguf hf/SmolLM2"
)]
pub struct Args {
    /// A directory with config.json and *.safetensors, or with params.json and consolidated.*.pth; or a GGUF file.
    from: PathBuf,
    /// Run directory; must hold no checkpoint yet. For a GGUF file: directory to write, absent or empty.
    run: PathBuf,
    /// Type of the weights that are written of a GGUF file. Default: fp32, which holds every dequantized value. A run has fp32.
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if is_gguf(&args.from) {
        return import_gguf(args);
    }
    if args.dtype.is_some() {
        return Err(Error::new(Exit::Usage, "--dtype is for GGUF files; a run's weights are fp32").hint("leave it out"));
    }
    let checkpoints = RunDir::new(&args.run).checkpoints();
    if let Some((path, _)) = list(&checkpoints)?.first() {
        return Err(Error::new(
            Exit::Usage,
            format!("{} has checkpoints already, {}", args.run.display(), path.display()),
        )
        .hint("import into a new run directory"));
    }
    let saved = shown(|meter| hf::import(&weights::open_metered(&args.from, meter)?, &checkpoints, meter))?;
    let (path, bytes, seconds) = (saved.path.display(), text::bytes(saved.bytes), saved.seconds);
    say(args.json, json!(saved), &format!("imported {path}: {bytes} in {seconds:.1} s\n"))
}

/// The file's weights dequantized, its tokenizer and template as files beside them.
fn import_gguf(args: &Args) -> Result<()> {
    let tokenizer = tokenizer_of(&args.from)?;
    let beside = std::env::temp_dir().join(format!("herd-gguf-{}", std::process::id()));
    std::fs::create_dir_all(&beside).map_err(refused(&beside, "create"))?;
    let write = || tokenizer.iter().try_for_each(|(name, content)| write_synced(&beside.join(name), content));
    let dtype = args.dtype.unwrap_or(Dtype::Fp32);
    let done = write().and_then(|()| {
        shown(|meter| {
            let weights = weights::open_metered(&args.from, meter)?;
            let tokenizer = Some(beside.clone());
            hf::export(
                &weights,
                &args.run,
                &ExportOptions { dtype, shard_size: 5 << 30, tokenizer, meter: meter.clone() },
            )
        })
    });
    let _ = std::fs::remove_dir_all(&beside);
    let done = done?;
    let (path, bytes) = (done.path.display(), text::bytes(done.bytes));
    say(
        args.json,
        json!(done),
        &format!("imported {path}: {bytes} of {}, {}\n", dtype.torch(), done.tokenizer.join(", ")),
    )
}

//! `herd checkpoint export`

use super::places::say;
use crate::cli::progress::shown;
use crate::convert::hf::{self, Dtype, ExportOptions};
use crate::convert::weights;
use crate::error::Result;
use crate::text;
use serde_json::json;
use std::path::PathBuf;

/// Write a model in Hugging Face's layout (config.json, safetensors, tokenizer), adapters merged in fp32 and rounded once; or adapters
/// alone in PEFT's form.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint export runs/demo hf/demo --dtype bf16\n  herd checkpoint export runs/demo/checkpoints/step-00000200 hf/step200 --dtype fp32 --max-shard-size 2GB\n  herd checkpoint export runs/lora hf/adapter --adapter"
)]
pub struct Args {
    /// A step directory, a run directory (its newest whole checkpoint), or a Hugging Face, Meta or PEFT directory to convert.
    from: PathBuf,
    /// Directory to write; must be absent or empty.
    to: PathBuf,
    /// Type of the weights. Default: bf16; of adapters fp32.
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Write the adapters alone (adapter_config.json, adapter_model.safetensors).
    #[arg(long, conflicts_with_all = ["tokenizer", "max_shard_size"])]
    adapter: bool,
    /// Largest size of one safetensors file: a number with KB, MB or GB (powers of 1000).
    #[arg(long, alias = "shard-size", default_value = "5GB", value_parser = size)]
    max_shard_size: u64,
    /// `bytes`, a tokenizer.json, a tokenizer.model or a directory that holds one, to export instead of the one the run
    /// used.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// One JSON object on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let dtype = args.dtype.unwrap_or(if args.adapter { Dtype::Fp32 } else { Dtype::Bf16 });
    let (shard_size, tokenizer) = (args.max_shard_size, args.tokenizer.clone());
    let done = shown(|meter| {
        let weights = weights::open_metered(&args.from, meter)?;
        let options = ExportOptions { dtype, shard_size, tokenizer, meter: meter.clone() };
        match args.adapter {
            true => hf::export_adapter(&weights, &args.to, &options),
            false => hf::export(&weights, &args.to, &options),
        }
    })?;
    let tokenizer = match &done.no_tokenizer {
        None if args.adapter => "in PEFT's form".into(),
        Some(why) => format!("no tokenizer: {why} (pass --tokenizer)"),
        None => done.tokenizer.join(", "),
    };
    let (path, bytes, shards) = (done.path.display(), text::bytes(done.bytes), done.shards);
    let line = format!("exported {path}: {bytes} of {} in {shards} safetensors, {tokenizer}\n", dtype.torch());
    say(args.json, json!(done), &line)
}

fn size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        other => return Err(format!("unknown unit {other:?}; KB, MB or GB")),
    };
    match digits.trim().parse::<f64>() {
        Ok(n) if n > 0.0 && n * factor < 1e18 => Ok((n * factor).max(1.0) as u64),
        _ => Err(format!("{digits:?} is not a positive number")),
    }
}

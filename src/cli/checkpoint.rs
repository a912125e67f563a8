//! `herd checkpoint`: look at checkpoints, check them, convert them, remove old ones.

use crate::checkpoint::hf::{self, Dtype, ExportOptions};
use crate::checkpoint::{list, prune_if, weights, Checkpoint, FileReport};
use crate::error::{Error, Exit, Result};
use clap::Subcommand;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  herd checkpoint list runs/demo
  herd checkpoint verify runs/demo
  herd checkpoint show runs/demo/checkpoints/step-00000200
  herd checkpoint export runs/demo hf/demo --dtype bf16
  herd checkpoint import hf/Llama-3.2-1B runs/llama1b
  herd checkpoint prune runs/demo --keep 2 --dry-run";

/// List, show, verify, export, import or prune checkpoints.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(ListArgs),
    Show(ShowArgs),
    Verify(VerifyArgs),
    Export(ExportArgs),
    Import(ImportArgs),
    Prune(PruneArgs),
    Flush(super::flush::Args),
}

/// List the checkpoints of a run, newest first (sizes are checked, checksums are not: see `verify`).
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  herd checkpoint list runs/demo\n  herd checkpoint list runs/demo --json")]
struct ListArgs {
    /// A run directory, or its `checkpoints`.
    run: PathBuf,
    /// One JSON array on stdout.
    #[arg(long)]
    json: bool,
}

/// Show what a checkpoint says about itself, as JSON.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint show runs/demo/checkpoints/step-00000200\n  herd checkpoint show runs/demo --tensors"
)]
struct ShowArgs {
    /// A step directory, or a run directory (its newest checkpoint).
    path: PathBuf,
    /// List every tensor with its shape as well.
    #[arg(long)]
    tensors: bool,
}

/// Read every byte of one checkpoint, or of all of a run, and compare the checksums.
///
/// Ends with exit code 20 if any of them is not whole.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint verify runs/demo\n  herd checkpoint verify runs/demo/checkpoints/step-00000200 --json"
)]
struct VerifyArgs {
    /// A step directory, or a run directory.
    path: PathBuf,
    /// One JSON array on stdout.
    #[arg(long)]
    json: bool,
}

/// Write a model in Hugging Face's layout (config.json, safetensors, tokenizer).
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint export runs/demo hf/demo --dtype bf16\n  herd checkpoint export runs/demo/checkpoints/step-00000200 hf/step200 --dtype fp32 --shard-size 2GB"
)]
struct ExportArgs {
    /// A step directory, a run directory (its newest whole checkpoint), or a Hugging Face directory to convert.
    from: PathBuf,
    /// Directory to write; must be absent or empty.
    to: PathBuf,
    /// Type of the weights.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
    /// Largest size of one safetensors file: a number with KB, MB or GB (powers of 1000).
    #[arg(long, default_value = "5GB", value_parser = size)]
    shard_size: u64,
    /// `bytes`, a tokenizer.json or a tokenizer.model to export instead of the one the run used.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
}

/// Turn a Hugging Face directory into step 0 of a new run, in a form that every topology can load.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  herd checkpoint import hf/Llama-3.2-1B runs/llama1b")]
struct ImportArgs {
    /// A directory with config.json and *.safetensors.
    from: PathBuf,
    /// Run directory; must hold no checkpoint yet.
    run: PathBuf,
}

/// Remove old checkpoints and what saves that died left behind. Never removes the only whole one.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  herd checkpoint prune runs/demo --keep 2 --dry-run\n  herd checkpoint prune runs/demo --keep 2"
)]
struct PruneArgs {
    /// A run directory, or its `checkpoints`.
    run: PathBuf,
    /// Newest whole checkpoints to keep.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    keep: u64,
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::List(a) => print_list(&a),
        Command::Show(a) => show(&a),
        Command::Verify(a) => verify(&a),
        Command::Export(a) => export(&a),
        Command::Import(a) => import(&a),
        Command::Prune(a) => prune(&a),
        Command::Flush(a) => super::flush::run(&a),
    }
}

fn print_list(args: &ListArgs) -> Result<()> {
    let all = list(&checkpoints_of(&args.run)?)?;
    if args.json {
        let rows: Vec<Value> = all.iter().map(|(path, c)| row(path, c)).collect();
        return super::print(&format!("{:#}\n", json!(rows)));
    }
    let mut out = format!("{:>10}  {:>9}  {:>5}  {:<20}  {}\n", "step", "size", "files", "written", "path");
    for (path, c) in &all {
        out += &match c {
            Ok(c) => {
                let (step, size, files) = (c.meta().step, human(c.bytes()), c.file_names().count());
                let written = c.written().split('.').next().unwrap_or_default();
                format!("{step:>10}  {size:>9}  {files:>5}  {written:<20}  {}\n", path.display())
            }
            Err(e) => format!("{:>10}  {:>9}  {:>5}  {:<20}  {}\n", "-", "-", "-", "not valid", e.fact),
        };
    }
    super::print(if all.is_empty() { "no checkpoints\n" } else { &out })
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

fn show(args: &ShowArgs) -> Result<()> {
    let c = one(&args.path)?;
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
    super::print(&format!("{out:#}\n"))
}

fn verify(args: &VerifyArgs) -> Result<()> {
    let all = match is_step(&args.path) {
        true => vec![(args.path.clone(), Checkpoint::open(&args.path))],
        false => list(&checkpoints_of(&args.path)?)?,
    };
    let (mut rows, mut lines, mut damaged) = (Vec::new(), String::new(), 0);
    for (path, c) in &all {
        let (files, problem) = match c {
            Ok(c) => {
                let files = c.verify();
                let first = files.iter().find_map(|f| f.problem.clone());
                (files, first)
            }
            Err(e) => (Vec::<FileReport>::new(), Some(e.fact.clone())),
        };
        damaged += problem.is_some() as usize;
        lines += &match &problem {
            None => {
                let bytes = files.iter().map(|f| f.bytes).sum();
                format!("whole    {}  ({} files, {})\n", path.display(), files.len(), human(bytes))
            }
            Some(p) => format!("DAMAGED  {}  {p}\n", path.display()),
        };
        rows.push(json!({ "path": path, "whole": problem.is_none(), "problem": problem, "files": files }));
    }
    super::print(&if args.json { format!("{:#}\n", json!(rows)) } else { lines })?;
    match (all.len(), damaged) {
        (0, _) => Err(Error::new(Exit::Checkpoint, format!("{} holds no checkpoint", args.path.display()))),
        (_, 0) => Ok(()),
        (n, d) => Err(Error::new(Exit::Checkpoint, format!("{d} of {n} checkpoints are not whole"))
            .hint("a resume uses the newest whole one")),
    }
}

fn export(args: &ExportArgs) -> Result<()> {
    let weights = weights::open(&args.from)?;
    let options = ExportOptions { dtype: args.dtype, shard_size: args.shard_size, tokenizer: args.tokenizer.clone() };
    let done = hf::export(&weights, &args.to, &options)?;
    let tokenizer = match done.tokenizer.is_empty() {
        true if weights.tokenizer().is_empty() => "no tokenizer (pass --tokenizer)".to_string(),
        true => format!("no tokenizer: {} is gone (pass --tokenizer)", weights.tokenizer()),
        false => done.tokenizer.join(", "),
    };
    let (path, bytes, shards) = (done.path.display(), human(done.bytes), done.shards);
    super::print(&format!("exported {path}: {bytes} of {} in {shards} safetensors, {tokenizer}\n", args.dtype.torch()))
}

fn import(args: &ImportArgs) -> Result<()> {
    let checkpoints = args.run.join("checkpoints");
    if let Some((path, _)) = list(&checkpoints)?.first() {
        return Err(Error::new(
            Exit::Usage,
            format!("{} has checkpoints already, {}", args.run.display(), path.display()),
        )
        .hint("import into a new run directory"));
    }
    let weights = weights::open(&args.from)?;
    let saved = hf::import(&weights, &checkpoints)?;
    let (path, bytes, seconds) = (saved.path.display(), human(saved.bytes), saved.seconds);
    super::print(&format!("imported {path}: {bytes} in {seconds:.1} s\n"))
}

fn prune(args: &PruneArgs) -> Result<()> {
    let mut whole = |c: &Checkpoint| c.verify().iter().all(|f| f.problem.is_none());
    let gone = prune_if(&checkpoints_of(&args.run)?, (args.keep as usize).into(), args.dry_run, &mut whole)?;
    let word = if args.dry_run { "would remove" } else { "removed" };
    let all: Vec<_> = gone.checkpoints.iter().chain(&gone.temporary).collect();
    let lines: String = all.iter().map(|p| format!("{word} {}\n", p.display())).collect();
    super::print(if all.is_empty() { "nothing to remove\n" } else { &lines })
}

fn is_step(path: &Path) -> bool {
    let named = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"));
    named || path.join("manifest.json").exists()
}

/// The checkpoint at a step directory, or the newest of a run that opens.
fn one(path: &Path) -> Result<Checkpoint> {
    if is_step(path) {
        return Checkpoint::open(path);
    }
    let newest = list(&checkpoints_of(path)?)?.into_iter().find_map(|(_, c)| c.ok());
    newest.ok_or_else(|| Error::new(Exit::Checkpoint, format!("{} holds no valid checkpoint", path.display())))
}

/// `RUN/checkpoints`, or the path itself if it is that directory.
fn checkpoints_of(run: &Path) -> Result<PathBuf> {
    if !run.is_dir() {
        return Err(Error::new(Exit::Checkpoint, format!("there is no directory {}", run.display()))
            .hint("give a run directory, or its `checkpoints`"));
    }
    let inside = run.join("checkpoints");
    Ok(if inside.is_dir() { inside } else { run.to_path_buf() })
}

/// Bytes for a person, powers of 1000.
fn human(bytes: u64) -> String {
    match bytes as f64 {
        b if b >= 1e12 => format!("{:.2} TB", b / 1e12),
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} kB", b / 1e3),
    }
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

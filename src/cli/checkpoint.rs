//! `herd checkpoint`: look at checkpoints, check and compare them, convert them, copy them, remove old ones. One file a verb.

mod diff;
mod download;
mod export;
mod import;
mod list;
mod places;
mod prune;
mod show;
mod upload;
mod verify;

use crate::error::Result;
use clap::Subcommand;

const EXAMPLES: &str = "\
Examples:
  herd checkpoint list runs/demo
  herd checkpoint verify runs/demo
  herd checkpoint show runs/demo/checkpoints/step-00000200
  herd checkpoint diff runs/demo runs/other
  herd checkpoint export runs/demo hf/demo --dtype bf16
  herd checkpoint import hf/Llama-3.2-1B runs/llama1b
  herd checkpoint upload runs/demo s3://bucket/demo
  herd checkpoint download s3://bucket/demo runs/demo
  herd checkpoint prune runs/demo --keep 2 --dry-run

A URL is s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///path. Credentials come from the
environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS,
AZURE_STORAGE_ACCOUNT_NAME, ...) or the usual files.";

/// List, show, verify, compare, export, import, upload, download or prune checkpoints.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(list::Args),
    Show(show::Args),
    Verify(verify::Args),
    Diff(diff::Args),
    Export(export::Args),
    Import(import::Args),
    Upload(upload::Args),
    Download(download::Args),
    Prune(prune::Args),
    Flush(super::flush::Args),
}

pub fn run(args: Args) -> Result<()> {
    super::logging::init(true, None)?;
    match args.command {
        Command::List(a) => list::run(&a),
        Command::Show(a) => show::run(&a),
        Command::Verify(a) => verify::run(&a),
        Command::Diff(a) => diff::run(&a),
        Command::Export(a) => export::run(&a),
        Command::Import(a) => import::run(&a),
        Command::Upload(a) => upload::run(&a),
        Command::Download(a) => download::run(&a),
        Command::Prune(a) => prune::run(&a),
        Command::Flush(a) => super::flush::run(&a),
    }
}

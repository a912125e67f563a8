//! `herd completions`: completion scripts for shells.

use super::Cli;
use crate::error::Result;
use clap::CommandFactory;
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  herd completions bash > ~/.local/share/bash-completion/completions/herd
  herd completions zsh > ~/.zfunc/_herd
  herd completions fish > ~/.config/fish/completions/herd.fish";

/// Print a completion script for a shell.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    shell: Shell,
}

pub fn run(args: Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "herd", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}

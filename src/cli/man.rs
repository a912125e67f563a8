//! `herd man`: manual pages, made from the same definitions as the help.

use super::Cli;
use crate::error::{Error, Exit, Result};
use clap::CommandFactory;
use clap_mangen::roff::{roman, Roff};
use clap_mangen::Man;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  herd man | man -l -
  herd man ~/.local/share/man/man1";

/// Print the manual page, or write one page per command into a directory.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Directory for herd.1, herd-config.1, …; created if absent. Default: print herd.1.
    dir: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    let mut root = Cli::command();
    root.build();
    match args.dir {
        None => super::print(&page(root, "herd")),
        Some(dir) => {
            std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, "create", &e, Exit::Storage))?;
            write_all(&root, "herd", &dir)
        }
    }
}

/// The page of `command` and, below it, one page for each of its subcommands.
fn write_all(command: &clap::Command, name: &str, dir: &Path) -> Result<()> {
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page(command.clone(), name)).map_err(|e| Error::io(&path, "write", &e, Exit::Storage))?;
    command.get_subcommands().try_for_each(|sub| write_all(sub, &format!("{name}-{}", sub.get_name()), dir))
}

fn page(command: clap::Command, name: &str) -> String {
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let man = Man::new(command.disable_help_subcommand(true).after_help("")).title(name.to_uppercase());
    let mut out = Vec::new();
    // Writing to memory cannot fail.
    let _ = man.render(&mut out);
    let _ = example_section(&examples).to_writer(&mut out);
    let _ = exit_section().to_writer(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// The `Examples:` of the help as a section whose lines stay as they are.
fn example_section(text: &str) -> Roff {
    let mut roff = Roff::new();
    if !text.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
        roff.control("nf", []);
        text.trim_start_matches("Examples:\n").lines().for_each(|line| {
            roff.text([roman(line)]);
        });
        roff.control("fi", []);
    }
    roff
}

fn exit_section() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (exit, meaning, action) in Exit::TABLE {
        roff.control("TP", []);
        roff.text([clap_mangen::roff::bold(exit.code().to_string())]);
        roff.text([roman(format!("{meaning}: {action}"))]);
    }
    roff
}

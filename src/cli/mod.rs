//! Arguments, one file per command, exit codes, human output.
//!
//! Each command is a module with `Args` and `run(Args) -> Result<()>`. Results go to stdout, everything else to stderr;
//! an error prints as `herd: error: <fact> (hint: …)` and ends the process with its [`Exit`] code.

mod batch;
mod checkpoint;
mod completions;
mod config;
mod data;
mod devices;
mod doctor;
mod drill;
mod engine;
mod eval;
mod exit_codes;
mod flush;
mod generate;
mod init;
mod launch;
pub mod logging;
mod man;
mod outcome;
mod plan;
mod progress;
mod report;
mod serve;
mod simulate;
mod status;
mod tell;
mod train;
mod version;

use crate::error::{Error, Exit, Result};
use crate::exit_record;
use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  herd config check configs/llama3_demo.yaml
  srun --mpi=pmix herd train configs/llama3_demo.yaml
  herd help exit-codes

Exit codes are an interface for scripts: `herd help exit-codes` lists them.";

/// Train and run Llama 3 on Slurm clusters: one native binary, started by srun.
#[derive(Parser)]
#[command(name = "herd", version, long_version = version::long(), after_help = EXAMPLES)]
#[command(disable_help_subcommand = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Args),
    Init(init::Args),
    Launch(launch::Args),
    Status(status::Args),
    Report(report::Args),
    Doctor(doctor::Args),
    Drill(drill::Args),
    Checkpoint(checkpoint::Args),
    Config(config::Args),
    Plan(plan::Args),
    Simulate(simulate::Args),
    Data(data::Args),
    Generate(generate::Args),
    Batch(batch::Args),
    Eval(eval::Args),
    Serve(serve::Args),
    Completions(completions::Args),
    Man(man::Args),
    Help(HelpArgs),
}

/// Print help for a command or a topic (`exit-codes`, `events`).
#[derive(clap::Args)]
struct HelpArgs {
    /// A command, its subcommand, `exit-codes`, or `events`: the lines of events.jsonl.
    #[arg(value_name = "TOPIC")]
    topic: Vec<String>,
}

/// Runs the command line of this process; the returned code is one of [`Exit`].
pub fn run() -> ExitCode {
    outcome::install_panic_hook();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // Help and version are "errors" for clap too; a closed pipe is no reason to complain about either.
            let _ = usage.print();
            if usage.use_stderr() {
                let fact = usage.to_string().lines().next().unwrap_or_default().to_string();
                exit_record::write(&Error::new(Exit::Usage, fact));
            }
            return outcome::exit_code(if usage.use_stderr() { Exit::Usage } else { Exit::Ok });
        }
    };
    let result = match cli.command {
        Command::Checkpoint(a) => checkpoint::run(a),
        Command::Train(a) => train::run(a),
        Command::Init(a) => init::run(a),
        Command::Launch(a) => launch::run(a),
        Command::Status(a) => status::run(a),
        Command::Report(a) => report::run(a),
        Command::Doctor(a) => doctor::run(a),
        Command::Drill(a) => drill::run(a),
        Command::Config(a) => config::run(a),
        Command::Plan(a) => plan::run(a),
        Command::Simulate(a) => simulate::run(a),
        Command::Data(a) => data::run(a),
        Command::Generate(a) => generate::run(a),
        Command::Batch(a) => batch::run(a),
        Command::Eval(a) => eval::run(a),
        Command::Serve(a) => serve::run(a),
        Command::Completions(a) => completions::run(a),
        Command::Man(a) => man::run(a),
        Command::Help(a) => help(&a.topic),
    };
    outcome::finish(result)
}

/// Writes `text` to stdout. A reader that closed the pipe early (`herd … | head`) ends the process quietly.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(Exit::Ok.code()),
        Err(e) => Err(Error::io(std::path::Path::new("standard output"), "write to", &e, Exit::Storage)),
        Ok(()) => Ok(()),
    }
}

fn help(topic: &[String]) -> Result<()> {
    match topic {
        [topic] if topic == "exit-codes" => return print(&exit_codes::table()),
        [topic] if topic == "events" => return print(&crate::events::markdown()),
        _ => {}
    }
    // What `herd TOPIC --help` prints, in the same layout.
    let line = ["herd"].into_iter().chain(topic.iter().map(String::as_str)).chain(["--help"]);
    match Cli::command().try_get_matches_from(line) {
        Err(e) if !e.use_stderr() => print(&e.render().to_string()),
        _ => Err(Error::new(Exit::Usage, format!("no help on `{}`", topic.join(" "))).hint(
            "`herd help` lists the commands; `herd help exit-codes` the exit codes, `herd help events` the events",
        )),
    }
}

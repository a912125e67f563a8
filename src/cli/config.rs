//! `herd config`: check a configuration, print it resolved, print its schema.

use crate::error::Result;
use clap::Subcommand;

/// Check a configuration, print it with its defaults, or print the schema of its keys.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Schema(SchemaArgs),
}

/// Print the JSON Schema of a configuration, for editors.
#[derive(clap::Args)]
struct SchemaArgs {}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Schema(_) => schema(),
    }
}

fn schema() -> Result<()> {
    let schema = schemars::schema_for!(crate::config::Config);
    super::print(&format!("{:#}\n", schema.as_value()))
}

//! `herd data`: text and conversations into indexed token files, and a look into them.

mod chat;
mod claim;
mod inspect;
mod merge;
mod tokenize;

use crate::error::Result;
use clap::Subcommand;

/// Make and look into token files.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  herd data tokenize --tokenizer bytes --output data/corpus text/*.txt
  herd data chat --tokenizer Llama-3.1-8B-Instruct --output data/sft train.jsonl
  herd data inspect data/corpus --show 40
  herd data merge --output data/all data/corpus data/more")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Tokenize(tokenize::Args),
    Chat(chat::Args),
    Inspect(inspect::Args),
    Merge(merge::Args),
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Tokenize(a) => tokenize::run(a),
        Command::Chat(a) => chat::run(a),
        Command::Inspect(a) => inspect::run(a),
        Command::Merge(a) => merge::run(a),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn grouping() {
        let of = |n| crate::text::grouped(n);
        assert_eq!([of(0), of(999), of(1000), of(1234567)], ["0", "999", "1,000", "1,234,567"]);
    }
}

//! `herd data tokenize`.

mod around;
pub(super) mod outputs;
pub(super) mod report;

use crate::cli::print;
use crate::data::indexed::TokenizerNote;
use crate::data::pipeline::{self, BatchJob, TextEncoder};
use crate::data::source::{Format, SourceRules, Split};
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use around::Around;
use outputs::{Outputs, Wanted};
use std::path::{Path, PathBuf};
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  herd data tokenize --tokenizer bytes --output data/books --holdout 0.05 --split-documents blank-lines books/*.txt
  herd data tokenize --tokenizer Llama-3.1-8B/tokenizer.json --output data/web shard-*.jsonl.zst
  herd data tokenize --tokenizer tokenizer.json --eos '<|end_of_text|>' --output data/fineweb fineweb/*.parquet
  xz -dc dump.xz | herd data tokenize --tokenizer tokenizer.model --output data/dump --text-key title --text-key meta.body -

Writes PREFIX.bin and PREFIX.idx, which Megatron-LM reads as well, and PREFIX.json, which says how they were made.";

/// Turn text into an indexed token file.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Text, JSON rows or Parquet, text and JSON also in gzip or zstd; `-` reads standard input.
    #[arg(required = true, value_name = "FILE")]
    inputs: Vec<String>,
    /// `bytes`, a Hugging Face tokenizer.json, a tiktoken tokenizer.model, or a directory that holds one.
    #[arg(long, short)]
    tokenizer: String,
    /// Path of the result without its ending; with --holdout, _train and _validation are appended to it.
    #[arg(long, short, value_name = "PREFIX")]
    output: PathBuf,
    /// Format of the inputs.
    #[arg(long, value_enum, default_value = "auto")]
    format: Format,
    /// Key of the text in a JSON row, or column of Parquet; `a.b` is b inside a. Given several times, the texts are joined by
    /// a blank line. Default: text
    #[arg(long, value_name = "KEY")]
    text_key: Vec<String>,
    /// Where a document of plain text ends. Default: file
    #[arg(long, value_enum)]
    split_documents: Option<Split>,
    /// Share of documents to hold out for validation, by a hash of their text; of a single document, its tail.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    holdout: f64,
    /// Special token to put before each document, by its name. Default: what the tokenizer itself puts before a text (its
    /// post-processor)
    #[arg(long, value_name = "TOKEN", conflicts_with = "no_bos")]
    bos: Option<String>,
    /// Put nothing before a document, whatever the tokenizer's own rule is.
    #[arg(long)]
    no_bos: bool,
    /// Special token to append to each document, by its name. Default: the tokenizer's end of text
    #[arg(long, value_name = "TOKEN", conflicts_with = "no_eos")]
    eos: Option<String>,
    /// Do not append the tokenizer's end-of-text id to each document.
    #[arg(long)]
    no_eos: bool,
    /// Leave out documents that are no UTF-8 or no JSON with the key, and count them.
    #[arg(long)]
    skip_bad: bool,
    /// Encoding threads; 0 takes one a core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Replace existing files.
    #[arg(long)]
    force: bool,
}

pub fn run(args: Args) -> Result<()> {
    pipeline::check_holdout(args.holdout)?;
    let tokenizer = Tokenizer::open(&args.tokenizer)?;
    let Around { front, eos, says } = Around::new(&args, &tokenizer)?;
    let total = stored_size(&args.inputs)?;
    let mut outputs = Outputs::create(&wanted(&args), tokenizer.vocab_size())?;
    let encoder = TextEncoder { tokenizer: &tokenizer, front, eos };

    let rules = SourceRules {
        format: args.format,
        split: args.split_documents.unwrap_or(Split::File),
        text_keys: if args.text_key.is_empty() { vec!["text".into()] } else { args.text_key.clone() },
        skip_bad: args.skip_bad,
    };
    let meter = Meter::default();
    let job = BatchJob {
        inputs: &args.inputs,
        rules: &rules,
        encoder: &encoder,
        holdout: args.holdout,
        threads: threads(args.threads),
        consumed: meter.counter(),
    };
    let began = Instant::now();
    meter.begin("tokenize", total);
    let accounts = outputs.fill(&job, &meter, |_| {})?;

    let front = encoder.front.iter().map(|m| m.id).collect();
    let note = TokenizerNote::of(&tokenizer, front, encoder.eos.as_ref().map(|m| m.id));
    let written = outputs.finish(&wanted(&args), note, None, &accounts)?;
    report::warn(&accounts);
    print(&report::text(&accounts, &written, &args, &says, began.elapsed()))
}

fn wanted(args: &Args) -> Wanted<'_> {
    let Args { inputs, tokenizer, output, holdout, force, .. } = args;
    Wanted {
        inputs,
        tokenizer,
        output,
        holdout: *holdout,
        force: *force,
        masked: false,
        hint: "--text-key names the key of the text",
    }
}

/// Threads that were asked for; 0 is one a core.
pub(super) fn threads(asked: usize) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    }
}

/// Bytes of all inputs as stored; `None` where one is a stream. Finds a missing file before any work is done.
pub(super) fn stored_size(inputs: &[String]) -> Result<Option<u64>> {
    let mut total = Some(0);
    for name in inputs {
        let size = match name.as_str() {
            "-" => None,
            name => {
                let path = Path::new(name);
                let m = std::fs::metadata(path).map_err(|e| Error::io(path, "read", &e, Exit::Data))?;
                m.is_file().then_some(m.len())
            }
        };
        total = total.zip(size).map(|(a, b)| a + b);
    }
    Ok(total)
}

//! `herd data tokenize`.

use super::grouped;
use crate::cli::print;
use crate::data::indexed::{prefix_of, with_ending, Sidecar, TokenizerNote, Writer, Written};
use crate::data::pipeline::{self, Encoded, Job, Part};
use crate::data::source::{Format, Rules, Split};
use crate::data::tokenizer::Bos;
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  herd data tokenize --tokenizer bytes --output data/books --holdout 0.05 --split-documents blank-lines books/*.txt
  herd data tokenize --tokenizer Llama-3.1-8B/tokenizer.json --output data/web shard-*.jsonl.zst
  zcat dump.gz | herd data tokenize --tokenizer tokenizer.model --output data/dump --format jsonl --text-key body -

Writes PREFIX.bin and PREFIX.idx, which Megatron-LM reads as well, and PREFIX.json, which says how they were made.";

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Turn text into an indexed token file.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Text or JSONL, plain, gzip or zstd; `-` reads standard input.
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
    /// Key of the text in each JSON line.
    #[arg(long, value_name = "KEY", default_value = "text")]
    text_key: String,
    /// Where a document of plain text ends.
    #[arg(long, value_enum, default_value = "file")]
    split_documents: Split,
    /// Share of documents to hold out for validation, by a hash of their text; of a single document, its tail.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    holdout: f64,
    /// Do not append the tokenizer's end-of-text id to each document.
    #[arg(long)]
    no_eos: bool,
    /// Put the tokenizer's beginning-of-text id before each document, whatever its own rule is.
    #[arg(long, conflicts_with = "no_bos")]
    bos: bool,
    /// Put nothing before a document. Default: what the tokenizer itself puts before a text (its post-processor).
    #[arg(long)]
    no_bos: bool,
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
    let eos = match (args.no_eos, tokenizer.eos()) {
        (true, _) => None,
        (false, Some(eos)) => Some(eos),
        (false, None) => {
            return Err(Error::new(Exit::Data, format!("tokenizer {} names no end-of-text token", args.tokenizer))
                .hint("put a tokenizer_config.json with eos_token beside it, or pass --no-eos"))
        }
    };
    let front = tokenizer.front(Bos::from_flags(args.bos, args.no_bos))?;
    let total = stored_size(&args.inputs)?;
    let mut outputs = Outputs::create(&args, tokenizer.vocab_size())?;

    let rules = Rules {
        format: args.format,
        split: args.split_documents,
        text_key: args.text_key.clone(),
        skip_bad: args.skip_bad,
    };
    let consumed = Arc::new(AtomicU64::new(0));
    let job = Job {
        inputs: &args.inputs,
        rules: &rules,
        tokenizer: &tokenizer,
        front: &front.ids,
        eos,
        holdout: args.holdout,
        threads: match args.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        },
        consumed: consumed.clone(),
    };
    let began = Instant::now();
    let mut progress = Progress::new(total);
    let skipped = pipeline::run(&job, |document| {
        outputs.push(&document)?;
        progress.tick(consumed.load(Ordering::Relaxed), outputs.tokens(), began);
        Ok(())
    })?;
    progress.end();

    let note = TokenizerNote {
        spec: args.tokenizer.clone(),
        kind: tokenizer.kind().into(),
        fingerprint: tokenizer.fingerprint(),
        vocab_size: tokenizer.vocab_size(),
        eos,
    };
    let written = outputs.finish(&args, note, skipped)?;
    print(&report(&written, skipped, args.skip_bad, began.elapsed()))?;
    print(&format!("each document: {}\n", front.says))
}

/// One file of the result.
struct Output {
    part: Option<Part>,
    prefix: PathBuf,
    writer: Writer,
    text_bytes: u64,
}

struct Outputs(Vec<Output>);

impl Outputs {
    fn create(args: &Args, vocab_size: usize) -> Result<Outputs> {
        let prefix = prefix_of(&args.output);
        if prefix.file_name().is_none() || args.output.to_string_lossy().ends_with('/') {
            return Err(Error::new(Exit::Usage, format!("--output {} names no file", args.output.display()))
                .hint("give a prefix, e.g. data/corpus"));
        }
        if let Some(dir) = prefix.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", &e, Exit::Storage))?;
        }
        let parts: &[(Option<Part>, &str)] = match args.holdout > 0.0 {
            true => &[(Some(Part::Train), "_train"), (Some(Part::Validation), "_validation")],
            false => &[(None, "")],
        };
        let prefixes = parts.iter().map(|(part, ending)| (*part, with_ending(&prefix, ending)));
        let prefixes: Vec<_> = prefixes.collect();
        for (_, p) in prefixes.iter().filter(|_| !args.force) {
            if let Some(old) = [".bin", ".idx", ".json"].iter().map(|e| with_ending(p, e)).find(|f| f.exists()) {
                return Err(Error::new(Exit::Usage, format!("{} exists", old.display())).hint("--force replaces it"));
            }
        }
        let open = |(part, prefix): (Option<Part>, PathBuf)| {
            Ok(Output { part, writer: Writer::create(&prefix, vocab_size)?, prefix, text_bytes: 0 })
        };
        Ok(Outputs(prefixes.into_iter().map(open).collect::<Result<_>>()?))
    }

    fn push(&mut self, document: &Encoded) -> Result<()> {
        for o in self.0.iter_mut().filter(|o| o.part.is_none_or(|p| p == document.part)) {
            o.writer.push(&document.ids)?;
            o.text_bytes += document.text_bytes;
        }
        Ok(())
    }

    fn tokens(&self) -> u64 {
        self.0.iter().map(|o| o.writer.tokens()).sum()
    }

    /// Refuses an empty result, then commits.
    fn finish(self, args: &Args, tokenizer: TokenizerNote, skipped: u64) -> Result<Vec<(PathBuf, Sidecar)>> {
        let documents: u64 = self.0.iter().map(|o| o.writer.documents()).sum();
        if documents == 0 {
            let fact = format!("no document in {} ({skipped} skipped as bad)", args.inputs.join(", "));
            return Err(Error::new(Exit::Data, fact).hint("the inputs are empty, or --format is wrong"));
        }
        if let Some(o) = self.0.iter().find(|o| o.writer.documents() == 0) {
            let fact =
                format!("--holdout {} of {documents} documents leaves none for {}", args.holdout, o.prefix.display());
            return Err(Error::new(Exit::Data, fact).hint(
                "documents are held out whole: cut them smaller with --split-documents, or hold out a larger share",
            ));
        }
        let commit = |o: Output| {
            let split = match o.part {
                None => "all",
                Some(Part::Train) => "train",
                Some(Part::Validation) => "validation",
            };
            let about = Written {
                tokenizer: tokenizer.clone(),
                sources: args.inputs.clone(),
                split: split.into(),
                holdout: args.holdout,
                text_bytes: o.text_bytes,
            };
            Ok((o.prefix, o.writer.finish(about)?))
        };
        self.0.into_iter().map(commit).collect()
    }
}

fn report(written: &[(PathBuf, Sidecar)], skipped: u64, skip_bad: bool, took: Duration) -> String {
    let mut out = String::new();
    let mut text_bytes = 0;
    for (prefix, s) in written {
        text_bytes += s.text_bytes;
        out += &format!(
            "{}: {} documents, {} tokens ({}), {:.3} tokens per byte\n",
            prefix.display(),
            grouped(s.documents),
            grouped(s.tokens),
            s.dtype,
            s.tokens as f64 / s.text_bytes.max(1) as f64
        );
    }
    let seconds = took.as_secs_f64().max(1e-3);
    out += &format!("{:.2} MB of text in {seconds:.1} s: {:.2} MB/s\n", mega(text_bytes), mega(text_bytes) / seconds);
    if skip_bad {
        out += &format!("{} skipped as bad\n", grouped(skipped));
    }
    out
}

/// Bytes of all inputs as stored; `None` where one is a stream. Finds a missing file before any work is done.
fn stored_size(inputs: &[String]) -> Result<Option<u64>> {
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

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A bar on a terminal; elsewhere a line now and then.
struct Progress {
    bar: ProgressBar,
    total: Option<u64>,
    last: Instant,
}

impl Progress {
    fn new(total: Option<u64>) -> Progress {
        let bar = match total {
            Some(n) => ProgressBar::new(n),
            None => ProgressBar::no_length(),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        let shape = match total {
            Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg} eta {eta}",
            None => "{spinner} {bytes} {bytes_per_sec} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(shape) {
            bar.set_style(style);
        }
        Progress { bar, total, last: Instant::now() }
    }

    fn tick(&mut self, consumed: u64, tokens: u64, began: Instant) {
        if !self.bar.is_hidden() {
            self.bar.set_position(consumed);
            self.bar.set_message(format!("{} tokens", grouped(tokens)));
        } else if self.last.elapsed() >= LINE_EVERY {
            self.last = Instant::now();
            let of = self.total.map(|t| format!(" of {:.1}", mega(t))).unwrap_or_default();
            let rate = mega(consumed) / began.elapsed().as_secs_f64().max(1e-3);
            eprintln!("read {:.1}{of} MB, {rate:.2} MB/s, {} tokens", mega(consumed), grouped(tokens));
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

//! `herd data inspect`.

mod chat;

use crate::cli::print;
use crate::cli::progress::shown;
use crate::data::indexed::{prefix_of, Indexed};
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use std::fmt::Write;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  herd data inspect data/books_train
  herd data inspect data/books_train --show 200
  herd data inspect data/sft --chat --show 3 --sequence-length 4096
  herd data inspect megatron/corpus_text_document --check --vocab-size 128256";

/// Show what an indexed token file holds.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Path of the token file; with or without .bin or .idx.
    #[arg(value_name = "PREFIX")]
    path: PathBuf,
    /// Decode and print the first N tokens; with --chat, the first N conversations, 1 where N is not given.
    #[arg(long, value_name = "N", default_value_t = 0)]
    show: usize,
    /// Show conversations, what of them counts in the loss, and what is wrong with their masks.
    #[arg(long)]
    chat: bool,
    /// With --chat: count what does not fit into samples of so many tokens.
    #[arg(long, value_name = "S", requires = "chat")]
    sequence_length: Option<usize>,
    /// Tokenizer to decode with; default: the one the file was made with.
    #[arg(long)]
    tokenizer: Option<String>,
    /// Read every id: inside the vocabulary, and the checksum of the file right.
    #[arg(long)]
    check: bool,
    /// Vocabulary to check against; default: that of the tokenizer the file was made with.
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
}

/// Where ids have no stated vocabulary: every id that a file can hold.
const ANY: usize = 1 << 31;

pub fn run(args: Args) -> Result<()> {
    let file = Indexed::open(&prefix_of(&args.path))?;
    let noted = file.sidecar.as_ref().map(|s| s.tokenizer.vocab_size);
    let mut out = String::new();
    summary(&mut out, &file);
    lengths(&mut out, &file)?;
    if args.chat {
        chat::summary(&mut out, &file, args.sequence_length)?;
        chat::show(&mut out, &file, &tokenizer(&file, &args)?, args.show.max(1))?;
    } else if args.show > 0 {
        show(&mut out, &file, &args)?;
    }
    // What is known is shown even where the check then fails.
    print(&out)?;
    if args.check {
        let vocab = args.vocab_size.or(noted).unwrap_or(ANY);
        let highest = shown(|meter| file.check_all(vocab, meter))?;
        let highest = highest.map_or("none".into(), |id| crate::text::grouped(id as u64));
        let bound = match vocab {
            ANY => "no vocabulary known; give --vocab-size".into(),
            v => format!("vocabulary {}", crate::text::grouped(v as u64)),
        };
        let sum = if file.sidecar.is_some() { "checksum right" } else { "no checksum recorded" };
        print(&format!("check        every id read: highest {highest}, {bound}; {sum}\n"))?;
    }
    Ok(())
}

fn summary(out: &mut String, file: &Indexed) {
    let mut row = |name: &str, value: String| _ = writeln!(out, "{name:<12} {value}");
    row("file", file.prefix.display().to_string());
    row("format", format!("Megatron index version 1, {}", file.dtype.name()));
    row("documents", crate::text::grouped(file.documents()));
    if file.sequences() != file.documents() {
        row("sequences", crate::text::grouped(file.sequences()));
    }
    row("tokens", crate::text::grouped(file.tokens()));
    match &file.sidecar {
        None => row("made by", "unknown (no herd .json beside it); ids are checked as they are read".into()),
        Some(s) => {
            let t = &s.tokenizer;
            row(
                "tokenizer",
                format!(
                    "{} ({}, vocabulary {}), {}",
                    t.spec,
                    t.kind,
                    crate::text::grouped(t.vocab_size as u64),
                    t.fingerprint
                ),
            );
            if !t.front.is_empty() {
                row("in front", format!("{:?} before each document", t.front));
            }
            row("end of text", t.eos.map_or("not appended".into(), |id| format!("id {id} after each document")));
            let share = if s.split == "all" { String::new() } else { format!(", held out {}", s.holdout) };
            if let Some(c) = &s.chat {
                row("template", format!("{}, {}", c.template, c.template_xxh3_128));
                row("turns", format!("{} of the model count; rows were {}", c.loss, c.forms.join(", ")));
            }
            row("split", format!("{}{share}", s.split));
            let rate = s.tokens as f64 / s.text_bytes.max(1) as f64;
            row("text", format!("{} bytes, {rate:.3} tokens per byte", crate::text::grouped(s.text_bytes)));
            row("sources", s.sources.join(", "));
        }
    }
}

/// Quantiles of the document lengths, and a bar for each power of two.
fn lengths(out: &mut String, file: &Indexed) -> Result<()> {
    let mut all = file.document_lengths().collect::<Result<Vec<u64>>>()?;
    all.sort_unstable();
    let (Some(&least), Some(&most)) = (all.first(), all.last()) else { return Ok(()) };
    let at = |q: f64| crate::text::grouped(all[((all.len() - 1) as f64 * q).round() as usize]);
    let mean = file.tokens() as f64 / all.len() as f64;
    let _ = writeln!(
        out,
        "lengths      min {}, 10% {}, median {}, mean {mean:.1}, 90% {}, 99% {}, max {}",
        crate::text::grouped(least),
        at(0.1),
        at(0.5),
        at(0.9),
        at(0.99),
        crate::text::grouped(most)
    );
    let mut bins = [0u64; 65];
    all.iter().for_each(|&n| bins[(u64::BITS - n.leading_zeros()) as usize] += 1);
    let highest = *bins.iter().max().unwrap_or(&1);
    for (b, &n) in bins.iter().enumerate().filter(|(_, &n)| n > 0) {
        let (from, to) = if b == 0 { (0, 0) } else { (1 << (b - 1), u64::MAX >> (64 - b)) };
        let bar = "#".repeat((n * 40).div_ceil(highest) as usize);
        let _ = writeln!(
            out,
            "  {:>13} .. {:<13} {:>12} {bar}",
            crate::text::grouped(from),
            crate::text::grouped(to),
            crate::text::grouped(n)
        );
    }
    Ok(())
}

/// The tokenizer that was asked for, or that of the file.
fn tokenizer(file: &Indexed, args: &Args) -> Result<Tokenizer> {
    let noted = file.sidecar.as_ref().map(|s| &s.tokenizer);
    let spec = args.tokenizer.as_ref().or(noted.map(|t| &t.spec)).ok_or_else(|| {
        Error::new(Exit::Usage, format!("{} does not say how to decode its ids", file.prefix.display()))
            .hint("name the tokenizer with --tokenizer")
    })?;
    let tokenizer = Tokenizer::open(spec)?;
    if let Some(t) = noted.filter(|t| t.fingerprint != tokenizer.fingerprint()) {
        let fact = format!(
            "tokenizer {spec} ({}) is not the one the file was made with ({})",
            tokenizer.fingerprint(),
            t.fingerprint
        );
        return Err(Error::new(Exit::Data, fact).hint("name the right one with --tokenizer"));
    }
    Ok(tokenizer)
}

fn show(out: &mut String, file: &Indexed, args: &Args) -> Result<()> {
    let tokenizer = tokenizer(file, args)?;
    let mut ids = Vec::new();
    let n = args.show.min(file.tokens() as usize);
    file.read(0, n, tokenizer.vocab_size(), &mut ids)?;
    let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    let _ = writeln!(out, "first {n}     {ids:?}\n{}", tokenizer.decode(&ids));
    Ok(())
}

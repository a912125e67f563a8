//! `herd data merge`.

use super::claim;
use crate::cli::print;
use crate::cli::progress::shown;
use crate::data::chat::ChatNote;
use crate::data::indexed::{prefix_of, with_ending, Indexed, IndexedWriter, IndexedWritten, Sidecar};
use crate::data::indexed::{TokenDtype, MASK_ENDING};
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  herd data merge --output data/web data/web-0?.idx
  herd data merge --output data/all data/books data/web

The token files must be of one tokenizer; the documents keep their order, and loss masks come along. One corpus of many shards gives each token the same
chance, whatever the sizes of the shards.";

/// Put several token files into one.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Token files, in order; each with or without .bin or .idx.
    #[arg(required = true, value_name = "PREFIX")]
    inputs: Vec<PathBuf>,
    /// Path of the result without its ending.
    #[arg(long, short, value_name = "PREFIX")]
    output: PathBuf,
    /// Replace an existing token file.
    #[arg(long)]
    force: bool,
}

/// An input and how it was made.
struct Shard {
    file: Indexed,
    note: Sidecar,
}

pub fn run(args: Args) -> Result<()> {
    let output = prefix_of(&args.output);
    if output.file_name().is_none() || args.output.to_string_lossy().ends_with('/') {
        return Err(Error::new(Exit::Usage, format!("--output {} names no file", args.output.display()))
            .hint("give a prefix, e.g. data/corpus"));
    }
    let prefixes: Vec<PathBuf> = args.inputs.iter().map(|p| prefix_of(p)).collect();
    if let Some(i) = (1..prefixes.len()).find(|&i| prefixes[..i].contains(&prefixes[i])) {
        return Err(Error::new(Exit::Usage, format!("{} is given twice", prefixes[i].display()))
            .hint("a pattern of the shell may match both .bin and .idx: name one of them"));
    }
    let files: Vec<String> = prefixes.iter().flat_map(|p| endings(p)).collect();
    claim::check(&output, &files.iter().map(String::as_str).collect::<Vec<_>>(), args.force)?;
    let shards = prefixes.iter().map(|p| open(p)).collect::<Result<Vec<Shard>>>()?;
    shards.iter().try_for_each(|s| alike(&shards[0], s))?;
    let written = shown(|meter| write(&output, &shards, meter))?;
    print(&format!(
        "{}: {} documents, {} tokens ({}) of {} token files\n",
        output.display(),
        crate::text::grouped(written.documents),
        crate::text::grouped(written.tokens),
        written.dtype,
        shards.len()
    ))
}

/// The note of all shards: every form that was met, every token that ends a turn.
fn merged(shards: &[Shard]) -> Option<ChatNote> {
    let mut notes = shards.iter().filter_map(|s| s.note.chat.clone());
    let first = notes.next()?;
    let join = |mut sum: ChatNote, other: ChatNote| {
        sum.forms.extend(other.forms);
        sum.ends.extend(other.ends);
        sum
    };
    let mut all = notes.fold(first, join);
    all.forms.sort();
    all.forms.dedup();
    all.ends.sort();
    all.ends.dedup();
    Some(all)
}

fn endings(prefix: &Path) -> [String; 4] {
    [".bin", ".idx", ".json", MASK_ENDING].map(|e| with_ending(prefix, e).to_string_lossy().into_owned())
}

fn open(prefix: &Path) -> Result<Shard> {
    let file = Indexed::open(prefix)?;
    let Some(note) = file.sidecar.clone() else {
        let fact =
            format!("{} does not say with which tokenizer it was made: it has no {0}.json of herd's", prefix.display());
        return Err(Error::new(Exit::Data, fact)
            .hint("make it with `herd data tokenize`, or merge with Megatron's merge_datasets.py"));
    };
    Ok(Shard { file, note })
}

/// What the shards of one corpus have in common, as errors show it.
fn common(note: &Sidecar) -> [(&'static str, String); 10] {
    let (tokenizer, chat) = (&note.tokenizer, note.chat.as_ref());
    let of_chat = |field: fn(&ChatNote) -> &String| chat.map_or(String::new(), |c| field(c).clone());
    [
        ("tokenizer", format!("{:?}", tokenizer.fingerprint)),
        ("vocabulary", tokenizer.vocab_size.to_string()),
        ("tokens before each document", format!("{:?}", tokenizer.front)),
        ("token after each document", format!("{:?}", tokenizer.eos)),
        ("split", format!("{:?}", note.split)),
        ("share held out", format!("{:?}", note.holdout)),
        ("loss mask", format!("{:?}", if note.mask.is_some() { "there is one" } else { "there is none" })),
        ("chat template", format!("{:?}", of_chat(|c| &c.template_xxh3_128))),
        ("turns that count", format!("{:?}", of_chat(|c| &c.loss))),
        ("kind", if note.holds_pairs() { "preference pairs" } else { "no pairs" }.into()),
    ]
}

/// Refuses what makes no sense as one corpus.
fn alike(first: &Shard, other: &Shard) -> Result<()> {
    let differ = common(&first.note).into_iter().zip(common(&other.note)).find(|(a, b)| a != b);
    match differ {
        None => Ok(()),
        Some(((what, a), (_, b))) => {
            let (one, two) = (first.file.prefix.display(), other.file.prefix.display());
            Err(Error::new(Exit::Data, format!("{one} and {two} differ in their {what}: {a} and {b}"))
                .hint("tokenize them in the same way, or list them one by one in data.train"))
        }
    }
}

fn write(output: &Path, shards: &[Shard], meter: &Meter) -> Result<Sidecar> {
    if let Some(dir) = output.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", &e, Exit::Storage))?;
    }
    let first = &shards[0].note;
    let vocab = first.tokenizer.vocab_size;
    let masked = shards[0].file.masked();
    let mut writer = match masked {
        true => IndexedWriter::create_masked(output, vocab)?,
        false => IndexedWriter::create(output, vocab)?,
    };
    let size = TokenDtype::for_vocab(vocab).size() as u64;
    meter.begin("merge", size * shards.iter().map(|s| s.file.tokens()).sum::<u64>());
    let (mut ids, mut narrow, mut mask) = (Vec::new(), Vec::new(), Vec::new());
    for Shard { file, .. } in shards {
        let mut at = 0;
        for length in file.document_lengths() {
            let length = length?;
            ids.clear();
            file.read(at, length as usize, vocab, &mut ids)?;
            mask.clear();
            if masked {
                file.read_mask(at, length as usize, &mut mask)?;
            }
            at += length;
            narrow.clear();
            narrow.extend(ids.iter().map(|&id| id as u32));
            writer.push_masked(&narrow, &mask)?;
            meter.add(size * length);
        }
        file.close();
    }
    writer.finish(IndexedWritten {
        tokenizer: first.tokenizer.clone(),
        chat: merged(shards),
        sources: shards.iter().map(|s| s.file.prefix.display().to_string()).collect(),
        split: first.split.clone(),
        holdout: first.holdout,
        text_bytes: shards.iter().map(|s| s.note.text_bytes).sum(),
    })
}

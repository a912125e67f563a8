//! Documents out of files: plain text, JSON rows or Parquet, as they are or in gzip or zstd, or from standard input. What a
//! file is, its content decides, not its name, and it is said. Streams; what must fit in memory is one document (of Parquet,
//! a page of each column that is read).

mod ahead;
mod container;
mod detect;
mod gzip;
mod json;
mod parquet;
mod plain;
mod row;

use crate::error::{Error, Exit, Result};
use ahead::Ahead;
use container::LOOK;
use detect::Content;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// What the input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// What the content says; Parquet always is told by its content
    Auto,
    /// Plain text, even if it looks like JSON
    Text,
    /// JSON objects, one a line, glued together, over several lines or in an array
    Jsonl,
}

/// Where a document of plain text ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Split {
    /// At the end of the file
    File,
    /// At one or more blank lines
    BlankLines,
    /// At the end of each line
    Line,
}

/// How to read.
#[derive(Clone, Debug)]
pub struct SourceRules {
    /// What the input is taken for.
    pub format: Format,
    /// Where a document of plain text ends; other formats have rows.
    pub split: Split,
    /// Keys of the text in a row; a dot leads into an object. The texts of several are joined by a blank line. Without any, a
    /// document is the whole row, as JSON.
    pub text_keys: Vec<String>,
    /// Count and leave out what cannot be read, instead of stopping.
    pub skip_bad: bool,
}

/// One document, or why it is none; the next ones can still be read.
type Taken = std::result::Result<String, Bad>;

struct Bad {
    /// Behind the name of the input: `:LINE`, or `, row N`.
    place: String,
    what: String,
    /// What helps if it is not this document alone.
    hint: &'static str,
}

/// An open input. Iterates over its documents; an error ends it.
pub struct SourceDocuments {
    name: String,
    reader: Reader,
    rules: SourceRules,
    /// What it was found to be, as `JSON lines in gzip`.
    pub format: String,
    /// Documents given out.
    pub documents: u64,
    /// Documents left out under `skip_bad`.
    pub skipped: u64,
    /// What was wrong with the first document left out, and where it stands; `None` where none was.
    pub first_skipped: Option<String>,
    /// Rows left out because their text is empty.
    pub empty: u64,
    ended: bool,
}

enum Reader {
    Text(plain::Texts),
    Lines(json::Lines),
    Stream(json::Stream),
    Parquet(parquet::ParquetTable),
}

impl SourceDocuments {
    /// Opens the file `name`, or standard input for `-`, and looks what it is. `consumed` counts the bytes read from it as
    /// stored.
    ///
    /// # Errors
    /// [`Exit::Data`] for what is not read (by its name), and for what begins like JSON and is none.
    pub fn open(name: &str, rules: &SourceRules, consumed: Arc<AtomicU64>) -> Result<SourceDocuments> {
        if name == "-" {
            return SourceDocuments::of(name, std::io::stdin(), None, rules, consumed);
        }
        let file = open_file(Path::new(name))?;
        let again = file.try_clone().ok().filter(|f| f.metadata().is_ok_and(|m| m.is_file()));
        SourceDocuments::of(name, file, again, rules, consumed)
    }

    /// `seekable` is the same file where that is one.
    fn of(
        name: &str, raw: impl Read + 'static, seekable: Option<File>, rules: &SourceRules, consumed: Arc<AtomicU64>,
    ) -> Result<SourceDocuments> {
        let shown = if name == "-" { "standard input" } else { name };
        let failed = |e: std::io::Error| unreadable(shown, &e);
        let mut raw = Ahead::new(Counting { inner: raw, consumed: consumed.clone() });
        let start = raw.at_least(LOOK).map_err(failed)?;
        if container::is_parquet(start) {
            // What the look at its beginning has read is read again.
            consumed.fetch_sub(raw.seen().len() as u64, Ordering::Relaxed);
            let reader = open_parquet(shown, seekable, rules, consumed)?;
            return Ok(SourceDocuments::new(shown, Reader::Parquet(reader), "Parquet".into(), rules));
        }
        let (packing, mut content) = container::unpacked(shown, raw, rules.format)?;
        let marked = detect::pass_mark(&mut content).map_err(failed)?;
        let found = detect::decide(shown, &mut content, rules.format)?;
        let mark = if marked { ", behind a byte order mark" } else { "" };
        let format = format!("{}{}{mark}", found.words(), packing.words());
        let content = Box::new(content);
        let reader = match found {
            Content::Text | Content::Unclear(_) => Reader::Text(plain::Texts::new(content, rules.split)),
            Content::Lines => Reader::Lines(json::Lines::new(content)),
            Content::Spread | Content::Array => Reader::Stream(json::Stream::new(shown, content)),
        };
        Ok(SourceDocuments::new(shown, reader, format, rules))
    }

    fn new(name: &str, reader: Reader, format: String, rules: &SourceRules) -> SourceDocuments {
        SourceDocuments {
            name: name.into(),
            reader,
            rules: rules.clone(),
            format,
            documents: 0,
            skipped: 0,
            first_skipped: None,
            empty: 0,
            ended: false,
        }
    }

    fn take(&mut self) -> Result<Option<Taken>> {
        let failed = |e: std::io::Error| unreadable(&self.name, &e);
        match &mut self.reader {
            Reader::Text(r) => r.next().map_err(failed),
            Reader::Lines(r) => r.next(&self.rules.text_keys).map_err(failed),
            Reader::Stream(r) => r.next(&self.rules.text_keys),
            Reader::Parquet(r) => r.next(),
        }
    }

    fn next_document(&mut self) -> Result<Option<String>> {
        loop {
            match self.take()? {
                None => return Ok(None),
                Some(Ok(text)) if text.is_empty() => self.empty += 1,
                Some(Ok(text)) => {
                    self.documents += 1;
                    return Ok(Some(text));
                }
                Some(Err(bad)) => {
                    let fact = format!("{}{}: {}", self.name, bad.place, bad.what);
                    if !self.rules.skip_bad {
                        return Err(Error::new(Exit::Data, fact).hint(self.hint(bad.hint)));
                    }
                    self.skipped += 1;
                    self.first_skipped.get_or_insert(fact);
                }
            }
        }
    }

    /// Leaving documents out is offered where others of the input are good, before the bad one or right behind it.
    fn hint(&mut self, otherwise: &str) -> String {
        let alone = self.documents > 0 || matches!(self.take(), Ok(Some(Ok(_))));
        match alone {
            true => "correct it, or leave such documents out with --skip-bad".into(),
            false => otherwise.into(),
        }
    }
}

impl Iterator for SourceDocuments {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        if self.ended {
            return None;
        }
        let next = self.next_document().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

fn open_parquet(
    name: &str, file: Option<File>, rules: &SourceRules, consumed: Arc<AtomicU64>,
) -> Result<parquet::ParquetTable> {
    if rules.format != Format::Auto {
        let asked = if rules.format == Format::Text { "text" } else { "jsonl" };
        return Err(Error::new(Exit::Data, format!("{name} is a Parquet file, but --format says {asked}"))
            .hint("leave --format out"));
    }
    let file = file.ok_or_else(|| {
        Error::new(Exit::Data, format!("{name} is a Parquet file in a pipe; its description lies at its end"))
            .hint("write it to disk, and name the file")
    })?;
    parquet::ParquetTable::open(name, file, &rules.text_keys, consumed)
}

fn open_file(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|e| Error::io(path, "read", &e, Exit::Data))?;
    match file.metadata() {
        Ok(m) if m.is_dir() => Err(Error::new(Exit::Data, format!("{} is a directory", path.display()))
            .hint("name the files, e.g. with a shell pattern")),
        _ => Ok(file),
    }
}

fn unreadable(name: &str, e: &std::io::Error) -> Error {
    // The decoders report damage with kinds of their own; only an operating-system error is the filesystem's.
    if e.raw_os_error().is_some() {
        return Error::io(Path::new(name), "read", e, Exit::Data);
    }
    let text = e.to_string();
    let hint = match text.as_str() {
        t if t.contains("Dictionary") => "it needs a dictionary: unpack it with `zstd -D`, and give the input as `-`",
        t if t.contains("memory") => "this host has not the memory that it needs",
        _ => "the file is damaged or cut off",
    };
    Error::new(Exit::Data, format!("cannot decompress {name}: {text}")).hint(hint)
}

/// Counts what passes.
struct Counting<R> {
    inner: R,
    consumed: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.consumed.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;

//! Documents out of files: plain text or JSON lines, as they are or in gzip or zstd (told apart by their first bytes, not
//! by name), or from standard input. Streams; what must fit in memory is one document.

use crate::error::{Error, Exit, Result};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// What the lines of the input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// JSONL if the name ends in .jsonl, .ndjson or .json (before .gz, .zst), or if the first line is a JSON object
    Auto,
    /// Plain text
    Text,
    /// One JSON object a line
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
pub struct Rules {
    pub format: Format,
    pub split: Split,
    /// Key of the text in a JSON line.
    pub text_key: String,
    /// Count and leave out what cannot be read, instead of stopping.
    pub skip_bad: bool,
}

/// An open input. Iterates over its documents; an error ends it.
pub struct Documents {
    name: String,
    reader: Box<dyn BufRead + Send>,
    jsonl: bool,
    rules: Rules,
    line_number: u64,
    /// Documents left out under `skip_bad`.
    pub skipped: u64,
    ended: bool,
}

/// How much is looked at to tell the format.
const PEEK: usize = 64 << 10;

impl Documents {
    /// Opens the file `name`, or standard input for `-`. `consumed` counts the bytes read from it as stored.
    pub fn open(name: &str, rules: &Rules, consumed: Arc<AtomicU64>) -> Result<Documents> {
        let raw: Box<dyn Read + Send> = match name {
            "-" => Box::new(std::io::stdin()),
            path => Box::new(open_file(Path::new(path))?),
        };
        Documents::of(name, Counting { inner: raw, consumed }, rules)
    }

    fn of(name: &str, raw: impl Read + Send + 'static, rules: &Rules) -> Result<Documents> {
        let mut raw = BufReader::with_capacity(1 << 20, raw);
        let mut reader: Box<dyn BufRead + Send> = match peek(&mut raw, name)? {
            [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(1 << 20, flate2::bufread::MultiGzDecoder::new(raw))),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let decoder = zstd::stream::read::Decoder::with_buffer(raw).map_err(|e| unreadable(name, &e))?;
                Box::new(BufReader::with_capacity(1 << 20, decoder))
            }
            _ => Box::new(raw),
        };
        let jsonl = match rules.format {
            Format::Text => false,
            Format::Jsonl => true,
            Format::Auto => named_jsonl(name) || starts_with_object(peek(&mut reader, name)?),
        };
        Ok(Documents {
            name: name.into(),
            reader,
            jsonl,
            rules: rules.clone(),
            line_number: 0,
            skipped: 0,
            ended: false,
        })
    }

    fn next_document(&mut self) -> Result<Option<String>> {
        loop {
            let first_line = self.line_number + 1;
            let raw = match (self.jsonl, self.rules.split) {
                (true, _) | (false, Split::Line) => self.line()?,
                (false, Split::BlankLines) => self.paragraph()?,
                (false, Split::File) => self.rest()?,
            };
            let Some(raw) = raw else { return Ok(None) };
            if raw.trim_ascii().is_empty() {
                continue;
            }
            let parsed = if self.jsonl { self.json_text(&raw) } else { text(raw, first_line) };
            match parsed {
                Ok(t) if t.is_empty() => {}
                Ok(t) => return Ok(Some(t)),
                Err(_) if self.rules.skip_bad => self.skipped += 1,
                Err((line, what)) => {
                    return Err(Error::new(Exit::Data, format!("{}:{line}: {what}", shown(&self.name)))
                        .hint("correct it, or leave such documents out with --skip-bad"))
                }
            }
        }
    }

    /// The next line without its ending.
    fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let n = self.reader.read_until(b'\n', &mut line).map_err(|e| unreadable(&self.name, &e))?;
        self.line_number += 1;
        if line.last() == Some(&b'\n') {
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
        }
        Ok((n > 0).then_some(line))
    }

    /// The lines up to the next blank one, each with its ending.
    fn paragraph(&mut self) -> Result<Option<Vec<u8>>> {
        let mut out = Vec::new();
        loop {
            let before = out.len();
            let n = self.reader.read_until(b'\n', &mut out).map_err(|e| unreadable(&self.name, &e))?;
            self.line_number += 1;
            if out[before..].trim_ascii().is_empty() {
                out.truncate(before);
                return Ok((n > 0 || before > 0).then_some(out));
            }
        }
    }

    fn rest(&mut self) -> Result<Option<Vec<u8>>> {
        let mut all = Vec::new();
        let n = self.reader.read_to_end(&mut all).map_err(|e| unreadable(&self.name, &e))?;
        Ok((n > 0).then_some(all))
    }

    fn json_text(&self, line: &[u8]) -> std::result::Result<String, (u64, String)> {
        let here = |what| (self.line_number, what);
        let value: Value = serde_json::from_slice(line).map_err(|e| here(format!("not JSON: {e}")))?;
        let key = &self.rules.text_key;
        match value {
            Value::Object(mut object) => match object.remove(key) {
                Some(Value::String(text)) => Ok(text),
                Some(other) => Err(here(format!("\"{key}\" is {}, not a string", kind(&other)))),
                None => {
                    let keys: Vec<&str> = object.keys().map(String::as_str).take(8).collect();
                    Err(here(format!("no key \"{key}\" (there is: {})", keys.join(", "))))
                }
            },
            other => Err(here(format!("{}, not an object", kind(&other)))),
        }
    }
}

impl Iterator for Documents {
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

fn open_file(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|e| Error::io(path, "read", &e, Exit::Data))?;
    match file.metadata() {
        Ok(m) if m.is_dir() => Err(Error::new(Exit::Data, format!("{} is a directory", path.display()))
            .hint("name the files, e.g. with a shell pattern")),
        _ => Ok(file),
    }
}

/// The first bytes, without taking them. Pipes give them in small pieces, so one filled buffer may hold few.
fn peek<'a>(reader: &'a mut (impl BufRead + ?Sized), name: &str) -> Result<&'a [u8]> {
    let seen = reader.fill_buf().map_err(|e| unreadable(name, &e))?;
    Ok(&seen[..seen.len().min(PEEK)])
}

fn unreadable(name: &str, e: &std::io::Error) -> Error {
    match name {
        "-" => Error::new(Exit::Data, format!("cannot read standard input: {e}")),
        // The decoders report damage with kinds of their own; only an operating-system error is the filesystem's.
        _ if e.raw_os_error().is_some() => Error::io(Path::new(name), "read", e, Exit::Data),
        _ => Error::new(Exit::Data, format!("cannot decompress {name}: {e}")).hint("the file is damaged or cut off"),
    }
}

fn named_jsonl(name: &str) -> bool {
    let stem = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    [".jsonl", ".ndjson", ".json"].iter().any(|e| stem.ends_with(e))
}

fn starts_with_object(start: &[u8]) -> bool {
    let line = start.split(|&b| b == b'\n').next().unwrap_or_default();
    let cut = line.len() == start.len() && start.len() == PEEK;
    line.starts_with(b"{\"") && (cut || serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok())
}

fn text(raw: Vec<u8>, first_line: u64) -> std::result::Result<String, (u64, String)> {
    String::from_utf8(raw).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let before = &e.as_bytes()[..at];
        let line = first_line + before.iter().filter(|&&b| b == b'\n').count() as u64;
        let column = at - before.iter().rposition(|&b| b == b'\n').map_or(0, |p| p + 1);
        (line, format!("byte 0x{:02x} at column {} is not UTF-8", e.as_bytes()[at], column + 1))
    })
}

fn kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn shown(name: &str) -> &str {
    match name {
        "-" => "standard input",
        name => name,
    }
}

/// Counts what passes.
struct Counting {
    inner: Box<dyn Read + Send>,
    consumed: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.consumed.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;

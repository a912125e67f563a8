//! What the content of a file is, by as much of its beginning as that takes: white space, blank lines and a byte order
//! mark are looked past, and a first row is read to its end, however long it is.

use super::ahead::Ahead;
use super::container::LOOK;
use super::json::Scan;
use super::{row, unreadable, Format};
use crate::error::{Error, Exit};
use std::io::{BufRead, Read, Result};

pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Text,
    /// JSON objects that each end with their line, or before.
    Lines,
    /// JSON objects over several lines.
    Spread,
    /// A JSON array of rows.
    Array,
    /// Begins as JSON does, but is none: what the parser says.
    Unclear(String),
}

impl Content {
    /// What a report calls it.
    pub fn words(&self) -> &'static str {
        match self {
            Content::Text | Content::Unclear(_) => "plain text",
            Content::Lines => "JSON lines",
            Content::Spread => "JSON objects over several lines",
            Content::Array => "a JSON array",
        }
    }
}

/// Takes a byte order mark off the beginning; whether there was one.
pub fn pass_mark<R: Read>(reader: &mut Ahead<R>) -> Result<bool> {
    let marked = reader.at_least(3)?.starts_with(BYTE_ORDER_MARK);
    reader.consume(if marked { 3 } else { 0 });
    Ok(marked)
}

/// What the content is to be read as; none of it is taken.
///
/// # Errors
/// [`Exit::Data`] for text that might be something else, unless `format` says that it is text.
pub fn decide<R: Read>(name: &str, content: &mut Ahead<R>, format: Format) -> crate::error::Result<Content> {
    let found = match format {
        Format::Text => Content::Text,
        _ => look(content).map_err(|e| unreadable(name, &e))?,
    };
    settle(name, found, content.seen(), format)
}

/// What the content is read as: what it was found to be, unless `--format` or the name says that it is JSON. Text that
/// might be something else is refused.
fn settle(name: &str, found: Content, start: &[u8], format: Format) -> crate::error::Result<Content> {
    let asked = format == Format::Jsonl || named_json(name);
    match found {
        Content::Text if format == Format::Text => Ok(Content::Text),
        Content::Text | Content::Unclear(_) if asked => {
            Ok(if start.trim_ascii_start().starts_with(b"[") { Content::Array } else { Content::Lines })
        }
        Content::Unclear(why) => {
            Err(Error::new(Exit::Data, format!("{name} begins like JSON, but its first row is not JSON: {why}"))
                .hint("correct it, or say what the file is with --format jsonl or --format text"))
        }
        Content::Text if start[..start.len().min(LOOK)].contains(&0) => {
            Err(Error::new(Exit::Data, format!("{name} holds zero bytes, as no text does"))
                .hint("if it is plain text all the same, say so with --format text"))
        }
        other => Ok(other),
    }
}

fn named_json(name: &str) -> bool {
    let stem = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    [".jsonl", ".ndjson", ".json"].iter().any(|e| stem.ends_with(e))
}

/// Looks at the content without taking any of it.
fn look<R: Read>(reader: &mut Ahead<R>) -> Result<Content> {
    let start = significant(reader, 0)?;
    match reader.byte(start)? {
        Some(b'{') => {
            let inner = significant(reader, start + 1)?;
            match reader.byte(inner)? {
                Some(b'"' | b'\'' | b'}') => object(reader, start),
                _ => Ok(Content::Text),
            }
        }
        Some(b'[') => array(reader, start),
        _ => Ok(Content::Text),
    }
}

fn array<R: Read>(reader: &mut Ahead<R>, start: usize) -> Result<Content> {
    let first = significant(reader, start + 1)?;
    Ok(match reader.byte(first)? {
        Some(b'{') => {
            let inner = significant(reader, first + 1)?;
            match reader.byte(inner)? {
                Some(b'"' | b'\'' | b'}') => match object(reader, first)? {
                    Content::Unclear(why) => Content::Unclear(why),
                    _ => Content::Array,
                },
                _ => Content::Text,
            }
        }
        // An array of strings, which a text in brackets and quotes is not: a comma or the end follows the first.
        Some(b'"') => {
            let behind = end(reader, first)?.map(|(end, _)| significant(reader, end)).transpose()?;
            match behind.map(|at| reader.byte(at)).transpose()?.flatten() {
                Some(b',' | b']') => Content::Array,
                _ => Content::Text,
            }
        }
        Some(b']') => {
            let behind = significant(reader, first + 1)?;
            reader.byte(behind)?.map_or(Content::Array, |_| Content::Text)
        }
        _ => Content::Text,
    })
}

/// The first row, an object that begins at `start`.
fn object<R: Read>(reader: &mut Ahead<R>, start: usize) -> Result<Content> {
    let (end, spread) = match end(reader, start)? {
        Some(found) => found,
        None => (reader.seen().len(), false),
    };
    Ok(match row::check(&reader.seen()[start..end]) {
        Ok(()) if spread => Content::Spread,
        Ok(()) => Content::Lines,
        Err(why) => Content::Unclear(why),
    })
}

/// Where the value that begins at `start` ends, and whether there is a line feed in it; none if a line ends inside a
/// string, or the input before the value.
fn end<R: Read>(reader: &mut Ahead<R>, start: usize) -> Result<Option<(usize, bool)>> {
    let (mut scan, mut at, mut spread) = (Scan::default(), start, false);
    while let Some(byte) = reader.byte(at)? {
        at += 1;
        if byte == b'\n' {
            if !scan.may_break() {
                return Ok(None);
            }
            spread = true;
        }
        if scan.step(byte) {
            return Ok(Some((at, spread)));
        }
    }
    Ok(None)
}

/// The place of the first byte from `at` on that is no white space.
fn significant<R: Read>(reader: &mut Ahead<R>, mut at: usize) -> Result<usize> {
    while reader.byte(at)?.is_some_and(|b| b.is_ascii_whitespace()) {
        at += 1;
    }
    Ok(at)
}

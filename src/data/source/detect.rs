//! What the content of a file is, by as much of its beginning as that takes: white space, blank lines and a byte order
//! mark are looked past, and a first row is read to its end, however long it is.

use super::ahead::Ahead;
use super::json::Scan;
use super::row;
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

/// Takes a byte order mark off the beginning; whether there was one.
pub fn pass_mark<R: Read>(reader: &mut Ahead<R>) -> Result<bool> {
    let marked = reader.at_least(3)?.starts_with(BYTE_ORDER_MARK);
    reader.consume(if marked { 3 } else { 0 });
    Ok(marked)
}

/// Looks at the content without taking any of it.
pub fn look<R: Read>(reader: &mut Ahead<R>) -> Result<Content> {
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

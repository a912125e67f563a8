//! Rows of JSON: one a line, several glued together, spread over lines, or the elements of an array.

use super::row::{self, Wrong};
use super::{Bad, Taken};
use crate::error::{Error, Exit, Result};
use std::io::BufRead;

/// Finds where a JSON value that begins with `{`, `[` or `"` ends, byte by byte.
#[derive(Default)]
pub struct Scan {
    depth: u32,
    string: bool,
    escape: bool,
}

impl Scan {
    /// Takes the next byte; true if the value ends with it.
    pub fn step(&mut self, byte: u8) -> bool {
        if self.string {
            match (self.escape, byte) {
                (true, _) => self.escape = false,
                (_, b'\\') => self.escape = true,
                (_, b'"') => {
                    self.string = false;
                    return self.depth == 0;
                }
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }

    /// Whether a line may end here: JSON has no line feed inside a string.
    pub fn may_break(&self) -> bool {
        !self.string
    }
}

/// What may stand between two rows: white space, the mark of JSON text sequences, and a byte order mark, which a file
/// carries into the middle of those it is joined with.
pub fn blank(ahead: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match &ahead[at..] {
            [b' ' | b'\t' | b'\r' | b'\n' | 0x1e, ..] => at += 1,
            [0xef, 0xbb, 0xbf, ..] => at += 3,
            _ => return at,
        }
    }
}

/// Rows that end with their line, so that damage to one is no damage to the next.
pub struct Lines {
    reader: Box<dyn BufRead>,
    line: Vec<u8>,
    at: usize,
    number: u64,
}

impl Lines {
    pub fn new(reader: Box<dyn BufRead>) -> Lines {
        Lines { reader, line: Vec::new(), at: 0, number: 0 }
    }

    pub fn next(&mut self, keys: &[String]) -> std::io::Result<Option<Taken>> {
        loop {
            self.at += blank(&self.line[self.at..]);
            if self.at < self.line.len() {
                break;
            }
            self.line.clear();
            (self.at, self.number) = (0, self.number + 1);
            if self.reader.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
        }
        let rest = &self.line[self.at..];
        let mut scan = Scan::default();
        // A second object may be glued to this one; what is no object takes the whole line.
        let end = if rest[0] == b'{' { rest.iter().position(|&b| scan.step(b)) } else { None };
        let row = &rest[..end.map_or(rest.len(), |e| e + 1)];
        // Without the line's end, which would count as another line.
        let taken = row::text(row.trim_ascii_end(), keys).map_err(|wrong| bad(wrong, self.number, self.at));
        self.at += row.len();
        Ok(Some(taken))
    }
}

/// Rows that span lines or are the elements of an array. Where such a row is broken nobody can say where the next begins.
pub struct Stream {
    name: String,
    reader: Box<dyn BufRead>,
    number: u64,
    inside: bool,
    /// An element stands before; a comma or the end must follow.
    after: bool,
}

impl Stream {
    pub fn new(name: &str, reader: Box<dyn BufRead>) -> Stream {
        Stream { name: name.into(), reader, number: 1, inside: false, after: false }
    }

    pub fn next(&mut self, keys: &[String]) -> Result<Option<Taken>> {
        loop {
            match self.significant()? {
                None if self.inside => return Err(self.broken("the array is not closed: the file is cut off")),
                None => return Ok(None),
                Some(b'[') if !self.inside => (self.inside, self.after) = (true, false),
                Some(b']') if self.inside => self.inside = false,
                Some(b',') if self.inside && self.after => self.after = false,
                Some(_) if self.inside && self.after => {
                    return Err(self.broken("no comma between two elements of the array"))
                }
                Some(first) => return self.row(first, keys).map(Some),
            }
            self.reader.consume(1);
        }
    }

    fn row(&mut self, first: u8, keys: &[String]) -> Result<Taken> {
        let number = self.number;
        let row = self.value(first)?;
        self.after = self.inside;
        match row::text(&row, keys) {
            Ok(text) => Ok(Ok(text)),
            Err(wrong @ Wrong::Shape(_)) => Ok(Err(bad(wrong, number, 0))),
            Err(wrong) => {
                let Bad { place, what, .. } = bad(wrong, number, 0);
                Err(Error::new(Exit::Data, format!("{}{place}: {what}", self.name))
                    .hint("correct it: where one row ends and the next begins cannot be told any more"))
            }
        }
    }

    /// The bytes of the value that begins with `first`.
    fn value(&mut self, first: u8) -> Result<Vec<u8>> {
        let (mut scan, mut out) = (Scan::default(), Vec::new());
        let scalar = !matches!(first, b'{' | b'[' | b'"');
        loop {
            let piece = self.reader.fill_buf().map_err(|e| super::unreadable(&self.name, &e))?;
            if piece.is_empty() {
                return match scalar {
                    true => Ok(out),
                    false => Err(self.broken("the last row is not complete: the file is cut off")),
                };
            }
            let end = match scalar {
                true => piece.iter().position(|b| b", \t\r\n]{[\"".contains(b)),
                false => piece.iter().position(|&b| scan.step(b)).map(|e| e + 1),
            };
            let n = end.unwrap_or(piece.len());
            out.extend_from_slice(&piece[..n]);
            self.number += piece[..n].iter().filter(|&&b| b == b'\n').count() as u64;
            self.reader.consume(n);
            if end.is_some() {
                return Ok(out);
            }
        }
    }

    /// Passes over what is blank; the byte that follows, not taken.
    fn significant(&mut self) -> Result<Option<u8>> {
        loop {
            let piece = self.reader.fill_buf().map_err(|e| super::unreadable(&self.name, &e))?;
            let Some(&first) = piece.first() else { return Ok(None) };
            // A byte order mark may be cut by the end of a piece.
            let n = blank(piece).max(usize::from(matches!(first, 0xef | 0xbb | 0xbf)));
            if n == 0 {
                return Ok(Some(first));
            }
            self.number += piece[..n].iter().filter(|&&b| b == b'\n').count() as u64;
            self.reader.consume(n);
        }
    }

    fn broken(&self, what: &str) -> Error {
        Error::new(Exit::Data, format!("{}:{}: {what}", self.name, self.number))
    }
}

/// A row that begins on line `number`, behind `before` bytes of it.
fn bad(wrong: Wrong, number: u64, before: usize) -> Bad {
    match wrong {
        Wrong::Syntax(words, line, column) => Bad {
            place: format!(":{}", number + line.max(1) as u64 - 1),
            what: format!("not JSON: {words} at column {}", if line <= 1 { before + column } else { column }),
            hint: "correct it; --format text takes the file as plain text",
        },
        Wrong::Shape(what) => {
            Bad { place: format!(":{number}"), what, hint: "name the key of the text with --text-key" }
        }
    }
}

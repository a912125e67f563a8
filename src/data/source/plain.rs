//! Documents of plain text: the whole file, its paragraphs, or its lines.

use super::{Bad, Split, Taken};
use std::io::{BufRead, Result};

pub struct Texts {
    reader: Box<dyn BufRead>,
    split: Split,
    line_number: u64,
}

impl Texts {
    pub fn new(reader: Box<dyn BufRead>, split: Split) -> Texts {
        Texts { reader, split, line_number: 0 }
    }

    /// The next document that is not blank.
    pub fn next(&mut self) -> Result<Option<Taken>> {
        loop {
            let first_line = self.line_number + 1;
            let raw = match self.split {
                Split::Line => self.line()?,
                Split::BlankLines => self.paragraph()?,
                Split::File => self.rest()?,
            };
            match raw {
                None => return Ok(None),
                Some(raw) if raw.trim_ascii().is_empty() => {}
                Some(raw) => return Ok(Some(text(raw, first_line))),
            }
        }
    }

    /// The next line without its ending.
    fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let n = self.reader.read_until(b'\n', &mut line)?;
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
            let n = self.reader.read_until(b'\n', &mut out)?;
            self.line_number += 1;
            if out[before..].trim_ascii().is_empty() {
                out.truncate(before);
                return Ok((n > 0 || before > 0).then_some(out));
            }
        }
    }

    fn rest(&mut self) -> Result<Option<Vec<u8>>> {
        let mut all = Vec::new();
        let n = self.reader.read_to_end(&mut all)?;
        Ok((n > 0).then_some(all))
    }
}

fn text(raw: Vec<u8>, first_line: u64) -> Taken {
    String::from_utf8(raw).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let before = &e.as_bytes()[..at];
        let line = first_line + before.iter().filter(|&&b| b == b'\n').count() as u64;
        let column = at - before.iter().rposition(|&b| b == b'\n').map_or(0, |p| p + 1);
        let what = format!("byte 0x{:02x} at column {} is not UTF-8", e.as_bytes()[at], column + 1);
        Bad { place: format!(":{line}"), what, hint: "convert the file, as in `iconv -f LATIN1 -t UTF-8`" }
    })
}

//! JSON-lines files read from their beginning in bounded memory, and again from where the last read ended: a run of a million
//! steps writes half a gigabyte of them, and somebody looks every few seconds. Lines that cannot be read are counted and left out.

use crate::error::{Error, Exit, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The longest line that is read, bytes; a longer one counts as damaged.
const LONGEST: usize = 1 << 20;

/// A file of lines, and how far it has been read.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    /// Device and inode of the file that was read.
    identity: Option<(u64, u64)>,
    /// Bytes read, up to the end of the last whole line.
    at: u64,
    lines: u64,
    damaged: u64,
    first_damaged: u64,
    /// Bytes behind the last whole line.
    unfinished: u64,
}

impl JsonLines {
    /// Nothing is opened yet; a file that is absent is empty.
    pub fn new(path: &Path) -> JsonLines {
        let path = path.to_path_buf();
        JsonLines { path, identity: None, at: 0, lines: 0, damaged: 0, first_damaged: 0, unfinished: 0 }
    }

    /// Gives `each` the whole lines that came since the last call; it returns whether it could read the line.
    ///
    /// # Errors
    /// [`Exit::Storage`].
    pub fn read(&mut self, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<()> {
        let refused = |e: std::io::Error| Error::io(&self.path, "read", &e, Exit::Storage);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(refused(e)),
        };
        let found = file.metadata().map_err(refused)?;
        let identity = (found.dev(), found.ino());
        // replaced since somebody asked: the place that was read to is the other file's, and `is_replaced` says so the next time
        if *self.identity.get_or_insert(identity) != identity {
            return Ok(());
        }
        file.seek(SeekFrom::Start(self.at)).map_err(refused)?;
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let (read, whole) = next(&mut reader, &mut line).map_err(refused)?;
            if !whole {
                self.unfinished = read;
                return Ok(());
            }
            self.at += read;
            self.lines += 1;
            let empty = read == 1;
            if !empty && (line.len() > LONGEST || !each(&line)) {
                self.damaged += 1;
                if self.damaged == 1 {
                    self.first_damaged = self.lines;
                }
            }
        }
    }

    /// Whether another file is there now than the one that was read, or less of it: it must be read anew.
    pub fn is_replaced(&self) -> bool {
        match (self.identity, std::fs::metadata(&self.path)) {
            (Some(old), Ok(m)) => (m.dev(), m.ino()) != old || m.len() < self.at,
            (Some(_), Err(_)) => true,
            (None, found) => found.is_ok() && self.at > 0,
        }
    }

    /// Lines read so far, damaged ones included.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// What is wrong with the file, in one line; None where nothing is.
    pub fn complaint(&self) -> Option<String> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let half = match self.unfinished {
            0 => String::new(),
            n => format!("ends in {n} bytes of an unfinished line"),
        };
        match (self.damaged, half.is_empty()) {
            (0, true) => None,
            (0, false) => Some(format!("{name} {half}")),
            (n, whole) => Some(format!(
                "{name}: {n} of {} lines cannot be read and are left out, the first is line {}{}",
                self.lines,
                self.first_damaged,
                if whole { String::new() } else { format!("; it {half}") }
            )),
        }
    }
}

/// The next line without its end, at most one byte more than [`LONGEST`] of it; bytes read, and whether its end was there.
fn next(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<(u64, bool)> {
    let mut read = 0;
    loop {
        let found = match reader.fill_buf() {
            Ok(found) => found,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if found.is_empty() {
            return Ok((read, false));
        }
        let end = found.iter().position(|&b| b == b'\n');
        let part = &found[..end.unwrap_or(found.len())];
        line.extend_from_slice(&part[..part.len().min((LONGEST + 1).saturating_sub(line.len()))]);
        let used = part.len() + end.is_some() as usize;
        reader.consume(used);
        read += used as u64;
        if end.is_some() {
            return Ok((read, true));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn numbers(lines: &mut JsonLines) -> Vec<u64> {
        let mut out = Vec::new();
        lines
            .read(&mut |l| match serde_json::from_slice(l) {
                Ok(n) => {
                    out.push(n);
                    true
                }
                Err(_) => false,
            })
            .unwrap();
        out
    }

    #[test]
    fn reading_goes_on_where_it_ended_and_leaves_out_what_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let mut lines = JsonLines::new(&path);
        assert_eq!(numbers(&mut lines), [0; 0]);
        let mut file = crate::appended::open(&path).unwrap();
        file.write_all(b"1\n2\n\n{half\n3\n4").unwrap();
        assert_eq!(numbers(&mut lines), [1, 2, 3]);
        let said = lines.complaint().unwrap();
        assert!(
            said.starts_with("x.jsonl: 1 of 5 lines") && said.contains("line 4") && said.contains("1 bytes"),
            "{said}"
        );
        file.write_all(b"2\n5\n").unwrap();
        assert_eq!(numbers(&mut lines), [42, 5]);
        assert!(!lines.is_replaced());
        std::fs::write(dir.path().join("y"), "7\n").unwrap();
        std::fs::rename(dir.path().join("y"), &path).unwrap();
        assert!(lines.is_replaced());
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let mut text = vec![b'1'; 3 * LONGEST];
        text.extend_from_slice(b"\n8\n");
        std::fs::write(&path, text).unwrap();
        let mut lines = JsonLines::new(&path);
        assert_eq!(numbers(&mut lines), [8]);
        assert!(lines.complaint().unwrap().contains("line 1"));
    }
}

//! A buffered reader that can look ahead as far as it must: what a pipe hands over in small pieces is put together here.

use std::io::{BufRead, ErrorKind, Read, Result};

/// How much is asked of the reader below at a time.
const PIECE: usize = 256 << 10;

pub struct Ahead<R> {
    inner: R,
    /// Read and not yet taken: from `at` on.
    held: Vec<u8>,
    at: usize,
}

impl<R: Read> Ahead<R> {
    pub fn new(inner: R) -> Ahead<R> {
        Ahead { inner, held: Vec::new(), at: 0 }
    }

    /// What has been read and not been taken.
    pub fn seen(&self) -> &[u8] {
        &self.held[self.at..]
    }

    /// Reads some more behind what is seen; false at the end of the input.
    pub fn more(&mut self) -> Result<bool> {
        if self.at > 0 {
            self.held.drain(..self.at);
            self.at = 0;
        }
        let before = self.held.len();
        self.held.resize(before + PIECE, 0);
        let read = loop {
            match self.inner.read(&mut self.held[before..]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.held.truncate(before + *read.as_ref().unwrap_or(&0));
        read.map(|n| n > 0)
    }

    /// Reads until `n` bytes are seen; fewer where the input has no more.
    pub fn at_least(&mut self, n: usize) -> Result<&[u8]> {
        while self.seen().len() < n && self.more()? {}
        Ok(self.seen())
    }

    /// The byte `at` of what lies ahead; `None` behind the end.
    pub fn byte(&mut self, at: usize) -> Result<Option<u8>> {
        if self.seen().len() <= at {
            self.at_least(at + 1)?;
        }
        Ok(self.seen().get(at).copied())
    }
}

impl<R: Read> Read for Ahead<R> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for Ahead<R> {
    fn fill_buf(&mut self) -> Result<&[u8]> {
        if self.seen().is_empty() {
            self.more()?;
        }
        Ok(self.seen())
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.held.len());
    }
}

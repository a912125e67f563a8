//! The members of a gzip file, one after another, and what may follow the last: zeros up to the end, with which blocks of
//! tapes and of some stores are filled, are passed over as gzip itself does.

use flate2::bufread::GzDecoder;
use std::io::{BufRead, Error, ErrorKind, Read, Result};

pub struct Members<R> {
    /// `None` behind the last member.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Members<R> {
    pub fn new(raw: R) -> Members<R> {
        Members { member: Some(GzDecoder::new(raw)) }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        while let Some(member) = &mut self.member {
            let n = member.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            self.member = self.member.take().map(GzDecoder::into_inner).map_or(Ok(None), next)?;
        }
        Ok(0)
    }
}

fn next<R: BufRead>(mut raw: R) -> Result<Option<GzDecoder<R>>> {
    match raw.fill_buf()?.first() {
        None => Ok(None),
        Some(0x1f) => Ok(Some(GzDecoder::new(raw))),
        Some(0) => only_zeros(&mut raw).map(|()| None),
        Some(_) => Err(trailing()),
    }
}

fn only_zeros(raw: &mut impl BufRead) -> Result<()> {
    loop {
        let piece = raw.fill_buf()?;
        let n = piece.len();
        match piece {
            [] => return Ok(()),
            some if some.iter().all(|&b| b == 0) => raw.consume(n),
            _ => return Err(trailing()),
        }
    }
}

fn trailing() -> Error {
    Error::new(ErrorKind::InvalidData, "something that is no gzip follows its last member")
}

//! Where documents begin, looked up in the file: a search over the entries of the document index that touches a few pages,
//! and the entries of the asked range. What is used on the way is checked; what does not fit is an error, never another
//! place.

use super::index::{Column, Index, PAGE};
use crate::error::Result;
use std::ops::Range;

/// At most this many sequences before the first one asked for are followed, to see that they meet it.
const BEFORE: u64 = 1024;

pub(super) struct Lookup<'a> {
    index: &'a Index,
    tokens: u64,
    lengths: Column<'a>,
    offsets: Column<'a>,
    documents: Column<'a>,
}

impl<'a> Lookup<'a> {
    pub fn new(index: &'a Index, tokens: u64) -> Lookup<'a> {
        let (lengths, offsets, documents) = (index.lengths(PAGE), index.offsets(PAGE), index.documents(PAGE));
        Lookup { index, tokens, lengths, offsets, documents }
    }

    /// Where documents begin inside `range` of token positions, its first left out: ascending, each place once.
    pub fn starts(&mut self, range: Range<u64>) -> Result<Vec<u64>> {
        let first = self.first_after(range.start)?;
        let (before, mut sequence) = (self.sequence(first.saturating_sub(1))?, self.sequence(first)?);
        if before > sequence {
            return Err(self.index.bad(format!("document entry {first} is {sequence} after {before}")));
        }
        // Sequences are followed from one that is known to start before the range: each must meet the next.
        let mut at = before.max(sequence.saturating_sub(BEFORE));
        let mut end = self.offset(at)?;
        let mut starts = Vec::new();
        for entry in first..self.index.entries {
            let next = self.sequence(entry)?;
            if next < sequence {
                return Err(self.index.bad(format!("document entry {entry} is {next} after {sequence}")));
            }
            sequence = next;
            while at < sequence {
                end = self.after(at, end)?;
                at += 1;
            }
            let start = end / self.index.dtype.size() as u64;
            if start >= range.end {
                break;
            }
            // Documents without tokens begin where the next does.
            if starts.last() != Some(&start) {
                starts.push(start);
            }
        }
        Ok(starts)
    }

    /// Token positions of document `d`.
    pub fn document(&mut self, d: u64) -> Result<Range<u64>> {
        let (start, end) = (self.document_start(d)?, self.document_start(d + 1)?);
        match start <= end {
            true => Ok(start..end),
            false => Err(self.index.bad(format!("document {d} begins at token {start} and ends at {end}"))),
        }
    }

    /// The first entry that starts after `position`, by interpolation and bisection in turn: lengths are alike over most
    /// corpora, and where they are not, every second step halves.
    fn first_after(&mut self, position: u64) -> Result<u64> {
        let (mut low, mut high) = (0, self.index.entries - 1);
        let (mut low_start, mut high_start) = (0, self.tokens);
        for turn in 0.. {
            if high - low <= 1 {
                break;
            }
            let share = (position - low_start) as u128 * (high - low) as u128;
            let guess = low + (share / (high_start - low_start).max(1) as u128) as u64;
            let middle = if turn % 2 == 0 { guess.clamp(low + 1, high - 1) } else { low + (high - low) / 2 };
            let start = self.document_start(middle)?;
            if start < low_start || start > high_start {
                let fact = format!(
                    "document {middle} begins at token {start}, but document {low} at {low_start} and document {high} at {high_start}"
                );
                return Err(self.index.bad(fact));
            }
            match start <= position {
                true => (low, low_start) = (middle, start),
                false => (high, high_start) = (middle, start),
            }
        }
        Ok(high)
    }

    /// Position of the first token of document `entry`; of the last entry, the end of the file.
    fn document_start(&mut self, entry: u64) -> Result<u64> {
        let sequence = self.sequence(entry)?;
        Ok(self.offset(sequence)? / self.index.dtype.size() as u64)
    }

    fn sequence(&mut self, entry: u64) -> Result<u64> {
        let d = self.documents.get(entry)?;
        match u64::try_from(d).ok().filter(|&d| d <= self.index.sequences) {
            Some(d) => Ok(d),
            None => {
                Err(self.index.bad(format!("document entry {entry} is {d}, with {} sequences", self.index.sequences)))
            }
        }
    }

    /// First byte of a sequence; behind the last one, the end of the file.
    fn offset(&mut self, sequence: u64) -> Result<u64> {
        let size = self.index.dtype.size() as u64;
        if sequence >= self.index.sequences {
            return Ok(self.tokens * size);
        }
        let at = self.offsets.get(sequence)?;
        match u64::try_from(at).ok().filter(|at| at % size == 0 && *at <= self.tokens * size) {
            Some(at) => Ok(at),
            None => Err(self.index.bad(format!(
                "sequence {sequence} starts at byte {at} of {}, with {size} bytes a token",
                self.tokens * size
            ))),
        }
    }

    /// The byte where sequence `s`, which starts at `start`, ends and the next one starts.
    fn after(&mut self, s: u64, start: u64) -> Result<u64> {
        let length = self.lengths.get(s)?;
        if length < 0 {
            return Err(self.index.bad(format!("sequence {s} has length {length}")));
        }
        let end = start + length as u64 * self.index.dtype.size() as u64;
        match self.offset(s + 1)? {
            next if next == end => Ok(end),
            next => {
                let fact = format!("sequence {} starts at byte {next}, but the ones before it end at {end}", s + 1);
                Err(self.index.bad(fact))
            }
        }
    }
}

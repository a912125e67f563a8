//! Whether lengths, offsets, document index and size of the `.bin` tell one story: in all of the index, or at its ends and
//! in blocks between. What lies in no block is checked when it is used ([`super::lookup`]).

use super::index::Index;
use crate::error::{Error, Exit, Result};
use std::ops::Range;

/// How much of an index is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexExtent {
    /// Every number of each column.
    All,
    /// This many blocks of each column, evenly spread, the first and the last among them.
    Blocks(u64),
}

/// Numbers of a block.
const BLOCK: u64 = 1024;
/// Numbers read at a time where all are.
const STRIDE: u64 = 64 << 10;

impl IndexExtent {
    /// Ranges of `0..count`, ascending.
    fn ranges(self, count: u64) -> impl Iterator<Item = Range<u64>> {
        let (parts, each) = match self {
            IndexExtent::Blocks(n) if n > 1 && count > n * BLOCK => (n, BLOCK),
            _ => (1, count),
        };
        let last = count - each;
        (0..parts).map(move |i| {
            let first = (last as u128 * i as u128 / (parts - 1).max(1) as u128) as u64;
            first..first + each
        })
    }

    fn stride(self) -> u64 {
        match self {
            IndexExtent::All => STRIDE,
            IndexExtent::Blocks(_) => BLOCK,
        }
    }
}

/// Returns the tokens. `bin`: path and bytes of the `.bin`, for messages and for comparison.
pub(super) fn check(index: &Index, bin: (&std::path::Path, u64), extent: IndexExtent) -> Result<u64> {
    let size = index.dtype.size() as u64;
    let expected = sequences(index, extent)?;
    documents(index, extent)?;
    let (path, found) = bin;
    if found != expected {
        let relation = if found < expected { "shorter" } else { "longer" };
        let fact = format!(
            "{} has {found} bytes, {relation} than the {expected} its index says ({} tokens of {size} bytes)",
            path.display(),
            expected / size,
        );
        return Err(Error::new(Exit::Data, fact).hint("the file is cut off, or .bin and .idx are not of one run"));
    }
    Ok(expected / size)
}

/// Each sequence starts where the one before ended. Returns the byte where the last one ends.
fn sequences(index: &Index, extent: IndexExtent) -> Result<u64> {
    let size = index.dtype.size() as i64;
    let (mut lengths, mut offsets) = (index.lengths(extent.stride()), index.offsets(extent.stride()));
    // The sequences before this number end at this byte.
    let (mut next, mut end) = (0, 0i64);
    for s in extent.ranges(index.sequences).flatten() {
        let (length, offset) = (lengths.get(s)?, offsets.get(s)?);
        if length < 0 {
            return Err(index.bad(format!("sequence {s} has length {length}")));
        }
        let fits = if s == next { offset == end } else { offset >= end && offset % size == 0 };
        if !fits {
            let fact = format!("sequence {s} starts at byte {offset}, but the ones before it end at {end}");
            return Err(index.bad(fact));
        }
        (next, end) = (s + 1, offset.saturating_add(length * size));
    }
    Ok(end as u64)
}

/// Document entries rise from 0 to the number of sequences.
fn documents(index: &Index, extent: IndexExtent) -> Result<()> {
    let mut documents = index.documents(extent.stride());
    let mut last = 0;
    for e in extent.ranges(index.entries).flatten() {
        let d = documents.get(e)?;
        let ok = if e == 0 { d == 0 } else { d >= last };
        if !ok || d as u64 > index.sequences {
            let fact = format!("document entry {e} is {d} after {last}, with {} sequences", index.sequences);
            return Err(index.bad(fact));
        }
        last = d;
    }
    if last as u64 != index.sequences {
        return Err(index.bad(format!("the last document ends at sequence {last} of {}", index.sequences)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_reach_from_end_to_end() {
        let ranges = |extent: IndexExtent, count| extent.ranges(count).collect::<Vec<_>>();
        let all = |n: u64| std::iter::once(0..n).collect::<Vec<_>>();
        assert_eq!(ranges(IndexExtent::All, 5000), all(5000));
        assert_eq!(ranges(IndexExtent::Blocks(4), 4 * BLOCK), all(4 * BLOCK), "as many as the blocks hold: all");
        let some = ranges(IndexExtent::Blocks(4), 100 * BLOCK);
        assert_eq!((some.len(), some[0].clone(), some[3].clone()), (4, 0..BLOCK, 99 * BLOCK..100 * BLOCK));
        assert!(some.windows(2).all(|w| w[0].end < w[1].start), "{some:?}");
        assert_eq!(ranges(IndexExtent::Blocks(256), u64::MAX / 16).last().unwrap().end, u64::MAX / 16);
    }
}

//! What a snapshot holds and where in it: the slices of one rank back to back, in blocks that are summed one by one.
//!
//! Blocks make a part of a snapshot readable and checkable without the rest, and let a rank's threads sum it together.

use crate::checkpoint::map::Spec;
use crate::error::{Error, Exit, Result};
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a block: it stays in a second-level cache between being copied and being summed.
pub const BLOCK: usize = 256 << 10;
/// Slices start at multiples of this many bytes.
const LINE: usize = 64;

/// The slices of one rank and their places. The same for the whole life of a run on one topology.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The slices, in the order of their data.
    pub specs: Vec<Spec>,
    /// First byte of each slice in the data.
    pub at: Vec<usize>,
    /// Number of the first block of each slice.
    first_block: Vec<usize>,
    /// Bytes of all data.
    pub data: usize,
    /// Blocks of all slices; the last of a slice may be shorter than [`BLOCK`].
    pub blocks: usize,
    /// The table as it is stored.
    pub bytes: Vec<u8>,
    /// Checksum of `bytes`: two ranks or two attempts with equal ones hold the same slices.
    pub hash: u64,
}

impl Table {
    /// Errors: [`Exit::Internal`] for a slice that is not in its tensor.
    pub fn new(specs: Vec<Spec>) -> Result<Table> {
        let bytes = serde_json::to_vec(&specs)
            .map_err(|e| Error::new(Exit::Internal, format!("a snapshot's table cannot be written: {e}")))?;
        Table::build(specs, bytes).map_err(|why| Error::new(Exit::Internal, format!("a snapshot's table: {why}")))
    }

    /// From stored bytes. Errors: [`Exit::Checkpoint`].
    pub fn parse(bytes: Vec<u8>) -> Result<Table> {
        let damaged = |why: String| Error::new(Exit::Checkpoint, format!("the table of a snapshot is damaged: {why}"));
        let specs: Vec<Spec> = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        Table::build(specs, bytes).map_err(damaged)
    }

    fn build(specs: Vec<Spec>, bytes: Vec<u8>) -> std::result::Result<Table, String> {
        let (mut data, mut blocks) = (0, 0);
        let (mut at, mut first_block) = (Vec::new(), Vec::new());
        for s in &specs {
            if let Some(why) = s.span.fault() {
                return Err(format!("{} {}: {why}", s.group, s.name));
            }
            at.push(data);
            first_block.push(blocks);
            data += (4 * s.span.len).next_multiple_of(LINE);
            blocks += (4 * s.span.len).div_ceil(BLOCK);
        }
        let hash = xxh3_64(&bytes);
        Ok(Table { specs, at, first_block, data, blocks, bytes, hash })
    }

    /// The blocks of slice `i`: number of each and its bytes in the data.
    pub fn blocks_of(&self, i: usize) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let len = 4 * self.specs[i].span.len;
        let (at, first) = (self.at[i], self.first_block[i]);
        (0..len.div_ceil(BLOCK)).map(move |b| (first + b, at + b * BLOCK..at + len.min((b + 1) * BLOCK)))
    }

    /// The block of slice `i` that holds its element `element`: number and bytes in the data.
    pub fn block_at(&self, i: usize, element: usize) -> (usize, Range<usize>) {
        let (len, b) = (4 * self.specs[i].span.len, 4 * element / BLOCK);
        let at = self.at[i];
        (self.first_block[i] + b, at + b * BLOCK..at + len.min((b + 1) * BLOCK))
    }
}

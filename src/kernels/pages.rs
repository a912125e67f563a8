//! The blocks of a cache of keys and values, and which of them an iteration reads: the values that [`super::paged`] works on.

use tch::{Device, Kind, Tensor};

/// Tokens of a block.
pub const BLOCK: usize = 16;

/// The blocks of one layer.
pub struct Pages {
    /// [blocks,Hkv,D,16] T: the keys of a block side by side.
    pub keys: Tensor,
    /// [blocks,Hkv,16,D rounded up to 16] T.
    pub values: Tensor,
}

/// Adjacent rows of an iteration that are consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct QueryRun<'a> {
    /// The first of its rows among the N.
    pub row: usize,
    /// How many rows they are, a token each.
    pub tokens: usize,
    /// Place in the sequence of the first of them.
    pub start: usize,
    /// Blocks of the sequence, up to the last of these tokens at least.
    pub blocks: &'a [u32],
}

impl Pages {
    /// With anything in them: what was not written is never read, and pages that are never written take no memory.
    pub fn new(blocks: usize, kv_heads: i64, head_dim: i64, options: (Kind, Device)) -> Pages {
        let (blocks, block) = (blocks as i64, BLOCK as i64);
        Pages {
            keys: Tensor::empty([blocks, kv_heads, head_dim, block], options),
            values: Tensor::empty([blocks, kv_heads, block, (head_dim + block - 1) / block * block], options),
        }
    }

    /// Bytes of one block of one layer.
    pub fn block_bytes(kv_heads: usize, head_dim: usize, elem: usize) -> usize {
        kv_heads * BLOCK * (head_dim + head_dim.next_multiple_of(BLOCK)) * elem
    }
}

//! A chunk of the model: a run of adjacent units. On one rank without a pipeline the whole model, else what one virtual stage holds.

use super::{PairBatch, Positions, TokenGroups};
use crate::layout::Unit;
use std::ops::Range;
use tch::Tensor;

/// Adjacent units: the embedding perhaps, blocks, the head perhaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Token ids come in, not activations.
    pub embedding: bool,
    /// Its blocks, counted from 0 over the whole model; `0..0` for none.
    pub blocks: Range<usize>,
    /// Blocks of this rank that lie in earlier chunks.
    pub before: usize,
    /// The loss comes out, not activations.
    pub head: bool,
}

/// One micro-batch as the layers see it: N = B·S tokens.
pub struct Micro {
    /// [N] i64.
    pub ids: Tensor,
    /// [N] i64; a negative one does not count.
    pub targets: Tensor,
    /// Places of this rank's tokens in each sequence, and what they attend to.
    pub at: Positions,
    /// [N] i32, what tells the tokens apart for dropout ([`super::dropout::token`]); None: nothing is dropped.
    pub noise: Option<Tensor>,
    /// The documents are preference pairs, whose loss takes the place of the next token's; None: they are not.
    pub pairs: Option<PairBatch>,
    /// Where passes without gradients say how each group of tokens fares; None: nobody asks. Not of pairs.
    pub groups: Option<TokenGroups>,
}

impl Chunk {
    /// The chunks of one rank, from lists of units as [`crate::layout::stages::chunks`] makes them.
    pub fn list(units: &[&Vec<Unit>]) -> Vec<Chunk> {
        let mut before = 0;
        let chunk = |units: &&Vec<Unit>| {
            let blocks = || units.iter().filter_map(|u| if let Unit::Block(i) = u { Some(*i) } else { None });
            let blocks = blocks().next().unwrap_or(0)..blocks().next_back().map_or(0, |i| i + 1);
            before += blocks.len();
            Chunk {
                embedding: units.first() == Some(&Unit::Embedding),
                before: before - blocks.len(),
                head: units.last() == Some(&Unit::Head),
                blocks,
            }
        };
        units.iter().map(chunk).collect()
    }

    /// All of a model of so many blocks.
    pub fn whole(layers: usize) -> Chunk {
        Chunk { embedding: true, blocks: 0..layers, before: 0, head: true }
    }
}

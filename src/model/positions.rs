//! Where the tokens of a micro-batch stand: their places in the sequence.

use crate::model::Rope;
use tch::Tensor;

/// For each sequence of a micro-batch the places where a new document begins, ascending, 0 left out. Attention does not
/// look back beyond them. Without a list every sequence is one document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents(pub Vec<Vec<usize>>);

impl Documents {
    /// Every sequence is one document.
    pub fn whole() -> Documents {
        Documents::default()
    }
}

/// Positions of one micro-batch, the same for every block.
#[derive(Debug)]
pub struct Positions {
    /// Rotary tables of the S tokens that this rank holds of each sequence.
    rope: Rope,
}

impl Positions {
    /// The `len` consecutive positions from `start` on of whole sequences on one rank, `rope` counting from 0.
    pub fn consecutive(rope: &Rope, start: usize, len: usize) -> Positions {
        Positions { rope: rope.slice(start, len) }
    }

    /// Tokens that this rank holds of each sequence: S.
    pub fn len(&self) -> usize {
        self.rope.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rope.is_empty()
    }

    /// Turns the heads of x [B,S,heads,D] to their positions, in place; `inverse` turns them back.
    pub fn rotate_(&self, x: &Tensor, inverse: bool) {
        crate::kernels::rope_(x, &self.rope.cos, &self.rope.sin, inverse)
    }
}

//! One transformer block: attention, then feed-forward.
//!
//! # Activations kept per token
//!
//! With e = bytes of the compute dtype (bf16 2, fp32 4), t ranks of the tensor axis, H hidden, F feed-forward, Hq and Hkv the
//! heads of one rank (Hkv at least one), D their width, A = (Hq + 2·Hkv)·D, Q = Hq·D:
//!
//! | tensor | bytes a token | none | selective | full |
//! | --- | --- | --- | --- | --- |
//! | block input x (the output of the block before: the same tensor) | H/t·e | kept | kept | kept |
//! | attention: normed x | H/t·e | kept | | |
//! | attention: q\|k\|v, rotated | A·e | kept | kept | |
//! | attention: output before Wo | Q·e | kept | kept | |
//! | attention: log-sum-exp (fp32) | 4·Hq | kept | kept | |
//! | attention: rstd (fp32) | 4/t | kept | | |
//! | middle of the block, input of the feed-forward half | H/t·e | kept | kept | |
//! | feed-forward: normed | H/t·e | kept | | |
//! | feed-forward: gate\|up | 2·F/t·e | kept | kept | |
//! | feed-forward: silu(gate)·up | F/t·e | kept | | |
//! | feed-forward: rstd (fp32) | 4/t | kept | | |
//!
//! What adapters keep, their products of A, comes on top, r values a token for each matrix that has one; full makes them again too.
//! Selective keeps what matrix products and attention gave and makes the norms and the SwiGLU again; full makes everything again,
//! one block at a time, which then has the whole list. No mode changes a bit of the result. [`kept_bytes`] is the sum.
//!
//! On top of what is kept, [`Block::backward`] holds at its highest point, in the feed-forward half: dy, the gradient of
//! silu(gate)·up, and that of gate|up: `(H + 3·F/t)·e` a token ([`backward_bytes`]); gate|up and the gradient of
//! silu(gate)·up go as soon as they were used. Over a tensor axis the normed input of all ranks, fetched again for the
//! weight gradient (H·e), and the gradient of it before and after the sum (H·e + H/t·e) join them.
//!
//! # Overlap
//!
//! Over a tensor axis the weight gradients of each half are made while the sum of the gradient of its normed input is under
//! way, and its normed inputs are fetched while the input gradients are made.

use crate::config::{ModelConfig, Recompute};
use crate::error::Result;
use crate::model::attention::{self, Attention, Mixed};
use crate::model::mlp::{self, Mlp};
use crate::model::sequence::LowRank;
use crate::model::{Accumulate, Axes, Flat, LoraNumbers, Positions};
use tch::Tensor;

/// The geometry of a block, the same for all; the weights come with each call.
#[derive(Clone, Debug)]
pub struct Block {
    /// The first half.
    pub attention: Attention,
    /// The second half, feed-forward.
    pub mlp: Mlp,
}

/// What one block keeps between its forward and its backward pass.
pub struct Kept(Keep);

enum Keep {
    All(BlockSaved),
    /// What products and attention gave.
    Products {
        x: Tensor,
        mixed: Mixed,
        mid: Tensor,
        gate_up: Tensor,
        low: LowRank,
    },
    /// The block's input.
    Input(Tensor),
}

/// Activations of one block.
struct BlockSaved {
    attention: attention::AttentionSaved,
    mlp: mlp::MlpSaved,
}

impl Kept {
    /// Bytes of the tensors kept, the block's input counted.
    pub fn bytes(&self) -> usize {
        let kept = match &self.0 {
            Keep::All(BlockSaved { attention: a, mlp: f }) => {
                let Mixed { qkv, out, lse, .. } = &a.mixed;
                vec![&a.x, &a.rstd, &a.normed, qkv, out, lse, &f.x, &f.rstd, &f.normed, &f.gate_up, &f.act]
            }
            Keep::Products { x, mixed: Mixed { qkv, out, lse, .. }, mid, gate_up, .. } => {
                vec![x, qkv, out, lse, mid, gate_up]
            }
            Keep::Input(x) => vec![x],
        };
        let low = match &self.0 {
            Keep::All(BlockSaved { attention: a, mlp: f }) => vec![&a.mixed.low, &f.low],
            Keep::Products { mixed, low, .. } => vec![&mixed.low, low],
            Keep::Input(_) => Vec::new(),
        };
        let low = low.into_iter().flat_map(|l| l.inputs.iter().chain(&l.outputs));
        kept.into_iter().chain(low).map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum()
    }
}

/// What the weight gradients of one block read.
pub struct BlockPending {
    attention: attention::AttentionPending,
    mlp: mlp::MlpPending,
}

impl Block {
    /// Of the model `m` on a rank of `axes`; adapters have scale 0 until [`Block::set_lora`].
    pub fn new(m: &ModelConfig, axes: &Axes) -> Block {
        Block { attention: Attention::new(m, axes), mlp: Mlp::new(m, axes) }
    }

    /// The numbers of adapters, wherever they lie beside its matrices.
    pub fn set_lora(&mut self, numbers: LoraNumbers) {
        (self.attention.lora, self.mlp.lora) = (numbers, numbers);
    }

    /// x → y, both [N/t,H] T, and what the backward pass reads.
    pub fn forward(&self, w: &Flat, x: &Tensor, at: &Positions, mode: Recompute) -> Result<(Tensor, Kept)> {
        let (mid, attention) = self.attention.forward(w, x, at)?;
        match mode {
            Recompute::None => {
                let (y, mlp) = self.mlp.forward(w, &mid)?;
                Ok((y, Kept(Keep::All(BlockSaved { attention, mlp }))))
            }
            Recompute::Selective => {
                let attention::AttentionSaved { x, mixed, .. } = attention;
                let (y, mlp::MlpSaved { gate_up, low, .. }) = self.mlp.forward(w, &mid)?;
                Ok((y, Kept(Keep::Products { x, mixed, mid, gate_up, low })))
            }
            Recompute::Full => {
                drop(attention);
                Ok((self.mlp.forward(w, &mid)?.0, Kept(Keep::Input(x.shallow_clone()))))
            }
        }
    }

    /// [`Block::forward`] that keeps nothing.
    pub fn infer(&self, w: &Flat, x: &Tensor, at: &Positions) -> Result<Tensor> {
        let mid = self.attention.forward(w, x, at)?.0;
        Ok(self.mlp.forward(w, &mid)?.0)
    }

    /// All activations from those kept. The block's last product is left out.
    fn recompute(&self, w: &Flat, kept: Kept, at: &Positions) -> Result<BlockSaved> {
        match kept.0 {
            Keep::All(saved) => Ok(saved),
            Keep::Products { x, mixed, mid, gate_up, low } => {
                let attention = self.attention.restore(w, x, mixed);
                Ok(BlockSaved { attention, mlp: self.mlp.restore(w, mid, gate_up, low) })
            }
            Keep::Input(x) => {
                let (mid, attention) = self.attention.forward(w, &x, at)?;
                Ok(BlockSaved { attention, mlp: self.mlp.activations(w, &mid)? })
            }
        }
    }

    /// dy → dx, both [N/t,H] T. Weight gradients are written half by half, so that each half's activations go early.
    pub fn backward(&self, w: &Flat, kept: Kept, dy: Tensor, at: &Positions, grads: Accumulate) -> Result<Tensor> {
        let saved = self.recompute(w, kept, at)?;
        // On one rank there is nothing to wait for: the norm first frees the gradient that it reads.
        let alone = self.mlp.axes.tensor.size() == 1;

        let (back, pending) = self.mlp.backward_products(w, saved.mlp, dy, true)?;
        let dmid = if alone {
            let dmid = self.mlp.backward_norm(w, back, grads)?;
            self.mlp.backward_weight(w, pending, grads)?;
            dmid
        } else {
            self.mlp.backward_weight(w, pending, grads)?;
            self.mlp.backward_norm(w, back, grads)?
        };

        let (back, pending) = self.attention.backward_products(w, saved.attention, dmid, at, true)?;
        if alone {
            let dx = self.attention.backward_norm(w, back, grads)?;
            self.attention.backward_weight(w, pending, grads)?;
            return Ok(dx);
        }
        self.attention.backward_weight(w, pending, grads)?;
        self.attention.backward_norm(w, back, grads)
    }

    /// Only dx (and the norms' weight gradients); [`Block::backward_weight`] may follow at any later time, in the same order
    /// on every rank of the tensor axis.
    pub fn backward_input(
        &self, w: &Flat, kept: Kept, dy: Tensor, at: &Positions, grads: Accumulate,
    ) -> Result<(Tensor, BlockPending)> {
        let saved = self.recompute(w, kept, at)?;
        let (back, mlp) = self.mlp.backward_products(w, saved.mlp, dy, false)?;
        let dmid = self.mlp.backward_norm(w, back, grads)?;
        let (back, attention) = self.attention.backward_products(w, saved.attention, dmid, at, false)?;
        let dx = self.attention.backward_norm(w, back, grads)?;
        Ok((dx, BlockPending { attention, mlp }))
    }

    /// Writes the matrices' gradients.
    pub fn backward_weight(&self, w: &Flat, pending: BlockPending, grads: Accumulate) -> Result<()> {
        self.mlp.backward_weight(w, pending.mlp, grads)?;
        self.attention.backward_weight(w, pending.attention, grads)
    }
}

/// Bytes a token that one block keeps for its backward pass, its input counted, its output not, over `tensor` ranks of the
/// tensor axis; `elem` = bytes of T. Rounded up where the ranks share a token's bytes.
pub fn kept_bytes(m: &ModelConfig, elem: usize, mode: Recompute, tensor: usize) -> usize {
    let (heads, kv) = (m.num_attention_heads / tensor, (m.num_key_value_heads / tensor).max(1));
    let (q, qkv) = (heads * m.head_dim(), (heads + 2 * kv) * m.head_dim());
    // Shared by the ranks, and each rank's own.
    let (shared, own) = match mode {
        Recompute::None => ((4 * m.hidden_size + 3 * m.intermediate_size) * elem + 8, (qkv + q) * elem + 4 * heads),
        Recompute::Selective => ((2 * m.hidden_size + 2 * m.intermediate_size) * elem, (qkv + q) * elem + 4 * heads),
        Recompute::Full => (m.hidden_size * elem, 0),
    };
    shared.div_ceil(tensor) + own
}

/// Bytes a token that [`Block::backward`] holds at its highest point beyond [`kept_bytes`].
pub fn backward_bytes(m: &ModelConfig, elem: usize, tensor: usize) -> usize {
    let alone = (m.hidden_size + 3 * m.intermediate_size.div_ceil(tensor)) * elem;
    match tensor {
        1 => alone,
        t => alone + (m.hidden_size + m.hidden_size.div_ceil(t)) * elem,
    }
}

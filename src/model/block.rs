//! One transformer block: attention, then feed-forward.
//!
//! # Activations kept per token
//!
//! With t = bytes of the compute dtype (bf16 2, fp32 4), H hidden, A = (Hq + 2·Hkv)·D, Q = Hq·D, F feed-forward:
//!
//! | tensor | bytes a token |
//! | --- | --- |
//! | block input x (the output of the block before: the same tensor) | H·t |
//! | attention: normed x | H·t |
//! | attention: q\|k\|v, rotated | A·t |
//! | attention: output before Wo | Q·t |
//! | attention: rstd, log-sum-exp (fp32) | 4 + 4·Hq |
//! | middle of the block, input of the feed-forward half | H·t |
//! | feed-forward: normed | H·t |
//! | feed-forward: gate\|up | 2·F·t |
//! | feed-forward: silu(gate)·up | F·t |
//! | feed-forward: rstd (fp32) | 4 |
//!
//! Together `(4·H + A + Q + 3·F)·t + 4·Hq + 8` ([`kept_bytes`]). With full recompute only the block input stays: `H·t`;
//! one block at a time has the whole list during its backward pass.
//!
//! On top of what is kept, [`Block::backward`] holds at its highest point, in the feed-forward half: dy, the gradient of
//! silu(gate)·up, and that of gate|up: `(H + 3·F)·t` a token ([`backward_bytes`]); gate|up and the gradient of silu(gate)·up
//! go as soon as they were used.

use crate::config::{ModelConfig, Recompute};
use crate::error::Result;
use crate::model::attention::{self, Attention};
use crate::model::mlp::{self, Mlp};
use crate::model::{Accumulate, Axes, Flat, Positions};
use tch::Tensor;

#[derive(Clone, Debug)]
pub struct Block {
    pub attention: Attention,
    pub mlp: Mlp,
}

/// What one block keeps between its forward and its backward pass.
pub struct Kept(Keep);

enum Keep {
    All(Saved),
    /// The block's input.
    Input(Tensor),
}

/// Activations of one block.
struct Saved {
    attention: attention::Saved,
    mlp: mlp::Saved,
}

impl Kept {
    /// Bytes of the tensors kept, the block's input counted.
    pub fn bytes(&self) -> usize {
        let kept = match &self.0 {
            Keep::All(Saved { attention: a, mlp: f }) => {
                vec![&a.x, &a.rstd, &a.normed, &a.qkv, &a.out, &a.lse, &f.x, &f.rstd, &f.normed, &f.gate_up, &f.act]
            }
            Keep::Input(x) => vec![x],
        };
        kept.into_iter().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum()
    }
}

/// What the weight gradients of one block read.
pub struct Pending {
    attention: attention::Pending,
    mlp: mlp::Pending,
}

impl Block {
    pub fn new(m: &ModelConfig, axes: &Axes) -> Block {
        Block { attention: Attention::new(m, axes), mlp: Mlp::new(m, axes) }
    }

    /// x [N,H] T → y [N,H] T, and what the backward pass reads.
    pub fn forward(&self, w: &Flat, x: &Tensor, at: &Positions, mode: Recompute) -> Result<(Tensor, Kept)> {
        let (mid, attention) = self.attention.forward(w, x, at)?;
        match mode {
            Recompute::None => {
                let (y, mlp) = self.mlp.forward(w, &mid)?;
                Ok((y, Kept(Keep::All(Saved { attention, mlp }))))
            }
            Recompute::Full => {
                drop(attention);
                Ok((self.mlp.forward(w, &mid)?.0, Kept(Keep::Input(x.shallow_clone()))))
            }
        }
    }

    /// [`Block::forward`] that keeps nothing.
    pub fn infer(&self, w: &Flat, x: &Tensor, at: &Positions) -> Result<Tensor> {
        let (mid, _) = self.attention.forward(w, x, at)?;
        Ok(self.mlp.forward(w, &mid)?.0)
    }

    /// All activations from those kept.
    fn recompute(&self, w: &Flat, kept: Kept, at: &Positions) -> Result<Saved> {
        match kept.0 {
            Keep::All(saved) => Ok(saved),
            Keep::Input(x) => {
                let (mid, attention) = self.attention.forward(w, &x, at)?;
                Ok(Saved { attention, mlp: self.mlp.activations(w, &mid)? })
            }
        }
    }

    /// dy → dx, both [N,H] T. Weight gradients are written half by half, so that each half's activations go early.
    pub fn backward(&self, w: &Flat, kept: Kept, dy: Tensor, at: &Positions, grads: Accumulate) -> Result<Tensor> {
        let saved = self.recompute(w, kept, at)?;
        let (dmid, pending) = self.mlp.backward_input(w, saved.mlp, &dy, grads)?;
        drop(dy);
        self.mlp.backward_weight(w, pending, grads)?;
        let (dx, pending) = self.attention.backward_input(w, saved.attention, &dmid, at, grads)?;
        drop(dmid);
        self.attention.backward_weight(w, pending, grads)?;
        Ok(dx)
    }

    /// Only dx (and the norms' weight gradients); [`Block::backward_weight`] may follow at any later time.
    pub fn backward_input(
        &self, w: &Flat, kept: Kept, dy: Tensor, at: &Positions, grads: Accumulate,
    ) -> Result<(Tensor, Pending)> {
        let saved = self.recompute(w, kept, at)?;
        let (dmid, mlp) = self.mlp.backward_input(w, saved.mlp, &dy, grads)?;
        let (dx, attention) = self.attention.backward_input(w, saved.attention, &dmid, at, grads)?;
        Ok((dx, Pending { attention, mlp }))
    }

    /// Writes the matrices' gradients.
    pub fn backward_weight(&self, w: &Flat, pending: Pending, grads: Accumulate) -> Result<()> {
        self.mlp.backward_weight(w, pending.mlp, grads)?;
        self.attention.backward_weight(w, pending.attention, grads)
    }
}

/// Bytes a token that one block keeps for its backward pass, its input counted, its output not. `elem` = bytes of T.
pub fn kept_bytes(m: &ModelConfig, elem: usize) -> usize {
    let qkv = m.q_dim() + 2 * m.kv_dim();
    (4 * m.hidden_size + qkv + m.q_dim() + 3 * m.intermediate_size) * elem + 4 * m.num_attention_heads + 8
}

/// Bytes a token that [`Block::backward`] holds at its highest point beyond [`kept_bytes`].
pub fn backward_bytes(m: &ModelConfig, elem: usize) -> usize {
    (m.hidden_size + 3 * m.intermediate_size) * elem
}

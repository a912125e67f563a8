//! Peak memory of one rank's training step, from the configuration alone: the sum of what tensors ask for at the worst
//! moment (`kernels::memory::peak`), not what the process holds from the system.
//!
//! With t the bytes of the compute dtype, P the local parameters (each unit padded), P/d their share on d data ranks, N the
//! tokens of a micro-batch, H, F, V as everywhere and A = (Hq+2·Hkv)·D, Q = Hq·D:
//!
//! | term | bytes |
//! | --- | --- |
//! | parameters | P·t |
//! | gradients | P·4 |
//! | master weights | P/d·4 in bf16; in fp32 they are the parameters |
//! | moments | P/d·8 |
//! | inputs | N·16 for token and target ids, 4·D a position for the rotary tables |
//! | activations | N·L·kept, with recompute N·L·H·t (`model::block`) |
//! | working | the largest of the moments below |
//!
//! The moments, each beyond everything above:
//! - *head*: the last block's output and its gradient, N·2·H·t, and of one chunk of C tokens the logits, the normed input
//!   and its gradient, C·(V+2·H)·t; or, where the product of a weight gradient is made in T before it is added in fp32
//!   (`kernels::weight_gradients_in_place` says no), C·(V+H)·t and V·H·t;
//! - *feed-forward backward*: N·(H+3·F)·t; or, with such a product, N·H·t and F·H·t once some activations have gone;
//! - *attention backward*: the feed-forward half's activations, N·(2·H+3·F)·t, have gone; dy, the gradients of the
//!   attention output and of q|k|v, N·(H+Q+A)·t, and each query head's own dk and dv in fp32, N·Q·8; with libtorch's flash
//!   attention (on the same CPUs that make such products) k and v spread over the query heads, three gradients and the
//!   copies that add those of a group, N·7·Q·t.
//!
//! With recompute the block whose turn it is has its whole list again: N·(kept − H·t) more in the last two.

use crate::config::Recompute;
use crate::kernels;
use crate::layout::Layout;
use crate::model::{block, head};
use crate::plan::Plan;
use tch::Kind;

/// Bytes at the peak of a training step, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub parameters: u64,
    pub gradients: u64,
    /// fp32 master weights of this rank's shard.
    pub master: u64,
    /// Both moments of this rank's shard.
    pub moments: u64,
    /// Token ids and rotary tables.
    pub inputs: u64,
    /// What the blocks keep for the backward pass.
    pub activations: u64,
    /// Everything short-lived at the worst moment.
    pub working: u64,
}

impl Memory {
    /// Of one rank of `plan`.
    pub fn peak(plan: &Plan) -> Memory {
        let tokens = plan.micro_batch as u128 * plan.config.data.sequence_length as u128;
        let ranks = plan.topology.size(crate::topology::Axis::Data);
        let work = Work::new(plan, tokens);
        Memory {
            inputs: clip(tokens * 16 + 4 * (plan.model.head_dim() * plan.config.data.sequence_length) as u128),
            activations: clip(work.kept),
            working: clip(work.head().max(work.feed_forward()).max(work.attention())),
            ..Memory::state(&plan.layout, ranks, plan.dtype)
        }
    }

    /// Parameters, gradients and optimizer state alone.
    fn state(layout: &Layout, ranks: usize, dtype: Kind) -> Memory {
        let all: u128 = layout.units.iter().map(|u| u.len as u128).sum();
        let shard = all / ranks.max(1) as u128;
        Memory {
            parameters: clip(all * bytes(dtype)),
            gradients: clip(all * 4),
            master: if dtype == Kind::Float { 0 } else { clip(shard * 4) },
            moments: clip(shard * 8),
            ..Memory::default()
        }
    }

    pub fn total(&self) -> u64 {
        let parts = [self.parameters, self.gradients, self.master, self.moments];
        parts.into_iter().chain([self.inputs, self.activations, self.working]).fold(0, u64::saturating_add)
    }
}

fn bytes(dtype: Kind) -> u128 {
    dtype.elt_size_in_bytes() as u128
}

/// Sizes far beyond any machine must not wrap round.
fn clip(n: u128) -> u64 {
    n.min(u64::MAX as u128) as u64
}

/// The moments of one micro-batch, in bytes.
struct Work {
    t: u128,
    n: u128,
    h: u128,
    f: u128,
    v: u128,
    /// Q and A of the file head.
    q: u128,
    a: u128,
    chunk: u128,
    /// Activations of all blocks.
    kept: u128,
    /// Activations that come back for one block in its backward pass.
    again: u128,
    /// Weight gradients are added where they are summed.
    in_place: bool,
}

impl Work {
    fn new(plan: &Plan, n: u128) -> Work {
        let (m, dtype) = (&plan.model, plan.dtype);
        let elem = dtype.elt_size_in_bytes();
        let (t, h, layers) = (elem as u128, m.hidden_size as u128, m.num_hidden_layers as u128);
        let kept = |mode| n * block::kept_bytes(m, elem, mode, 1) as u128;
        let block = kept(Recompute::None);
        let (kept, again) = match plan.config.train.recompute {
            Recompute::None => (layers * block, 0),
            mode => (layers * kept(mode), block - kept(mode)),
        };
        let rows = head::chunk_rows(clip(n) as usize, m.vocab_size, elem, head::CHUNK_BYTES) as u128;
        Work {
            t,
            n,
            h,
            f: m.intermediate_size as u128,
            v: m.vocab_size as u128,
            q: m.q_dim() as u128,
            a: (m.q_dim() + 2 * m.kv_dim()) as u128,
            chunk: rows.min(n),
            kept,
            again,
            in_place: kernels::weight_gradients_in_place(dtype, plan.device),
        }
    }

    fn head(&self) -> u128 {
        let Work { t, n, h, v, chunk: c, .. } = *self;
        let product = if self.in_place { 0 } else { v * h };
        (n * 2 * h + c * (v + h) + product.max(c * h)) * t
    }

    fn feed_forward(&self) -> u128 {
        let Work { t, n, h, f, .. } = *self;
        let product = if self.in_place { 0 } else { f * h };
        self.again + (n * (h + 3 * f)).max(n * h + product) * t
    }

    fn attention(&self) -> u128 {
        let Work { t, n, h, f, q, a, .. } = *self;
        let heads = if self.in_place { q * 8 } else { 7 * q * t };
        (self.again + n * (h + q + a) * t + n * heads).saturating_sub(n * (2 * h + 3 * f) * t)
    }
}

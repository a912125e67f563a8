//! The attention half of a block: norm, q|k|v, rotary embedding, causal grouped-query attention, output projection,
//! residual: `y = x + Wo·attend(rope(Wqkv·norm(x)))`.
//!
//! Over the tensor axis (t ranks; arXiv:1909.08053, arXiv:2205.05198) a rank has Hq/t query heads with their key and value
//! heads (one that it shares with its neighbours where there are fewer than ranks) and, outside the products and attention
//! itself, N/t of the tokens. Shapes: N = B·S tokens
//! (S: this rank's of each sequence), H hidden, D the width of a head, Hq and Hkv this rank's heads,
//! A = (Hq + 2·Hkv)·D the width of its q|k|v; T the compute dtype.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::kernels;
use crate::model::attend::{self, Parts};
use crate::model::lora::{BaseCut, Branch};
use crate::model::sequence::{project_back, LowRank, Normed, Returning};
use crate::model::{Accumulate, Axes, Flat, LoraNumbers, Positions};
use tch::Tensor;

pub(super) const NORM: &str = "input_layernorm.weight";
pub(super) const Q: &str = "q_proj.weight";
pub(super) const V: &str = "v_proj.weight";
pub(super) const O: &str = "o_proj.weight";

/// The geometry of attention, the same in every block.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Query heads of this rank.
    pub heads: i64,
    /// Key and value heads of this rank.
    pub kv_heads: i64,
    /// Width of a head, in elements.
    pub head_dim: i64,
    /// What the norm adds to the mean square.
    pub eps: f64,
    /// Tensor and context axis of this rank.
    pub axes: Axes,
    /// Scale and dropout of the adapters, where there are any.
    pub lora: LoraNumbers,
}

/// What the backward pass reads, kept by the forward pass. The list with its bytes is in [`crate::model::block`].
pub struct AttentionSaved {
    /// [N/t,H] T, the input (shared with whoever made it).
    pub x: Tensor,
    /// [N/t] f32.
    pub rstd: Tensor,
    /// [N/t,H] T, the normed input.
    pub normed: Tensor,
    /// What norms cannot bring back.
    pub mixed: Mixed,
}

/// The part of it that norms cannot bring back.
pub struct Mixed {
    /// [N,A] T, q|k|v with q and k rotated.
    pub qkv: Tensor,
    /// [B,S,Hq,D] T.
    pub out: Tensor,
    /// [B,Hq,S] f32.
    pub lse: Tensor,
    /// Of the adapters of q|k|v and of o.
    pub low: LowRank,
}

/// What the weight gradients read, left by [`Attention::backward_products`].
pub struct AttentionPending {
    /// [N,H] T; of a frozen block this rank's tokens.
    dy: Tensor,
    out: Tensor,
    dqkv: Tensor,
    normed: Normed,
    low: LowRank,
    du: LowRank,
}

impl Attention {
    /// Of the model `m` on a rank of `axes`; adapters have scale 0 until [`super::block::Block::set_lora`].
    pub fn new(m: &ModelConfig, axes: &Axes) -> Attention {
        Attention {
            heads: m.num_attention_heads as i64 / axes.shards(),
            kv_heads: (m.num_key_value_heads as i64 / axes.shards()).max(1),
            head_dim: m.head_dim() as i64,
            eps: m.rms_norm_eps,
            axes: axes.clone(),
            lora: LoraNumbers::default(),
        }
    }

    /// x → y, both [N/t,H]. `at` has this rank's S positions of each sequence; N is a multiple of S.
    pub fn forward(&self, w: &Flat, x: &Tensor, at: &Positions) -> Result<(Tensor, AttentionSaved)> {
        let (normed, rstd, qkv, inputs) = self.project(w, x, at)?;
        let (out, lse) = attend::forward(&self.axes, at, &self.parts(&qkv, at.len()))?;
        let y = self.output(w, &out, x)?;
        let outputs = self.outputs(w).map(|branch| branch.low_added(&self.rows(&out), &y)).transpose()?;
        let low = LowRank { inputs, outputs };
        Ok((y, AttentionSaved { x: x.shallow_clone(), rstd, normed, mixed: Mixed { qkv, out, lse, low } }))
    }

    /// Norm, q|k|v and rotation: x [N/t,H] → (normed [N/t,H], rstd [N/t] f32, q|k|v [N,A], what its adapters keep).
    #[allow(clippy::type_complexity)]
    fn project(&self, w: &Flat, x: &Tensor, at: &Positions) -> Result<(Tensor, Tensor, Tensor, Option<Tensor>)> {
        let (normed, rstd) = kernels::rms_norm(x, &w.param(NORM), self.eps);
        let all = self.axes.gather(&normed)?.rows()?;
        let qkv = kernels::linear(&all, &w.fused_param(Q, V), None);
        let low = self.inputs(w).map(|branch| branch.low_added(&normed, &qkv)).transpose()?;
        at.rotate_(&self.rotated(&qkv, at.len()), false);
        Ok((normed, rstd, qkv, low))
    }

    /// Output projection and residual: out [.., Hq, D] of N tokens, x [N/t,H] → y [N/t,H].
    fn output(&self, w: &Flat, out: &Tensor, x: &Tensor) -> Result<Tensor> {
        project_back(&self.axes, &self.rows(out), &w.param(O), x)
    }

    /// What [`Attention::forward`] kept, from its input and the part that norms cannot bring back.
    pub fn restore(&self, w: &Flat, x: Tensor, mixed: Mixed) -> AttentionSaved {
        let (normed, rstd) = kernels::rms_norm(&x, &w.param(NORM), self.eps);
        AttentionSaved { x, rstd, normed, mixed }
    }

    /// Views of q|k|v [N,A]: q [B,S,Hq,D], k and v [B,S,Hkv,D].
    pub fn split(&self, qkv: &Tensor, s: usize) -> [Tensor; 3] {
        let all = self.per_head(qkv, s);
        let (hq, hkv) = (self.heads, self.kv_heads);
        [all.narrow(2, 0, hq), all.narrow(2, hq, hkv), all.narrow(2, hq + hkv, hkv)]
    }

    /// Views of q|k|v [N,A]: q and k|v.
    fn parts(&self, qkv: &Tensor, s: usize) -> Parts {
        let all = self.per_head(qkv, s);
        Parts { q: all.narrow(2, 0, self.heads), kv: all.narrow(2, self.heads, 2 * self.kv_heads) }
    }

    /// dy [N/t,H] → the gradient of the normed input, on its way, and what the weight gradients need. With `soon` the normed
    /// inputs of all ranks are fetched meanwhile, since [`Attention::backward_weight`] comes next.
    pub fn backward_products(
        &self, w: &Flat, saved: AttentionSaved, dy: Tensor, at: &Positions, soon: bool,
    ) -> Result<(Returning, AttentionPending)> {
        let AttentionSaved { x, rstd, normed, mixed: Mixed { qkv, out, lse, low } } = saved;
        let dy_all = self.axes.gather(&dy)?;
        let normed = Normed::new(&self.axes, normed, soon && !w.frozen())?;
        let dy_all = dy_all.rows()?;
        let dout = kernels::linear_backward_input(&dy_all, &w.param(O)).view_as(&out);
        let outputs = self.outputs(w).map(|branch| branch.back(&dy, &self.rows(&dout))).transpose()?;
        let dqkv = qkv.empty_like();
        {
            let (parts, gradients) = (self.parts(&qkv, at.len()), self.parts(&dqkv, at.len()));
            attend::backward(&self.axes, at, &parts, &dout, &out, &lse, &gradients)?;
        }
        drop((dout, qkv, lse));
        at.rotate_(&self.rotated(&dqkv, at.len()), true);
        let dnormed = kernels::linear_backward_input(&dqkv, &w.fused_param(Q, V));
        let (inputs, more) = self.inputs(w).map(|b| b.back_to_norm(&dqkv, &dnormed)).transpose()?.unzip();
        let dnormed = self.axes.reduce(dnormed)?;
        let dy_all = if w.frozen() { dy.shallow_clone() } else { dy_all };
        let du = LowRank { inputs, outputs };
        let more = more.flatten();
        Ok((Returning { dnormed, more, x, rstd, dy }, AttentionPending { dy: dy_all, out, dqkv, normed, low, du }))
    }

    /// dx [N/t,H], the residual's part included. Writes the norm's weight gradient, this rank's tokens only.
    pub fn backward_norm(&self, w: &Flat, back: Returning, grads: Accumulate) -> Result<Tensor> {
        back.through_norm(&w.param(NORM), &w.norm_grad(NORM, grads))
    }

    /// Writes the gradients of Wo and Wqkv, or those of their adapters.
    pub fn backward_weight(&self, w: &Flat, p: AttentionPending, grads: Accumulate) -> Result<()> {
        if w.frozen() {
            if let (Some(b), Some((low, du))) = (self.outputs(w), p.low.outputs.zip(p.du.outputs)) {
                b.backward_weight(grads, &p.dy, &low, &du, &self.rows(&p.out));
            }
            if let (Some(b), Some((low, du)), Normed::Local(x)) =
                (self.inputs(w), p.low.inputs.zip(p.du.inputs), &p.normed)
            {
                b.backward_weight(grads, &p.dqkv, &low, &du, x);
            }
            return Ok(());
        }
        let normed = p.normed.all(&self.axes)?;
        grads.matrix(&p.dy, &self.rows(&p.out), &w.grad(O));
        drop((p.dy, p.out));
        grads.matrix(&p.dqkv, &normed.rows()?, &w.fused_grad(Q, V));
        Ok(())
    }

    /// Adapters of q, k and v.
    fn inputs<'a>(&'a self, w: &'a Flat) -> Option<Branch<'a>> {
        Branch::new(w, self.lora, &self.axes, BaseCut::Rows, &["q_proj", "k_proj", "v_proj"])
    }

    /// The adapter of o.
    fn outputs<'a>(&'a self, w: &'a Flat) -> Option<Branch<'a>> {
        Branch::new(w, self.lora, &self.axes, BaseCut::Columns, &["o_proj"])
    }

    /// [N,A] → [B,S,Hq+2·Hkv,D], a view.
    fn per_head(&self, qkv: &Tensor, s: usize) -> Tensor {
        qkv.view([-1, s as i64, self.heads + 2 * self.kv_heads, self.head_dim])
    }

    /// The heads that are rotated, q and k side by side: [B,S,Hq+Hkv,D], a view.
    fn rotated(&self, qkv: &Tensor, s: usize) -> Tensor {
        self.per_head(qkv, s).narrow(2, 0, self.heads + self.kv_heads)
    }

    /// [.., Hq, D] → [N, Hq·D], a view.
    fn rows(&self, out: &Tensor) -> Tensor {
        out.view([-1, self.heads * self.head_dim])
    }
}

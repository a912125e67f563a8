//! The attention half of a block: norm, q|k|v, rotary embedding, causal grouped-query attention, output projection,
//! residual: `y = x + Wo·attend(rope(Wqkv·norm(x)))`.
//!
//! Shapes: N = B·S tokens, H hidden, A = (Hq + 2·Hkv)·D the width of q|k|v, D the width of a head; T the compute dtype.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::kernels;
use crate::model::{Accumulate, Axes, Flat, Positions};
use tch::Tensor;

const NORM: &str = "input_layernorm.weight";
const Q: &str = "q_proj.weight";
const V: &str = "v_proj.weight";
const O: &str = "o_proj.weight";

/// The geometry of attention, the same in every block.
#[derive(Clone, Debug)]
pub struct Attention {
    pub heads: i64,
    pub kv_heads: i64,
    pub head_dim: i64,
    pub eps: f64,
    pub axes: Axes,
}

/// What the backward pass reads, kept by the forward pass. The list with its bytes is in [`crate::model::block`].
pub struct Saved {
    /// [N,H] T, the input (shared with whoever made it).
    pub x: Tensor,
    /// [N] f32.
    pub rstd: Tensor,
    /// [N,H] T, the normed input.
    pub normed: Tensor,
    /// [N,A] T, q|k|v with q and k rotated.
    pub qkv: Tensor,
    /// [B,S,Hq,D] T.
    pub out: Tensor,
    /// [B,Hq,S] f32.
    pub lse: Tensor,
}

/// What the weight gradients read, left by [`Attention::backward_input`].
pub struct Pending {
    dy: Tensor,
    out: Tensor,
    dqkv: Tensor,
    normed: Tensor,
}

impl Attention {
    pub fn new(m: &ModelConfig, axes: &Axes) -> Attention {
        Attention {
            heads: m.num_attention_heads as i64,
            kv_heads: m.num_key_value_heads as i64,
            head_dim: m.head_dim() as i64,
            eps: m.rms_norm_eps,
            axes: axes.clone(),
        }
    }

    /// x [N,H] → y [N,H]. `at` has the S positions of each sequence; N is a multiple of S.
    pub fn forward(&self, w: &Flat, x: &Tensor, at: &Positions) -> Result<(Tensor, Saved)> {
        let (normed, rstd, qkv) = self.project(w, x, at)?;
        let [q, k, v] = self.split(&qkv, at.len());
        let (out, lse) = kernels::attention(&q, &k, &v);
        let y = self.output(w, &out, x)?;
        Ok((y, Saved { x: x.shallow_clone(), rstd, normed, qkv, out, lse }))
    }

    /// Norm, q|k|v and rotation: x [N,H] → (normed [N,H], rstd [N] f32, q|k|v [N,A]).
    pub fn project(&self, w: &Flat, x: &Tensor, at: &Positions) -> Result<(Tensor, Tensor, Tensor)> {
        let (normed, rstd) = kernels::rms_norm(x, &w.param(NORM), self.eps);
        let qkv = kernels::linear(&normed, &w.fused_param(Q, V), None);
        at.rotate_(&self.rotated(&qkv, at.len()), false);
        Ok((normed, rstd, qkv))
    }

    /// Output projection and residual: out [.., Hq, D] of N tokens, x [N,H] → y [N,H].
    pub fn output(&self, w: &Flat, out: &Tensor, x: &Tensor) -> Result<Tensor> {
        Ok(kernels::linear(&self.rows(out), &w.param(O), Some(x)))
    }

    /// Views of q|k|v [N,A]: q [B,S,Hq,D], k and v [B,S,Hkv,D].
    pub fn split(&self, qkv: &Tensor, s: usize) -> [Tensor; 3] {
        let all = self.per_head(qkv, s);
        let (hq, hkv) = (self.heads, self.kv_heads);
        [all.narrow(2, 0, hq), all.narrow(2, hq, hkv), all.narrow(2, hq + hkv, hkv)]
    }

    /// dy [N,H] → dx [N,H], everything of the layer's own included (the residual too), and what the weight gradients
    /// need. Writes the norm's weight gradient.
    pub fn backward_input(
        &self, w: &Flat, saved: Saved, dy: &Tensor, at: &Positions, grads: Accumulate,
    ) -> Result<(Tensor, Pending)> {
        let Saved { x, rstd, normed, qkv, out, lse } = saved;
        let dout = kernels::linear_backward_input(dy, &w.param(O)).view_as(&out);
        let dqkv = qkv.empty_like();
        {
            let [q, k, v] = self.split(&qkv, at.len());
            let [mut dq, mut dk, mut dv] = self.split(&dqkv, at.len());
            kernels::attention_backward(&dout, &q, &k, &v, &out, &lse, &mut dq, &mut dk, &mut dv);
        }
        drop((dout, qkv, lse));
        at.rotate_(&self.rotated(&dqkv, at.len()), true);
        let dnormed = kernels::linear_backward_input(&dqkv, &w.fused_param(Q, V));
        let dx = kernels::rms_norm_backward(&dnormed, &x, &w.param(NORM), &rstd, Some(dy), &grads.ready(w.grad(NORM)));
        Ok((dx, Pending { dy: dy.shallow_clone(), out, dqkv, normed }))
    }

    /// Writes the gradients of Wo and Wqkv.
    pub fn backward_weight(&self, w: &Flat, p: Pending, grads: Accumulate) -> Result<()> {
        grads.matrix(&p.dy, &self.rows(&p.out), &w.grad(O));
        drop((p.dy, p.out));
        grads.matrix(&p.dqkv, &p.normed, &w.fused_grad(Q, V));
        Ok(())
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

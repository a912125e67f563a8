//! The feed-forward half of a block: norm, gate|up, SwiGLU (arXiv:2002.05202), down projection, residual:
//! `y = x + Wd·(silu(Wg·n) * (Wu·n))` with `n = norm(x)`.
//!
//! Shapes: N tokens, H hidden, F feed-forward; T the compute dtype.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::kernels;
use crate::model::{Accumulate, Axes, Flat};
use tch::Tensor;

const NORM: &str = "post_attention_layernorm.weight";
const GATE: &str = "gate_proj.weight";
const UP: &str = "up_proj.weight";
const DOWN: &str = "down_proj.weight";

#[derive(Clone, Debug)]
pub struct Mlp {
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
    /// [N,2F] T, gate first.
    pub gate_up: Tensor,
    /// [N,F] T, silu(gate)·up.
    pub act: Tensor,
}

/// What the weight gradients read, left by [`Mlp::backward_input`].
pub struct Pending {
    dy: Tensor,
    act: Tensor,
    dgate_up: Tensor,
    normed: Tensor,
}

impl Mlp {
    pub fn new(m: &ModelConfig, axes: &Axes) -> Mlp {
        Mlp { eps: m.rms_norm_eps, axes: axes.clone() }
    }

    /// x [N,H] → y [N,H].
    pub fn forward(&self, w: &Flat, x: &Tensor) -> Result<(Tensor, Saved)> {
        let saved = self.activations(w, x)?;
        let y = kernels::linear(&saved.act, &w.param(DOWN), Some(x));
        Ok((y, saved))
    }

    /// [`Mlp::forward`] up to the down projection: all that a recomputing backward pass needs.
    pub fn activations(&self, w: &Flat, x: &Tensor) -> Result<Saved> {
        let (normed, rstd) = kernels::rms_norm(x, &w.param(NORM), self.eps);
        let gate_up = kernels::linear(&normed, &w.fused_param(GATE, UP), None);
        let act = kernels::swiglu(&gate_up);
        Ok(Saved { x: x.shallow_clone(), rstd, normed, gate_up, act })
    }

    /// dy [N,H] → dx [N,H], the residual's part included, and what the weight gradients need. Writes the norm's weight
    /// gradient.
    pub fn backward_input(&self, w: &Flat, saved: Saved, dy: &Tensor, grads: Accumulate) -> Result<(Tensor, Pending)> {
        let Saved { x, rstd, normed, gate_up, act } = saved;
        let dact = kernels::linear_backward_input(dy, &w.param(DOWN));
        let dgate_up = kernels::swiglu_backward(&dact, &gate_up);
        drop((dact, gate_up));
        let dnormed = kernels::linear_backward_input(&dgate_up, &w.fused_param(GATE, UP));
        let dx = kernels::rms_norm_backward(&dnormed, &x, &w.param(NORM), &rstd, Some(dy), &grads.ready(w.grad(NORM)));
        Ok((dx, Pending { dy: dy.shallow_clone(), act, dgate_up, normed }))
    }

    /// Writes the gradients of Wd and of gate|up.
    pub fn backward_weight(&self, w: &Flat, p: Pending, grads: Accumulate) -> Result<()> {
        grads.matrix(&p.dy, &p.act, &w.grad(DOWN));
        drop((p.dy, p.act));
        grads.matrix(&p.dgate_up, &p.normed, &w.fused_grad(GATE, UP));
        Ok(())
    }
}

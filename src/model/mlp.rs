//! The feed-forward half of a block: norm, gate|up, SwiGLU (arXiv:2002.05202), down projection, residual:
//! `y = x + Wd·(silu(Wg·n) * (Wu·n))` with `n = norm(x)`.
//!
//! Over the tensor axis (t ranks; arXiv:1909.08053, arXiv:2205.05198) a rank has F/t of the feed-forward columns and, outside
//! the two products, N/t of the tokens. Shapes: N tokens, H hidden, F feed-forward; T the compute dtype.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::kernels;
use crate::model::lora::{BaseCut, Branch};
use crate::model::sequence::{project_back, LowRank, Normed, Returning};
use crate::model::{Accumulate, Axes, Flat, LoraNumbers};
use tch::Tensor;

pub(super) const NORM: &str = "post_attention_layernorm.weight";
pub(super) const GATE: &str = "gate_proj.weight";
pub(super) const UP: &str = "up_proj.weight";
pub(super) const DOWN: &str = "down_proj.weight";

/// The geometry of the feed-forward half, the same in every block.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// What the norm adds to the mean square.
    pub eps: f64,
    /// Tensor and context axis of this rank.
    pub axes: Axes,
    /// Scale and dropout of the adapters, where there are any.
    pub lora: LoraNumbers,
}

/// What the backward pass reads, kept by the forward pass. The list with its bytes is in [`crate::model::block`].
pub struct MlpSaved {
    /// [N/t,H] T, the input (shared with whoever made it).
    pub x: Tensor,
    /// [N/t] f32.
    pub rstd: Tensor,
    /// [N/t,H] T, the normed input.
    pub normed: Tensor,
    /// [N,2F/t] T, gate first.
    pub gate_up: Tensor,
    /// [N,F/t] T, silu(gate)·up.
    pub act: Tensor,
    /// Of the adapters of gate|up and of down.
    pub low: LowRank,
}

/// What the weight gradients read, left by [`Mlp::backward_products`].
pub struct MlpPending {
    /// [N,H] T; of a frozen block this rank's tokens.
    dy: Tensor,
    act: Tensor,
    dgate_up: Tensor,
    normed: Normed,
    low: LowRank,
    du: LowRank,
}

impl Mlp {
    /// Of the model `m` on a rank of `axes`; adapters have scale 0 until [`super::block::Block::set_lora`].
    pub fn new(m: &ModelConfig, axes: &Axes) -> Mlp {
        Mlp { eps: m.rms_norm_eps, axes: axes.clone(), lora: LoraNumbers::default() }
    }

    /// x → y, both [N/t,H].
    pub fn forward(&self, w: &Flat, x: &Tensor) -> Result<(Tensor, MlpSaved)> {
        let saved = self.activations(w, x)?;
        let y = project_back(&self.axes, &saved.act, &w.param(DOWN), x)?;
        if let (Some(branch), Some(low)) = (self.outputs(w), &saved.low.outputs) {
            branch.add(low, &y);
        }
        Ok((y, saved))
    }

    /// [`Mlp::forward`] up to the down projection: all that a recomputing backward pass needs.
    pub fn activations(&self, w: &Flat, x: &Tensor) -> Result<MlpSaved> {
        let (normed, rstd) = kernels::rms_norm(x, &w.param(NORM), self.eps);
        let all = self.axes.gather(&normed)?.rows()?;
        let gate_up = kernels::linear(&all, &w.fused_param(GATE, UP), None);
        drop(all);
        let inputs = self.inputs(w).map(|branch| branch.low_added(&normed, &gate_up)).transpose()?;
        let act = kernels::swiglu(&gate_up);
        let outputs = self.outputs(w).map(|branch| branch.low(&act)).transpose()?;
        let low = LowRank { inputs, outputs };
        Ok(MlpSaved { x: x.shallow_clone(), rstd, normed, gate_up, act, low })
    }

    /// The same activations from those of them that matrix products gave.
    pub fn restore(&self, w: &Flat, x: Tensor, gate_up: Tensor, low: LowRank) -> MlpSaved {
        let (normed, rstd) = kernels::rms_norm(&x, &w.param(NORM), self.eps);
        let act = kernels::swiglu(&gate_up);
        MlpSaved { x, rstd, normed, gate_up, act, low }
    }

    /// dy [N/t,H] → the gradient of the normed input, on its way, and what the weight gradients need. With `soon` the normed
    /// inputs of all ranks are fetched meanwhile, since [`Mlp::backward_weight`] comes next.
    pub fn backward_products(
        &self, w: &Flat, saved: MlpSaved, dy: Tensor, soon: bool,
    ) -> Result<(Returning, MlpPending)> {
        let MlpSaved { x, rstd, normed, gate_up, act, low } = saved;
        let dy_all = self.axes.gather(&dy)?;
        let normed = Normed::new(&self.axes, normed, soon && !w.frozen())?;
        let dy_all = dy_all.rows()?;
        let dact = kernels::linear_backward_input(&dy_all, &w.param(DOWN));
        let outputs = self.outputs(w).map(|branch| branch.back(&dy, &dact)).transpose()?;
        let dgate_up = kernels::swiglu_backward(&dact, &gate_up);
        drop((dact, gate_up));
        let dnormed = kernels::linear_backward_input(&dgate_up, &w.fused_param(GATE, UP));
        let (inputs, more) = self.inputs(w).map(|b| b.back_to_norm(&dgate_up, &dnormed)).transpose()?.unzip();
        let dnormed = self.axes.reduce(dnormed)?;
        let dy_all = if w.frozen() { dy.shallow_clone() } else { dy_all };
        let du = LowRank { inputs, outputs };
        let more = more.flatten();
        Ok((Returning { dnormed, more, x, rstd, dy }, MlpPending { dy: dy_all, act, dgate_up, normed, low, du }))
    }

    /// dx [N/t,H], the residual's part included. Writes the norm's weight gradient, this rank's tokens only.
    pub fn backward_norm(&self, w: &Flat, back: Returning, grads: Accumulate) -> Result<Tensor> {
        back.through_norm(&w.param(NORM), &w.norm_grad(NORM, grads))
    }

    /// Writes the gradients of Wd and of gate|up, or those of their adapters.
    pub fn backward_weight(&self, w: &Flat, p: MlpPending, grads: Accumulate) -> Result<()> {
        if w.frozen() {
            if let (Some(b), Some((low, du))) = (self.outputs(w), p.low.outputs.zip(p.du.outputs)) {
                b.backward_weight(grads, &p.dy, &low, &du, &p.act);
            }
            if let (Some(b), Some((low, du)), Normed::Local(x)) =
                (self.inputs(w), p.low.inputs.zip(p.du.inputs), &p.normed)
            {
                b.backward_weight(grads, &p.dgate_up, &low, &du, x);
            }
            return Ok(());
        }
        let normed = p.normed.all(&self.axes)?;
        grads.matrix(&p.dy, &p.act, &w.grad(DOWN));
        drop((p.dy, p.act));
        grads.matrix(&p.dgate_up, &normed.rows()?, &w.fused_grad(GATE, UP));
        Ok(())
    }

    /// Adapters of gate and up.
    fn inputs<'a>(&'a self, w: &'a Flat) -> Option<Branch<'a>> {
        Branch::new(w, self.lora, &self.axes, BaseCut::Rows, &["gate_proj", "up_proj"])
    }

    /// The adapter of down.
    fn outputs<'a>(&'a self, w: &'a Flat) -> Option<Branch<'a>> {
        Branch::new(w, self.lora, &self.axes, BaseCut::Columns, &["down_proj"])
    }
}

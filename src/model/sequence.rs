//! What both halves of a block do at the border between whole tokens and a rank's share of them (sequence parallelism,
//! arXiv:2205.05198 §4.2.2): between the products a rank of the tensor axis has N/t of the N tokens.

use crate::error::Result;
use crate::kernels;
use crate::model::axes::{Axes, Coming};
use tch::Tensor;

/// `x + h·wᵀ`: h [N,I] with this rank's I columns, w [H,I], x [N/t,H] → [N/t,H], the sum over the axis.
pub fn project_back(axes: &Axes, h: &Tensor, w: &Tensor, x: &Tensor) -> Result<Tensor> {
    if axes.tensor.size() == 1 {
        return Ok(kernels::linear(h, w, Some(x)));
    }
    let mut y = axes.reduce(kernels::linear(h, w, None))?.rows()?;
    y += x;
    Ok(y)
}

/// A normed input that a weight gradient will read: the forward pass keeps this rank's rows only.
pub enum Normed {
    /// [N/t,H] T.
    Local(Tensor),
    /// [N,H] T, everyone's rows, on their way.
    Coming(Coming),
}

impl Normed {
    /// With `soon` everyone's rows are fetched at once.
    pub fn new(axes: &Axes, local: Tensor, soon: bool) -> Result<Normed> {
        Ok(if soon { Normed::Coming(axes.gather(&local)?) } else { Normed::Local(local) })
    }

    /// Everyone's rows [N,H], asked for now at the latest.
    pub fn all(self, axes: &Axes) -> Result<Coming> {
        match self {
            Normed::Local(local) => axes.gather(&local),
            Normed::Coming(coming) => Ok(coming),
        }
    }
}

/// Of the adapters of half a block: those of the matrices that read its normed input, and that of the one whose output leaves it.
#[derive(Default)]
pub struct LowRank {
    /// Of q|k|v or of gate|up: products with A [N,R] T, or their gradients [N/t,R] T; None without adapters.
    pub inputs: Option<Tensor>,
    /// Of o or of down: products with A [N/t,R] T, or their gradients [N,R] T; None without an adapter.
    pub outputs: Option<Tensor>,
}

/// A gradient on its way back through the norm of half a block.
pub struct Returning {
    /// Gradient of the normed input: [N/t,H] T once it is here.
    pub dnormed: Coming,
    /// [N/t,H] T, more of it, from adapters.
    pub more: Option<Tensor>,
    /// [N/t,H] T, the input of the norm.
    pub x: Tensor,
    /// [N/t] f32.
    pub rstd: Tensor,
    /// [N/t,H] T, the gradient that flows around the norm.
    pub dy: Tensor,
}

impl Returning {
    /// dx [N/t,H] T through the norm with weight [H] T, whose gradient `dw` [H] f32 is added to.
    pub fn through_norm(self, weight: &Tensor, dw: &Tensor) -> Result<Tensor> {
        let mut dnormed = self.dnormed.rows()?;
        if let Some(more) = &self.more {
            dnormed += more;
        }
        Ok(kernels::rms_norm_backward(&dnormed, &self.x, weight, &self.rstd, Some(&self.dy), dw))
    }
}

//! The layers for inference: one pass over the tokens of an iteration, whatever sequences they are of, by kernels whose rows do
//! not depend on each other ([`InferUnit::linear`]); keys and values lie with the caller.
//!
//! Shapes: N tokens, a multiple of the t ranks of the tensor axis, between the products N/t on each; H hidden, Hq and Hkv
//! this rank's heads, D their width; T the compute dtype. Sums over the tensor axis are made element by element in rank
//! order, so that they too do not depend on what else is in the iteration.

use crate::error::Result;
use crate::kernels::{self, quantized};
use crate::model::attention::Attention;
use crate::model::block::Block;
use crate::model::head::{self, Head, Projection};
use crate::model::mlp::Mlp;
use crate::model::{attention, mlp, Axes, InferUnit, Rope};
use tch::Tensor;

/// Attention of a block: q [1,N,Hq,D], k and v [1,N,Hkv,D] T, rotated → [1,N,Hq,D] T.
pub type Attend<'a> = &'a mut dyn FnMut(&Tensor, &Tensor, &Tensor) -> Tensor;

impl Block {
    /// x → y, both [N/t,H] T; `rope` has a row for each of the N tokens.
    pub fn infer_by_row(&self, w: InferUnit, x: &Tensor, rope: &Rope, attend: Attend) -> Result<Tensor> {
        let mid = self.attention.infer_by_row(w, x, rope, attend)?;
        self.mlp.infer_by_row(w, &mid)
    }
}

impl Attention {
    fn infer_by_row(&self, w: InferUnit, x: &Tensor, rope: &Rope, attend: Attend) -> Result<Tensor> {
        let (normed, _) = kernels::rms_norm(x, &w.flat.param(attention::NORM), self.eps);
        let all = self.axes.gather(&normed)?.rows()?;
        let qkv = w.linear(&all, attention::Q, attention::V, None);
        let n = rope.len();
        let rotated = qkv.view([1, n as i64, self.heads + 2 * self.kv_heads, self.head_dim]);
        kernels::rope_(&rotated.narrow(2, 0, self.heads + self.kv_heads), &rope.cos, &rope.sin, false);
        let [q, k, v] = self.split(&qkv, n);
        let out = attend(&q, &k, &v);
        back(&self.axes, &out.view([-1, self.heads * self.head_dim]), w, attention::O, x)
    }
}

impl Mlp {
    fn infer_by_row(&self, w: InferUnit, x: &Tensor) -> Result<Tensor> {
        let (normed, _) = kernels::rms_norm(x, &w.flat.param(mlp::NORM), self.eps);
        let all = self.axes.gather(&normed)?.rows()?;
        let gate_up = w.linear(&all, mlp::GATE, mlp::UP, None);
        back(&self.axes, &kernels::swiglu(&gate_up), w, mlp::DOWN, x)
    }
}

impl Head {
    /// x [n,H] T, the same on every rank of the tensor axis → logits [n,V'] T of this rank's rows of the output matrix.
    pub fn logits_by_row(&self, w: InferUnit, out: Projection, x: &Tensor) -> Tensor {
        let (normed, _) = kernels::rms_norm(x, &w.flat.param(head::NORM), self.eps);
        match w.matrix(head::MATRIX) {
            Some(matrix) => quantized::linear(&normed, matrix, None),
            None => kernels::linear_by_row(&normed, &out.weight(), None),
        }
    }
}

/// `x + h·wᵀ`, summed over the tensor axis: h [N,I] with this rank's I columns, the matrix `name` [H,I] of w, x [N/t,H] → [N/t,H].
fn back(axes: &Axes, h: &Tensor, w: InferUnit, name: &str, x: &Tensor) -> Result<Tensor> {
    if axes.tensor.size() == 1 {
        return Ok(w.linear(h, name, name, Some(x)));
    }
    let mut y = axes.reduce(w.linear(h, name, name, None))?.rows()?;
    y += x;
    Ok(y)
}

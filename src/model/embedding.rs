//! Token embedding: rows of a matrix.

use crate::error::Result;
use crate::kernels;
use crate::model::{Accumulate, Axes, Flat};
use tch::Tensor;

pub const MATRIX: &str = "embed_tokens.weight";

/// ids [N] i64 in `0..V` → x [N,H] T.
pub fn forward(w: &Flat, ids: &Tensor, _axes: &Axes) -> Result<Tensor> {
    Ok(w.param(MATRIX).index_select(0, ids))
}

/// Writes the matrix's gradient: dx [N,H] T, ids [N] i64.
pub fn backward_weight(w: &Flat, dx: &Tensor, ids: &Tensor, grads: Accumulate, _axes: &Axes) -> Result<()> {
    kernels::embedding_backward(dx, ids, &grads.ready(w.grad(MATRIX)));
    Ok(())
}

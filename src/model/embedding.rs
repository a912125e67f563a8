//! Token embedding: rows of a matrix, whose rows are split over the tensor axis (arXiv:1909.08053 §3.4). A rank looks up the
//! tokens that it has rows for; the others' are zero, so that the sum over the axis is exact.
//!
//! N tokens, V vocabulary, H hidden, t ranks of the tensor axis; T the compute dtype.

use crate::error::Result;
use crate::kernels;
use crate::model::{Accumulate, Axes, Flat};
use tch::Tensor;

/// How the name of the embedding's matrix, [V,H], ends.
pub const MATRIX: &str = "embed_tokens.weight";

/// ids [N] i64 in `0..V` → this rank's rows of x, [N/t,H] T.
pub fn forward(w: &Flat, ids: &Tensor, axes: &Axes) -> Result<Tensor> {
    let matrix = w.param(MATRIX);
    if axes.tensor.size() == 1 {
        return Ok(matrix.index_select(0, ids));
    }
    let (places, rows) = held(w, ids);
    let mut x = Tensor::zeros([ids.size()[0], matrix.size()[1]], (matrix.kind(), matrix.device()));
    if rows.numel() > 0 {
        let _ = x.index_copy_(0, &places, &matrix.index_select(0, &rows));
    }
    axes.reduce(x)?.rows()
}

/// Writes the matrix's gradient: this rank's rows of dx, [N/t,H] T, ids [N] i64.
pub fn backward_weight(w: &Flat, dx: &Tensor, ids: &Tensor, grads: Accumulate, axes: &Axes) -> Result<()> {
    let coming = axes.gather(dx)?;
    let grad = grads.ready(w.grad(MATRIX));
    if axes.tensor.size() == 1 {
        kernels::embedding_backward(dx, ids, &grad);
        return Ok(());
    }
    let (places, rows) = held(w, ids);
    let dx = coming.rows()?;
    if rows.numel() > 0 {
        kernels::embedding_backward(&dx.index_select(0, &places), &rows, &grad);
    }
    Ok(())
}

/// The first of this rank's vocabulary rows.
pub fn first_row(w: &Flat, name: &str) -> i64 {
    w.layout.params.iter().find(|p| p.name.ends_with(name)).map_or(0, |p| p.offset[0] as i64)
}

/// Of ids [N] those that this rank has rows for: their places in `0..N` and their local rows.
fn held(w: &Flat, ids: &Tensor) -> (Tensor, Tensor) {
    let first = first_row(w, MATRIX);
    let local = ids - first;
    // From the layout: the backward pass may have no parameters.
    let rows = w.layout.params.iter().find(|p| p.name.ends_with(MATRIX)).map_or(0, |p| p.extent[0] as i64);
    let places = local.ge(0).logical_and(&local.lt(rows)).nonzero().squeeze_dim(-1);
    let rows = local.index_select(0, &places);
    (places, rows)
}

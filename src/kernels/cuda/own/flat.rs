//! AdamW, the sum of squares, and the embedding's gradient.

use super::{is, of_kind, rows, threads, width, THREADS};
use crate::kernels::cuda::compiled::Argument::{Floats, Null, Tensor as T, I32, I64};
use crate::kernels::cuda::compiled::OwnKernels;
use crate::kernels::cuda::driver::Grid;
use crate::kernels::AdamW;
use tch::{Kind, Tensor};

/// Elements of a thread of AdamW and of a turn of the sum.
const FOUR: i64 = 4;
/// Parts of the sum of squares, as many on every card.
const PARTS: i64 = 1024;
/// Threads of a block of the embedding's gradient, at most.
const EMBEDDING_THREADS: i64 = 128;

/// See [`crate::kernels::adamw`].
pub fn adamw(h: &AdamW, master: &Tensor, param: &Tensor, m: &Tensor, v: &Tensor, grad: &Tensor) -> Option<()> {
    let n = master.numel() as i64;
    width(param.kind())?;
    let flat = |t: &Tensor| is(t, Kind::Float, &[n]);
    let takes = [master, m, v, grad].into_iter().all(flat) && is(param, param.kind(), &[n]);
    let blocks = (n + FOUR * THREADS - 1) / (FOUR * THREADS);
    if !master.device().is_cuda() || n == 0 || !takes || blocks > i32::MAX as i64 {
        return None;
    }
    let kernels = OwnKernels::of(master.device())?;
    let own = param.data_ptr() != master.data_ptr();
    let grid = Grid { x: blocks, y: 1, threads: threads((n + FOUR - 1) / FOUR, THREADS) };
    let written = if own { T(param) } else { Null };
    let arguments = [T(master), written, T(m), T(v), T(grad), I64(n), Floats(factors(h))];
    // SAFETY: all [N], param of T and the others f32; the last a struct of nine floats.
    unsafe { kernels.launch(of_kind!(param.kind(), "adamw"), grid, &arguments) };
    Some(())
}

/// `AdamWFactors` of the source, rounded once: β₁, β₂, 1 − β₁, 1 − β₂, the gradient's factor, 1 − lr·decay, lr / (1 − β₁ᵗ),
/// 1 / √(1 − β₂ᵗ), ε.
fn factors(h: &AdamW) -> [f32; 9] {
    let correction = |beta: f64| 1.0 - beta.powi(h.step as i32);
    [
        h.beta1,
        h.beta2,
        1.0 - h.beta1,
        1.0 - h.beta2,
        h.grad_scale,
        1.0 - h.lr * h.weight_decay,
        h.lr / correction(h.beta1),
        1.0 / correction(h.beta2).sqrt(),
        h.eps,
    ]
    .map(|f| f as f32)
}

/// See [`crate::kernels::sum_squares`]. One value is read from the device.
pub fn sum_squares(x: &Tensor) -> Option<f64> {
    let n = x.numel() as i64;
    if !x.device().is_cuda() || n == 0 || !is(x, Kind::Float, &[n]) {
        return None;
    }
    let kernels = OwnKernels::of(x.device())?;
    let count = ((n + FOUR * THREADS - 1) / (FOUR * THREADS)).min(PARTS);
    let double = |size| Tensor::empty([size], (Kind::Double, x.device()));
    let (parts, out) = (double(count), double(1));
    let one = Grid { x: 1, y: 1, threads: threads(count, THREADS) };
    // SAFETY: x [N] f32, parts [blocks] and out [1] f64.
    unsafe {
        kernels.launch("squares", Grid { x: count, y: 1, threads: THREADS }, &[T(x), T(&parts), I64(n)]);
        kernels.launch("total", one, &[T(&parts), T(&out), I32(count as i32)]);
    }
    Some(out.double_value(&[0]))
}

/// See [`crate::kernels::embedding_backward`]: rows of one id are added in their own order, whatever else runs.
pub fn embedding_backward(dy: &Tensor, ids: &Tensor, grad: &Tensor) -> Option<()> {
    let (kernels, n, h, vector) = rows(dy)?;
    let table = grad.size2().ok()?;
    if table.1 != h || !is(grad, Kind::Float, &[table.0, h]) || !is(ids, Kind::Int64, &[n]) {
        return None;
    }
    let (sorted, order) = ids.sort_stable(true, 0, false);
    let threads = threads(h / vector, EMBEDDING_THREADS);
    let grid = Grid { x: n, y: (h / vector + threads - 1) / threads, threads };
    let arguments = [T(dy), T(&sorted), T(&order), T(grad), I64(n), I32(h as i32)];
    // SAFETY: dy [N,H] of T, sorted and order [N] i64, grad [V,H] f32 with V above every id.
    unsafe { kernels.launch(of_kind!(dy.kind(), "embedding_backward"), grid, &arguments) };
    Some(())
}

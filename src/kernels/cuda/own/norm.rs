//! RMSNorm.

use super::{is, of_kind, rows, threads, THREADS};
use crate::kernels::cuda::compiled::Argument::{Null, Tensor as T, F32, I32, I64};
use crate::kernels::cuda::driver::Grid;
use tch::{Kind, Tensor};

/// Blocks of the backward pass, each of which keeps a part of dw: as many on every card, so that bits do not depend on it.
const PARTS: i64 = 256;

/// See [`crate::kernels::rms_norm`].
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Option<(Tensor, Tensor)> {
    let (kernels, n, h, vector) = rows(x)?;
    if !is(w, x.kind(), &[h]) {
        return None;
    }
    let (y, rstd) = (Tensor::empty([n, h], (x.kind(), x.device())), Tensor::empty([n], (Kind::Float, x.device())));
    let grid = Grid { x: n, y: 1, threads: threads(h / vector, THREADS) };
    let arguments = [T(x), T(w), T(&y), T(&rstd), I32(h as i32), F32(eps as f32)];
    // SAFETY: x and y [N,H], w [H] of T, rstd [N] f32, as the kernel takes them.
    unsafe { kernels.launch(of_kind!(x.kind(), "rms_norm"), grid, &arguments) };
    Some((y, rstd))
}

/// See [`crate::kernels::rms_norm_backward`].
pub fn rms_norm_backward(
    dy: &Tensor, x: &Tensor, w: &Tensor, rstd: &Tensor, residual: Option<&Tensor>, dw: &Tensor,
) -> Option<Tensor> {
    let (kernels, n, h, vector) = rows(x)?;
    let like = |t: &Tensor| is(t, x.kind(), &[n, h]);
    let each = threads(h / vector, THREADS);
    let name = backward_name(x.kind(), (h / vector + each - 1) / each)?;
    let fits = like(dy) && residual.is_none_or(like) && is(w, x.kind(), &[h]);
    if !fits || !is(rstd, Kind::Float, &[n]) || !is(dw, Kind::Float, &[h]) {
        return None;
    }
    let dx = Tensor::empty([n, h], (x.kind(), x.device()));
    let count = n.min(PARTS);
    let parts = Tensor::empty([count, h], (Kind::Float, x.device()));
    let residual = residual.map_or(Null, T);
    let arguments = [T(dy), T(x), T(w), T(rstd), residual, T(&dx), T(&parts), I64(n), I32(h as i32)];
    let columns = Grid { x: (h + THREADS - 1) / THREADS, y: 1, threads: THREADS };
    // SAFETY: dy, x, residual, dx [N,H] and w [H] of T, rstd [N], parts [blocks,H] and dw [H] f32, as the kernels take them.
    unsafe {
        kernels.launch(name, Grid { x: count, y: 1, threads: each }, &arguments);
        kernels.launch("column_sums", columns, &[T(&parts), T(dw), I32(count as i32), I32(h as i32)]);
    }
    Some(dx)
}

/// The kernel whose threads keep at least so many vectors of dw; `None` for rows longer than any keeps.
fn backward_name(kind: Kind, vectors: i64) -> Option<&'static str> {
    const BF16: [(i64, &str); 4] = [
        (1, "rms_norm_backward_bf16_1"),
        (2, "rms_norm_backward_bf16_2"),
        (4, "rms_norm_backward_bf16_4"),
        (8, "rms_norm_backward_bf16_8"),
    ];
    const F32: [(i64, &str); 5] = [
        (1, "rms_norm_backward_f32_1"),
        (2, "rms_norm_backward_f32_2"),
        (4, "rms_norm_backward_f32_4"),
        (8, "rms_norm_backward_f32_8"),
        (16, "rms_norm_backward_f32_16"),
    ];
    let all: &[(i64, &'static str)] = if kind == Kind::BFloat16 { &BF16 } else { &F32 };
    all.iter().find(|(keeps, _)| *keeps >= vectors).map(|(_, name)| *name)
}

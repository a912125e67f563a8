//! SwiGLU and the rotary embedding.

use super::{aligned, is, of_kind, rows, threads, width, THREADS};
use crate::kernels::cuda::compiled::Argument::{Tensor as T, F32, I32, I64};
use crate::kernels::cuda::compiled::OwnKernels;
use crate::kernels::cuda::driver::Grid;
use tch::{Kind, Tensor};

/// See [`crate::kernels::swiglu`].
pub fn swiglu(gate_up: &Tensor) -> Option<Tensor> {
    let (kernels, n, both, vector) = rows(gate_up)?;
    let f = halves(both, vector)?;
    let y = Tensor::empty([n, f], (gate_up.kind(), gate_up.device()));
    // SAFETY: gate_up [N,2F], y [N,F] of T.
    unsafe {
        kernels.launch(of_kind!(gate_up.kind(), "swiglu"), pieces(n, f / vector), &[T(gate_up), T(&y), I32(f as i32)])
    };
    Some(y)
}

/// See [`crate::kernels::swiglu_backward`].
pub fn swiglu_backward(dy: &Tensor, gate_up: &Tensor) -> Option<Tensor> {
    let (kernels, n, both, vector) = rows(gate_up)?;
    let f = halves(both, vector)?;
    if !is(dy, gate_up.kind(), &[n, f]) {
        return None;
    }
    let d = Tensor::empty([n, both], (gate_up.kind(), gate_up.device()));
    let name = of_kind!(gate_up.kind(), "swiglu_backward");
    // SAFETY: dy [N,F], gate_up and d [N,2F] of T.
    unsafe { kernels.launch(name, pieces(n, f / vector), &[T(dy), T(gate_up), T(&d), I32(f as i32)]) };
    Some(d)
}

/// F of a row of 2F, where each half is whole vectors.
fn halves(both: i64, vector: i64) -> Option<i64> {
    (both % (2 * vector) == 0).then_some(both / 2)
}

/// A block for each piece of each row of so many vectors.
fn pieces(n: i64, vectors: i64) -> Grid {
    let threads = threads(vectors, THREADS);
    Grid { x: n, y: (vectors + threads - 1) / threads, threads }
}

/// See [`crate::kernels::rope_`].
pub fn rope_(x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Option<()> {
    let vector = width(x.kind())?;
    let ([b, s, heads, d], stride) = (<[i64; 4]>::try_from(x.size()).ok()?, x.stride());
    let half = d / 2;
    let fits = d % 2 == 0 && half % vector == 0 && stride[3] == 1 && stride[..3].iter().all(|t| t % vector == 0);
    let tables = is(cos, Kind::Float, &[s, half]) && is(sin, Kind::Float, &[s, half]);
    if !x.device().is_cuda() || x.numel() == 0 || !fits || !tables || !aligned(x) || b * s > i32::MAX as i64 {
        return None;
    }
    let kernels = OwnKernels::of(x.device())?;
    let grid = Grid { x: b * s, y: 1, threads: threads(heads * half / vector, THREADS) };
    let sign = if inverse { -1.0 } else { 1.0 };
    let sizes = [I32(s as i32), I32(heads as i32), I32(half as i32), I64(stride[0]), I64(stride[1]), I64(stride[2])];
    let [s0, s1, s2, s3, s4, s5] = sizes;
    let arguments = [T(x), T(cos), T(sin), s0, s1, s2, s3, s4, s5, F32(sign)];
    // SAFETY: x [B,S,heads,D] of T with these strides, cos and sin [S,D/2] f32.
    unsafe { kernels.launch(of_kind!(x.kind(), "rope"), grid, &arguments) };
    Some(())
}

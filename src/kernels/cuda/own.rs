//! herd's own kernels (`source/*.cu`) on tensors of a device. Each function returns `None` where the kernel does not take the tensors:
//! another dtype than bf16 and fp32, not dense, a row or an address that is no multiple of 16 bytes.
//!
//! Sums are made in one order that shapes alone decide: the same bits on every run of a card.

mod elementwise;
mod flat;
mod loss;
mod norm;

pub use elementwise::{rope_, swiglu, swiglu_backward};
pub use flat::{adamw, embedding_backward, sum_squares};
pub use loss::{cross_entropy_, cross_entropy_gradient_, cross_entropy_part};
pub use norm::{rms_norm, rms_norm_backward};

use super::compiled::OwnKernels;
use tch::{Kind, Tensor};

/// What a thread moves at once.
const VECTOR: i64 = 16;
const WARP: i64 = 32;
/// The most threads of a block of most kernels, as their `__launch_bounds__` say.
const THREADS: i64 = 256;

/// Whether a tensor is of T, dense, and begins at a vector.
fn dense(t: &Tensor) -> bool {
    width(t.kind()).is_some() && t.is_contiguous() && aligned(t)
}

fn aligned(t: &Tensor) -> bool {
    (t.data_ptr() as i64) % VECTOR == 0
}

/// Elements of a vector of T; `None` for dtypes that the kernels do not have.
fn width(kind: Kind) -> Option<i64> {
    match kind {
        Kind::BFloat16 => Some(VECTOR / 2),
        Kind::Float => Some(VECTOR / 4),
        _ => None,
    }
}

/// Whether the kernels take rows of so many columns.
pub fn takes_rows(kind: Kind, columns: i64) -> bool {
    width(kind).is_some_and(|vector| columns > 0 && columns % vector == 0 && columns <= i32::MAX as i64 / 2)
}

/// `$name_bf16` or `$name_f32`, by dtype.
macro_rules! of_kind {
    ($kind:expr, $name:literal) => {
        match $kind {
            tch::Kind::BFloat16 => concat!($name, "_bf16"),
            _ => concat!($name, "_f32"),
        }
    };
}
use of_kind;

/// Whole warps for so many vectors, up to a block's most.
fn threads(vectors: i64, most: i64) -> i64 {
    ((vectors.max(1) + WARP - 1) / WARP * WARP).min(most)
}

/// The kernels for x [N,W] of T, N > 0, dense, W a multiple of a vector: with N, W and the elements of a vector.
fn rows(x: &Tensor) -> Option<(&'static OwnKernels, i64, i64, i64)> {
    let vector = width(x.kind())?;
    let (n, w) = x.size2().ok()?;
    if !x.device().is_cuda() || n == 0 || n > i32::MAX as i64 || !takes_rows(x.kind(), w) || !dense(x) {
        return None;
    }
    Some((OwnKernels::of(x.device())?, n, w, vector))
}

/// Whether a tensor is dense, of this dtype and size.
fn is(t: &Tensor, kind: Kind, size: &[i64]) -> bool {
    t.kind() == kind && t.size() == size && t.is_contiguous() && aligned(t)
}

//! SwiGLU on the CPU, one pass forward and one backward.

use super::dispatch::simd_fn;
use super::simd::LANES;
use super::view::{Real, Rows};
use crate::kernels::parallel;
use tch::Tensor;

/// Rows of a task.
const BLOCK: usize = 8;

/// See [`crate::kernels::swiglu`].
pub fn forward<E: Real>(gate_up: &Tensor) -> Option<Tensor> {
    let x = Rows::<E>::matrix(gate_up)?;
    let f = x.cols / 2;
    if x.cols % 2 != 0 {
        return None;
    }
    let y = Tensor::empty([x.rows as i64, f as i64], (gate_up.kind(), gate_up.device()));
    let yr = Rows::<E>::matrix(&y)?;
    parallel::chunks(x.rows, BLOCK, |_, range| {
        for i in range {
            let (gate, up) = x.row(i).split_at(f);
            // SAFETY: this row is this task's own.
            forward_row(gate, up, unsafe { yr.row_mut(i) });
        }
    });
    Some(y)
}

/// See [`crate::kernels::swiglu_backward`].
pub fn backward<E: Real>(dy: &Tensor, gate_up: &Tensor) -> Option<Tensor> {
    let (d, x) = (Rows::<E>::matrix(dy)?, Rows::<E>::matrix(gate_up)?);
    if d.rows != x.rows || d.cols * 2 != x.cols {
        return None;
    }
    let dx = Tensor::empty([x.rows as i64, x.cols as i64], (gate_up.kind(), gate_up.device()));
    let dxr = Rows::<E>::matrix(&dx)?;
    parallel::chunks(x.rows, BLOCK, |_, range| {
        for i in range {
            let (gate, up) = x.row(i).split_at(d.cols);
            // SAFETY: this row is this task's own.
            let (dgate, dup) = unsafe { dxr.row_mut(i) }.split_at_mut(d.cols);
            backward_row(d.row(i), gate, up, dgate, dup);
        }
    });
    Some(dx)
}

simd_fn! {
    fn forward_row<E>(gate: &[E], up: &[E], y: &mut [E]) |s| {
        for i in (0..y.len()).step_by(LANES) {
            let g = s.load(gate, i);
            s.store(y, i, s.mul(s.mul(g, s.sigmoid(g)), s.load(up, i)));
        }
    }
}

simd_fn! {
    fn backward_row<E>(dy: &[E], gate: &[E], up: &[E], dgate: &mut [E], dup: &mut [E]) |s| {
        let one = s.splat(1.0);
        for i in (0..dy.len()).step_by(LANES) {
            let (d, g, u) = (s.load(dy, i), s.load(gate, i), s.load(up, i));
            let sig = s.sigmoid(g);
            let silu = s.mul(g, sig);
            // silu' = σ + silu·(1 − σ)
            let slope = s.fma(silu, s.sub(one, sig), sig);
            s.store(dgate, i, s.mul(s.mul(d, u), slope));
            s.store(dup, i, s.mul(d, silu));
        }
    }
}

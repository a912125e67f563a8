//! Rotary embedding in place on the CPU.

use super::dispatch::simd_fn;
use super::simd::LANES;
use super::view::{Heads, Real, Rows};
use crate::kernels::parallel;
use tch::Tensor;

/// Tokens of a task.
const BLOCK: usize = 32;

/// See [`crate::kernels::rope_`].
pub fn rotate<E: Real>(x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Option<()> {
    let xh = Heads::<E>::of(x)?;
    let (c, s) = (Rows::<f32>::matrix(cos)?, Rows::<f32>::matrix(sin)?);
    let table = |r: &Rows<f32>| (r.rows, r.cols) == (xh.tokens, xh.width / 2);
    if xh.width % 2 != 0 || !xh.disjoint() || !table(&c) || !table(&s) {
        return None;
    }
    parallel::chunks(xh.batch * xh.tokens, BLOCK, |_, range| {
        for i in range {
            let (b, t) = (i / xh.tokens, i % xh.tokens);
            let token = xh.token(b, t);
            for h in 0..xh.heads {
                // SAFETY: this token is this task's own, and heads do not overlap (`disjoint`).
                let (lo, hi) = unsafe { token.row_mut(h) }.split_at_mut(xh.width / 2);
                rotate_halves(lo, hi, c.row(t), s.row(t), if inverse { -1.0 } else { 1.0 });
            }
        }
    });
    Some(())
}

simd_fn! {
    fn rotate_halves<E>(lo: &mut [E], hi: &mut [E], cos: &[f32], sin: &[f32], sign: f32) |s| {
        for i in (0..lo.len()).step_by(LANES) {
            let (a, b) = (s.load(lo, i), s.load(hi, i));
            let (c, n) = (s.load(cos, i), s.mul(s.load(sin, i), s.splat(sign)));
            s.store(lo, i, s.fnma(b, n, s.mul(a, c)));
            s.store(hi, i, s.fma(a, n, s.mul(b, c)));
        }
    }
}

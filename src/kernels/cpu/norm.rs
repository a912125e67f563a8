//! RMSNorm on the CPU: one pass over each row forward, one backward.

use super::dispatch::simd_fn;
use super::simd::LANES;
use super::view::{Real, Rows};
use crate::kernels::parallel;
use tch::{Kind, Tensor};

/// Rows of a task; also the rows of one partial sum of dw, so it must not depend on the number of threads.
const BLOCK: usize = 32;

/// See [`crate::kernels::rms_norm`].
pub fn forward<E: Real>(x: &Tensor, w: &Tensor, eps: f64) -> Option<(Tensor, Tensor)> {
    let (xr, wr) = (Rows::<E>::matrix(x)?, Rows::<E>::flat(w)?);
    if wr.cols != xr.cols {
        return None;
    }
    let y = Tensor::empty(x.size(), (x.kind(), x.device()));
    let rstd = Tensor::empty([xr.rows as i64], (Kind::Float, x.device()));
    let (yr, rr) = (Rows::<E>::matrix(&y)?, Rows::<f32>::flat(&rstd)?);
    parallel::chunks(xr.rows, BLOCK, |_, range| {
        // SAFETY: the rows of this range are this task's own.
        let r = unsafe { rr.part_mut(0, range.clone()) };
        for (i, r) in range.zip(r) {
            // SAFETY: as above.
            *r = norm_row(xr.row(i), wr.row(0), unsafe { yr.row_mut(i) }, eps);
        }
    });
    Some((y, rstd))
}

/// See [`crate::kernels::rms_norm_backward`].
pub fn backward<E: Real>(
    dy: &Tensor, x: &Tensor, w: &Tensor, rstd: &Tensor, residual: Option<&Tensor>, dw: &Tensor,
) -> Option<Tensor> {
    let (dyr, xr, wr) = (Rows::<E>::matrix(dy)?, Rows::<E>::matrix(x)?, Rows::<E>::flat(w)?);
    let (rr, dwr) = (Rows::<f32>::flat(rstd)?, Rows::<f32>::flat(dw)?);
    let res = match residual {
        Some(t) => Some(Rows::<E>::matrix(t)?),
        None => None,
    };
    let (n, h) = (xr.rows, xr.cols);
    let same = |r: &Rows<E>| (r.rows, r.cols) == (n, h);
    if !same(&dyr) || !res.as_ref().is_none_or(same) || wr.cols != h || dwr.cols != h || rr.cols != n {
        return None;
    }
    let dx = Tensor::empty(x.size(), (x.kind(), x.device()));
    let dxr = Rows::<E>::matrix(&dx)?;
    let partial = Tensor::empty([n.div_ceil(BLOCK) as i64, h as i64], (Kind::Float, x.device()));
    let pr = Rows::<f32>::matrix(&partial)?;
    parallel::chunks(n, BLOCK, |block, range| {
        // SAFETY: this task's own partial sum, and below its own rows of dx.
        let sums = unsafe { pr.row_mut(block) };
        sums.fill(0.0);
        for i in range {
            let out = unsafe { dxr.row_mut(i) };
            let res = res.as_ref().map(|r| r.row(i));
            backward_row(dyr.row(i), xr.row(i), wr.row(0), rr.row(0)[i], res, out, sums);
        }
    });
    // SAFETY: the parallel loop has ended; nobody else has dw.
    let dw = unsafe { dwr.row_mut(0) };
    for block in 0..pr.rows {
        dw.iter_mut().zip(pr.row(block)).for_each(|(d, p)| *d += p);
    }
    Some(dx)
}

simd_fn! {
    /// Writes one normalised row and returns its 1/rms.
    fn norm_row<E>(x: &[E], w: &[E], y: &mut [E], eps: f64) -> f32 |s| {
        let mut squares = s.splat(0.0);
        for i in (0..x.len()).step_by(LANES) {
            let v = s.load(x, i);
            squares = s.fma(v, v, squares);
        }
        let rstd = (1.0 / (s.sum(squares) as f64 / x.len() as f64 + eps).sqrt()) as f32;
        let r = s.splat(rstd);
        for i in (0..x.len()).step_by(LANES) {
            s.store(y, i, s.mul(s.mul(s.load(x, i), r), s.load(w, i)));
        }
        rstd
    }
}

simd_fn! {
    /// dx of one row; adds the row's part of dw to `dw`.
    fn backward_row<E>(dy: &[E], x: &[E], w: &[E], rstd: f32, residual: Option<&[E]>, dx: &mut [E], dw: &mut [f32]) |s| {
        let r = s.splat(rstd);
        let mut dot = s.splat(0.0);
        for i in (0..x.len()).step_by(LANES) {
            let (d, xhat) = (s.load(dy, i), s.mul(s.load(x, i), r));
            dot = s.fma(s.mul(d, s.load(w, i)), xhat, dot);
            s.store(dw, i, s.fma(d, xhat, s.load(dw, i)));
        }
        let mean = s.splat(s.sum(dot) / x.len() as f32);
        for i in (0..x.len()).step_by(LANES) {
            let (g, xhat) = (s.mul(s.load(dy, i), s.load(w, i)), s.mul(s.load(x, i), r));
            let base = match residual {
                Some(res) => s.load(res, i),
                None => s.splat(0.0),
            };
            s.store(dx, i, s.fma(s.fnma(xhat, mean, g), r, base));
        }
    }
}

//! Passes over flat buffers and rows on the CPU: AdamW, norms, sums, casts, the embedding's gradient. They are bound by
//! memory, so each reads and writes everything once.

use super::dispatch::simd_fn;
use super::simd::LANES;
use super::view::{Real, Rows};
use crate::kernels::{parallel, AdamW};
use std::sync::atomic::{AtomicU64, Ordering};
use tch::Tensor;

/// Elements of a task; also of one partial sum.
const BLOCK: usize = 1 << 15;
/// Elements summed in fp32 before they join the sum in f64.
const RUN: usize = 1024;

/// See [`crate::kernels::adamw`].
pub fn adamw<E: Real>(h: &AdamW, master: &Tensor, param: &Tensor, m: &Tensor, v: &Tensor, grad: &Tensor) -> Option<()> {
    let [w, m, v, g] = [Rows::<f32>::flat(master)?, Rows::flat(m)?, Rows::flat(v)?, Rows::flat(grad)?];
    let p = Rows::<E>::flat(param)?;
    let n = w.cols;
    if [m.cols, v.cols, g.cols, p.cols].iter().any(|&c| c != n) {
        return None;
    }
    let own = !std::ptr::addr_eq(p.ptr(), w.ptr());
    let k = Factors::new(h);
    parallel::chunks(n, BLOCK, |_, r| {
        // SAFETY: this range of every buffer is this task's own; `param` is another buffer than `master` where it is written.
        unsafe {
            let (w, m, v) = (w.part_mut(0, r.clone()), m.part_mut(0, r.clone()), v.part_mut(0, r.clone()));
            let param = if own { p.part_mut(0, r.clone()) } else { &mut [] };
            adamw_run(&k, w, param, m, v, &g.row(0)[r]);
        }
    });
    Some(())
}

/// The scalars of one step, rounded once.
struct Factors {
    beta1: f32,
    beta2: f32,
    new1: f32,
    new2: f32,
    grad_scale: f32,
    keep: f32,
    /// lr / (1 − β1^t)
    rate: f32,
    /// 1 / sqrt(1 − β2^t)
    root: f32,
    eps: f32,
}

impl Factors {
    fn new(h: &AdamW) -> Factors {
        let correction = |beta: f64| 1.0 - beta.powi(h.step as i32);
        Factors {
            beta1: h.beta1 as f32,
            beta2: h.beta2 as f32,
            new1: (1.0 - h.beta1) as f32,
            new2: (1.0 - h.beta2) as f32,
            grad_scale: h.grad_scale as f32,
            keep: (1.0 - h.lr * h.weight_decay) as f32,
            rate: (h.lr / correction(h.beta1)) as f32,
            root: (1.0 / correction(h.beta2).sqrt()) as f32,
            eps: h.eps as f32,
        }
    }
}

simd_fn! {
    fn adamw_run<E>(k: &Factors, master: &mut [f32], param: &mut [E], m: &mut [f32], v: &mut [f32], grad: &[f32]) |s| {
        for i in (0..master.len()).step_by(LANES) {
            let g = s.mul(s.load(grad, i), s.splat(k.grad_scale));
            let m1 = s.fma(s.load(m, i), s.splat(k.beta1), s.mul(g, s.splat(k.new1)));
            let v1 = s.fma(s.load(v, i), s.splat(k.beta2), s.mul(s.mul(g, g), s.splat(k.new2)));
            let denominator = s.fma(s.sqrt(v1), s.splat(k.root), s.splat(k.eps));
            let update = s.div(s.mul(m1, s.splat(k.rate)), denominator);
            let w = s.sub(s.mul(s.load(master, i), s.splat(k.keep)), update);
            s.store(m, i, m1);
            s.store(v, i, v1);
            s.store(master, i, w);
            if !param.is_empty() {
                s.store(param, i, w);
            }
        }
    }
}

/// See [`crate::kernels::sum_squares`].
pub fn sum_squares(x: &Tensor) -> Option<f64> {
    let x = Rows::<f32>::flat(x)?;
    let partial: Vec<AtomicU64> = (0..x.cols.div_ceil(BLOCK)).map(|_| AtomicU64::new(0)).collect();
    parallel::chunks(x.cols, BLOCK, |i, range| {
        partial[i].store(squares(&x.row(0)[range]).to_bits(), Ordering::Relaxed);
    });
    Some(partial.into_iter().map(|p| f64::from_bits(p.into_inner())).sum())
}

simd_fn! {
    fn squares(x: &[f32]) -> f64 |s| {
        let mut total = 0.0;
        for run in x.chunks(RUN) {
            let mut sum = [s.splat(0.0); 2];
            for i in (0..run.len()).step_by(2 * LANES) {
                let a = s.load(run, i);
                sum[0] = s.fma(a, a, sum[0]);
                if i + LANES < run.len() {
                    let b = s.load(run, i + LANES);
                    sum[1] = s.fma(b, b, sum[1]);
                }
            }
            total += s.sum(s.add(sum[0], sum[1])) as f64;
        }
        total
    }
}

/// See [`crate::kernels::accumulate`].
pub fn accumulate<E: Real>(grad: &Tensor, x: &Tensor) -> Option<()> {
    let (g, x) = (Rows::<f32>::flat(grad)?, Rows::<E>::flat(x)?);
    if g.cols != x.cols {
        return None;
    }
    parallel::chunks(g.cols, BLOCK, |_, r| {
        // SAFETY: this range is this task's own.
        add_run(unsafe { g.part_mut(0, r.clone()) }, &x.row(0)[r]);
    });
    Some(())
}

simd_fn! {
    fn add_run<E>(y: &mut [f32], x: &[E]) |s| {
        for i in (0..y.len()).step_by(LANES) {
            s.store(y, i, s.add(s.load(y, i), s.load(x, i)));
        }
    }
}

/// See [`crate::kernels::cast`].
pub fn cast<D: Real, E: Real>(dst: &Tensor, src: &Tensor) -> Option<()> {
    let (d, x) = (Rows::<D>::flat(dst)?, Rows::<E>::flat(src)?);
    if d.cols != x.cols {
        return None;
    }
    parallel::chunks(d.cols, BLOCK, |_, r| {
        // SAFETY: this range is this task's own.
        cast_run(unsafe { d.part_mut(0, r.clone()) }, &x.row(0)[r]);
    });
    Some(())
}

simd_fn! {
    fn cast_run<D, E>(y: &mut [D], x: &[E]) |s| {
        for i in (0..y.len()).step_by(LANES) {
            s.store(y, i, s.load(x, i));
        }
    }
}

/// See [`crate::kernels::embedding_backward`]. Tasks split the columns: each adds its part of all rows in order, so that
/// tokens that occur twice are added in the same order every time.
pub fn embedding_backward<E: Real>(dy: &Tensor, ids: &Tensor, grad: &Tensor) -> Option<()> {
    const COLUMNS: usize = 64;
    let (d, ids, g) = (Rows::<E>::matrix(dy)?, Rows::<i64>::flat(ids)?, Rows::<f32>::matrix(grad)?);
    if ids.cols != d.rows || g.cols != d.cols || ids.row(0).iter().any(|&t| t < 0 || t >= g.rows as i64) {
        return None;
    }
    parallel::chunks(d.cols, COLUMNS, |_, r| {
        for (i, &id) in ids.row(0).iter().enumerate() {
            // SAFETY: these columns of the gradient are this task's own.
            add_run(unsafe { g.part_mut(id as usize, r.clone()) }, &d.row(i)[r.clone()]);
        }
    });
    Some(())
}

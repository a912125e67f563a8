//! Cross-entropy with its gradient in place on the CPU: a row of logits comes from memory once and stays in the cache for
//! its maximum, its sum of exponentials and its gradient.

use super::dispatch::simd_fn;
use super::simd::LANES;
use super::view::{Real, Rows};
use crate::kernels::parallel;
use crate::kernels::LossSums;
use tch::Tensor;

/// Elements summed in fp32 before they join the sum in f64.
const RUN: usize = 1024;

/// See [`crate::kernels::cross_entropy_`].
pub fn in_place<E: Real>(logits: &Tensor, targets: &Tensor, grad_scale: Option<f64>, z_loss: f64) -> Option<LossSums> {
    let (x, t) = (Rows::<E>::matrix(logits)?, Rows::<i64>::flat(targets)?);
    // A target outside the vocabulary goes to libtorch, which raises the error.
    if t.cols != x.rows || t.row(0).iter().any(|&t| t >= x.cols as i64) {
        return None;
    }
    let lse = Tensor::empty([2, x.rows as i64], (tch::Kind::Float, tch::Device::Cpu));
    let out = Rows::<f32>::matrix(&lse)?;
    parallel::tasks(x.rows, |i| {
        // SAFETY: row i of the logits and element i of the results are this task's own.
        let row = unsafe { x.row_mut(i) };
        let [loss, z] = unsafe { [&mut out.part_mut(0, i..i + 1)[0], &mut out.part_mut(1, i..i + 1)[0]] };
        let Ok(target) = usize::try_from(t.row(0)[i]) else {
            (*loss, *z) = (0.0, 0.0);
            if grad_scale.is_some() {
                row.fill(E::ZERO);
            }
            return;
        };
        let at_target = row[target].to_f32();
        let lse = log_sum_exp(row);
        (*loss, *z) = (lse - at_target, lse * lse);
        if let Some(scale) = grad_scale {
            let slope = 1.0 + 2.0 * z_loss * lse as f64;
            let p = ((at_target - lse) as f64).exp();
            gradient_row(row, lse, (slope * scale) as f32);
            row[target] = E::from_f32(((p * slope - 1.0) * scale) as f32);
        }
    });
    let sum = |row: usize| out.row(row).iter().map(|&v| v as f64).sum();
    let tokens = t.row(0).iter().filter(|&&t| t >= 0).count() as u64;
    Some(LossSums { loss: sum(0), z: sum(1), tokens })
}

/// Where row `i`'s target is among the columns from `first` on: None if it lies elsewhere or does not count.
fn column(targets: &Rows<i64>, i: usize, first: i64, columns: usize) -> Option<usize> {
    let target = targets.row(0)[i];
    usize::try_from(target - first).ok().filter(|&c| target >= 0 && c < columns)
}

/// See [`crate::kernels::cross_entropy_part`].
pub fn part<E: Real>(logits: &Tensor, targets: &Tensor, first: i64) -> Option<Tensor> {
    let (x, t) = (Rows::<E>::matrix(logits)?, Rows::<i64>::flat(targets)?);
    if t.cols != x.rows {
        return None;
    }
    let parts = Tensor::empty([2, x.rows as i64], (tch::Kind::Float, tch::Device::Cpu));
    let out = Rows::<f32>::matrix(&parts)?;
    parallel::tasks(x.rows, |i| {
        // SAFETY: element i of both rows is this task's own.
        let [lse, at] = unsafe { [&mut out.part_mut(0, i..i + 1)[0], &mut out.part_mut(1, i..i + 1)[0]] };
        *lse = log_sum_exp(x.row(i));
        *at = column(&t, i, first, x.cols).map_or(0.0, |c| x.row(i)[c].to_f32());
    });
    Some(parts)
}

/// See [`crate::kernels::cross_entropy_gradient_`].
pub fn gradient<E: Real>(
    logits: &Tensor, targets: &Tensor, first: i64, lse: &Tensor, grad_scale: f64, z_loss: f64,
) -> Option<()> {
    let (x, t, lse) = (Rows::<E>::matrix(logits)?, Rows::<i64>::flat(targets)?, Rows::<f32>::flat(lse)?);
    if t.cols != x.rows || lse.cols != x.rows {
        return None;
    }
    parallel::tasks(x.rows, |i| {
        // SAFETY: row i is this task's own.
        let row = unsafe { x.row_mut(i) };
        let lse = lse.row(0)[i];
        if t.row(0)[i] < 0 {
            return row.fill(E::ZERO);
        }
        let slope = 1.0 + 2.0 * z_loss * lse as f64;
        let target = column(&t, i, first, x.cols).map(|c| (c, row[c].to_f32()));
        gradient_row(row, lse, (slope * grad_scale) as f32);
        if let Some((c, at)) = target {
            row[c] = E::from_f32(((((at - lse) as f64).exp() * slope - 1.0) * grad_scale) as f32);
        }
    });
    Some(())
}

simd_fn! {
    /// log Σ e^x, shifted by the maximum.
    fn log_sum_exp<E>(x: &[E]) -> f32 |s| {
        let mut top = [s.splat(f32::NEG_INFINITY); 2];
        for i in (0..x.len()).step_by(2 * LANES) {
            top[0] = s.max(top[0], s.load_or(x, i, E::LOWEST));
            if i + LANES < x.len() {
                top[1] = s.max(top[1], s.load_or(x, i + LANES, E::LOWEST));
            }
        }
        let max = s.top(s.max(top[0], top[1]));
        let shift = s.splat(max);
        let mut total = 0.0f64;
        for run in x.chunks(RUN) {
            let mut sum = s.splat(0.0);
            for i in (0..run.len()).step_by(LANES) {
                sum = s.add(sum, s.exp(s.sub(s.load_or(run, i, E::LOWEST), shift)));
            }
            total += s.sum(sum) as f64;
        }
        (max as f64 + total.ln()) as f32
    }
}

simd_fn! {
    /// x ← factor·e^(x − lse)
    fn gradient_row<E>(x: &mut [E], lse: f32, factor: f32) |s| {
        let (lse, factor) = (s.splat(lse), s.splat(factor));
        for i in (0..x.len()).step_by(LANES) {
            s.store(x, i, s.mul(s.exp(s.sub(s.load(x, i), lse)), factor));
        }
    }
}

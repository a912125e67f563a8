//! Cross-entropy: a row of logits is read, and overwritten with its gradient, by one block.

use super::{is, of_kind, rows, threads};
use crate::kernels::cuda::compiled::Argument::{Tensor as T, F32, I32, I64};
use crate::kernels::cuda::driver::Grid;
use crate::kernels::LossSums;
use tch::{Kind, Tensor};

/// Threads of a block of these kernels, at most.
const THREADS: i64 = 512;

/// See [`crate::kernels::cross_entropy_`]. The sums are added on the device and read at once, the only wait for it.
pub fn cross_entropy_(logits: &Tensor, targets: &Tensor, grad_scale: Option<f64>, z_loss: f64) -> Option<LossSums> {
    let parts = row_parts(logits, targets, 0, grad_scale, z_loss)?;
    let (kernels, n, ..) = rows(logits)?;
    let sums = Tensor::empty([3], (Kind::Double, logits.device()));
    let grid = Grid { x: 1, y: 1, threads: threads(n, THREADS) };
    // SAFETY: parts [2,N] f32, targets [N] i64, sums [3] f64.
    unsafe { kernels.launch("loss_sums", grid, &[T(&parts), T(targets), T(&sums), I64(n)]) };
    let sums = sums.to_device(tch::Device::Cpu);
    let at = |i| sums.double_value(&[i]);
    Some(LossSums { loss: at(0), z: at(1), tokens: at(2) as u64 })
}

/// See [`crate::kernels::cross_entropy_part`].
pub fn cross_entropy_part(logits: &Tensor, targets: &Tensor, first: i64) -> Option<Tensor> {
    row_parts(logits, targets, first, None, 0.0)
}

/// Of each row the log of the sum of exponentials, and the target's logit, [2,N] f32; with `grad_scale` logits become their gradient.
fn row_parts(logits: &Tensor, targets: &Tensor, first: i64, grad_scale: Option<f64>, z_loss: f64) -> Option<Tensor> {
    let (kernels, n, v, vector) = rows(logits)?;
    if !is(targets, Kind::Int64, &[n]) {
        return None;
    }
    let parts = Tensor::empty([2, n], (Kind::Float, logits.device()));
    let scale = grad_scale.unwrap_or(0.0) as f32;
    let how = [I32(grad_scale.is_some() as i32), F32(scale), F32(z_loss as f32)];
    let [gradient, scale, z] = how;
    let arguments = [T(logits), T(targets), T(&parts), I64(n), I32(v as i32), I64(first), gradient, scale, z];
    // SAFETY: logits [N,V] of T, targets [N] i64, parts [2,N] f32.
    unsafe { kernels.launch(of_kind!(logits.kind(), "loss"), row_grid(n, v / vector), &arguments) };
    Some(parts)
}

/// See [`crate::kernels::cross_entropy_gradient_`].
pub fn cross_entropy_gradient_(
    logits: &Tensor, targets: &Tensor, first: i64, lse: &Tensor, grad_scale: f64, z_loss: f64,
) -> Option<()> {
    let (kernels, n, v, vector) = rows(logits)?;
    if !is(targets, Kind::Int64, &[n]) || !is(lse, Kind::Float, &[n]) {
        return None;
    }
    let scale = [F32(grad_scale as f32), F32(z_loss as f32)];
    let [scale, z] = scale;
    let arguments = [T(logits), T(targets), T(lse), I32(v as i32), I64(first), scale, z];
    // SAFETY: logits [N,V] of T, targets [N] i64, lse [N] f32.
    unsafe { kernels.launch(of_kind!(logits.kind(), "loss_gradient"), row_grid(n, v / vector), &arguments) };
    Some(())
}

fn row_grid(n: i64, vectors: i64) -> Grid {
    Grid { x: n, y: 1, threads: threads(vectors, THREADS) }
}

//! Row-wise and element-wise operations on a device: the reference over pieces of [`ELEMENTS`], so that its fp32 temporaries are
//! some hundreds of MiB whatever the batch. A piece is large enough to fill a card.

use crate::kernels::reference::{self, AdamW, LossSums};
use tch::{Kind, Tensor};

/// Elements of one piece.
pub const ELEMENTS: i64 = 16 << 20;

/// Calls `f` with first row and rows of each piece of `rows` rows of `width` elements.
fn over(rows: i64, width: i64, mut f: impl FnMut(i64, i64)) {
    let each = (ELEMENTS / width.max(1)).max(1);
    (0..rows).step_by(each as usize).for_each(|start| f(start, each.min(rows - start)));
}

/// The reference where the tensor is on no device.
fn on_device(t: &Tensor) -> Option<()> {
    t.device().is_cuda().then_some(())
}

/// See [`crate::kernels::rms_norm`].
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Option<(Tensor, Tensor)> {
    on_device(x)?;
    let (n, h) = x.size2().ok()?;
    let (y, rstd) = (Tensor::empty([n, h], (x.kind(), x.device())), Tensor::empty([n], (Kind::Float, x.device())));
    over(n, h, |start, len| {
        let (part, r) = reference::rms_norm(&x.narrow(0, start, len), w, eps);
        y.narrow(0, start, len).copy_(&part);
        rstd.narrow(0, start, len).copy_(&r);
    });
    Some((y, rstd))
}

/// See [`crate::kernels::rms_norm_backward`].
pub fn rms_norm_backward(
    dy: &Tensor, x: &Tensor, w: &Tensor, rstd: &Tensor, residual: Option<&Tensor>, dw: &Tensor,
) -> Option<Tensor> {
    on_device(x)?;
    let (n, h) = x.size2().ok()?;
    let dx = Tensor::empty([n, h], (x.kind(), x.device()));
    over(n, h, |start, len| {
        let rows = |t: &Tensor| t.narrow(0, start, len);
        let residual = residual.map(rows);
        let part = reference::rms_norm_backward(&rows(dy), &rows(x), w, &rows(rstd), residual.as_ref(), dw);
        rows(&dx).copy_(&part);
    });
    Some(dx)
}

/// See [`crate::kernels::rope_`].
pub fn rope_(x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Option<()> {
    on_device(x)?;
    let [b, s, heads, d] = x.size()[..] else { return None };
    over(s, b * heads * d, |start, len| {
        let (cos, sin) = (cos.narrow(0, start, len), sin.narrow(0, start, len));
        reference::rope_(&x.narrow(1, start, len), &cos, &sin, inverse)
    });
    Some(())
}

/// See [`crate::kernels::swiglu`].
pub fn swiglu(gate_up: &Tensor) -> Option<Tensor> {
    on_device(gate_up)?;
    let (n, f) = gate_up.size2().ok()?;
    let y = Tensor::empty([n, f / 2], (gate_up.kind(), gate_up.device()));
    over(n, f, |start, len| y.narrow(0, start, len).copy_(&reference::swiglu(&gate_up.narrow(0, start, len))));
    Some(y)
}

/// See [`crate::kernels::swiglu_backward`].
pub fn swiglu_backward(dy: &Tensor, gate_up: &Tensor) -> Option<Tensor> {
    on_device(gate_up)?;
    let (n, f) = gate_up.size2().ok()?;
    let d = Tensor::empty([n, f], (gate_up.kind(), gate_up.device()));
    over(n, f, |start, len| {
        let rows = |t: &Tensor| t.narrow(0, start, len);
        rows(&d).copy_(&reference::swiglu_backward(&rows(dy), &rows(gate_up)));
    });
    Some(d)
}

/// See [`crate::kernels::cross_entropy_`].
pub fn cross_entropy_(logits: &Tensor, targets: &Tensor, grad_scale: Option<f64>, z_loss: f64) -> Option<LossSums> {
    on_device(logits)?;
    let (n, v) = logits.size2().ok()?;
    let zero = |kind| Tensor::zeros([] as [i64; 0], (kind, logits.device()));
    // Added on the device and read once: each read waits for it.
    let mut sums = [zero(Kind::Double), zero(Kind::Double), zero(Kind::Int64)];
    over(n, v, |start, len| {
        let rows = |t: &Tensor| t.narrow(0, start, len);
        let piece = reference::cross_entropy_sums_(&rows(logits), &rows(targets), grad_scale, z_loss);
        sums.iter_mut().zip(piece).for_each(|(sum, part)| *sum += part);
    });
    Some(LossSums::read(&sums))
}

/// See [`crate::kernels::cross_entropy_part`].
pub fn cross_entropy_part(logits: &Tensor, targets: &Tensor, first: i64) -> Option<Tensor> {
    on_device(logits)?;
    let (n, v) = logits.size2().ok()?;
    let out = Tensor::empty([2, n], (Kind::Float, logits.device()));
    over(n, v, |start, len| {
        let part = reference::cross_entropy_part(&logits.narrow(0, start, len), &targets.narrow(0, start, len), first);
        out.narrow(1, start, len).copy_(&part);
    });
    Some(out)
}

/// See [`crate::kernels::cross_entropy_gradient_`].
pub fn cross_entropy_gradient_(
    logits: &Tensor, targets: &Tensor, first: i64, lse: &Tensor, grad_scale: f64, z_loss: f64,
) -> Option<()> {
    on_device(logits)?;
    let (n, v) = logits.size2().ok()?;
    over(n, v, |start, len| {
        let rows = |t: &Tensor| t.narrow(0, start, len);
        reference::cross_entropy_gradient_(&rows(logits), &rows(targets), first, &rows(lse), grad_scale, z_loss)
    });
    Some(())
}

/// See [`crate::kernels::embedding_backward`].
pub fn embedding_backward(dy: &Tensor, ids: &Tensor, grad: &Tensor) -> Option<()> {
    on_device(dy)?;
    let (n, h) = dy.size2().ok()?;
    over(n, h, |start, len| reference::embedding_backward(&dy.narrow(0, start, len), &ids.narrow(0, start, len), grad));
    Some(())
}

/// See [`crate::kernels::sum_squares`]. One value is read from the device.
pub fn sum_squares(x: &Tensor) -> Option<f64> {
    on_device(x)?;
    let sum = Tensor::zeros([] as [i64; 0], (Kind::Double, x.device()));
    over(x.numel() as i64, 1, |start, len| {
        let _ = sum.shallow_clone().g_add_(&x.narrow(0, start, len).square().sum(Kind::Double));
    });
    Some(sum.double_value(&[]))
}

/// See [`crate::kernels::accumulate`]: a device adds bf16 to fp32 without a copy.
pub fn accumulate(grad: &Tensor, x: &Tensor) -> Option<()> {
    on_device(x)?;
    let _ = grad.shallow_clone().g_add_(x);
    Some(())
}

/// See [`crate::kernels::adamw`].
pub fn adamw(h: &AdamW, master: &Tensor, param: &Tensor, m: &Tensor, v: &Tensor, grad: &Tensor) -> Option<()> {
    on_device(master)?;
    over(master.numel() as i64, 1, |start, len| {
        let part = |t: &Tensor| t.narrow(0, start, len);
        reference::adamw(h, &part(master), &part(param), &part(m), &part(v), &part(grad))
    });
    Some(())
}

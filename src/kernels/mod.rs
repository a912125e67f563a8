//! Fused operations of the step. Each has a libtorch reference (`reference`), which any device runs, and a CPU version.
//! Shapes: N = tokens (B·S), H = hidden, F = feed-forward, D = head width, V = vocabulary. `x` of dtype T = bf16 or fp32.
//! Statistics (rstd, lse, losses) and gradients of weights are fp32.
//!
//! A function takes its CPU version where the tensors suit it (dense CPU tensors of one dtype T, last dim adjacent), on a CUDA
//! device that of `cuda`, and libtorch's way otherwise. The CPU versions give the same bits on every run and for every number of threads; libtorch's
//! products (bf16 forward and input gradient, see `cpu::linear`) on every run with the same number of threads.

pub mod blockwise;
pub mod clock;
mod cpu;
pub mod cuda;
pub mod device;
mod ffi;
pub mod host;
pub mod memory;
pub mod moments;
mod packed;
pub mod paged;
mod pages;
pub mod parallel;
pub mod quantized;
pub mod reference;
pub mod sum;
#[cfg(test)]
mod tests;

pub use packed::PackedSequences;
pub use reference::{AdamW, LossSums};

use cpu::linear;
use cuda::{own, pieces};
use half::bf16;
use tch::{Kind, Tensor};

/// `$f::<T>(…)` for the T of tensor `$x`, `None` for other dtypes.
macro_rules! by_kind {
    ($x:expr, $($f:ident)::+ ($($arg:expr),* $(,)?)) => {
        match $x.kind() {
            Kind::Float => $($f)::+::<f32>($($arg),*),
            Kind::BFloat16 => $($f)::+::<bf16>($($arg),*),
            _ => None,
        }
    };
}
use by_kind;

/// RMSNorm (arXiv:1910.07467): `y = x · rstd · w`, `rstd = 1/sqrt(mean(x²) + eps)`. x [N,H] T, w [H] T → (y [N,H] T, rstd [N] f32).
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> (Tensor, Tensor) {
    by_kind!(x, cpu::norm::forward(x, w, eps))
        .or_else(|| own::rms_norm(x, w, eps))
        .or_else(|| pieces::rms_norm(x, w, eps))
        .unwrap_or_else(|| reference::rms_norm(x, w, eps))
}

/// Backward of [`rms_norm`]: returns dx [N,H] T (plus `residual` [N,H] T if given, the gradient that flows around the
/// norm), and adds into `dw` [H] f32.
pub fn rms_norm_backward(
    dy: &Tensor, x: &Tensor, w: &Tensor, rstd: &Tensor, residual: Option<&Tensor>, dw: &Tensor,
) -> Tensor {
    by_kind!(x, cpu::norm::backward(dy, x, w, rstd, residual, dw))
        .or_else(|| own::rms_norm_backward(dy, x, w, rstd, residual, dw))
        .or_else(|| pieces::rms_norm_backward(dy, x, w, rstd, residual, dw))
        .unwrap_or_else(|| reference::rms_norm_backward(dy, x, w, rstd, residual, dw))
}

/// Rotary embedding in place, Hugging Face's half-split form: x [B,S,heads,D] T (strided over a larger row is fine),
/// cos and sin [S,D/2] f32. `inverse` rotates back: the backward pass.
pub fn rope_(x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) {
    by_kind!(x, cpu::rope::rotate(x, cos, sin, inverse))
        .or_else(|| own::rope_(x, cos, sin, inverse))
        .or_else(|| pieces::rope_(x, cos, sin, inverse))
        .unwrap_or_else(|| reference::rope_(x, cos, sin, inverse))
}

/// SwiGLU: gate_up [N,2F] T (gate first) → silu(gate)·up [N,F] T.
pub fn swiglu(gate_up: &Tensor) -> Tensor {
    by_kind!(gate_up, cpu::swiglu::forward(gate_up))
        .or_else(|| own::swiglu(gate_up))
        .or_else(|| pieces::swiglu(gate_up))
        .unwrap_or_else(|| reference::swiglu(gate_up))
}

/// Backward of [`swiglu`]: dy [N,F] T → d gate_up [N,2F] T.
pub fn swiglu_backward(dy: &Tensor, gate_up: &Tensor) -> Tensor {
    by_kind!(gate_up, cpu::swiglu::backward(dy, gate_up))
        .or_else(|| own::swiglu_backward(dy, gate_up))
        .or_else(|| pieces::swiglu_backward(dy, gate_up))
        .unwrap_or_else(|| reference::swiglu_backward(dy, gate_up))
}

/// Cross-entropy with its gradient in place: logits [N,V] T become d(grad_scale·(loss + z_loss·z))/d logits.
/// targets [N] i64; a negative target does not count. With `grad_scale` None logits are left as they are.
pub fn cross_entropy_(logits: &Tensor, targets: &Tensor, grad_scale: Option<f64>, z_loss: f64) -> LossSums {
    by_kind!(logits, cpu::loss::in_place(logits, targets, grad_scale, z_loss))
        .or_else(|| own::cross_entropy_(logits, targets, grad_scale, z_loss))
        .or_else(|| pieces::cross_entropy_(logits, targets, grad_scale, z_loss))
        .unwrap_or_else(|| reference::cross_entropy_(logits, targets, grad_scale, z_loss))
}

/// First half of [`cross_entropy_`] where a rank has only some columns of the logits, those from `first` on: logits [N,V'] T,
/// targets [N] i64 → [2,N] f32: the log of the sum of exponentials over these columns (−∞ where there are none), and the logit
/// of the target (0 where that lies elsewhere or does not count).
pub fn cross_entropy_part(logits: &Tensor, targets: &Tensor, first: i64) -> Tensor {
    by_kind!(logits, cpu::loss::part(logits, targets, first))
        .or_else(|| own::cross_entropy_part(logits, targets, first))
        .or_else(|| pieces::cross_entropy_part(logits, targets, first))
        .unwrap_or_else(|| reference::cross_entropy_part(logits, targets, first))
}

/// Joins the parts of all ranks, [t,2,N] f32, each a [`cross_entropy_part`]: the sums over the rows that count, and of every
/// row the log of the sum of exponentials over the whole vocabulary, [N] f32.
pub fn cross_entropy_join(parts: &Tensor, targets: &Tensor) -> (LossSums, Tensor) {
    reference::cross_entropy_join(parts, targets)
}

/// Second half: logits [N,V'] T become their gradient, as in [`cross_entropy_`]; `lse` [N] f32 is over all columns.
pub fn cross_entropy_gradient_(
    logits: &Tensor, targets: &Tensor, first: i64, lse: &Tensor, grad_scale: f64, z_loss: f64,
) {
    by_kind!(logits, cpu::loss::gradient(logits, targets, first, lse, grad_scale, z_loss))
        .or_else(|| own::cross_entropy_gradient_(logits, targets, first, lse, grad_scale, z_loss))
        .or_else(|| pieces::cross_entropy_gradient_(logits, targets, first, lse, grad_scale, z_loss))
        .unwrap_or_else(|| reference::cross_entropy_gradient_(logits, targets, first, lse, grad_scale, z_loss))
}

/// Causal grouped-query attention with softmax scale 1/sqrt(D). q [B,S,Hq,D], k and v [B,K,Hkv,D] with K ≥ S: query i sees the
/// keys 0 to K−S+i, so that with K > S the first K−S are a past that all queries see. Strided over a larger row is fine.
/// Returns (out [B,S,Hq,D] T contiguous, lse [B,Hq,S] f32: log of the sum of exponentials per row).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
    by_kind!(q, cpu::attend::forward(q, k, v))
        .or_else(|| cuda::attend::forward(q, k, v))
        .unwrap_or_else(|| reference::attention(q, k, v))
}

/// Backward of [`attention`], written into dq, dk, dv (shapes of q, k, v; strided is fine; overwritten).
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    dout: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, lse: &Tensor, dq: &mut Tensor, dk: &mut Tensor,
    dv: &mut Tensor,
) {
    by_kind!(q, cpu::attend::backward(dout, q, k, v, out, lse, dq, dk, dv))
        .or_else(|| cuda::attend::backward(dout, q, k, v, out, lse, dq, dk, dv))
        .unwrap_or_else(|| reference::attention_backward(dout, q, k, v, out, lse, dq, dk, dv))
}

/// Whether [`attention_packed`] takes queries like these: else [`attention`] goes over the entries one by one.
pub fn packs_attention(q: &Tensor) -> bool {
    cuda::attend::fuses(q)
}

/// [`attention`] of sequences packed one after the other, in one call: q [B,S,Hq,D], k and v [B,K,Hkv,D], `packed` of their
/// B·S and B·K rows → (out [B,S,Hq,D] T, lse [B,Hq,S] f32).
///
/// # Panics
/// Where [`packs_attention`] says no.
pub fn attention_packed(q: &Tensor, k: &Tensor, v: &Tensor, packed: &PackedSequences) -> (Tensor, Tensor) {
    cuda::attend::forward_packed(q, k, v, packed)
}

/// Backward of [`attention_packed`], written into dq, dk, dv (overwritten; keys that nothing attends to get zero).
#[allow(clippy::too_many_arguments)]
pub fn attention_packed_backward(
    dout: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, lse: &Tensor, packed: &PackedSequences,
    dq: &mut Tensor, dk: &mut Tensor, dv: &mut Tensor,
) {
    cuda::attend::backward_packed(dout, q, k, v, out, lse, packed, dq, dk, dv)
}

/// y [N,O] = x [N,I] · w [O,I]ᵀ, plus `residual` [N,O] if given.
pub fn linear(x: &Tensor, w: &Tensor, residual: Option<&Tensor>) -> Tensor {
    clock::counted(|| linear::forward(x, w, residual).unwrap_or_else(|| reference::linear(x, w, residual)))
}

/// y [N,O] = x [N,I] · w [O,I]ᵀ, plus `residual` [N,O] if given, for inference: every row has the bits that it has alone,
/// whatever rows come with it (on the CPU; elsewhere libtorch's products in tiles of one shape).
pub fn linear_by_row(x: &Tensor, w: &Tensor, residual: Option<&Tensor>) -> Tensor {
    clock::counted(|| {
        by_kind!(x, cpu::dots::linear(x, w, residual)).unwrap_or_else(|| reference::linear_by_row(x, w, residual))
    })
}

/// y [N,O] += x [N,I] · m [I,O]; all may be strided. Libtorch's product everywhere.
pub fn add_product_(y: &Tensor, x: &Tensor, m: &Tensor) {
    clock::counted(|| {
        let _ = y.shallow_clone().addmm_(x, m);
    })
}

/// dx [N,I] = dy [N,O] · w [O,I].
pub fn linear_backward_input(dy: &Tensor, w: &Tensor) -> Tensor {
    clock::counted(|| linear::backward_input(dy, w).unwrap_or_else(|| reference::linear_backward_input(dy, w)))
}

/// grad [O,I] f32 += dy [N,O]ᵀ · x [N,I].
pub fn linear_backward_weight(dy: &Tensor, x: &Tensor, grad: &Tensor) {
    // Elsewhere libtorch's product is of dtype T: one pass adds it.
    clock::counted(|| {
        linear::backward_weight(dy, x, grad, true)
            .or_else(|| cuda::linear::backward_weight(dy, x, grad, true))
            .unwrap_or_else(|| accumulate(grad, &dy.tr().matmul(x)))
    })
}

/// grad [O,I] f32 = dy [N,O]ᵀ · x [N,I]: the first micro-batch, which need not read (or clear) the buffer.
pub fn linear_backward_weight_first(dy: &Tensor, x: &Tensor, grad: &Tensor) {
    clock::counted(|| {
        linear::backward_weight(dy, x, grad, false)
            .or_else(|| cuda::linear::backward_weight(dy, x, grad, false))
            .unwrap_or_else(|| cast(grad, &dy.tr().matmul(x)))
    })
}

/// Whether weight gradients on this device need no product [O,I] of dtype T besides the fp32 buffer (for memory formulas).
pub fn weight_gradients_in_place(kind: Kind, device: tch::Device) -> bool {
    match device {
        tch::Device::Cpu => linear::sums_in_place(kind),
        device => device.is_cuda() && cuda::linear::sums_in_place(kind),
    }
}

/// How a CPU makes the backward pass of attention, for memory formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionOnCpu {
    /// herd's own kernel.
    Own,
    /// libtorch's flash attention in the type of the tensors.
    Flash,
    /// libtorch's flash attention over fp32 copies of them.
    FlashWidened,
}

/// How this CPU makes the backward pass of attention in `kind`.
pub fn attention_on_cpu(kind: Kind) -> AttentionOnCpu {
    let own = match kind {
        Kind::BFloat16 => cpu::attend::is_own::<bf16>(),
        _ => cpu::attend::is_own::<f32>(),
    };
    match (own, cpu::attend::widens(kind)) {
        (true, _) => AttentionOnCpu::Own,
        (false, true) => AttentionOnCpu::FlashWidened,
        (false, false) => AttentionOnCpu::Flash,
    }
}

/// grad [V,H] f32 += rows of dy [N,H] T at `ids` [N] i64.
pub fn embedding_backward(dy: &Tensor, ids: &Tensor, grad: &Tensor) {
    by_kind!(dy, cpu::flat::embedding_backward(dy, ids, grad))
        .or_else(|| own::embedding_backward(dy, ids, grad))
        .or_else(|| pieces::embedding_backward(dy, ids, grad))
        .unwrap_or_else(|| reference::embedding_backward(dy, ids, grad))
}

/// Sum of squares of a flat fp32 buffer, in f64.
pub fn sum_squares(x: &Tensor) -> f64 {
    cpu::flat::sum_squares(x)
        .or_else(|| own::sum_squares(x))
        .or_else(|| pieces::sum_squares(x))
        .unwrap_or_else(|| reference::sum_squares(x))
}

/// grad f32 += x T, same shape.
pub fn accumulate(grad: &Tensor, x: &Tensor) {
    by_kind!(x, cpu::flat::accumulate(grad, x))
        .or_else(|| pieces::accumulate(grad, x))
        .unwrap_or_else(|| reference::accumulate(grad, x))
}

/// dst = src, both T, converting; to bf16 rounds to nearest, ties to even.
pub fn cast(dst: &Tensor, src: &Tensor) {
    match (dst.kind(), src.kind()) {
        (Kind::BFloat16, Kind::Float) => cpu::flat::cast::<bf16, f32>(dst, src),
        (Kind::Float, Kind::BFloat16) => cpu::flat::cast::<f32, bf16>(dst, src),
        _ => None,
    }
    .unwrap_or_else(|| reference::cast(dst, src))
}

/// Decoupled AdamW (arXiv:1711.05101) on flat ranges: master, m, v, grad [n] f32 are updated or read; the result is written
/// to `param` [n] T (which may be the master itself in fp32).
pub fn adamw(h: &AdamW, master: &Tensor, param: &Tensor, m: &Tensor, v: &Tensor, grad: &Tensor) {
    by_kind!(param, cpu::flat::adamw(h, master, param, m, v, grad))
        .or_else(|| own::adamw(h, master, param, m, v, grad))
        .or_else(|| pieces::adamw(h, master, param, m, v, grad))
        .unwrap_or_else(|| reference::adamw(h, master, param, m, v, grad))
}

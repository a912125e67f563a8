//! Attention by libtorch's fused operators: cuDNN's where all sequences attend to themselves whole (arXiv:2307.08691 is the
//! algorithm of both), FlashAttention's otherwise. They take bf16 and fp16 with D a multiple of 8, at most 256 (cuDNN 128), last
//! dim adjacent, all else on 16 bytes; grouped queries; with K > S the queries are the last keys (FlashAttention 2.1 and newer).
//! All give the natural logarithm of the sum of exponentials, so one's backward pass reads the other's forward pass.
//!
//! What none of them takes (fp32) goes over `unfused`, and that is said once.

use super::unfused;
use crate::kernels::ffi;
use crate::kernels::packed::PackedSequences;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Once, OnceLock};
use tch::{Kind, TchError, Tensor};

/// Widest head of FlashAttention, and of cuDNN.
const WIDEST: i64 = 256;
const WIDEST_CUDNN: i64 = 128;
/// Most sequences and heads of cuDNN.
const MOST_CUDNN: i64 = 65535;

/// See [`crate::kernels::attention`].
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor) -> Option<(Tensor, Tensor)> {
    if !q.device().is_cuda() {
        return None;
    }
    if !fuses(q) {
        say_unfused(q);
        return Some(unfused::forward(q, k, v));
    }
    let [q, k, v] = [q, k, v].map(loadable);
    if suits_cudnn(&q, &k) {
        if let Some(found) = unless_refused(shim(&q, &k, &v, Call::Cudnn)) {
            let (out, lse) = found;
            // Versions of libtorch differ in a last dim of one, which their backward pass wants again.
            UNIT_DIM.store(lse.dim() == 4, Relaxed);
            return Some((out.transpose(1, 2).contiguous(), lse.view([out.size()[0], out.size()[1], -1])));
        }
    }
    Some(done(shim(&q, &k, &v, Call::Flash)))
}

/// See [`crate::kernels::attention_backward`].
#[allow(clippy::too_many_arguments)]
pub fn backward(
    dout: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, lse: &Tensor, dq: &mut Tensor, dk: &mut Tensor,
    dv: &mut Tensor,
) -> Option<()> {
    if !q.device().is_cuda() {
        return None;
    }
    if !fuses(q) {
        unfused::backward(dout, q, k, v, out, lse, dq, dk, dv);
        return Some(());
    }
    let [q, k, v, dout, out] = [q, k, v, dout, out].map(loadable);
    let lse = lse.contiguous();
    let by_cudnn = suits_cudnn(&q, &k).then(|| cudnn_backward(&dout, &q, &k, &v, &out, &lse));
    let found = by_cudnn.and_then(unless_refused).unwrap_or_else(|| {
        let none = Tensor::new();
        done(flash_backward(&dout, &q, &k, &v, &out, &lse, [&none, &none], [q.size()[1], k.size()[1]]))
    });
    give(found, dq, dk, dv);
    Some(())
}

/// See [`crate::kernels::attention_packed`].
pub fn forward_packed(q: &Tensor, k: &Tensor, v: &Tensor, packed: &PackedSequences) -> (Tensor, Tensor) {
    let (b, s, heads) = (q.size()[0], q.size()[1], q.size()[2]);
    let (rows, [k, v]) = (loadable(&flat(q)), [k, v].map(|t| loadable(&packed.keys_of(&flat(t)))));
    let (out, lse) = done(shim(&rows, &k, &v, Call::Packed(packed)));
    // [Hq,N] → [B,Hq,S]
    (out.view(q.size().as_slice()), lse.view([heads, b, s]).transpose(0, 1).contiguous())
}

/// See [`crate::kernels::attention_packed_backward`].
#[allow(clippy::too_many_arguments)]
pub fn backward_packed(
    dout: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, lse: &Tensor, packed: &PackedSequences,
    dq: &mut Tensor, dk: &mut Tensor, dv: &mut Tensor,
) {
    let heads = q.size()[2];
    let [rows, dout, out] = [q, dout, out].map(|t| loadable(&flat(t)));
    let [keys, values] = [k, v].map(|t| loadable(&packed.keys_of(&flat(t))));
    let lse = lse.transpose(0, 1).reshape([heads, -1]);
    let (cum, longest) = ([&packed.queries, &packed.keys], [packed.longest_queries, packed.longest_keys]);
    let (gq, gk, gv) = done(flash_backward(&dout, &rows, &keys, &values, &out, &lse, cum, longest));
    dq.copy_(&gq.view(q.size().as_slice()));
    packed.give_keys(gk, dk);
    packed.give_keys(gv, dv);
}

/// Whether a fused operator takes queries [..,D] like these.
pub fn fuses(q: &Tensor) -> bool {
    q.device().is_cuda() && fuses_kind(q.kind(), q.size().last().copied().unwrap_or(0))
}

/// The same, of a dtype and a width.
pub fn fuses_kind(kind: Kind, width: i64) -> bool {
    matches!(kind, Kind::BFloat16 | Kind::Half) && width % 8 == 0 && width <= WIDEST
}

/// [B,S,heads,D] → [N,heads,D]: a view where the strides allow it.
fn flat(t: &Tensor) -> Tensor {
    let size = t.size();
    t.reshape([size[0] * size[1], size[2], size[3]])
}

/// The tensor, or a copy where vector loads of 16 bytes could not read it.
fn loadable(t: &Tensor) -> Tensor {
    let (size, stride) = (t.size(), t.stride());
    let elements = 16 / t.kind().elt_size_in_bytes() as i64;
    let last = size.len() - 1;
    let steps = size[..last].iter().zip(&stride[..last]).all(|(&n, &step)| n == 1 || step % elements == 0);
    match stride[last] == 1 && steps && (t.data_ptr() as usize).is_multiple_of(16) {
        true => t.shallow_clone(),
        false => t.contiguous(),
    }
}

fn give((gq, gk, gv): (Tensor, Tensor, Tensor), dq: &mut Tensor, dk: &mut Tensor, dv: &mut Tensor) {
    dq.copy_(&gq);
    dk.copy_(&gk);
    dv.copy_(&gv);
}

type Three = (Tensor, Tensor, Tensor);

#[allow(clippy::too_many_arguments)]
fn flash_backward(
    dout: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, lse: &Tensor, [cum_q, cum_k]: [&Tensor; 2],
    [max_q, max_k]: [i64; 2],
) -> Result<Three, TchError> {
    // The state of the random numbers of dropout, which there is none of.
    let none = Tensor::f_zeros([2], (Kind::Int64, q.device()))?;
    Tensor::f_internal_flash_attention_backward(
        dout,
        q,
        k,
        v,
        out,
        lse,
        cum_q,
        cum_k,
        max_q,
        max_k,
        0.0,
        true,
        &none,
        &none,
        scale(q),
        None,
        None,
    )
}

fn cudnn_backward(
    dout: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, lse: &Tensor,
) -> Result<Three, TchError> {
    let [q, k, v, out, dout] = [q, k, v, out, dout].map(|t| t.transpose(1, 2));
    // libtorch converts seed and offset on some cards, used or not: they must be there.
    let (seed, none) = (Tensor::f_zeros([] as [i64; 0], (Kind::Int64, q.device()))?, Tensor::new());
    let (max_q, max_k) = (q.size()[2], k.size()[2]);
    let lse = match UNIT_DIM.load(Relaxed) {
        true => lse.f_unsqueeze(-1)?,
        false => lse.shallow_clone(),
    };
    let (dq, dk, dv) = Tensor::f_internal_cudnn_attention_backward(
        &dout,
        &q,
        &k,
        &v,
        &out,
        &lse,
        &seed,
        &seed,
        &none,
        &none,
        &none,
        max_q,
        max_k,
        0.0,
        true,
        scale(&q),
    )?;
    Ok((dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)))
}

fn scale(q: &Tensor) -> f64 {
    1.0 / (q.size().last().copied().unwrap_or(1) as f64).sqrt()
}

/// The forward operators that tch does not have.
enum Call<'a> {
    /// Of [B,S,heads,D].
    Cudnn,
    Flash,
    /// Of [N,heads,D].
    Packed(&'a PackedSequences),
}

/// → (out, lse) as they come; cuDNN's out is [B,heads,S,D].
fn shim(q: &Tensor, k: &Tensor, v: &Tensor, call: Call) -> Result<(Tensor, Tensor), TchError> {
    let (mut out, mut lse) = (std::ptr::null_mut(), std::ptr::null_mut());
    let scale = scale(q);
    let null = std::ptr::null();
    // SAFETY: the shim reads tensors that live during the call, makes new ones, and catches C++ exceptions.
    let error = unsafe {
        match call {
            Call::Cudnn => ffi::herd_cudnn_attention(q.as_ptr(), k.as_ptr(), v.as_ptr(), scale, &mut out, &mut lse),
            Call::Flash => {
                let (most_q, most_k) = (q.size()[1], k.size()[1]);
                let all = [q.as_ptr(), k.as_ptr(), v.as_ptr(), null, null];
                ffi::herd_flash_attention(all.as_ptr(), most_q, most_k, scale, &mut out, &mut lse)
            }
            Call::Packed(p) => {
                let all = [q.as_ptr(), k.as_ptr(), v.as_ptr(), p.queries.as_ptr(), p.keys.as_ptr()];
                ffi::herd_flash_attention(all.as_ptr(), p.longest_queries, p.longest_keys, scale, &mut out, &mut lse)
            }
        }
    };
    // SAFETY: the shim's words, read once.
    match unsafe { ffi::text(error) } {
        Some(words) => Err(TchError::Torch(words)),
        // SAFETY: without an error both are new tensors, ours to drop.
        None => Ok(unsafe { (Tensor::from_ptr(out), Tensor::from_ptr(lse)) }),
    }
}

/// Like libtorch's other failures in a step this ends the process ([`crate::error`] tells whose it is).
fn done<T>(found: Result<T, TchError>) -> T {
    found.unwrap()
}

static REFUSED: AtomicBool = AtomicBool::new(false);
/// cuDNN's forward pass gives the log-sum-exp as [B,Hq,S,1].
static UNIT_DIM: AtomicBool = AtomicBool::new(false);

fn suits_cudnn(q: &Tensor, k: &Tensor) -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    let size = q.size();
    // SAFETY: no arguments; the shim catches C++ exceptions.
    *PRESENT.get_or_init(|| unsafe { ffi::herd_has_cudnn_attention() })
        && !REFUSED.load(Relaxed)
        && size[1] == k.size()[1]
        && size[1] > 1
        && size[3] <= WIDEST_CUDNN
        && size[0] <= MOST_CUDNN
        && size[2] <= MOST_CUDNN
}

/// cuDNN plans before it runs, and may have no plan for a card or a layout: then FlashAttention does it from here on.
fn unless_refused<T>(found: Result<T, TchError>) -> Option<T> {
    match found {
        Err(e) if is_refusal(&e.to_string()) => {
            if !REFUSED.swap(true, Relaxed) {
                let words = e.to_string();
                let first = words.lines().next().unwrap_or_default();
                tracing::warn!("cuDNN refuses this attention ({first}): FlashAttention is used instead");
            }
            None
        }
        found => Some(done(found)),
    }
}

/// Of libtorch's errors of cuDNN those that come before anything ran.
fn is_refusal(words: &str) -> bool {
    let planning = ["cuDNN Frontend error", "CUDNN_STATUS_NOT_SUPPORTED", "No valid execution plans"];
    planning.iter().any(|w| words.contains(w))
}

fn say_unfused(q: &Tensor) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        tracing::warn!(
            "attention in {} with heads of width {} has no fused kernel on CUDA: it runs unfused over {} MiB of scores at a time, \
             many times slower (bf16 with a width that is a multiple of 8 and at most {WIDEST} is fused)",
            if q.kind() == Kind::Float { "fp32" } else { "bf16" },
            q.size()[3],
            unfused::SCORES >> 20
        )
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_not_run_is_tried_otherwise() {
        assert!(is_refusal("cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built."));
        assert!(!is_refusal("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"));
        assert!(!is_refusal("CUDA error: device-side assert triggered"));
    }
}

//! Attention: herd's own where the CPU has AVX-512 (for bf16, with its bf16 products), elsewhere libtorch's flash attention. Without
//! AVX-512 that is made in fp32 for bf16 too: libtorch 2.11 has no fast products of bf16 there (backward 7 times slower on a Zen 3), and
//! parts are joined before they are rounded.

use super::view::Real;
#[cfg(target_arch = "x86_64")]
use super::x86::{attention, attention_backward, dot::Dot};
use tch::{Device, Kind, Tensor};

/// An element type that both ways know.
#[cfg(target_arch = "x86_64")]
pub trait Attended: Dot {}
#[cfg(target_arch = "x86_64")]
impl<E: Dot> Attended for E {}
#[cfg(not(target_arch = "x86_64"))]
pub trait Attended: Real {}
#[cfg(not(target_arch = "x86_64"))]
impl<E: Real> Attended for E {}

/// Whether attention of this type is herd's own on this CPU.
pub fn is_own<E: Attended>() -> bool {
    #[cfg(target_arch = "x86_64")]
    return E::detect().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// See [`crate::kernels::attention`].
pub fn forward<E: Attended>(q: &Tensor, k: &Tensor, v: &Tensor) -> Option<(Tensor, Tensor)> {
    #[cfg(target_arch = "x86_64")]
    if let Some(done) = attention::forward::<E>(q, k, v) {
        return Some(done);
    }
    flash::<E>(q, k, v)
}

/// See [`crate::kernels::attention_backward`].
#[allow(clippy::too_many_arguments)]
pub fn backward<E: Attended>(
    dout: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, lse: &Tensor, dq: &mut Tensor, dk: &mut Tensor,
    dv: &mut Tensor,
) -> Option<()> {
    #[cfg(target_arch = "x86_64")]
    if attention_backward::backward::<E>(dout, q, k, v, out, lse, dq, dk, dv).is_some() {
        return Some(());
    }
    flash_backward::<E>(dout, q, k, v, out, lse, dq, dk, dv)
}

fn suits<E: Real>(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.kind() == E::KIND && t.device() == Device::Cpu && t.dim() == 4)
}

/// libtorch's, which wants [B,heads,S,D] and as many key as query heads, and knows only squares and full rectangles: the past
/// is a part of its own, and the two parts are joined by their sums of exponentials.
pub(in crate::kernels) fn flash<E: Real>(q: &Tensor, k: &Tensor, v: &Tensor) -> Option<(Tensor, Tensor)> {
    if !suits::<E>(&[q, k, v]) || k.size()[1] < q.size()[1] {
        return None;
    }
    let groups = q.size()[2] / k.size()[2];
    let (qt, kt, vt) = (wide::<E>(q).transpose(1, 2), spread(&wide::<E>(k), groups), spread(&wide::<E>(v), groups));
    let scale = 1.0 / (q.size()[3] as f64).sqrt();
    let call = |k: &Tensor, v: &Tensor, causal: bool| {
        let none = None::<&Tensor>;
        Tensor::internal_scaled_dot_product_flash_attention_for_cpu(&qt, k, v, 0.0, causal, none, scale)
    };
    let past = k.size()[1] - q.size()[1];
    if past == 0 {
        let (out, lse) = call(&kt, &vt, true);
        return Some((out.transpose(1, 2).to_kind(E::KIND).contiguous(), lse.contiguous()));
    }
    let part = |t: &Tensor| (t.narrow(2, 0, past), t.narrow(2, past, q.size()[1]));
    let ((k_past, k_own), (v_past, v_own)) = (part(&kt), part(&vt));
    let ((before, lse_before), (own, lse_own)) = (call(&k_past, &v_past, false), call(&k_own, &v_own, true));
    let lse = lse_before.logaddexp(&lse_own);
    let weighed = |out: Tensor, part: Tensor| out.to_kind(Kind::Float) * (part - &lse).exp().unsqueeze(-1);
    let out = (weighed(before, lse_before) + weighed(own, lse_own)).to_kind(E::KIND);
    Some((out.transpose(1, 2).contiguous(), lse.contiguous()))
}

#[allow(clippy::too_many_arguments)]
pub(in crate::kernels) fn flash_backward<E: Real>(
    dout: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, lse: &Tensor, dq: &mut Tensor, dk: &mut Tensor,
    dv: &mut Tensor,
) -> Option<()> {
    if !suits::<E>(&[dout, q, k, v, out, dq, dk, dv]) || k.size()[1] < q.size()[1] {
        return None;
    }
    let (size, kv_heads) = (q.size(), k.size()[2]);
    let groups = size[2] / kv_heads;
    let (qt, kt, vt) = (wide::<E>(q).transpose(1, 2), spread(&wide::<E>(k), groups), spread(&wide::<E>(v), groups));
    let (dt, ot) = (wide::<E>(dout).transpose(1, 2), wide::<E>(out).transpose(1, 2));
    let scale = 1.0 / (size[3] as f64).sqrt();
    let call = |k: &Tensor, v: &Tensor, causal: bool| {
        Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
            &dt,
            &qt,
            k,
            v,
            &ot,
            lse,
            0.0,
            causal,
            None::<&Tensor>,
            scale,
        )
    };
    // With the output and the sums of the whole row each part's gradients are its own.
    let past = k.size()[1] - size[1];
    let (gq, gk, gv) = match past {
        0 => call(&kt, &vt, true),
        _ => {
            let part = |t: &Tensor| (t.narrow(2, 0, past), t.narrow(2, past, size[1]));
            let ((k_past, k_own), (v_past, v_own)) = (part(&kt), part(&vt));
            let (a, b) = (call(&k_past, &v_past, false), call(&k_own, &v_own, true));
            (a.0 + b.0, Tensor::cat(&[a.1, b.1], 2), Tensor::cat(&[a.2, b.2], 2))
        }
    };
    let gather = |g: Tensor| {
        let g = g.view_copy([size[0], kv_heads, groups, k.size()[1], size[3]]);
        g.sum_dim_intlist([2i64].as_slice(), false, E::KIND).transpose(1, 2)
    };
    dq.copy_(&gq.transpose(1, 2));
    dk.copy_(&gather(gk.contiguous()));
    dv.copy_(&gather(gv.contiguous()));
    Some(())
}

/// Whether libtorch's attention over this type is made of fp32 copies.
pub fn widens(kind: Kind) -> bool {
    #[cfg(target_arch = "x86_64")]
    return kind == Kind::BFloat16 && super::level::avx512().is_none();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// As the products are to be made.
fn wide<E: Real>(t: &Tensor) -> Tensor {
    t.to_kind(if widens(E::KIND) { Kind::Float } else { E::KIND })
}

/// [B,S,heads,D] → [B,heads·groups,S,D].
fn spread(t: &Tensor, groups: i64) -> Tensor {
    let t = t.transpose(1, 2);
    match groups {
        1 => t,
        _ => t.repeat_interleave_self_int(groups, 1, None),
    }
}

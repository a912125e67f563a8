//! Attention, herd's own and libtorch's flash attention as herd calls it.

use super::*;
use crate::kernels::cpu::attend;
use crate::kernels::{self, parallel, reference};
use half::bf16;

/// B, S, query heads, key heads, D.
const SHAPES: [[i64; 5]; 9] = [
    [1, 1, 1, 1, 64],
    [2, 5, 4, 2, 32],
    [1, 65, 8, 1, 80],
    [2, 130, 3, 3, 128],
    [1, 64, 6, 2, 64],
    [1, 200, 8, 4, 64],
    [1, 129, 2, 1, 20],
    [1, 700, 2, 1, 64],
    [1, 1100, 1, 1, 32],
];

/// q, k, v as views of one row of [q heads | key heads | value heads].
fn split(t: &Tensor, hq: i64, hkv: i64) -> (Tensor, Tensor, Tensor) {
    (t.narrow(2, 0, hq), t.narrow(2, hq, hkv), t.narrow(2, hq + hkv, hkv))
}

/// For lse and gradients in bf16: libtorch rounds more often than herd.
const FLASH_BOUNDS: [f64; 2] = [5e-5, 2e-2];

type Gradients<'a> = (&'a mut Tensor, &'a mut Tensor, &'a mut Tensor);

fn check(
    what: &str, [lse_bound, gradient_bound]: [f64; 2],
    forward: impl Fn(Kind, &Tensor, &Tensor, &Tensor) -> (Tensor, Tensor),
    backward: impl Fn(Kind, &Tensor, [&Tensor; 5], Gradients),
) {
    for kind in KINDS {
        for [b, s, hq, hkv, d] in SHAPES {
            // All tokens ask, or only those after a past.
            for past in [0, 1, 63, 64, 100, 640].into_iter().filter(|&past| past < s) {
                let what = format!("{what} {kind:?} B {b} S {s} after {past} heads {hq}/{hkv} D {d}");
                let own = |t: &Tensor, dim: i64| t.narrow(dim, past, s - past);
                let qkv = randn(1, &[b, s, hq + 2 * hkv, d], kind);
                let (q, k, v) = split(&qkv, hq, hkv);
                let (out, lse) = forward(kind, &own(&q, 1), &k, &v);
                // The standard in fp32: the reference's own roundings to bf16 are not the subject. Of all tokens: with the
                // gradient of those before the past zero, keys and values get it from the others alone.
                let exact = qkv.to_kind(Kind::Float);
                let (q0, k0, v0) = split(&exact, hq, hkv);
                let (out0, lse0) = reference::attention(&q0, &k0, &v0);
                assert!(out.is_contiguous() && out.kind() == kind && lse.kind() == Kind::Float);
                close(&format!("{what}: out"), &out, &own(&out0, 1).to_kind(kind), 2e-6);
                close(&format!("{what}: lse"), &lse, &own(&lse0, 2), lse_bound);
                let dout = randn(2, &[b, s, hq, d], kind);
                let _ = dout.narrow(1, 0, past).zero_();
                let (d1, d0) = (qkv.full_like(f64::NAN), exact.full_like(f64::NAN));
                let (dq, mut dk, mut dv) = split(&d1, hq, hkv);
                let mut dq = own(&dq, 1);
                let q = own(&q, 1);
                backward(kind, &own(&dout, 1), [&q, &k, &v, &out, &lse], (&mut dq, &mut dk, &mut dv));
                let (mut eq, mut ek, mut ev) = split(&d0, hq, hkv);
                let dout = dout.to_kind(Kind::Float);
                reference::attention_backward(&dout, &q0, &k0, &v0, &out0, &lse0, &mut eq, &mut ek, &mut ev);
                for (name, got, want) in [("dq", dq, own(&eq, 1)), ("dk", dk, ek), ("dv", dv, ev)] {
                    // dq of a single key is zero but for rounding.
                    if s > 1 || name == "dv" {
                        let e = error(&got, &want);
                        let bound = if kind == Kind::Float { 4e-6 } else { gradient_bound };
                        assert!(
                            e <= bound,
                            "{what}: {name}: differs by {e:.2e} of the largest value, {bound:.2e} allowed"
                        );
                    }
                }
            }
        }
    }
}

/// The reference with a past, which other devices run.
#[test]
fn reference_attention_after_a_past() {
    check(
        "reference",
        [2e-6, 2e-2],
        |_, q, k, v| reference::attention(q, k, v),
        |_, dout, [q, k, v, out, lse], (dq, dk, dv)| reference::attention_backward(dout, q, k, v, out, lse, dq, dk, dv),
    );
}

#[test]
fn attention_forward_and_backward() {
    let bounds = if attend::is_own::<bf16>() { [2e-6, 8e-3] } else { FLASH_BOUNDS };
    check(
        "attention",
        bounds,
        |_, q, k, v| kernels::attention(q, k, v),
        |_, dout, [q, k, v, out, lse], (dq, dk, dv)| kernels::attention_backward(dout, q, k, v, out, lse, dq, dk, dv),
    );
}

#[test]
fn flash_attention_of_libtorch() {
    check(
        "flash",
        FLASH_BOUNDS,
        |kind, q, k, v| match kind {
            Kind::Float => attend::flash::<f32>(q, k, v).expect("suits"),
            _ => attend::flash::<bf16>(q, k, v).expect("suits"),
        },
        |kind, dout, [q, k, v, out, lse], (dq, dk, dv)| match kind {
            Kind::Float => attend::flash_backward::<f32>(dout, q, k, v, out, lse, dq, dk, dv).expect("suits"),
            _ => attend::flash_backward::<bf16>(dout, q, k, v, out, lse, dq, dk, dv).expect("suits"),
        },
    );
}

#[test]
fn large_scores_do_not_overflow() {
    for kind in KINDS {
        let qkv = randn(1, &[1, 90, 3, 64], kind) * 40.0;
        let (q, k, v) = split(&qkv, 1, 1);
        let (out, lse) = kernels::attention(&q, &k, &v);
        let (out0, lse0) = reference::attention(&q, &k, &v);
        close("out", &out, &out0, 1e-5);
        close("lse", &lse, &lse0, 1e-6);
    }
}

#[test]
fn what_is_not_a_number_is_passed_on() {
    let qkv = randn(1, &[1, 40, 3, 64], Kind::BFloat16);
    let _ = qkv.narrow(1, 3, 1).fill_(f64::NAN);
    let (q, k, v) = split(&qkv, 1, 1);
    let (out, _) = kernels::attention(&q, &k, &v);
    assert_eq!(out.narrow(1, 3, 37).isnan().all().int64_value(&[]), 1);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let before = parallel::threads();
    let run = |threads| {
        parallel::set_threads(threads);
        let qkv = randn(1, &[2, 150, 8, 64], Kind::BFloat16);
        let (q, k, v) = split(&qkv, 4, 2);
        let (out, lse) = kernels::attention(&q, &k, &v);
        let d = qkv.zeros_like();
        let (mut dq, mut dk, mut dv) = split(&d, 4, 2);
        kernels::attention_backward(&out, &q, &k, &v, &out, &lse, &mut dq, &mut dk, &mut dv);
        [out, lse, d]
    };
    let (one, two) = (run(1), run(2));
    parallel::set_threads(before);
    assert!(one.iter().zip(&two).all(|(a, b)| same(a, b)));
}

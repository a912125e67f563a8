//! Norm, rotary, SwiGLU, cross-entropy.

use super::*;
use crate::kernels::{self, reference};

#[test]
fn rms_norm_forward_and_backward() {
    for kind in KINDS {
        for (n, h) in [(1, 16), (7, 40), (33, 768), (130, 63), (3, 5)] {
            let (x, w, dy, res) =
                (randn(1, &[n, h], kind), randn(2, &[h], kind), randn(3, &[n, h], kind), randn(4, &[n, h], kind));
            let what = format!("rms_norm {kind:?} {n}x{h}");
            let (y, r) = kernels::rms_norm(&x, &w, 1e-5);
            let (y0, r0) = reference::rms_norm(&x, &w, 1e-5);
            close(&what, &y, &y0, 1e-6);
            close(&what, &r, &r0, 1e-6);
            for res in [None, Some(&res)] {
                let (dw, dw0) = (randn(5, &[h], Kind::Float), randn(5, &[h], Kind::Float));
                let dx = kernels::rms_norm_backward(&dy, &x, &w, &r, res, &dw);
                let dx0 = reference::rms_norm_backward(&dy, &x, &w, &r0, res, &dw0);
                close(&what, &dx, &dx0, 2e-6);
                close(&what, &dw, &dw0, 2e-6);
            }
        }
    }
}

#[test]
fn rms_norm_of_strided_rows() {
    for kind in KINDS {
        let x = randn(1, &[9, 100], kind).narrow(1, 3, 48);
        let w = randn(2, &[48], kind);
        let (y, r) = kernels::rms_norm(&x, &w, 1e-6);
        let (y0, r0) = reference::rms_norm(&x, &w, 1e-6);
        close("y", &y, &y0, 1e-6);
        close("rstd", &r, &r0, 1e-6);
    }
}

#[test]
fn rope_forward_and_back() {
    for kind in KINDS {
        for (b, s, heads, d) in [(1, 1, 1, 2), (2, 5, 3, 32), (1, 65, 2, 80), (2, 7, 4, 64), (1, 3, 2, 128)] {
            let angle = randn(9, &[s, d / 2], Kind::Float);
            let (cos, sin) = (angle.cos(), angle.sin());
            let row = randn(1, &[b, s, (heads + 2) * d], kind);
            for inverse in [false, true] {
                let (got, want) = (row.copy(), row.copy());
                let view = |t: &Tensor| t.narrow(2, d, heads * d).view([b, s, heads, d]);
                kernels::rope_(&view(&got), &cos, &sin, inverse);
                reference::rope_(&view(&want), &cos, &sin, inverse);
                close(&format!("rope {kind:?} {b} {s} {heads} {d}"), &got, &want, 1e-6);
            }
        }
    }
}

#[test]
fn rope_keeps_to_its_view() {
    let row = randn(1, &[1, 4, 3, 32], Kind::Float);
    let before = row.copy();
    let angle = randn(2, &[4, 16], Kind::Float);
    kernels::rope_(&row.narrow(2, 1, 1), &angle.cos(), &angle.sin(), false);
    assert!(same(&row.narrow(2, 0, 1), &before.narrow(2, 0, 1)) && same(&row.narrow(2, 2, 1), &before.narrow(2, 2, 1)));
    assert!(!same(&row, &before));
}

#[test]
fn swiglu_forward_and_backward() {
    for kind in KINDS {
        for (n, f) in [(1, 1), (7, 40), (33, 256), (2, 17)] {
            // Wide enough that the sigmoid saturates both ways.
            let (x, dy) = (randn(1, &[n, 2 * f], kind) * 30.0, randn(2, &[n, f], kind));
            let what = format!("swiglu {kind:?} {n}x{f}");
            close(&what, &kernels::swiglu(&x), &reference::swiglu(&x), 1e-6);
            close(&what, &kernels::swiglu_backward(&dy, &x), &reference::swiglu_backward(&dy, &x), 1e-6);
        }
    }
}

#[test]
fn cross_entropy_loss_and_gradient() {
    for kind in KINDS {
        for (n, v) in [(1, 2), (7, 33), (5, 1025), (16, 5000)] {
            let x = randn(1, &[n, v], kind) * 4.0;
            let t = Tensor::randint_low(-1, v, [n], (Kind::Int64, Device::Cpu));
            for (scale, z) in [(None, 0.0), (Some(1.0 / 64.0), 0.0), (Some(3.0), 1e-4)] {
                let (got, want) = (x.copy(), x.copy());
                let a = kernels::cross_entropy_(&got, &t, scale, z);
                let b = reference::cross_entropy_(&want, &t, scale, z);
                let what = format!("cross-entropy {kind:?} {n}x{v} {scale:?} {z}");
                assert_eq!(a.tokens, b.tokens, "{what}");
                assert!((a.loss - b.loss).abs() <= 1e-6 * b.loss.abs().max(1.0), "{what}: {a:?} {b:?}");
                assert!((a.z - b.z).abs() <= 1e-6 * b.z.abs().max(1.0), "{what}: {a:?} {b:?}");
                close(&what, &got, &want, 1e-6);
            }
        }
    }
}

#[test]
fn cross_entropy_ignores_rows_without_a_target() {
    let x = randn(1, &[3, 50], Kind::Float);
    let sums = kernels::cross_entropy_(&x, &Tensor::from_slice(&[-100i64, -1, -7]), Some(1.0), 0.1);
    assert_eq!(sums, kernels::LossSums::default());
    assert_eq!(x.abs().max().double_value(&[]), 0.0);
}

#[test]
fn cross_entropy_passes_on_what_is_not_a_number() {
    for kind in KINDS {
        for bad in [f64::NAN, f64::INFINITY] {
            let x = randn(1, &[2, 100], kind);
            let _ = x.narrow(0, 1, 1).narrow(1, 37, 1).fill_(bad);
            let sums = kernels::cross_entropy_(&x, &Tensor::from_slice(&[3i64, 4]), Some(1.0), 0.0);
            assert!(!sums.loss.is_finite(), "{bad} gave {}", sums.loss);
        }
    }
}

/// Columns cut as over ranks, uneven, one share empty: sums and gradient are those of the whole rows.
#[test]
fn cross_entropy_in_parts() {
    for kind in KINDS {
        for (n, v) in [(1, 2), (7, 33), (16, 5000)] {
            let x = randn(1, &[n, v], kind) * 4.0;
            let t = Tensor::randint_low(-1, v, [n], (Kind::Int64, Device::Cpu));
            let cuts = [0, v / 3, v / 3, v - 1, v];
            let (want, got) = (x.copy(), x.copy());
            let whole = reference::cross_entropy_(&want, &t, Some(0.5), 1e-3);
            for plain in [false, true] {
                let got = got.copy();
                let shares: Vec<(i64, Tensor)> =
                    cuts.windows(2).map(|c| (c[0], got.narrow(1, c[0], c[1] - c[0]).contiguous())).collect();
                let part = |(first, x): &(i64, Tensor)| match plain {
                    true => reference::cross_entropy_part(x, &t, *first),
                    false => kernels::cross_entropy_part(x, &t, *first),
                };
                let parts: Vec<Tensor> = shares.iter().map(part).collect();
                let (sums, lse) = kernels::cross_entropy_join(&Tensor::stack(&parts, 0), &t);
                let what = format!("cross-entropy in parts {kind:?} {n}x{v} plain {plain}");
                assert_eq!(sums.tokens, whole.tokens, "{what}");
                assert!(
                    (sums.loss - whole.loss).abs() <= 1e-6 * whole.loss.abs().max(1.0),
                    "{what}: {sums:?} {whole:?}"
                );
                assert!((sums.z - whole.z).abs() <= 1e-6 * whole.z.abs().max(1.0), "{what}: {sums:?} {whole:?}");
                for (first, x) in &shares {
                    match plain {
                        true => reference::cross_entropy_gradient_(x, &t, *first, &lse, 0.5, 1e-3),
                        false => kernels::cross_entropy_gradient_(x, &t, *first, &lse, 0.5, 1e-3),
                    }
                }
                let joined: Vec<&Tensor> = shares.iter().map(|s| &s.1).collect();
                close(&what, &Tensor::cat(&joined, 1), &want, 2e-6);
            }
        }
    }
}

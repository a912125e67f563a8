//! AdamW, sums, casts, the embedding's gradient.

use super::*;
use crate::kernels::{self, parallel, reference, AdamW};

#[test]
fn adamw_five_steps() {
    for kind in KINDS {
        for n in [1, 17, 40_000] {
            let start = || (randn(1, &[n], Kind::Float), Tensor::zeros([n], (Kind::Float, Device::Cpu)));
            let ((w, m), (w0, m0)) = (start(), start());
            let (v, v0) = (m.copy(), m0.copy());
            let (p, p0) = match kind {
                Kind::Float => (w.shallow_clone(), w0.shallow_clone()),
                _ => (w.to_kind(kind), w0.to_kind(kind)),
            };
            for step in 1..=5 {
                let h =
                    AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 0.7 };
                let g = randn(10 + step as i64, &[n], Kind::Float);
                kernels::adamw(&h, &w, &p, &m, &v, &g);
                reference::adamw(&h, &w0, &p0, &m0, &v0, &g);
            }
            for (name, got, want) in [("master", &w, &w0), ("param", &p, &p0), ("m", &m, &m0), ("v", &v, &v0)] {
                close(&format!("adamw {name} {kind:?} {n}"), got, want, 2e-6);
            }
        }
    }
}

#[test]
fn sum_of_squares() {
    for n in [1, 1000, 100_003] {
        let x = randn(1, &[n], Kind::Float);
        let (got, want) =
            (kernels::sum_squares(&x), x.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]));
        assert!((got - want).abs() <= 1e-7 * want, "{n}: {got} {want}");
    }
}

#[test]
fn accumulate_and_cast() {
    for kind in KINDS {
        for n in [1, 31, 70_000] {
            let (g, x) = (randn(1, &[n], Kind::Float), randn(2, &[n], kind));
            let want = &g + x.to_kind(Kind::Float);
            kernels::accumulate(&g, &x);
            assert!(same(&g, &want));
        }
    }
}

#[test]
fn casts_round_as_libtorch_does() {
    // Every upper half with lower halves around the tie, so all exponents, infinities, NaN and subnormals occur.
    let bits: Vec<f32> = (0..=0xffffu32)
        .flat_map(|h| [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|l| f32::from_bits(h << 16 | l)))
        .collect();
    let x = Tensor::from_slice(&bits);
    let b = Tensor::empty([bits.len() as i64], (Kind::BFloat16, Device::Cpu));
    kernels::cast(&b, &x);
    let want = x.to_kind(Kind::BFloat16);
    let equal = b.eq_tensor(&want).logical_or(&b.isnan().logical_and(&want.isnan()));
    assert!(equal.all().int64_value(&[]) == 1);
    let back = Tensor::empty([bits.len() as i64], (Kind::Float, Device::Cpu));
    kernels::cast(&back, &b);
    assert!(back.eq_tensor(&b.to_kind(Kind::Float)).logical_or(&back.isnan()).all().int64_value(&[]) == 1);
}

#[test]
fn embedding_gradient_adds_repeated_tokens() {
    for kind in KINDS {
        for (n, h, v) in [(1, 16, 3), (50, 70, 5), (64, 129, 1000)] {
            let (dy, ids) = (randn(1, &[n, h], kind), Tensor::randint(v, [n], (Kind::Int64, Device::Cpu)));
            let (g, g0) = (randn(2, &[v, h], Kind::Float), randn(2, &[v, h], Kind::Float));
            kernels::embedding_backward(&dy, &ids, &g);
            reference::embedding_backward(&dy, &ids, &g0);
            close(&format!("embedding {kind:?} {n} {h} {v}"), &g, &g0, 1e-6);
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let before = parallel::threads();
    let run = |threads| {
        parallel::set_threads(threads);
        let (x, w) = (randn(1, &[200, 96], Kind::BFloat16), randn(2, &[96], Kind::BFloat16));
        let (y, r) = kernels::rms_norm(&x, &w, 1e-5);
        let dw = Tensor::zeros([96], (Kind::Float, Device::Cpu));
        let dx = kernels::rms_norm_backward(&y, &x, &w, &r, Some(&x), &dw);
        let logits = randn(3, &[200, 999], Kind::BFloat16);
        let loss = kernels::cross_entropy_(&logits, &Tensor::arange(200, (Kind::Int64, Device::Cpu)), Some(0.1), 0.01);
        let sum = kernels::sum_squares(&randn(4, &[300_000], Kind::Float));
        (vec![y, r, dw, dx, logits], loss, sum)
    };
    let (one, two) = (run(1), run(2));
    parallel::set_threads(before);
    assert!(one.0.iter().zip(&two.0).all(|(a, b)| same(a, b)));
    assert_eq!((one.1, one.2), (two.1, two.2));
}

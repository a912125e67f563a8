//! Products of the linear layers.

use super::*;
use crate::kernels::cpu::linear::sums_bf16_in_fp32;
use crate::kernels::{self, reference};

/// N, I, O: full tiles, one row, tails in every dim, several blocks of the summed dim.
const SHAPES: [(i64, i64, i64); 7] =
    [(1, 16, 16), (7, 48, 130), (6, 64, 64), (65, 300, 97), (130, 80, 200), (257, 16, 700), (33, 520, 48)];

#[test]
fn linear_forward_and_backward_input() {
    for kind in KINDS {
        for (n, i, o) in SHAPES {
            let what = format!("linear {kind:?} {n} {i} {o}");
            let (x, w, dy, res) =
                (randn(1, &[n, i], kind), randn(2, &[o, i], kind), randn(3, &[n, o], kind), randn(4, &[n, o], kind));
            close(&what, &kernels::linear(&x, &w, None), &reference::linear(&x, &w, None), 2e-6);
            close(&what, &kernels::linear(&x, &w, Some(&res)), &reference::linear(&x, &w, Some(&res)), 2e-6);
            close(&what, &kernels::linear_backward_input(&dy, &w), &reference::linear_backward_input(&dy, &w), 2e-6);
        }
    }
}

#[test]
fn weight_gradients_add_in_fp32() {
    for kind in KINDS {
        for (n, i, o) in SHAPES {
            let what = format!("weight gradient {kind:?} {n} {i} {o}");
            let (x, dy, g) = (randn(1, &[n, i], kind), randn(3, &[n, o], kind), randn(4, &[o, i], Kind::Float));
            // Products of bf16 are exact in fp32, so the fp32 product is the standard for both.
            let product = dy.to_kind(Kind::Float).tr().matmul(&x.to_kind(Kind::Float));
            let want = &g + &product;
            // bf16 on a CPU without AVX512-BF16 goes through a bf16 product.
            let bound = if kind == Kind::Float || sums_bf16_in_fp32() { 4e-6 } else { 8e-3 };
            kernels::linear_backward_weight(&dy, &x, &g);
            close(&what, &g, &want, bound);
            let _ = g.shallow_clone().fill_(f64::NAN);
            kernels::linear_backward_weight_first(&dy, &x, &g);
            close(&what, &g, &product, bound);
        }
    }
}

#[test]
fn operands_may_be_parts_of_larger_rows() {
    for kind in KINDS {
        let (x, w, dy) = (
            randn(1, &[20, 100], kind).narrow(1, 2, 48),
            randn(2, &[90, 64], kind).narrow(1, 8, 48),
            randn(3, &[20, 128], kind),
        );
        let dy = dy.narrow(1, 30, 90);
        close("forward", &kernels::linear(&x, &w, None), &reference::linear(&x, &w, None), 2e-6);
        close("input", &kernels::linear_backward_input(&dy, &w), &reference::linear_backward_input(&dy, &w), 2e-6);
        let (g, g0) =
            (Tensor::zeros([90, 48], (Kind::Float, Device::Cpu)), Tensor::zeros([90, 48], (Kind::Float, Device::Cpu)));
        kernels::linear_backward_weight(&dy, &x, &g);
        reference::linear_backward_weight(&dy.to_kind(Kind::Float), &x.to_kind(Kind::Float), &g0);
        let bound = if kind == Kind::Float || sums_bf16_in_fp32() { 4e-6 } else { 8e-3 };
        close("weight", &g, &g0, bound);
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let before = crate::kernels::parallel::threads();
    let run = |threads| {
        crate::kernels::parallel::set_threads(threads);
        let (x, w, dy) = (
            randn(1, &[130, 300], Kind::Float),
            randn(2, &[260, 300], Kind::Float),
            randn(3, &[130, 260], Kind::Float),
        );
        let g = Tensor::zeros([260, 300], (Kind::Float, Device::Cpu));
        kernels::linear_backward_weight(&dy, &x, &g);
        let h = Tensor::zeros([260, 300], (Kind::Float, Device::Cpu));
        kernels::linear_backward_weight(&dy.to_kind(Kind::BFloat16), &x.to_kind(Kind::BFloat16), &h);
        [kernels::linear(&x, &w, None), kernels::linear_backward_input(&dy, &w), g, h]
    };
    let (one, two) = (run(1), run(2));
    crate::kernels::parallel::set_threads(before);
    assert!(one.iter().zip(&two).take(if sums_bf16_in_fp32() { 4 } else { 3 }).all(|(a, b)| same(a, b)));
}

//! Every kernel against its libtorch reference, in fp32 and bf16, over awkward sizes and strides.

mod attention;
mod blockwise;
mod by_row;
mod flat;
mod levels;
mod matrix;
mod memory;
mod moments;
mod quantized;
mod rows;

use crate::threads::lock;
use tch::{Device, Kind, Tensor};

pub const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];

/// Normal random numbers, the same for the same seed.
pub fn randn(seed: i64, shape: &[i64], kind: Kind) -> Tensor {
    static SEED: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = lock(&SEED);
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// Largest difference, relative to the largest value of `want`.
pub fn error(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.size(), want.size());
    let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
    let scale = want.abs().max().double_value(&[]).max(1e-30);
    (got - want).abs().max().double_value(&[]) / scale
}

/// Fails unless `got` is `want` within `fp32` (relative to the largest value), or within bf16's rounding for bf16.
#[track_caller]
pub fn close(what: &str, got: &Tensor, want: &Tensor, fp32: f64) {
    assert_eq!(got.kind(), want.kind(), "{what}");
    let bound = if got.kind() == Kind::BFloat16 { 8e-3 } else { fp32 };
    let e = error(got, want);
    assert!(e <= bound, "{what}: differs by {e:.2e} of the largest value, {bound:.2e} allowed");
}

/// The same bits.
pub fn same(a: &Tensor, b: &Tensor) -> bool {
    a.kind() == b.kind() && a.equal(b)
}

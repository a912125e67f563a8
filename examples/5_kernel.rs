//! One kernel and its reference: RMSNorm, checked in fp32 and bf16 and timed.
//!
//!     target/release/examples/5_kernel
//!
//! Room: `kernels`. Each operation has a version in libtorch's operators, which any device runs, and a fused one for the CPU that gives
//! the same bits on every run and for every number of threads.

use herd::kernels::{self, reference};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

fn main() {
    tch::manual_seed(1);
    for kind in [Kind::Float, Kind::BFloat16] {
        let x = Tensor::randn([512, 1024], (Kind::Float, Device::Cpu)).to_kind(kind);
        let w = Tensor::randn([1024], (Kind::Float, Device::Cpu)).to_kind(kind);
        let timed = |f: &dyn Fn() -> (Tensor, Tensor)| {
            let began = Instant::now();
            let out = f();
            (out, began.elapsed())
        };
        let ((y, rstd), fused) = timed(&|| kernels::rms_norm(&x, &w, 1e-5));
        let ((yr, rstd_r), plain) = timed(&|| reference::rms_norm(&x, &w, 1e-5));
        let gap =
            (y.to_kind(Kind::Double) - yr.to_kind(Kind::Double)).abs().max() / yr.to_kind(Kind::Double).abs().max();
        let rstd_gap = ((&rstd - &rstd_r).abs() / &rstd_r).max().double_value(&[]);
        println!("{kind:?}: y differs by {:.1e} of the largest value, rstd by {rstd_gap:.1e}; {fused:?}, libtorch's way {plain:?}", gap.double_value(&[]));
        let tolerance = if kind == Kind::Float { 1e-6 } else { 8e-3 };
        assert!(gap.double_value(&[]) <= tolerance && rstd_gap < 1e-5);
        assert_eq!(kernels::rms_norm(&x, &w, 1e-5).0, y, "the same bits again");
    }
}

//! The CPU versions. Each function answers `None` where a tensor does not suit it (device, dtype, strides, shapes); the
//! caller then takes libtorch's way, which also raises the error where the shapes are wrong.

#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "x86_64")]
pub mod dot;
pub mod flat;
#[cfg(target_arch = "x86_64")]
pub mod gemm;
pub mod level;
pub mod linear;
pub mod loss;
pub mod norm;
#[cfg(target_arch = "x86_64")]
pub mod pack;
pub mod rope;
#[cfg(target_arch = "x86_64")]
pub mod scratch;
pub mod simd;
pub mod swiglu;
pub mod view;

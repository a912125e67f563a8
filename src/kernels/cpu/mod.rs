//! The CPU versions. Each function answers `None` where a tensor does not suit it (device, dtype, strides, shapes); the
//! caller then takes libtorch's way, which also raises the error where the shapes are wrong.

pub mod attend;
pub mod blockwise;
mod dispatch;
pub mod dots;
pub mod flat;
pub mod ints;
pub mod level;
pub mod linear;
pub mod loss;
pub mod norm;
pub mod paged;
pub mod rope;
pub mod simd;
pub mod swiglu;
pub mod view;
#[cfg(target_arch = "x86_64")]
pub mod x86;

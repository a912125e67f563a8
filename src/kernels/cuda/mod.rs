//! Operations on CUDA devices: herd's own kernels (`own`, compiled at run time from `source/`), libtorch's fused operators
//! (`attend`, `linear`), and where neither takes the tensors the reference over pieces of them (`pieces`), so that its
//! temporaries stay small beside the tensors of a real model.
//!
//! A function takes tensors on a device that suit it and returns `None` for all others.

pub mod attend;
pub mod compiled;
pub mod driver;
pub mod linear;
pub mod nvrtc;
pub mod own;
pub mod pieces;
mod unfused;

pub use unfused::bytes as unfused_bytes;

//! Operations on CUDA devices, through libtorch: fused where libtorch has a fused operator for them, else the reference over
//! pieces of the tensors, so that its temporaries stay small beside the tensors of a real model.
//!
//! A function takes tensors on a device that suit it and returns `None` for all others.

pub mod attend;
pub mod linear;
pub mod pieces;
mod unfused;

pub use unfused::bytes as unfused_bytes;

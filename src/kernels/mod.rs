//! Fused operations of the step. Each has a libtorch reference (`reference`), which any device runs, and a CPU version.
//! Shapes: N = tokens (B·S), H = hidden, F = feed-forward, D = head width, V = vocabulary. `x` of dtype T = bf16 or fp32.
//! Statistics (rstd, lse, losses) and gradients of weights are fp32.

pub mod reference;

pub use reference::*;

//! What is written in AVX-512 instructions: matrix products and attention.

pub mod attention;
pub mod attention_backward;
pub mod avx512;
pub mod dot;
pub mod dots;
pub mod gemm;
pub mod pack;
pub mod scratch;

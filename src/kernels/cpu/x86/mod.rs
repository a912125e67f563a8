//! What is written in AVX-512, AVX2 and AMX instructions: matrix products and attention.

pub mod amx;
pub mod attention;
pub mod attention_backward;
pub mod avx512;
pub mod dot;
pub mod dots;
pub mod gemm;
pub mod ints;
pub mod pack;
pub mod scratch;
pub mod widened;

//! Which product of a linear layer takes herd's own inner loop and which takes libtorch's (oneDNN, MKL).
//!
//! - fp32: herd's. On a CPU that has AVX-512 but is not Intel's, MKL uses half of it; elsewhere the two are equal.
//! - bf16, forward and input gradient: libtorch's; oneDNN is at the limit of the instructions.
//! - bf16, weight gradient: herd's, which adds to the fp32 buffer where libtorch rounds the product to bf16 first and then
//!   reads it again. But libtorch's where the CPU has AMX: oneDNN uses it.
//! - bf16 where the CPU has AVX2 and no AVX-512: all three are herd's (`widened`), at the speed of fp32; libtorch's own are up to a
//!   hundred times slower.

#[cfg(target_arch = "x86_64")]
use super::view::Rows;
#[cfg(target_arch = "x86_64")]
use super::x86::{
    dot::Dot,
    gemm::{self, Right},
    widened::{self, Avx2, Operand},
};
#[cfg(target_arch = "x86_64")]
use half::bf16;
use tch::{Device, Kind, Tensor};

/// Below so many rows packing the weight costs more than it saves (decoding one token at a time): libtorch's.
#[cfg(target_arch = "x86_64")]
const ROWS: i64 = 24;

/// See [`crate::kernels::linear`].
#[cfg(target_arch = "x86_64")]
pub fn forward(x: &Tensor, w: &Tensor, residual: Option<&Tensor>) -> Option<Tensor> {
    match x.kind() {
        Kind::Float if x.size()[0] >= ROWS => gemm::matmul(x, w, Right::Along, residual),
        Kind::BFloat16 => {
            let start = match residual {
                Some(t) => Some(Rows::<bf16>::matrix(t)?),
                None => None,
            };
            widened_bf16(Operand::along(Rows::matrix(x)?), Operand::along(Rows::matrix(w)?), start)
        }
        _ => None,
    }
}

/// See [`crate::kernels::linear_backward_input`].
#[cfg(target_arch = "x86_64")]
pub fn backward_input(dy: &Tensor, w: &Tensor) -> Option<Tensor> {
    match dy.kind() {
        Kind::Float if dy.size()[0] >= ROWS => gemm::matmul(dy, w, Right::Across, None),
        Kind::BFloat16 => widened_bf16(Operand::along(Rows::matrix(dy)?), Operand::across(Rows::matrix(w)?), None),
        _ => None,
    }
}

/// See [`crate::kernels::linear_backward_weight`].
#[cfg(target_arch = "x86_64")]
pub fn backward_weight(dy: &Tensor, x: &Tensor, grad: &Tensor, add: bool) -> Option<()> {
    match x.kind() {
        Kind::Float => gemm::weight_gradient::<f32>(dy, x, grad, add),
        Kind::BFloat16 if amx() => None,
        Kind::BFloat16 => gemm::weight_gradient::<bf16>(dy, x, grad, add).or_else(|| {
            let (d, x, g) = (Rows::<bf16>::matrix(dy)?, Rows::<bf16>::matrix(x)?, Rows::<f32>::matrix(grad)?);
            widened::product(Avx2::detect()?, Operand::across(d), Operand::across(x), add.then_some(g), g)
        }),
        _ => None,
    }
}

/// A product that is rounded to bf16, `start` added before.
#[cfg(target_arch = "x86_64")]
fn widened_bf16(a: Operand<bf16>, b: Operand<bf16>, start: Option<Rows<bf16>>) -> Option<Tensor> {
    let unit = Avx2::detect()?;
    let y = Tensor::empty([a.lines() as i64, b.lines() as i64], (Kind::BFloat16, Device::Cpu));
    widened::product(unit, a, b, start, Rows::matrix(&y)?)?;
    Some(y)
}

/// Whether the weight gradient of bf16 goes straight into the fp32 buffer on this CPU.
#[cfg(target_arch = "x86_64")]
pub fn sums_bf16_in_fp32() -> bool {
    !amx() && (<bf16 as Dot>::detect().is_some() || Avx2::detect().is_some())
}

/// Whether weight gradients of dtype T are added where they are summed, without a product in T first.
#[cfg(target_arch = "x86_64")]
pub fn sums_in_place(kind: Kind) -> bool {
    match kind {
        Kind::Float => <f32 as Dot>::detect().is_some(),
        Kind::BFloat16 => sums_bf16_in_fp32(),
        _ => false,
    }
}

/// Tile products of bf16 (CPUID leaf 7, EDX bits 22 and 24).
#[cfg(target_arch = "x86_64")]
fn amx() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    static AMX: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *AMX.get_or_init(|| {
        const BF16_TILES: u32 = 1 << 22 | 1 << 24;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BF16_TILES == BF16_TILES
    })
}

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use super::*;
    pub fn forward(_x: &Tensor, _w: &Tensor, _residual: Option<&Tensor>) -> Option<Tensor> {
        None
    }
    pub fn backward_input(_dy: &Tensor, _w: &Tensor) -> Option<Tensor> {
        None
    }
    pub fn backward_weight(_dy: &Tensor, _x: &Tensor, _grad: &Tensor, _add: bool) -> Option<()> {
        None
    }
    pub fn sums_bf16_in_fp32() -> bool {
        false
    }
    pub fn sums_in_place(_kind: Kind) -> bool {
        false
    }
}
#[cfg(not(target_arch = "x86_64"))]
pub use elsewhere::*;

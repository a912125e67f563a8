//! Which product of a linear layer takes herd's own inner loop and which takes libtorch's (oneDNN, MKL).

#[cfg(target_arch = "x86_64")]
use super::x86::gemm::{self, Right};
#[cfg(target_arch = "x86_64")]
use half::bf16;
use tch::{Kind, Tensor};

/// See [`crate::kernels::linear`].
#[cfg(target_arch = "x86_64")]
pub fn forward(x: &Tensor, w: &Tensor, residual: Option<&Tensor>) -> Option<Tensor> {
    match x.kind() {
        Kind::Float => gemm::matmul::<f32>(x, w, Right::Along, residual),
        Kind::BFloat16 => gemm::matmul::<bf16>(x, w, Right::Along, residual),
        _ => None,
    }
}

/// See [`crate::kernels::linear_backward_input`].
#[cfg(target_arch = "x86_64")]
pub fn backward_input(dy: &Tensor, w: &Tensor) -> Option<Tensor> {
    match dy.kind() {
        Kind::Float => gemm::matmul::<f32>(dy, w, Right::Across, None),
        Kind::BFloat16 => gemm::matmul::<bf16>(dy, w, Right::Across, None),
        _ => None,
    }
}

/// See [`crate::kernels::linear_backward_weight`].
#[cfg(target_arch = "x86_64")]
pub fn backward_weight(dy: &Tensor, x: &Tensor, grad: &Tensor, add: bool) -> Option<()> {
    match x.kind() {
        Kind::Float => gemm::weight_gradient::<f32>(dy, x, grad, add),
        Kind::BFloat16 => gemm::weight_gradient::<bf16>(dy, x, grad, add),
        _ => None,
    }
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
}
#[cfg(not(target_arch = "x86_64"))]
pub use elsewhere::*;

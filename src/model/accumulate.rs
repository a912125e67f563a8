//! Whether a backward pass adds to the gradient buffers or replaces what they hold.
//!
//! The first micro-batch of a step replaces: nobody has to clear the buffers, and the products that write them need not
//! read them. Every later one adds.

use crate::kernels;
use tch::Tensor;

/// What a backward pass does with the old content of a gradient buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// Overwrites it, whatever it is.
    Replace,
    /// Adds to it.
    Add,
}

impl Accumulate {
    /// grad [O,I] f32 (+)= dy [N,O]ᵀ · x [N,I].
    pub fn matrix(self, dy: &Tensor, x: &Tensor, grad: &Tensor) {
        match self {
            Accumulate::Replace => kernels::linear_backward_weight_first(dy, x, grad),
            Accumulate::Add => kernels::linear_backward_weight(dy, x, grad),
        }
    }

    /// A gradient that is about to be added to, whatever its shape.
    pub fn ready(self, grad: Tensor) -> Tensor {
        match self {
            Accumulate::Replace => grad.shallow_clone().zero_(),
            Accumulate::Add => grad,
        }
    }
}

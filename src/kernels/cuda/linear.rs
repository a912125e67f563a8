//! Weight gradients added where they are summed: cuBLAS multiplies bf16, sums in fp32 and adds to the fp32 buffer in one call.

use tch::{Kind, Tensor};

/// See [`crate::kernels::linear_backward_weight`]; with `add` false the buffer is not read.
pub fn backward_weight(dy: &Tensor, x: &Tensor, grad: &Tensor, add: bool) -> Option<()> {
    if !x.device().is_cuda() || !sums_in_place(x.kind()) {
        return None;
    }
    let dy = dy.tr();
    // The buffer is argument and result in one object: libtorch then adds in place, without a copy.
    let _ = match (x.kind(), add) {
        (Kind::Float, true) => grad.shallow_clone().addmm_(&dy, x),
        (Kind::Float, false) => dy.mm_out(grad, x),
        (_, true) => grad.addmm_dtype_out(grad, &dy, x, Kind::Float),
        (_, false) => dy.mm_dtype_out(grad, x, Kind::Float),
    };
    Some(())
}

/// Whether products of dtype T are added to fp32 without a product in T first.
pub fn sums_in_place(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half)
}

//! Host tensors as slices.

use tch::{Device, Kind, Tensor};

/// The elements of a contiguous fp32 host tensor.
///
/// # Panics
/// If the tensor is anything else: a bug in the caller, never caused by input.
pub fn floats(t: &Tensor) -> &[f32] {
    check(t);
    // SAFETY: checked: the storage holds numel() contiguous f32 in host memory. The slice borrows the tensor, which keeps
    // the storage alive; callers do not write through another handle while they hold the slice.
    unsafe { std::slice::from_raw_parts(t.data_ptr() as *const f32, t.numel()) }
}

/// The same, to write into.
pub fn floats_mut(t: &mut Tensor) -> &mut [f32] {
    check(t);
    // SAFETY: as above; the tensor is borrowed exclusively.
    unsafe { std::slice::from_raw_parts_mut(t.data_ptr() as *mut f32, t.numel()) }
}

fn check(t: &Tensor) {
    assert!(
        t.kind() == Kind::Float && t.is_contiguous() && t.device() == Device::Cpu,
        "not a contiguous fp32 host tensor"
    );
}

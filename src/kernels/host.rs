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

/// The elements of a contiguous host tensor of bytes.
///
/// # Panics
/// As [`floats`].
pub fn bytes(t: &Tensor) -> &[u8] {
    check_is(t, Kind::Uint8);
    // SAFETY: as for floats, of u8.
    unsafe { std::slice::from_raw_parts(t.data_ptr() as *const u8, t.numel()) }
}

/// The same, to write into.
pub fn bytes_mut(t: &mut Tensor) -> &mut [u8] {
    check_is(t, Kind::Uint8);
    // SAFETY: as above; the tensor is borrowed exclusively.
    unsafe { std::slice::from_raw_parts_mut(t.data_ptr() as *mut u8, t.numel()) }
}

fn check(t: &Tensor) {
    check_is(t, Kind::Float);
}

fn check_is(t: &Tensor, kind: Kind) {
    assert!(
        t.kind() == kind && t.is_contiguous() && t.device() == Device::Cpu,
        "not a contiguous host tensor of {kind:?}"
    );
}

//! A tensor's memory, and what a wire checks before it moves one.

use super::combine::element_size;
use crate::error::{Error, Exit, Result};
use tch::{Device, Tensor};

/// `len` elements of `width` bytes in the memory of a tensor.
#[derive(Clone, Copy)]
pub(super) struct TensorBuf {
    start: *mut u8,
    pub(super) len: usize,
    pub(super) width: usize,
}

impl TensorBuf {
    pub(super) fn of(t: &Tensor) -> TensorBuf {
        TensorBuf { start: t.data_ptr().cast(), len: t.numel(), width: element_size(t.kind()).unwrap_or(1) }
    }

    /// Address of element `i`.
    pub(super) fn at(&self, i: usize) -> *mut u8 {
        debug_assert!(i <= self.len);
        self.start.wrapping_add(i * self.width)
    }
}

/// Checks that a wire for tensors of `device` can move `t`.
pub(super) fn usable(t: &Tensor, device: Device) -> Result<()> {
    let fail = |why: String| Err(Error::new(Exit::Internal, format!("a tensor for a wire {why}")));
    if t.device() != device {
        return fail(format!("is on {:?}; this wire moves tensors on {device:?}", t.device()));
    }
    if !t.is_contiguous() {
        return fail(format!("of shape {:?} is not contiguous", t.size()));
    }
    match element_size(t.kind()) {
        Some(_) => Ok(()),
        None => fail(format!("is {:?}; wires carry f32, f64, i64, u8 and bf16", t.kind())),
    }
}

/// Checks that `many` has `size` times the elements of `one`, and the same dtype.
pub(super) fn fits(call: &str, size: usize, one: &Tensor, many: &Tensor) -> Result<()> {
    if one.numel() * size == many.numel() && one.kind() == many.kind() {
        return Ok(());
    }
    let (a, b) = ((one.numel(), one.kind()), (many.numel(), many.kind()));
    let fact = format!("{call} over {size} ranks between {} elements of {:?} and {} of {:?}", a.0, a.1, b.0, b.1);
    Err(Error::new(Exit::Internal, fact))
}

/// Checks a rank that a message goes to or comes from.
pub(super) fn is_peer(send: bool, rank: usize, size: usize, peer: usize) -> Result<()> {
    if peer < size && peer != rank {
        return Ok(());
    }
    let way = if send { "to" } else { "from" };
    let fact = format!("rank {rank} started a message {way} rank {peer} on an axis of {size}");
    Err(Error::new(Exit::Internal, fact))
}

/// Checks the rank that a broadcast starts from.
pub(super) fn is_root(size: usize, root: usize) -> Result<()> {
    match root < size {
        true => Ok(()),
        false => Err(Error::new(Exit::Internal, format!("broadcast from rank {root} of {size}"))),
    }
}

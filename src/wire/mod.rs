//! Moving bytes between ranks.
//!
//! [`World`] is the MPI process world: who am I, who is on my node, small host messages (control plane).
//! [`Wire`] is one axis's communicator for tensors (data plane): collectives start at once, finish in the order they
//! were started on every rank, and are waited for through [`Work`]. Implementations: `mpi` on host memory; NCCL and
//! staged device memory come with the other axes.

mod combine;
mod control;
mod ffi;
mod messages;
mod mpi;
mod work;
mod world;

pub use self::mpi::MpiWire;
pub use work::{Timing, Work};
pub use world::{leave, Via, World};

use crate::error::Result;
use tch::Tensor;

/// How elements are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Sum,
    Max,
}

/// Collectives of one axis on contiguous tensors.
///
/// A tensor handed over must not be read or written until its [`Work`] has been waited for. Every rank of the axis must
/// start the same operations in the same order (MPI 4.1 §6.14). Sums of bf16 are made in fp32.
pub trait Wire: Send + Sync {
    /// Coordinate on this axis.
    fn rank(&self) -> usize;
    /// Ranks on this axis.
    fn size(&self) -> usize;
    /// In place: every rank ends with the combination of all.
    fn all_reduce(&self, tensor: &Tensor, op: Op) -> Result<Work>;
    /// `output` [n/size] gets this rank's chunk of the sum over ranks of `input` [n].
    fn reduce_scatter(&self, input: &Tensor, output: &Tensor) -> Result<Work>;
    /// `output` [n·size] gets every rank's `input` [n], in rank order.
    fn all_gather(&self, input: &Tensor, output: &Tensor) -> Result<Work>;
    /// In place: every rank ends with `root`'s.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work>;
}

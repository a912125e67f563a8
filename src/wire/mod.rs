//! Moving tensors between ranks (the data plane).
//!
//! [`Wire`] is one axis's communicator for tensors: collectives start at once, finish in the order they were started on every rank,
//! and are waited for through [`Work`]. [`MakeWires`] makes them from a [`crate::world::World`]. Implementations: `mpi` on host memory,
//! `nccl` on device memory, `staged` for device memory that passes through the host. docs/wires.md compares them.

mod backend;
mod buffer;
mod combine;
mod comm_timing;
mod futex;
mod groups;
mod lanes;
mod mail;
mod message;
mod messages;
mod mpi;
mod nccl;
mod route;
mod segment;
mod shared;
mod staged;
mod work;

pub use self::mpi::MpiWire;
pub use self::nccl::NcclWire;
pub use backend::{chosen, use_device, Backend};
pub use comm_timing::CommTiming;
pub use groups::MakeWires;
pub use route::Route;
pub use shared::shared_bytes;
pub use staged::StagedWire;
pub use work::{Timing, Work};

use crate::error::Result;
use crate::world::Op;
use tch::{Kind, Tensor};

/// Collectives and messages of one axis on contiguous tensors.
///
/// A tensor handed over must not be read or written until its [`Work`] has been waited for. Every rank of the axis must
/// start the same operations in the same order (MPI 4.1 §6.14). Sums of bf16 are made in fp32 and rounded once, except
/// by NCCL, which rounds at every step of its ring: reduce what matters in fp32. Errors at the start are
/// [`crate::error::Exit::Internal`] (a tensor that the wire cannot move); errors of the wait are
/// [`crate::error::Exit::Peer`], after which the wire is of no more use.
pub trait Wire: Send + Sync {
    /// Coordinate on this axis.
    fn rank(&self) -> usize;
    /// Ranks on this axis.
    fn size(&self) -> usize;
    /// A zero-filled `[len]` tensor where the wire reaches it fastest; views of it are as fast. For buffers that live
    /// as long as the process: the memory may never be given back. Collective.
    fn tensor(&self, len: usize, kind: Kind) -> Result<Tensor>;
    /// One zero-filled `[len·size]` tensor that all ranks of the axis have in common, which lives as long as the process:
    /// what a rank writes the others see, once they have met. Rank r's `len` elements lie near it and are counted as its
    /// memory. None where the ranks share none. Collective.
    fn window(&self, len: usize, kind: Kind) -> Result<Option<Tensor>>;
    /// In place: every rank ends with the combination of all.
    fn all_reduce(&self, tensor: &Tensor, op: Op) -> Result<Work>;
    /// `output` [n/size] gets this rank's chunk of the sum over ranks of `input` [n]. In place when `output` is that
    /// chunk of `input`, which has the same elements before it as the chunks of lower ranks.
    fn reduce_scatter(&self, input: &Tensor, output: &Tensor) -> Result<Work>;
    /// `output` [n·size] gets every rank's `input` [n], in rank order. In place when `input` is this rank's chunk of
    /// `output`.
    fn all_gather(&self, input: &Tensor, output: &Tensor) -> Result<Work>;
    /// In place: every rank ends with `root`'s.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work>;
    /// To rank `to` of this axis, which receives a tensor of the same dtype and number of elements. Never blocks.
    ///
    /// Messages from one rank to another match in the order in which they were started; messages of different pairs or
    /// directions, and collectives, do not wait for each other. A send may finish as late as its receive is started:
    /// two ranks that send to each other must both have started the receive before either waits.
    fn send(&self, tensor: &Tensor, to: usize) -> Result<Work>;
    /// From rank `from` of this axis; may be started long before the other side sends.
    fn recv(&self, tensor: &Tensor, from: usize) -> Result<Work>;
    /// An error of what was started here, where [`Work::wait`] does not wait for the device and so cannot tell (NCCL): to be asked when a
    /// value has been read from the device, and before anything is kept that came of it. What an aborted operation leaves is rubbish.
    fn sound(&self) -> Result<()> {
        Ok(())
    }
    /// Device time of what has finished since the last call, where [`Work::wait`] does not wait for the device and so
    /// cannot tell (NCCL). Zero on wires whose `wait` tells.
    fn measured(&self) -> Timing {
        Timing::default()
    }
}

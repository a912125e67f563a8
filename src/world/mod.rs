//! The MPI process world: who am I, who is on my node, small host messages between all ranks (the control plane).
//!
//! - [`World`]: ranks, how a process starts and leaves; `control`: collectives of small host messages
//! - [`Mailbox`], [`Incoming`], `serve`: messages outside the order of collectives, for threads beside the training loop
//! - [`CollectiveCounters`]: what this rank's wires are doing, for liveness to read
//! - `in_flight`: what must never be freed while MPI may work on it; `ffi`: MPI's calls, each with what it needs

mod comm;
mod control;
pub(crate) mod ffi;
mod in_flight;
pub(crate) mod meters;
mod op;
mod post;
mod serve;
mod stream;
#[allow(clippy::module_inception)]
mod world;

pub use in_flight::{leak, or_leak};
pub use meters::{CollectiveCounters, MeterReading, WireMembers, WIRES};
pub use op::Op;
pub use post::Mailbox;
pub use serve::Request;
pub use stream::Incoming;
pub use world::{is_step, leave, library, World};

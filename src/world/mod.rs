//! The MPI process world: who am I, who is on my node, small host messages between all ranks (the control plane).
//!
//! - [`World`]: ranks, how a process starts and leaves; `control`: collectives of small host messages
//! - [`Mailbox`], [`Incoming`], `remote_read`: messages outside the order of collectives, for threads beside the training loop
//! - [`CollectiveCounters`]: what this rank's wires are doing, for liveness to read
//! - `in_flight`: what must never be freed while MPI may work on it; `comm`: where messages go to MPI;
//!   `requests`: what is under way; `tree` and `collect`: collectives of the control plane; `pair`: two ranks that measure their link

mod collect;
pub(crate) mod comm;
mod control;
pub(crate) mod ffi;
mod in_flight;
pub(crate) mod meters;
mod op;
mod pair;
mod post;
mod remote_read;
pub(crate) mod requests;
mod stream;
pub(crate) mod traffic;
mod tree;
#[allow(clippy::module_inception)]
mod world;

pub use in_flight::{leak, or_leak};
pub use meters::{CollectiveCounters, MeterReading, WireMembers, WIRES};
pub use op::Op;
pub use post::Mailbox;
pub use remote_read::Request;
pub use stream::Incoming;
pub use traffic::Traffic;
pub use world::{is_step, leave, library, listen_for_nobody_when_alone, World};

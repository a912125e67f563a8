//! What ranks do for each other around the layers, and every communicator of a rank (`wires`, `groups`).
//!
//! The axes that cut the model as a whole are here: the pipeline (`pipeline`), and the replicas of the data axis with their
//! shares of the state (`zero`); `sync` compares what should be equal. The axes that cut a layer itself, tensor (with
//! sequence) and context, are in [`crate::model`]: their collectives stand between two products of one layer, and what its
//! backward passes owe each other belongs to its own arithmetic. Their wires are [`crate::model::Axes`], made here.

pub mod groups;
pub mod pipeline;
pub mod sync;
pub mod wires;
pub mod zero;

pub use groups::Groups;
pub use pipeline::Pipeline;
pub use wires::Wires;
pub use zero::{Sharded, ZeroOptions};

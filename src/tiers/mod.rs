//! Where a run's state is kept, from the fastest place to the safest, and how it comes back.
//!
//! - [`snapshot`]: the newest steps in the memory of the nodes, with a second copy on another
//! - [`keeper`]: what happens to the state between two steps; `background`: saving behind the steps
//! - [`choice`]: what a restore does next, a pure function
//! - [`restore`]: the newest whole step over memory, disk and object store; `source`: reading it,
//!   `search`: in which order; `server`: what other nodes read of this one
//! - [`flush`]: from memory to disk, after the training processes have died

mod background;
pub mod choice;
pub mod flush;
pub mod keeper;
mod restore;
mod search;
mod server;
pub mod snapshot;
mod source;

#[cfg(test)]
mod tests;

pub use restore::{restore, Restored, Tiers};
pub use server::Server;
pub use source::{Source, Tally};

//! Where a run's state is kept, from the fastest place to the safest, and how it comes back.
//!
//! - [`snapshot`]: the newest steps in the memory of the nodes, with a second copy on another
//! - [`keeper`]: what happens to the state between two steps; `background`: saving behind the steps
//! - [`restore`]: the newest whole step over memory, disk and object store; `source`: reading it,
//!   `search`: in which order
//! - [`flush`]: from memory to disk, after the training processes have died

mod background;
pub mod flush;
pub mod keeper;
mod restore;
mod search;
pub mod snapshot;
mod source;

#[cfg(test)]
mod tests;

pub use restore::{restore, Restored, Server, Tiers};
pub use source::{Source, Tally};

//! One file per parallel axis.

pub mod data;
pub mod groups;
pub mod pipeline;
pub mod sync;
pub mod wires;
pub mod zero;

pub use data::CommTiming;
pub use groups::Groups;
pub use pipeline::Pipeline;
pub use wires::Wires;
pub use zero::{Sharded, ZeroOptions};

//! One file per parallel axis.

pub mod data;
pub mod pipeline;
pub mod wires;

//! One file per parallel axis.

pub mod data;

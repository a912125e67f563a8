//! `herd doctor`: what the nodes of a run are like, measured on all of them at once, and judged on rank 0.
//!
//! - `facts`: what one host found, as it goes to rank 0; `look`: how it is found on the host, without the others
//! - `clock`, `links`, `shared`: what takes several hosts: clocks, the links between them, storage that all see
//! - `judge`: facts of all hosts → checks; pure functions, with the median or the majority of the hosts as the measure
//! - `examine`: the order of it all, on every rank; `watchdog`: its end where a peer does not answer
//! - `check`: one row of the table

pub mod check;
mod clock;
mod examine;
pub mod facts;
pub mod judge;
mod links;
pub mod look;
pub mod question;
mod shared;
mod watchdog;

pub use check::{Check, Diagnosis, Light};
pub use examine::{alone, examine, planned, slurm};
pub use facts::HostFacts;
pub use question::Inquiry;
pub use watchdog::{StalledWait, WAITING};

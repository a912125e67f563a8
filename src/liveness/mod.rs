//! Who is alive, who is stuck, and how a rank leaves when one of them is not.

pub mod phase;
pub mod verdict;

pub use phase::Phase;
pub use verdict::{choose, Reason, Verdict};

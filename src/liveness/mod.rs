//! Who is alive, who is stuck, and how a rank leaves when one of them is not.
//!
//! Pure parts: `roster` (who speaks to whom), `watch` (one rank's part, as a function of time and messages), `monitor` (the
//! judges), `stuck` and `slow` (what they judge), `verdict` (what comes of it). `progress` is what the training loop says.

mod message;
mod monitor;
pub mod phase;
mod progress;
mod roster;
#[cfg(test)]
mod sim;
mod slow;
mod stuck;
pub mod verdict;
mod watch;

pub use phase::Phase;
pub use progress::Progress;
pub use verdict::{choose, Reason, Verdict};

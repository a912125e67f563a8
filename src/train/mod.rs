//! The step, the loop, metrics, progress.

pub mod metrics;
pub mod progress;
pub mod tensorboard;

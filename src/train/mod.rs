//! The step, the loop, metrics, progress.

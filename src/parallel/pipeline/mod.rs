//! The pipeline axis: the model cut into chunks of units that lie on different ranks, micro-batches passed along.
//!
//! - [`schedules`]: who does what in which order, as data
//! - [`simulate`]: plays the lists: deadlock, order, activation peak, time and bubble
//! - [`executor`]: runs a list, whoever computes
//! - [`passes`]: the model's chunks as what computes

pub mod executor;
pub mod passes;
pub mod schedules;
pub mod simulate;

#[cfg(test)]
mod tests;

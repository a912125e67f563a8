//! Llama 3 as explicit layers: `forward`, `backward_input`, `backward_weight`; no autograd in the step.

pub mod params;

pub use params::{Flat, Params};

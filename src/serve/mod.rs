//! Running a model: many texts at once over a paged cache, each with the bits that it has alone.
//!
//! - [`scheduler`]: which sequences read how many tokens in the next iteration, as a pure function
//! - [`iteration`]: that decision as a value and as a message
//! - [`stage`], [`replica`]: one rank's part of the model over its cache; the ranks of one copy of the model
//! - [`pool`]: who holds which block of the cache, and what is known to be in it
//! - [`engine`]: requests in, tokens out; [`asked`]: both as values
//! - `sequence`, `choose`: a text under way; its next tokens from rows of logits
//! - [`speculate`]: what probably comes next, proposed without a model
//! - [`sample`], [`logprobs`]: one token from logits; [`guide`]: which tokens the form of a text admits
//! - [`stream`], [`text`]: tokens to text as they come; stop strings
//! - [`start`], [`load`]: from weights on disk to a replica
//! - [`batch`]: files of requests; [`http`]: requests over HTTP; [`eval`]: tasks that score a model

pub mod asked;
pub mod batch;
mod choose;
pub mod engine;
pub mod eval;
pub mod guide;
pub mod http;
pub mod iteration;
pub mod load;
pub mod logprobs;
pub mod pool;
pub mod replica;
pub mod sample;
pub mod scheduler;
mod sequence;
pub mod speculate;
pub mod stage;
pub mod start;
pub mod stream;
pub mod text;

#[cfg(test)]
mod tests;

pub use engine::{Asked, Chosen, Engine, Reader, Stop};
pub use sample::Sampling;
pub use stream::TextStream;

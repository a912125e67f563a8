//! Tokenizers, indexed token files, sample order.
//!
//! From text to a training sample: [`source`] reads documents, [`tokenizer`] turns them into ids, [`pipeline`] does so
//! on several threads, [`indexed`] holds the ids on disk in Megatron's form, [`samples`] fixes the order of one corpus,
//! [`mixture`] that of several, and
//! [`identity`] is what a checkpoint remembers of them. `docs/data.md` has the formats byte by byte.

pub mod identity;
pub mod indexed;
pub mod mixture;
pub mod pipeline;
pub mod samples;
pub mod source;
pub mod tokenizer;

pub use mixture::{Cutting, Mixture, Sample};
pub use tokenizer::Tokenizer;

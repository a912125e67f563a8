//! Tokenizers, indexed token files, sample order.
//!
//! From text to a training sample: [`source`] reads documents, [`tokenizer`] turns them into ids, [`pipeline`] does so
//! on several threads, [`chat`] makes conversations of rows and knows which ids count, [`indexed`] holds the ids on disk in
//! Megatron's form, [`packing`] and [`conversations`] put conversations into samples, [`samples`] fixes the order of one corpus,
//! [`mixture`] that of several, and
//! [`identity`] is what a checkpoint remembers of them. `docs/data.md` has the formats byte by byte.

pub mod chat;
pub mod conversations;
pub mod identity;
pub mod indexed;
pub mod mixture;
pub mod overlap;
pub mod packing;
pub mod pipeline;
pub mod sample;
pub mod samples;
pub mod source;
pub mod tokenizer;

pub use mixture::{CorpusFacts, Mixture};
pub use sample::{Cutting, PairId, Sample};
pub use tokenizer::Tokenizer;

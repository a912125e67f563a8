//! Llama 3 as explicit layers: `forward`, `backward_input`, `backward_weight`; no autograd in the step.
//!
//! A layer is a few numbers (its geometry); weights and gradients come in as a [`Flat`] unit. `forward` returns what the
//! backward pass reads as a struct of its own; `backward_input` consumes it and returns dx with what the weight gradients
//! read; `backward_weight` consumes that. So every activation has one owner and goes as soon as it was used.

pub mod accumulate;
pub mod attend;
pub mod attention;
pub mod axes;
pub mod block;
pub mod chunk;
pub mod dropout;
pub mod embedding;
pub mod grouped;
pub mod head;
pub mod infer;
pub mod init;
pub mod llama;
pub mod lora;
pub mod mlp;
mod options;
pub mod params;
pub mod passes;
pub mod positions;
pub mod preference;
pub mod quantized;
pub mod rope;
pub mod sequence;
pub mod units;

pub use accumulate::Accumulate;
pub use axes::Axes;
pub use chunk::{Chunk, Micro};
pub use grouped::{TokenGroups, TokenSums};
pub use llama::Llama;
pub use lora::LoraNumbers;
pub use options::StepOptions;
pub use params::{Adapter, Flat, Owned, Params};
pub use positions::{Documents, Positions};
pub use preference::{PairBatch, PairLoss, PairSums, PairsFound};
pub use quantized::{InferUnit, InferenceWeights};
pub use rope::Rope;
pub use units::{Held, Resident, Units, Use, Written};

#[cfg(test)]
mod tests;

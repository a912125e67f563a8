//! Models in other forms, in and out.
//!
//! - [`weights`]: parameters from a checkpoint, a Hugging Face directory or Meta's original files, alike
//! - `own`: the tokenizer that is a model's own; `others`: weights beside it that are not read
//! - [`hf`]: Hugging Face's layout; [`meta_llama`]: Meta's originals; [`gguf`]: llama.cpp's files; [`peft`]: adapters

pub mod gguf;
pub mod hf;
pub mod meta_llama;
mod others;
mod own;
pub mod peft;
pub mod weights;

pub use own::{foreign, Own};

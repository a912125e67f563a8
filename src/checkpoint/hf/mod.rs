//! Hugging Face's layout: `config.json`, sharded safetensors with their index, tokenizer files.
//!
//! q and k rows lie in Hugging Face's half-split order in herd as well, so nothing is permuted on the way in or out.

pub mod config;
mod export;
mod import;
mod shards;

#[cfg(test)]
mod tests;

pub use export::{export, ExportOptions, Exported};
pub use import::import;
pub use shards::{Dtype, Shards};

/// Files that describe a tokenizer; whichever exist travel together.
pub const TOKENIZER_FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];

/// The tokenizer of a directory as the configuration would name it; empty when there is none.
pub fn tokenizer_of(directory: &std::path::Path) -> String {
    let known = TOKENIZER_FILES[..2].iter().map(|f| directory.join(f)).find(|p| p.is_file());
    known.map(|p| std::path::absolute(&p).unwrap_or(p).to_string_lossy().into_owned()).unwrap_or_default()
}

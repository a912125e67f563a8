//! Hugging Face's layout: `config.json`, sharded safetensors with their index, tokenizer files, `generation_config.json`.
//!
//! q and k rows lie in Hugging Face's half-split order in herd as well, so nothing is permuted on the way in or out.

pub mod config;
mod export;
pub mod generation;
mod import;
mod keys;
mod periodic;
mod rope;
mod shards;

#[cfg(test)]
mod tests;

pub use export::{export, export_adapter, ExportOptions, Exported};
pub use import::import;
pub use periodic::Exporter;
pub(super) use shards::read_as_f32;
pub use shards::{Dtype, Shards};

/// The tokenizer of a directory as the configuration would name it; empty when there is none.
pub fn tokenizer_of(directory: &std::path::Path) -> String {
    if directory.join("herd_tokenizer.json").is_file() {
        return "bytes".into();
    }
    let known = ["tokenizer.json", "tokenizer.model"].map(|f| directory.join(f)).into_iter().find(|p| p.is_file());
    known.map(|p| std::path::absolute(&p).unwrap_or(p).to_string_lossy().into_owned()).unwrap_or_default()
}

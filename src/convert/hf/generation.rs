//! `generation_config.json`: how a model is meant to be sampled from, and every token that ends its texts.

use crate::checkpoint::SpecialTokens;
use crate::convert::hf::config::{ids, tokens_into};
use crate::convert::hf::keys::wrong;
use crate::error::{Error, Exit, Result};
use crate::text::unmarked;
use serde_json::{json, Value};
use std::path::Path;

/// Name of the file, beside `config.json`.
pub const FILE: &str = "generation_config.json";

/// The file of `directory` as it stands; null where there is none. Errors ([`Exit::Model`]): no JSON object.
pub fn read(directory: &Path) -> Result<Value> {
    let path = directory.join(FILE);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(e) => return Err(Error::io(&path, "read", &e, Exit::Model)),
    };
    match serde_json::from_slice(unmarked(&text)) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(wrong(format!("{} is not a JSON object", path.display()))),
        Err(e) => Err(wrong(format!("{} is not JSON: {e}", path.display()))),
    }
}

/// The ids that end a text by `generation`, none where it is null.
pub fn ends(generation: &Value) -> Vec<u32> {
    generation.get("eos_token_id").map(ids).unwrap_or_default()
}

/// A file that says no more than the special tokens.
pub fn write(special: &SpecialTokens) -> Value {
    let mut c = json!({ "_from_model_config": true });
    tokens_into(&mut c, special);
    c
}

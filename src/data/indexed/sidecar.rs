//! `<prefix>.json`: how a token file came to be. Written last, so its presence also says that the files are complete.

use super::mask::MaskNote;
use super::with_ending;
use crate::data::chat::ChatNote;
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::text::unmarked;
use serde::{Deserialize, Serialize};
use std::path::Path;

pub const FORMAT: &str = "herd-tokens";
pub const VERSION: u32 = 1;

/// Unknown keys are ignored, so that a later herd may add some.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sidecar {
    /// Always `herd-tokens`.
    pub format: String,
    /// Version of this format; any but this herd's is refused.
    pub version: u32,
    /// The tokenizer the ids belong to.
    pub tokenizer: TokenizerNote,
    /// `u16` or `i32`.
    pub dtype: String,
    /// Documents in the file.
    pub documents: u64,
    /// Tokens of all documents.
    pub tokens: u64,
    /// Largest id in the file; absent in an empty one.
    pub highest_id: Option<u32>,
    /// Bytes of text that became these tokens.
    pub text_bytes: u64,
    /// Input files, in order, as they were named; of a merged file the prefixes that it was made from.
    pub sources: Vec<String>,
    /// `all`, `train` or `validation`.
    pub split: String,
    /// Share of documents held out for validation; 0 for `all`.
    pub holdout: f64,
    /// xxh3-128 of the `.bin`, 32 hexadecimal digits.
    pub bin_xxh3_128: String,
    /// Of a file with a loss mask beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<MaskNote>,
    /// How the loss mask came to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatNote>,
}

/// The tokenizer the ids belong to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenizerNote {
    /// `bytes`, or the path that was given.
    pub spec: String,
    /// `bytes`, `huggingface` or `tiktoken`.
    pub kind: String,
    /// xxh3-128 of its defining file, 32 hexadecimal digits; a constant for `bytes`.
    pub fingerprint: String,
    /// Highest id + 1, special tokens included.
    pub vocab_size: usize,
    /// The ids before each document; none before herd put some there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub front: Vec<u32>,
    /// The id after each document, if one was appended.
    pub eos: Option<u32>,
}

impl TokenizerNote {
    /// Of `tokenizer`, where `front` was put before each document and `eos` appended.
    pub fn of(tokenizer: &Tokenizer, front: Vec<u32>, eos: Option<u32>) -> TokenizerNote {
        TokenizerNote {
            spec: tokenizer.spec().into(),
            kind: tokenizer.kind().into(),
            fingerprint: tokenizer.fingerprint(),
            vocab_size: tokenizer.vocab_size(),
            front,
            eos,
        }
    }
}

impl Sidecar {
    /// Whether the documents are preference pairs.
    pub fn holds_pairs(&self) -> bool {
        self.chat.as_ref().is_some_and(|c| c.pairs)
    }

    /// Reads the sidecar of `prefix`; `None` where there is no such file, or where a JSON file of another program has
    /// that name.
    pub fn read(prefix: &Path) -> Result<Option<Sidecar>> {
        let path = with_ending(prefix, ".json");
        let content = match std::fs::read(&path) {
            Ok(c) => c,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path, "read", &e, Exit::Data)),
        };
        let damaged = |e: serde_json::Error| {
            Error::new(Exit::Data, format!("{} is damaged: {e}", path.display()))
                .hint("make the token file again with `herd data tokenize`")
        };
        let value: serde_json::Value = serde_json::from_slice(unmarked(&content)).map_err(damaged)?;
        if value["format"] != FORMAT {
            return Ok(None);
        }
        let sidecar: Sidecar = serde_json::from_value(value).map_err(damaged)?;
        if sidecar.version != VERSION {
            let fact = format!("{} has version {}, this herd reads {VERSION}", path.display(), sidecar.version);
            return Err(Error::new(Exit::Data, fact).hint("use the herd that wrote it, or make it again"));
        }
        Ok(Some(sidecar))
    }

    /// The text of `<prefix>.json`.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

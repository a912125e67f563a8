//! The tokenizer that weights were trained with, and no other that happens to have its name.

use crate::convert::weights::Weights;
use crate::data::Tokenizer;
use crate::error::Result;
use std::path::Path;

/// What has become of the tokenizer that weights name.
pub enum Own {
    /// It is there, with the fingerprint that the weights know, if they know one.
    Is(Box<Tokenizer>),
    /// Why it is not to be had, a phrase.
    Lost(String),
}

impl Own {
    /// Opens it. Errors: it is there but cannot be read, or is none.
    pub fn of(weights: &Weights) -> Result<Own> {
        let (spec, then) = (weights.tokenizer(), weights.tokenizer_fingerprint());
        if spec.is_empty() {
            return Ok(Own::Lost("the weights name none".into()));
        }
        if spec != "bytes" && !Path::new(spec).exists() {
            return Ok(Own::Lost(format!("{spec} is gone")));
        }
        let tokenizer = Tokenizer::open(spec)?;
        let now = tokenizer.fingerprint();
        match then.is_empty() || then == now {
            true => Ok(Own::Is(Box::new(tokenizer))),
            false => Ok(Own::Lost(format!(
                "{} is not the one that the weights were trained with (fingerprint {now}, theirs {then})",
                tokenizer.place()
            ))),
        }
    }
}

/// Whether `tokenizer` is known to be another than the one that the weights were trained with; a line that says so.
pub fn foreign(weights: &Weights, tokenizer: &Tokenizer) -> Option<String> {
    let (then, now) = (weights.tokenizer_fingerprint(), tokenizer.fingerprint());
    (!then.is_empty() && then != now).then(|| {
        let (place, own) = (tokenizer.place(), weights.tokenizer());
        format!(
            "tokenizer {place} (fingerprint {now}) is not the one that the weights were trained with, {own} ({then})"
        )
    })
}

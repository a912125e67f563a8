//! What a run takes over from the model that it starts from: every token that ends a text, and the generation settings. Its
//! own tokenizer names one end only; a model tuned for chat has more, and would talk on past them.

use crate::checkpoint::{Meta, SpecialTokens};
use crate::convert::hf::{self, generation};
use crate::convert::weights::Weights;
use crate::data::Tokenizer;
use crate::error::Result;
use serde_json::Value;
use std::path::Path;

/// Special tokens and generation settings, with the tokenizer that their ids are of.
pub struct Heritage {
    name: String,
    special: SpecialTokens,
    generation: Value,
    tokenizer: String,
}

impl Heritage {
    pub fn of_weights(weights: &Weights, path: &Path) -> Heritage {
        Heritage {
            name: path.display().to_string(),
            special: weights.special_tokens().clone(),
            generation: weights.generation().clone(),
            tokenizer: weights.tokenizer().into(),
        }
    }

    /// Of the `config.json` that gives a run only its shape, if a tokenizer lies beside it: without one its ids may be of
    /// any.
    pub fn of_shape(config: &Path) -> Result<Option<Heritage>> {
        let directory = config.parent().unwrap_or(Path::new(""));
        let found = hf::config::read(config)?;
        found.notes.iter().for_each(|note| tracing::warn!("{note}"));
        let tokenizer = hf::tokenizer_of(directory);
        let generation = if tokenizer.is_empty() { Value::Null } else { generation::read(directory)? };
        let name = config.display().to_string();
        Ok((!tokenizer.is_empty()).then_some(Heritage { name, special: found.special_tokens, generation, tokenizer }))
    }

    /// Of the checkpoint that a run goes on from.
    pub fn of_meta(meta: &Meta) -> Heritage {
        Heritage {
            name: format!("the checkpoint of step {}", meta.step),
            special: meta.special_tokens.clone(),
            generation: meta.generation.clone(),
            tokenizer: String::new(),
        }
    }

    /// Adds it to what `meta` has from the run's own `tokenizer`. Ids that mean other tokens there are left out, said in a
    /// line.
    pub fn give(self, meta: &mut Meta, tokenizer: &Tokenizer) {
        let theirs = match self.tokenizer.as_str() {
            "" => None,
            spec => match Tokenizer::open(spec) {
                Ok(t) => Some(t).filter(|t| t.fingerprint() != tokenizer.fingerprint()),
                Err(e) => {
                    tracing::warn!(
                        "{e}: the token ids of {} are taken to be those of {}",
                        self.name,
                        tokenizer.place()
                    );
                    None
                }
            },
        };
        let SpecialTokens { bos, eos, pad } = self.special;
        let all: Vec<u32> =
            bos.into_iter().chain(eos.iter().copied()).chain(generation::ends(&self.generation)).collect();
        let other = |id: &&u32| theirs.as_ref().is_some_and(|t| t.decode(&[**id]) != tokenizer.decode(&[**id]));
        if let Some(id) = all.iter().find(other) {
            let name = theirs.map(|t| t.decode(&[*id])).unwrap_or_default();
            tracing::warn!(
                "the special tokens and generation settings of {} are not taken over: its token {id} is {name}, but {} in {}",
                self.name,
                tokenizer.decode(&[*id]),
                tokenizer.place()
            );
            return;
        }
        let own = std::mem::take(&mut meta.special_tokens);
        let more = own.eos.into_iter().filter(|id| !eos.contains(id)).collect::<Vec<u32>>();
        meta.special_tokens = SpecialTokens { bos: bos.or(own.bos), eos: [eos, more].concat(), pad: pad.or(own.pad) };
        meta.generation = self.generation;
    }
}

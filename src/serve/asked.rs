//! What is asked of the engine and what comes of it, as values.

use crate::error::{Error, Exit, Result};
use crate::serve::guide::Grammar;
use crate::serve::logprobs::Scored;
use crate::serve::Sampling;
use serde::{Deserialize, Serialize};

/// One text to make: a value, which gives the same text wherever and whenever it is run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Token ids, one at least.
    pub prompt: Vec<u32>,
    /// Tokens to add at most.
    pub max_tokens: usize,
    /// By which each token is chosen from its logits.
    pub sampling: Sampling,
    /// With the seed and a token's place it fixes the draw: 0, 1, … for several texts of one prompt.
    pub sample: u64,
    /// Token ids that end the text; the one that did is the last token.
    pub stop: Vec<u32>,
    /// How many of the likeliest tokens to report at each place besides the chosen one.
    pub logprobs: Option<usize>,
    /// The prompt's own tokens from this one on, 1 at least, are scored too ([`crate::serve::Reader::scored`]); as many likeliest
    /// tokens as `logprobs` says.
    #[serde(default)]
    pub score_from: Option<usize>,
    /// The form that the text is to have.
    #[serde(default)]
    pub grammar: Option<Grammar>,
}

/// A token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Token id, in the model's vocabulary.
    pub id: u32,
    /// It ends the text ([`Asked::stop`]).
    pub ends: bool,
    /// Its score and those of the likeliest, where [`Asked::logprobs`] asks for them.
    pub scored: Option<(Scored, Vec<Scored>)>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A token of [`Asked::stop`].
    Token,
    /// Its reader had enough.
    Reader,
    /// [`Asked::max_tokens`].
    Length,
    /// The longest text.
    Context,
    /// It is whole: [`Asked::grammar`] admits nothing behind it.
    Grammar,
    /// [`Asked::grammar`] could not say what may come next.
    Failed,
}

/// Whether a prompt can be continued by a model of so many tokens, in texts of so many.
pub fn check(prompt: &[u32], vocab: usize, longest: usize) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::new(Exit::Data, "the prompt has no tokens").hint("give at least one character"));
    }
    if let Some((at, id)) = prompt.iter().enumerate().find(|(_, &id)| id as usize >= vocab) {
        let fact = format!("token {id} at place {at} of the prompt is outside the model's vocabulary of {vocab}");
        return Err(Error::new(Exit::Data, fact).hint("use the tokenizer that the model was trained with"));
    }
    if prompt.len() >= longest {
        let fact = format!("the prompt has {} tokens, the longest text may have {longest}", prompt.len());
        return Err(Error::new(Exit::Data, fact).hint("shorten the prompt: the continuation must fit too"));
    }
    Ok(())
}

//! Text from a model: the prompt in one pass, then a token at a time with a KV cache.
//!
//! - [`chat`]: messages to a prompt, by the model's own template
//! - [`cache`]: keys and values of the tokens so far
//! - [`decode`]: the model's blocks over a cache
//! - [`sample`]: one token from logits
//! - [`stream`]: tokens to text as they come

pub mod cache;
pub mod chat;
pub mod decode;
pub mod sample;
pub mod stream;

#[cfg(test)]
mod tests;

pub use sample::Sampling;
pub use stream::TextStream;

use crate::config::ModelConfig;
use crate::error::{Error, Exit, Result};
use crate::model::{Axes, Llama, Params};
use decode::Decoder;
use tch::Device;

/// How far and by which rule a prompt is continued.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens to add at most; the model's `max_position_embeddings` limits prompt and continuation together.
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Token ids that end the text; the one that did is the last of [`Generation::tokens`].
    pub stop: Vec<u32>,
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A token of [`Options::stop`].
    Token,
    /// [`Options::max_new_tokens`].
    Length,
    /// The model's longest sequence.
    Context,
}

/// The continuation of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    pub tokens: Vec<u32>,
    pub stop: Stop,
}

/// A model that continues prompts, one after another. Geometry is fixed once, the cache is made per prompt.
pub struct Generator<'a> {
    config: &'a ModelConfig,
    params: &'a Params,
    model: Llama,
    longest: usize,
}

impl<'a> Generator<'a> {
    /// For texts (prompt and continuation) of up to `longest` tokens, or what the model allows where that is less.
    pub fn new(config: &'a ModelConfig, params: &'a Params, longest: usize, device: Device) -> Generator<'a> {
        let longest = longest.min(config.max_position_embeddings);
        Generator { config, params, model: Llama::new(config, longest, device, &Axes::solo()), longest }
    }

    /// Continues `prompt`; `on_token` sees each token as it is chosen and may end the run with an error.
    ///
    /// `index` numbers the prompts of a run: with the sampling seed and the position it fixes every random draw.
    ///
    /// # Errors
    /// An empty prompt, an id outside the vocabulary, a prompt that fills the context, logits that are not numbers.
    pub fn run(
        &self, prompt: &[u32], index: u64, options: &Options, on_token: &mut dyn FnMut(u32) -> Result<()>,
    ) -> Result<Generation> {
        self.check(prompt)?;
        let _guard = tch::no_grad_guard();
        let length = self.longest.min(prompt.len().saturating_add(options.max_new_tokens));
        let mut decoder = Decoder::new(&self.model, self.params, length);
        let mut tokens = Vec::new();
        let mut next: Option<u32> = None;
        let stop = loop {
            if tokens.len() == options.max_new_tokens {
                break Stop::Length;
            }
            if prompt.len() + tokens.len() == self.longest {
                break Stop::Context;
            }
            let logits = match next {
                None => decoder.prefill(prompt)?,
                Some(id) => decoder.step(id)?,
            };
            let id = options.sampling.choose(&logits, index, (prompt.len() + tokens.len()) as u64)?;
            tokens.push(id);
            on_token(id)?;
            if options.stop.contains(&id) {
                break Stop::Token;
            }
            next = Some(id);
        };
        Ok(Generation { tokens, stop })
    }

    /// Whether [`Generator::run`] can take the prompt.
    pub fn check(&self, prompt: &[u32]) -> Result<()> {
        let vocab = self.config.vocab_size;
        if prompt.is_empty() {
            return Err(Error::new(Exit::Data, "the prompt has no tokens").hint("give at least one character"));
        }
        if let Some((at, id)) = prompt.iter().enumerate().find(|(_, &id)| id as usize >= vocab) {
            return Err(Error::new(
                Exit::Data,
                format!("token {id} at place {at} of the prompt is outside the model's vocabulary of {vocab}"),
            )
            .hint("use the tokenizer that the model was trained with"));
        }
        if prompt.len() >= self.longest {
            let (n, longest) = (prompt.len(), self.longest);
            let fact = format!("the prompt has {n} tokens, the longest text may have {longest}");
            return Err(Error::new(Exit::Data, fact).hint("shorten the prompt: the continuation must fit too"));
        }
        Ok(())
    }
}

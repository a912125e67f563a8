//! Parameters from wherever they lie: a herd checkpoint, a run directory, a Hugging Face directory, or one of Meta's.

use super::hf::{self, Shards};
use super::meta_llama::{is_meta, Original};
use super::{newest_valid_alone, Checkpoint, Event, Group, SpecialTokens};
use crate::config::ModelConfig;
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::layout::{units, Layout, Param, UnitLayout};
use std::path::Path;

/// Opened parameters with the shape of their model. Nothing is in memory yet; reading streams.
pub struct Weights {
    model: ModelConfig,
    tokenizer: String,
    special_tokens: SpecialTokens,
    source: Source,
}

enum Source {
    Herd(Box<Checkpoint>),
    HuggingFace(Shards),
    Meta(Box<Original>),
}

/// Opens any of: a step directory, a run directory or its `checkpoints` (the newest whole one), a Hugging Face directory, a
/// directory of Meta's (params.json, consolidated.*.pth).
/// Checksums of a herd checkpoint are verified; every tensor of the model is there in its shape.
///
/// Errors: [`Exit::Checkpoint`] for a damaged checkpoint or a run without one, [`Exit::Model`] for the rest.
pub fn open(path: &Path) -> Result<Weights> {
    let weights = if path.join("manifest.json").is_file() {
        Weights::of_checkpoint(verified(path)?)
    } else if path.join("config.json").is_file() {
        Weights::of_hugging_face(path)?
    } else if is_meta(path) {
        Weights::of_meta(path)?
    } else if path.join("checkpoints").is_dir() {
        Weights::of_checkpoint(newest(&path.join("checkpoints"))?)
    } else if super::list(path)?.is_empty() {
        let fact = match path.exists() {
            true => format!("{} holds no weights", path.display()),
            false => format!("there is no {}", path.display()),
        };
        return Err(Error::new(Exit::Model, fact)
            .hint("give a step directory, a run directory, a Hugging Face directory with config.json, or Meta's with params.json"));
    } else {
        Weights::of_checkpoint(newest(path)?)
    };
    weights.check().map_err(|e| e.context(path.display()))?;
    Ok(weights)
}

fn verified(path: &Path) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    match checkpoint.verify().into_iter().find_map(|f| f.problem) {
        Some(problem) => Err(Error::new(Exit::Checkpoint, format!("{}: {problem}", path.display()))
            .hint("use another step; `herd checkpoint verify` on the run directory tells which are whole")),
        None => Ok(checkpoint),
    }
}

fn newest(checkpoints: &Path) -> Result<Checkpoint> {
    let mut warn = |e: &Event| match e {
        Event::CheckpointRejected { .. } | Event::SnapshotRejected { .. } => tracing::warn!("{e}"),
        Event::CheckpointChosen { .. } => tracing::info!("{e}"),
    };
    newest_valid_alone(checkpoints, &mut warn)?.ok_or_else(|| {
        Error::new(Exit::Checkpoint, format!("{} holds no whole checkpoint", checkpoints.display()))
            .hint("`herd checkpoint verify` tells what is wrong with each")
    })
}

impl Weights {
    fn of_checkpoint(checkpoint: Checkpoint) -> Weights {
        let meta = checkpoint.meta();
        Weights {
            model: meta.model.clone(),
            tokenizer: meta.tokenizer.clone(),
            special_tokens: meta.special_tokens.clone(),
            source: Source::Herd(Box::new(checkpoint)),
        }
    }

    fn of_hugging_face(path: &Path) -> Result<Weights> {
        let config = hf::config::read(&path.join("config.json"))?;
        let shards = Shards::open(path)?;
        Ok(Weights {
            model: config.model,
            tokenizer: hf::tokenizer_of(path),
            special_tokens: config.special_tokens,
            source: Source::HuggingFace(shards),
        })
    }

    fn of_meta(path: &Path) -> Result<Weights> {
        let original = Original::open(path)?;
        let tokenizer = hf::tokenizer_of(path);
        // A tokenizer that herd cannot open (Llama 2's SentencePiece) has ids that herd does not know.
        let special_tokens = match Tokenizer::open(&tokenizer) {
            Ok(t) => SpecialTokens { bos: t.bos(), eos: t.eos().into_iter().collect(), pad: None },
            Err(_) => SpecialTokens::default(),
        };
        Ok(Weights {
            model: original.model().clone(),
            tokenizer,
            special_tokens,
            source: Source::Meta(Box::new(original)),
        })
    }

    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    /// As the configuration names it: `bytes`, a path, or empty when it is not known.
    pub fn tokenizer(&self) -> &str {
        &self.tokenizer
    }

    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }

    /// What the weights were read from, if that is a herd checkpoint.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        match &self.source {
            Source::Herd(c) => Some(c),
            Source::HuggingFace(_) | Source::Meta(_) => None,
        }
    }

    /// Reads the rectangle (`offset`, `extent`) of a parameter as fp32, row-major; `out` has as many elements.
    pub fn read(&self, name: &str, offset: &[usize], extent: &[usize], out: &mut [f32]) -> Result<()> {
        self.read_range(name, offset, extent, 0, out)
    }

    /// Elements `[start, start + out.len())` of the rectangle.
    pub fn read_range(
        &self, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32],
    ) -> Result<()> {
        match &self.source {
            Source::Herd(c) => c.read(Group::Param, name, offset, extent, start, out),
            Source::HuggingFace(s) => s.read(name, offset, extent, start, out),
            Source::Meta(m) => m.read(name, offset, extent, start, out),
        }
    }

    /// Reads every local slice of `layout`, one tensor at a time, and hands it to `f`.
    pub fn fill(&self, layout: &Layout, f: &mut dyn FnMut(&UnitLayout, &Param, &[f32])) -> Result<()> {
        let mut buffer = Vec::new();
        for (unit, param) in layout.params() {
            buffer.resize(param.len(), 0.0);
            self.read(&param.name, &param.offset, &param.extent, &mut buffer)?;
            f(unit, param, &buffer);
        }
        Ok(())
    }

    /// Global shape of a parameter.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        match &self.source {
            Source::Herd(c) => c.tensors().find(|(g, n, _)| *g == Group::Param && *n == name).map(|t| t.2),
            Source::HuggingFace(s) => s.shape(name),
            Source::Meta(m) => m.shape(name),
        }
    }

    /// Every parameter of the model is there in its shape, and nothing that the model would ignore.
    fn check(&self) -> Result<()> {
        let wrong = |fact: String| Error::new(Exit::Model, fact);
        let expected: Vec<(String, Vec<usize>)> = units(&self.model).into_iter().flat_map(|(_, p)| p).collect();
        let missing: Vec<&str> =
            expected.iter().map(|(name, _)| name.as_str()).filter(|name| self.shape(name).is_none()).collect();
        match missing[..] {
            [] => {}
            [one] => return Err(wrong(format!("the weights lack {one}"))),
            [first, ..] => {
                return Err(wrong(format!(
                    "the weights lack {first} and {} more of {}",
                    missing.len() - 1,
                    expected.len()
                )))
            }
        }
        for (name, shape) in &expected {
            if self.shape(name) != Some(shape) {
                let has = self.shape(name).unwrap_or_default();
                return Err(wrong(format!("{name} has shape {has:?}, the model's configuration says {shape:?}")));
            }
        }
        let Source::HuggingFace(shards) = &self.source else { return Ok(()) };
        let known: std::collections::HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        // Old files store the rotary frequencies, and some the head of a tied model: both follow from the rest.
        let follows = |name: &str| {
            name.ends_with("rotary_emb.inv_freq") || (self.model.tie_word_embeddings && name == "lm_head.weight")
        };
        match shards.names().filter(|n| !known.contains(n) && !follows(n)).min() {
            Some(name) => Err(wrong(format!("the weights hold {name}, which Llama 3 of this configuration has not"))),
            None => Ok(()),
        }
    }
}

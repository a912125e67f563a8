//! Parameters from wherever they lie: a herd checkpoint, a run directory, a Hugging Face directory, or one of Meta's.

use crate::checkpoint::{newest_valid_alone, Checkpoint, Event, Group, SpecialTokens};
use crate::config::ModelConfig;
use crate::convert::hf::{self, Shards};
use crate::convert::meta_llama::{is_meta, Original};
use crate::convert::others::left_unread;
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::layout::{units, Layout, Param, UnitLayout};
use crate::progress::Meter;
use serde_json::Value;
use std::path::Path;

/// Elements compared at a time.
const BLOCK: usize = 1 << 20;
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Opened parameters with the shape of their model. Nothing is in memory yet; reading streams.
pub struct Weights {
    model: ModelConfig,
    tokenizer: String,
    tokenizer_fingerprint: String,
    special_tokens: SpecialTokens,
    generation: Value,
    source: Source,
}

enum Source {
    Herd(Box<Checkpoint>),
    HuggingFace(Shards),
    Meta(Box<Original>),
}

/// Opens any of: a step directory, a run directory or its `checkpoints` (the newest whole one), a Hugging Face directory, a
/// directory of Meta's (params.json, consolidated.*.pth).
/// Checksums of a herd checkpoint are verified; every tensor of the model is there in its shape. What was guessed or is
/// left unread is logged, a line each.
///
/// Errors: [`Exit::Checkpoint`] for a damaged checkpoint or a run without one, [`Exit::Model`] for the rest.
pub fn open(path: &Path) -> Result<Weights> {
    open_metered(path, &Meter::default())
}

/// As [`open`]; `meter` counts what is read of a checkpoint to verify it.
pub fn open_metered(path: &Path, meter: &Meter) -> Result<Weights> {
    let mut weights = if path.join("manifest.json").is_file() {
        Weights::of_checkpoint(verified(path, meter)?)
    } else if path.join("config.json").is_file() {
        Weights::of_hugging_face(path)?
    } else if is_meta(path) {
        Weights::of_meta(path)?
    } else if path.join("checkpoints").is_dir() {
        Weights::of_checkpoint(newest(&path.join("checkpoints"), meter)?)
    } else if crate::checkpoint::list(path)?.is_empty() {
        let fact = match path.exists() {
            true => format!("{} holds no weights", path.display()),
            false => format!("there is no {}", path.display()),
        };
        return Err(Error::new(Exit::Model, fact)
            .hint("give a step directory, a run directory, a Hugging Face directory with config.json, or Meta's with params.json"));
    } else {
        Weights::of_checkpoint(newest(path, meter)?)
    };
    let checked = weights.untie(path).and_then(|()| weights.check());
    checked.map_err(|e| e.context(path.display()))?;
    weights.notes(path).iter().for_each(|note| tracing::warn!("{note}"));
    Ok(weights)
}

fn verified(path: &Path, meter: &Meter) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    meter.begin("verify", checkpoint.bytes());
    match checkpoint.verify_metered(meter).into_iter().find_map(|f| f.problem) {
        Some(problem) => Err(Error::new(Exit::Checkpoint, format!("{}: {problem}", path.display()))
            .hint("use another step; `herd checkpoint verify` on the run directory tells which are whole")),
        None => Ok(checkpoint),
    }
}

fn newest(checkpoints: &Path, meter: &Meter) -> Result<Checkpoint> {
    let mut warn = |e: &Event| match e {
        Event::CheckpointRejected { .. } | Event::SnapshotRejected { .. } => tracing::warn!("{e}"),
        Event::CheckpointChosen { .. } => tracing::info!("{e}"),
    };
    newest_valid_alone(checkpoints, meter, &mut warn)?.ok_or_else(|| {
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
            tokenizer_fingerprint: meta.tokenizer_fingerprint.clone(),
            special_tokens: meta.special_tokens.clone(),
            generation: meta.generation.clone(),
            source: Source::Herd(Box::new(checkpoint)),
        }
    }

    fn of_hugging_face(path: &Path) -> Result<Weights> {
        let config = hf::config::read(&path.join("config.json"))?;
        config.notes.iter().for_each(|note| tracing::warn!("{note}"));
        let shards = Shards::open(path)?;
        Ok(Weights {
            model: config.model,
            tokenizer: hf::tokenizer_of(path),
            tokenizer_fingerprint: String::new(),
            special_tokens: config.special_tokens,
            generation: hf::generation::read(path)?,
            source: Source::HuggingFace(shards),
        })
    }

    fn of_meta(path: &Path) -> Result<Weights> {
        let original = Original::open(path)?;
        let tokenizer = hf::tokenizer_of(path);
        // A tokenizer that herd cannot open (Llama 2's SentencePiece) has ids that herd does not know.
        let special_tokens = match Tokenizer::open(&tokenizer) {
            Ok(t) => SpecialTokens { bos: t.bos(), eos: t.ends(), pad: None },
            Err(_) => SpecialTokens::default(),
        };
        Ok(Weights {
            model: original.model().clone(),
            tokenizer,
            tokenizer_fingerprint: String::new(),
            special_tokens,
            generation: Value::Null,
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

    /// Fingerprint of that tokenizer, as a checkpoint recorded it; empty when it is not known.
    pub fn tokenizer_fingerprint(&self) -> &str {
        &self.tokenizer_fingerprint
    }

    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }

    /// The model's `generation_config.json`; null where there is none.
    pub fn generation(&self) -> &Value {
        &self.generation
    }

    /// Every id that ends a text, by config.json and by generation_config.json.
    pub fn ends(&self) -> Vec<u32> {
        let mut all = self.special_tokens.eos.clone();
        let more = hf::generation::ends(&self.generation);
        all.extend(more.into_iter().filter(|id| !self.special_tokens.eos.contains(id)));
        all
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

    /// A head beside the embedding that it should be one with has other values: then it is not tied, as for transformers 5.
    fn untie(&mut self, path: &Path) -> Result<()> {
        let Source::HuggingFace(shards) = &self.source else { return Ok(()) };
        let (Some(embedding), Some(head)) = (shards.shape(EMBEDDING), shards.shape(HEAD)) else { return Ok(()) };
        if self.model.tie_word_embeddings && (embedding != head || !same_values(shards, EMBEDDING, HEAD)?) {
            self.model.tie_word_embeddings = false;
            tracing::warn!(
                "{}: tie_word_embeddings is true, but {HEAD} and {EMBEDDING} hold other values: not tied, as transformers 5 \
                 does (config.json should say false)",
                path.display()
            );
        }
        Ok(())
    }

    /// What lies beside the weights and is left unread.
    fn notes(&self, path: &Path) -> Vec<String> {
        let (files, named) = match &self.source {
            Source::Herd(_) => return Vec::new(),
            Source::HuggingFace(s) => (s.files(), "config.json"),
            Source::Meta(m) => (m.files(), "params.json"),
        };
        let mut notes: Vec<String> = left_unread(path, &files).into_iter().collect();
        if path.join("checkpoints").is_dir() {
            notes.push(format!("{}: the weights of {named} are read, checkpoints/ in it is not", path.display()));
        }
        notes
    }

    /// Every parameter of the model is there in its shape, and nothing that the model would ignore.
    fn check(&self) -> Result<()> {
        let wrong = |fact: String| Error::new(Exit::Model, fact);
        let expected: Vec<(String, Vec<usize>)> = units(&self.model).into_iter().flat_map(|(_, p)| p).collect();
        let missing: Vec<&str> =
            expected.iter().map(|(name, _)| name.as_str()).filter(|name| self.shape(name).is_none()).collect();
        match missing[..] {
            [] => {}
            [HEAD] => {
                let hint =
                    "if the head is the embedding, set tie_word_embeddings to true; else the files are incomplete";
                return Err(wrong(format!("the weights lack {HEAD}, and tie_word_embeddings is not true")).hint(hint));
            }
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

/// Whether two tensors of one shape hold equal numbers.
fn same_values(shards: &Shards, a: &str, b: &str) -> Result<bool> {
    let shape = shards.shape(a).unwrap_or_default();
    let (len, origin) = (shape.iter().product::<usize>(), vec![0; shape.len()]);
    let (mut x, mut y) = (vec![0.0f32; BLOCK.min(len)], vec![0.0f32; BLOCK.min(len)]);
    for start in (0..len).step_by(BLOCK) {
        let n = BLOCK.min(len - start);
        shards.read(a, &origin, shape, start, &mut x[..n])?;
        shards.read(b, &origin, shape, start, &mut y[..n])?;
        if x[..n] != y[..n] {
            return Ok(false);
        }
    }
    Ok(true)
}

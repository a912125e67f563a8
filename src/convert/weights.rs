//! Parameters from wherever they lie: a herd checkpoint, a run directory, a Hugging Face directory, one of Meta's, a GGUF file.

mod adapted;
mod open;

pub use open::{open, open_metered, open_together};

use crate::checkpoint::read::Compared;
use crate::checkpoint::restore::{agree, check};
use crate::checkpoint::{Checkpoint, Group, SpecialTokens, Team};
use crate::config::{LoraSection, ModelConfig};
use crate::convert::gguf::Gguf;
use crate::convert::hf::{self, Shards};
use crate::convert::meta_llama::Original;
use crate::convert::others::left_unread;
use crate::error::{Error, Exit, Result};
use crate::layout::{units, Layout, Param, UnitLayout};
use crate::run_dir::RunDir;
use crate::threads::lock;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::Mutex;

/// Elements compared at a time.
const BLOCK: usize = 1 << 20;
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Opened parameters with the shape of their model. Nothing is in memory yet; reading streams.
#[derive(Serialize, Deserialize)]
pub struct Weights {
    model: ModelConfig,
    tokenizer: String,
    tokenizer_fingerprint: String,
    special_tokens: SpecialTokens,
    generation: Value,
    source: Source,
}

#[derive(Serialize, Deserialize)]
enum Source {
    #[serde(skip)]
    Herd(Box<Checkpoint>),
    #[serde(skip)]
    Shared(Box<Shared>),
    HuggingFace(Shards),
    Meta(Box<Original>),
    Gguf(Box<Gguf>),
    #[serde(skip)]
    Adapted(Box<adapted::Adapted>),
}

/// A checkpoint that the ranks of a run read together: what a rank reads is compared as it is read, the rest afterwards.
struct Shared {
    checkpoint: Checkpoint,
    compared: Mutex<Compared>,
    /// Whether it is the newest of several: an older one may take its place.
    of_run: bool,
}

impl Weights {
    /// Ties the head or not as the tensors say, and checks that every tensor is there; logs what is left unread.
    fn checked(mut self, path: &Path) -> Result<Weights> {
        let checked = self.untie(path).and_then(|()| self.check());
        checked.map_err(|e| e.context(path.display()))?;
        self.notes(path).iter().for_each(|note| tracing::warn!("{note}"));
        Ok(self)
    }

    /// What the ranks' reading of [`open_together`] came to, `mine` on this one, and whether every byte of a checkpoint is as
    /// it was written: what a rank has not compared while it read it compares now, as far as files are its share. Collective.
    ///
    /// Errors, on every rank: [`Exit::Checkpoint`] when it is damaged, that of `mine` on any rank.
    pub fn confirm(&self, mine: Result<()>, team: Team) -> Result<()> {
        if let Source::Adapted(all) = &self.source {
            let mine = match &all.over {
                adapted::Over::Stored(over) => over.confirm(mine, team),
                adapted::Over::Peft(_) => team.agree(mine),
            };
            return mine.and_then(|()| all.base.confirm(Ok(()), team));
        }
        let Source::Shared(shared) = &self.source else { return team.agree(mine) };
        let compared = lock(&shared.compared);
        let read = agree(compared.problem.clone(), team);
        if read.is_ok() {
            team.agree(mine)?;
        }
        read.and_then(|()| check(&shared.checkpoint, &compared, team)).map_err(|e| match e.exit {
            Exit::Checkpoint => open::damaged(shared.checkpoint.path(), &e.fact),
            _ => e,
        })
    }

    /// The step that is read, where an older one of its run may take its place.
    pub fn replaceable(&self) -> Option<&Path> {
        match &self.source {
            Source::Shared(shared) if shared.of_run => Some(shared.checkpoint.path()),
            Source::Adapted(all) => match &all.over {
                adapted::Over::Stored(over) => over.replaceable(),
                adapted::Over::Peft(_) => None,
            },
            _ => None,
        }
    }

    /// Shape of the model; the head is tied as the tensors say.
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

    /// Ids that begin, end and pad a text; `None` or empty where the source names none.
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
            Source::Shared(s) => Some(&s.checkpoint),
            Source::Adapted(all) => match &all.over {
                adapted::Over::Stored(over) => over.checkpoint(),
                adapted::Over::Peft(_) => None,
            },
            Source::HuggingFace(_) | Source::Meta(_) | Source::Gguf(_) => None,
        }
    }

    /// The adapters that are added to a base model, and the place of that. Their tensors can be read by their names as well.
    pub fn adapters(&self) -> Option<(&LoraSection, &Path)> {
        match &self.source {
            Source::Adapted(all) => all.lora(),
            _ => None,
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
            Source::Shared(s) => {
                let mut compared = lock(&s.compared);
                s.checkpoint.read_comparing(Group::Param, name, offset, extent, start, out, &mut compared)
            }
            Source::HuggingFace(s) => s.read(name, offset, extent, start, out),
            Source::Meta(m) => m.read(name, offset, extent, start, out),
            Source::Gguf(g) => g.read(name, offset, extent, start, out),
            Source::Adapted(all) => all.read(name, offset, extent, start, out),
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
            Source::HuggingFace(s) => s.shape(name),
            Source::Meta(m) => m.shape(name),
            Source::Gguf(g) => g.shape(name),
            Source::Adapted(all) => all.shape(name),
            Source::Herd(_) | Source::Shared(_) => self.checkpoint()?.shape(Group::Param, name),
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
            // One file is all of a GGUF model.
            Source::Herd(_) | Source::Shared(_) | Source::Gguf(_) | Source::Adapted(_) => return Vec::new(),
            Source::HuggingFace(s) => (s.files(), "config.json"),
            Source::Meta(m) => (m.files(), "params.json"),
        };
        let mut notes: Vec<String> = left_unread(path, &files).into_iter().collect();
        if RunDir::new(path).checkpoints().is_dir() {
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

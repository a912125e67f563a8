//! Opening weights: what a path is, and who looks at it.

use super::adapted::Adapted;
use super::{Shared, Source, Weights};
use crate::checkpoint::restore::{newest_opened, open_step};
use crate::checkpoint::{newest_valid_alone, BaseNote, Checkpoint, Event, SpecialTokens, Team};
use crate::convert::gguf::{is_gguf, Gguf};
use crate::convert::hf::{self, Shards};
use crate::convert::meta_llama::{is_meta, Original};
use crate::convert::peft::{self, AdapterFiles};
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::run_dir::RunDir;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What lies at a path.
#[derive(Serialize, Deserialize)]
enum Place {
    /// A step directory.
    Step,
    /// A directory of steps.
    Run(PathBuf),
    Model(Box<Weights>),
    /// An adapter in PEFT's form.
    Adapter(Box<AdapterFiles>),
}

/// Opens any of: a step directory, a run directory or its `checkpoints` (the newest whole one), a Hugging Face directory, a
/// directory of Meta's (params.json, consolidated.*.pth), a GGUF file, an adapter in PEFT's form. What holds a part of a model only
/// is read over its base, whose checksum is compared where one is known.
/// Checksums of a herd checkpoint are verified; every tensor of the model is there in its shape. What was guessed or is
/// left unread is logged, a line each.
///
/// Errors: [`Exit::Checkpoint`] for a damaged checkpoint or a run without one, [`Exit::Model`] for the rest.
pub fn open(path: &Path) -> Result<Weights> {
    open_metered(path, &Meter::default())
}

/// As [`open`]; `meter` counts what is read of a checkpoint to verify it.
pub fn open_metered(path: &Path, meter: &Meter) -> Result<Weights> {
    match find(path)? {
        Place::Model(weights) => Ok(*weights),
        Place::Step => alone(verified(path, meter)?, path, meter),
        Place::Run(checkpoints) => alone(newest(&checkpoints, meter)?, path, meter),
        Place::Adapter(files) => {
            let base = files.base()?;
            Weights::over(*files, open_metered(&base, meter)?, base)?.checked(path)
        }
    }
}

/// A checkpoint, over its base where it has one.
fn alone(checkpoint: Checkpoint, path: &Path, meter: &Meter) -> Result<Weights> {
    let Some(note) = checkpoint.meta().base.clone() else { return Weights::of_checkpoint(checkpoint).checked(path) };
    let base = open_metered(&note.weights, meter).map_err(|e| baseless(path, e))?;
    let weights = Weights::of_checkpoint(checkpoint).beside(base, &note)?.checked(path)?;
    if let Source::Adapted(all) = &weights.source {
        all.verify()?;
    }
    Ok(weights)
}

fn baseless(path: &Path, e: Error) -> Error {
    e.context(format!("{} holds a part of a model only, and its base cannot be read", path.display()))
}

/// As [`open`], for the ranks of a run: rank 0 looks at headers and manifest and tells the others, a rank opens the files that
/// it reads. The data of a checkpoint is compared with its checksums by [`Weights::confirm`] only, after everybody has read;
/// `passed` are steps that were found damaged. Collective.
pub fn open_together(path: &Path, passed: &[PathBuf], team: Team) -> Result<Weights> {
    let (checkpoint, of_run) = match team.by_first(|| find(path))? {
        Place::Model(weights) => return Ok(*weights),
        Place::Adapter(files) => {
            let base = team.by_first(|| files.base())?;
            return Weights::over(*files, open_together(&base, &[], team)?, base)?.checked(path);
        }
        Place::Step => (open_step(path, team)?, false),
        Place::Run(checkpoints) => {
            let found = newest_opened(&checkpoints, passed, team, &mut told)?;
            (found.ok_or_else(|| none_whole(&checkpoints))?, true)
        }
    };
    let note = checkpoint.meta().base.clone();
    let mut weights = Weights::of_checkpoint(checkpoint);
    if let Source::Herd(checkpoint) = weights.source {
        let compared = Mutex::default();
        weights.source = Source::Shared(Box::new(Shared { checkpoint: *checkpoint, compared, of_run }));
    }
    if let Some(note) = note {
        let base = open_together(&note.weights, &[], team).map_err(|e| baseless(path, e))?;
        tracing::info!(
            "{}: over the weights in {}, whose checksum is not compared",
            path.display(),
            note.weights.display()
        );
        weights = weights.beside(base, &note)?;
    }
    weights.checked(path)
}

/// Looks what `path` is, and opens it if it is somebody else's model.
fn find(path: &Path) -> Result<Place> {
    let model = |weights: Weights| weights.checked(path).map(|w| Place::Model(Box::new(w)));
    if is_gguf(path) {
        model(Weights::of_gguf(path)?)
    } else if path.join("manifest.json").is_file() {
        Ok(Place::Step)
    } else if path.join(peft::CONFIG).is_file() && !path.join("config.json").is_file() {
        AdapterFiles::open(path).map(|files| Place::Adapter(Box::new(files)))
    } else if path.join("config.json").is_file() {
        model(Weights::of_hugging_face(path)?)
    } else if is_meta(path) {
        model(Weights::of_meta(path)?)
    } else if RunDir::new(path).checkpoints().is_dir() {
        Ok(Place::Run(RunDir::new(path).checkpoints()))
    } else if crate::checkpoint::list(path)?.is_empty() {
        let fact = match path.exists() {
            true => format!("{} holds no weights", path.display()),
            false => format!("there is no {}", path.display()),
        };
        Err(Error::new(Exit::Model, fact)
            .hint("give a step directory, a run directory, a Hugging Face directory with config.json, Meta's with params.json, or a GGUF file"))
    } else {
        Ok(Place::Run(path.into()))
    }
}

fn verified(path: &Path, meter: &Meter) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    meter.begin("verify", checkpoint.bytes());
    match checkpoint.verify_metered(meter).into_iter().find_map(|f| f.problem) {
        Some(problem) => Err(damaged(path, &problem)),
        None => Ok(checkpoint),
    }
}

pub(super) fn damaged(path: &Path, problem: &str) -> Error {
    let place = format!("{}: ", path.display());
    Error::new(Exit::Checkpoint, format!("{place}{}", problem.strip_prefix(&place).unwrap_or(problem)))
        .hint("use another step; `herd checkpoint verify` on the run directory tells which are whole")
}

fn told(e: &Event) {
    match e {
        Event::CheckpointRejected { .. } | Event::SnapshotRejected { .. } => tracing::warn!("{e}"),
        Event::CheckpointChosen { .. } => tracing::info!("{e}"),
    }
}

fn none_whole(checkpoints: &Path) -> Error {
    Error::new(Exit::Checkpoint, format!("{} holds no whole checkpoint", checkpoints.display()))
        .hint("`herd checkpoint verify` tells what is wrong with each")
}

fn newest(checkpoints: &Path, meter: &Meter) -> Result<Checkpoint> {
    newest_valid_alone(checkpoints, meter, &mut told)?.ok_or_else(|| none_whole(checkpoints))
}

impl Weights {
    /// Tensors of a checkpoint over the base that it names.
    fn beside(self, base: Weights, note: &BaseNote) -> Result<Weights> {
        let about = self.facts();
        Ok(about(Source::Adapted(Box::new(Adapted::of_note(self, base, note)?))))
    }

    /// An adapter over its base.
    fn over(files: AdapterFiles, base: Weights, place: PathBuf) -> Result<Weights> {
        let about = base.facts();
        Ok(about(Source::Adapted(Box::new(Adapted::of_peft(files, base, place)?))))
    }

    /// The same of another source.
    fn facts(&self) -> impl FnOnce(Source) -> Weights {
        let (model, tokenizer) = (self.model.clone(), self.tokenizer.clone());
        let (tokenizer_fingerprint, special_tokens) = (self.tokenizer_fingerprint.clone(), self.special_tokens.clone());
        let generation = self.generation.clone();
        move |source| Weights { model, tokenizer, tokenizer_fingerprint, special_tokens, generation, source }
    }

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

    fn of_gguf(path: &Path) -> Result<Weights> {
        let gguf = Gguf::open(path)?;
        Ok(Weights {
            model: gguf.model().clone(),
            // It is in the file's metadata, and becomes files by `herd checkpoint import`.
            tokenizer: String::new(),
            tokenizer_fingerprint: String::new(),
            special_tokens: gguf.special_tokens().clone(),
            generation: Value::Null,
            source: Source::Gguf(Box::new(gguf)),
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
}

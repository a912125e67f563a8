//! What a checkpoint holds: groups of tensors, pieces of them, and what it says about its run.

use crate::config::{FreezeSection, LoraSection, ModelConfig};
use crate::data::identity::DataNote;
use crate::topology::Topology;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Which of the three numbers kept per parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// fp32 master weights. bf16 parameters are these rounded to nearest even, so they are not stored a second time.
    Param,
    /// AdamW's first moment, fp32.
    ExpAvg,
    /// AdamW's second moment, fp32.
    ExpAvgSq,
}

impl Group {
    /// All three, the weights first.
    pub const ALL: [Group; 3] = [Group::Param, Group::ExpAvg, Group::ExpAvgSq];

    /// The name used in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Group::Param => "param",
            Group::ExpAvg => "exp_avg",
            Group::ExpAvgSq => "exp_avg_sq",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Elements `[start, start + data.len())`, in row-major order of the rectangle (`offset`, `extent`), of a global tensor.
///
/// The rectangle is what tensor and pipeline axes leave of the tensor; the flat range is what the data axis leaves of
/// the rectangle.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Which of the three numbers kept per parameter.
    pub group: Group,
    /// Global name of the parameter.
    pub name: &'a str,
    /// Global shape, at least one dim.
    pub shape: &'a [usize],
    /// Global index of the rectangle's first element, on each dim.
    pub offset: &'a [usize],
    /// Elements of the rectangle, on each dim.
    pub extent: &'a [usize],
    /// First element of the piece, counted from 0 in row-major order of the rectangle.
    pub start: usize,
    /// The elements' values, in that order.
    pub data: &'a [f32],
}

/// What a checkpoint says about its run. Fields that a reader does not know are ignored, missing ones take defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Steps finished, skipped ones counted.
    pub step: u64,
    /// Optimizer updates made: `step` less the skipped steps. AdamW's bias correction counts these.
    pub updates: u64,
    /// Tokens trained on.
    #[serde(default)]
    pub tokens: u64,
    /// Global index of the first sample that has not been read.
    #[serde(default)]
    pub next_sample: u64,
    /// Steps skipped because loss or gradient norm was not finite.
    #[serde(default)]
    pub skipped: u64,
    /// Lowest validation loss so far.
    #[serde(default)]
    pub best_validation: Option<f64>,
    /// Validation loss after this very step, if it was measured.
    #[serde(default)]
    pub validation: Option<f64>,
    /// The start of the run that wrote it, a random number; 0 where that was no run.
    #[serde(default)]
    pub session: u64,
    /// The configuration's seed, of initial weights and sample order; 0 for an import.
    #[serde(default)]
    pub seed: u64,
    /// Architecture of the whole model, also where only a part of it is stored.
    pub model: ModelConfig,
    /// `bytes`, or the absolute path of the tokenizer's file (older versions: as the configuration names it).
    #[serde(default)]
    pub tokenizer: String,
    /// Fingerprint of the tokenizer's content; empty when it was not known (an import without a tokenizer).
    #[serde(default)]
    pub tokenizer_fingerprint: String,
    /// Ids that begin, end and pad a text: the starting model's before the tokenizer's own.
    #[serde(default)]
    pub special_tokens: SpecialTokens,
    /// `generation_config.json` of the model that the run started from; null where there was none.
    #[serde(default)]
    pub generation: serde_json::Value,
    /// The resolved configuration of the run; null for an import.
    #[serde(default)]
    pub config: serde_json::Value,
    /// Axis sizes of the writer (`rank` is that of rank 0).
    #[serde(default = "Topology::solo")]
    pub topology: Topology,
    /// Number of this attempt to run the job; names the temporary directory.
    #[serde(default)]
    pub attempt: u64,
    /// Version of the herd that wrote it; empty where that is not said.
    #[serde(default)]
    pub herd_version: String,
    /// The corpora of the run; absent in an import, and before herd wrote it down.
    #[serde(default)]
    pub data: Option<DataNote>,
    /// Where the checkpoint holds a part of a model only: the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseNote>,
    /// Of a run of preference pairs: what they are compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<ReferenceNote>,
}

/// The model that preference pairs are compared with: the one that their run began with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceNote {
    /// Checksum of its weights; the same on every topology.
    pub sum: String,
}

/// The frozen weights beside which the tensors of a checkpoint were trained. They are not in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseNote {
    /// Where they were read, absolute.
    pub weights: PathBuf,
    /// Sum over their elements ([`super::base::BaseSum`]), 16 hexadecimal digits; the same on every topology.
    pub sum: String,
    /// The stored tensors are these adapters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSection>,
    /// The stored tensors are all but these layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeSection>,
}

/// Token ids that a Hugging Face configuration names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpecialTokens {
    /// Id that begins a text; `None` where none is named.
    #[serde(default)]
    pub bos: Option<u32>,
    /// Ids that end a text, the main one first.
    #[serde(default)]
    pub eos: Vec<u32>,
    /// Padding id; `None` where none is named.
    #[serde(default)]
    pub pad: Option<u32>,
}

impl Meta {
    /// Step 0 of `model`, everything else empty, zero or one rank.
    pub fn new(model: ModelConfig) -> Meta {
        Meta {
            step: 0,
            updates: 0,
            tokens: 0,
            next_sample: 0,
            skipped: 0,
            best_validation: None,
            validation: None,
            session: 0,
            seed: 0,
            model,
            tokenizer: String::new(),
            tokenizer_fingerprint: String::new(),
            special_tokens: SpecialTokens::default(),
            generation: serde_json::Value::Null,
            config: serde_json::Value::Null,
            topology: Topology::solo(),
            attempt: 0,
            herd_version: env!("CARGO_PKG_VERSION").into(),
            data: None,
            base: None,
            reference: None,
        }
    }
}

/// A finished save, the same on every rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// The step directory, under its final name.
    pub path: PathBuf,
    /// Bytes in all files, the manifest included.
    pub bytes: u64,
    /// Wall time of the save on rank 0.
    pub seconds: f64,
}

/// A checksum as 16 hexadecimal digits.
pub fn hex(sum: u64) -> String {
    format!("{sum:016x}")
}

//! Runs that train a part of the model: adapters, or all but some layers.

use super::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Train low-rank adapters (LoRA, arXiv:2106.09685) beside the matrices of the blocks; all weights of the model are frozen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraSection {
    /// Rank (r) of the adapters: A has r rows, B r columns.
    #[schemars(range(min = 1, max = 1 << 16))]
    pub rank: usize,
    /// B·A is added times alpha / rank (with `rslora`: alpha / √rank).
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub alpha: f64,
    /// Share of the adapters' inputs that a training step drops.
    #[serde(default)]
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub dropout: f64,
    /// Matrices that get an adapter, in every block. Default: all seven.
    #[serde(default = "all_targets")]
    #[schemars(length(min = 1))]
    pub targets: Vec<LoraTarget>,
    /// Scale by alpha / √rank (rsLoRA, arXiv:2312.03732).
    #[serde(default)]
    pub rslora: bool,
    /// Hold the blocks' frozen matrices in fewer bits (QLoRA, arXiv:2305.14314): a scale for each 64 values along a row, and 8 or 4 bits
    /// a value. Products are in `train.precision`. Left out: all bits of `train.precision`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<BlockFormat>,
    /// An adapter in PEFT's form (adapter_config.json, adapter_model.safetensors) to start from; else A is random and B zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub weights: Option<PathBuf>,
}

/// A matrix of every block, by its name in Hugging Face's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// Queries of attention.
    QProj,
    /// Keys of attention.
    KProj,
    /// Values of attention.
    VProj,
    /// Output of attention.
    OProj,
    /// Gate of the feed-forward layer.
    GateProj,
    /// The feed-forward layer's other input matrix, which the gate multiplies.
    UpProj,
    /// Output of the feed-forward layer.
    DownProj,
}

/// How values lie in fewer bits, 64 with one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BlockFormat {
    /// 8 bits, levels at equal distances: 8.5 bits a value.
    Int8,
    /// 4 bits, levels at quantiles of a normal distribution: 4.5 bits a value.
    Nf4,
}

/// Layers that are not trained. Their weights have no gradients and no optimizer state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FreezeSection {
    /// The embedding; where the output matrix is tied to it, that too.
    pub embedding: bool,
    /// So many blocks, counted from the first.
    #[schemars(range(max = 4096))]
    pub blocks: usize,
    /// The final norm and the output matrix.
    pub head: bool,
}

fn all_targets() -> Vec<LoraTarget> {
    LoraTarget::ALL.to_vec()
}

impl LoraTarget {
    /// All seven, in the order of the forward pass.
    pub const ALL: [LoraTarget; 7] = [
        LoraTarget::QProj,
        LoraTarget::KProj,
        LoraTarget::VProj,
        LoraTarget::OProj,
        LoraTarget::GateProj,
        LoraTarget::UpProj,
        LoraTarget::DownProj,
    ];

    /// Its name in the configuration and in Hugging Face's layout: `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            LoraTarget::QProj => "q_proj",
            LoraTarget::KProj => "k_proj",
            LoraTarget::VProj => "v_proj",
            LoraTarget::OProj => "o_proj",
            LoraTarget::GateProj => "gate_proj",
            LoraTarget::UpProj => "up_proj",
            LoraTarget::DownProj => "down_proj",
        }
    }
}

impl Config {
    /// The bits in which the blocks' frozen matrices lie; None: in the compute dtype.
    pub fn quantize(&self) -> Option<BlockFormat> {
        self.lora.as_ref().and_then(|l| l.quantize)
    }
}

impl BlockFormat {
    /// Values that share a scale.
    pub const RUN: usize = 64;

    /// Bits of a code.
    pub fn bits(self) -> usize {
        match self {
            BlockFormat::Int8 => 8,
            BlockFormat::Nf4 => 4,
        }
    }

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            BlockFormat::Int8 => "int8",
            BlockFormat::Nf4 => "nf4",
        }
    }
}

impl LoraSection {
    /// All matrices, no dropout.
    pub fn new(rank: usize, alpha: f64) -> LoraSection {
        LoraSection { rank, alpha, dropout: 0.0, targets: all_targets(), rslora: false, quantize: None, weights: None }
    }

    /// What B·A is multiplied by.
    pub fn scale(&self) -> f64 {
        match self.rslora {
            true => self.alpha / (self.rank as f64).sqrt(),
            false => self.alpha / self.rank as f64,
        }
    }
}

//! The run configuration: what a YAML file may say. Raw values only; what they mean together is the `plan`.
//!
//! Field docs are the descriptions in `herd config schema`, and the ranges stand there too: [`load`] checks a file against
//! that schema, so a range is written once, beside its field.

pub mod check;
mod checkpoint;
mod dpo;
mod expand;
mod launch;
mod liveness;
pub mod load;
mod model;
mod optim;
mod parallel;
mod problem;
pub mod schema;
mod sets;
mod store;
mod trained;
mod yaml;

pub use checkpoint::{CheckpointSection, Partner};
pub use dpo::{DpoLoss, DpoSection};
pub use launch::{AlertKind, AlertsSection, LaunchSection};
pub use liveness::LivenessSection;
pub use load::{load, to_yaml, Draft};
pub use model::{ModelConfig, RopeScaling, RopeType};
pub use optim::{MomentFormat, OptimSection, Schedule};
pub use parallel::{ParallelSection, PipelineSchedule};
pub use problem::{to_error, Problem};
pub use store::StoreSection;
pub use trained::{BlockFormat, FreezeSection, LoraSection, LoraTarget};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A configuration for tests.
#[cfg(test)]
pub(crate) const SAMPLE: &str = "
name: t
run_dir: runs/t
model:
  shape: {vocab_size: 256, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,
    num_key_value_heads: 2}
data: {sequence_length: 32, train: [{path: data/a}]}
batch: {global: 8, micro: 2}
train: {steps: 1e3}
";

/// Whether step `step` is one of every `every`, as keys called `every` say it; 0: none is.
pub fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the run, for logs and reports.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Seed of initial weights and sample order.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// Directory that holds everything the run writes; created if absent.
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub run_dir: PathBuf,
    /// Where the model's shape and first weights come from. Give `shape`, or `config`, or only `weights`.
    pub model: ModelSection,
    /// Train low-rank adapters (LoRA) beside the matrices of the blocks; `model.weights` are frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSection>,
    /// Train on pairs of a chosen and a rejected answer (DPO), as `herd data chat` makes them, instead of on the next token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpo: Option<DpoSection>,
    /// Tokenizer, corpora and sequence length.
    pub data: DataSection,
    /// Batch sizes in sequences. Gradient accumulation follows from them: global / (micro × data-parallel size).
    pub batch: BatchSection,
    /// Length, precision, device and safety of the run.
    pub train: TrainSection,
    /// AdamW and its learning-rate schedule.
    #[serde(default)]
    pub optim: OptimSection,
    /// Sizes of the parallel axes. Their product is the number of ranks.
    #[serde(default)]
    pub parallel: ParallelSection,
    /// Validation loss on the held-out corpora.
    #[serde(default)]
    pub validation: ValidationSection,
    /// When the state is kept, where, and how many checkpoints stay.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
    /// Probes between ranks and the watch over progress (docs/liveness.md).
    #[serde(default)]
    pub liveness: LivenessSection,
    /// What is printed and recorded.
    #[serde(default)]
    pub log: LogSection,
    /// How `herd launch` places the ranks, when it starts them again, and when it gives up.
    #[serde(default)]
    pub launch: LaunchSection,
    /// Whom the supervisor tells when a run stops, a node is given up, or a job is requeued. Nothing is sent for a fault that
    /// was mended.
    #[serde(default)]
    pub alerts: AlertsSection,
}

/// Where the model's shape and first weights come from. Give `shape`, or `config`, or only `weights`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A Hugging Face `config.json` to take the shape from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub config: Option<PathBuf>,
    /// The shape, inline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<ModelConfig>,
    /// A Hugging Face directory (config.json, *.safetensors) whose weights the run starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub weights: Option<PathBuf>,
    /// Layers that are not trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeSection>,
}

/// Tokenizer, corpora and sequence length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// `bytes`, a Hugging Face `tokenizer.json`, or a tiktoken `tokenizer.model`. Must be the one the corpora were made with.
    #[serde(default = "defaults::tokenizer")]
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub tokenizer: String,
    /// Tokens per sample (S); each sample reads S + 1 consecutive tokens.
    #[schemars(range(min = 1, max = limit::BATCH))]
    pub sequence_length: usize,
    /// Keep attention inside documents: a token of a sample does not see those of the documents before its own. Documents are
    /// those of the corpus's index.
    #[serde(default)]
    pub document_mask: bool,
    /// The corpora are conversations with a loss mask, as `herd data chat` makes them: samples are whole conversations, which do
    /// not see each other and each count positions from 0. `{}` takes the defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatSection>,
    /// Whether the run goes on from a checkpoint whose corpora, their order, content or shares were other than now.
    #[serde(default)]
    pub on_change: OnChange,
    /// Corpora to train on.
    #[schemars(length(min = 1))]
    pub train: Vec<Corpus>,
    /// Held-out corpora for validation.
    #[serde(default)]
    pub validation: Vec<Corpus>,
}

/// How conversations become samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChatSection {
    /// Which conversations share a sample.
    pub packing: ChatPacking,
    /// What becomes of a conversation of more than sequence_length + 1 tokens.
    pub too_long: TooLong,
}

/// Which conversations share a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChatPacking {
    /// Each goes to the first sample that has room for it, in an order by the seed.
    #[default]
    FirstFit,
    /// None: each has a sample of its own, the rest of which is padding.
    None,
}

/// What becomes of a conversation of more than sequence_length + 1 tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// The run does not start.
    #[default]
    Refuse,
    /// Its end is cut off.
    Cut,
    /// It is left out.
    Drop,
}

/// Whether the run goes on from a checkpoint whose corpora, their order, content or shares were other than now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnChange {
    /// No: the difference is named.
    #[default]
    Refuse,
    /// Yes, with the samples that the new corpora have at the next step's numbers: some are read twice, others never.
    Accept,
}

/// One indexed token file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Corpus {
    /// Path of an indexed token file without its ending: `<path>.bin` and `<path>.idx`.
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub path: PathBuf,
    /// Share of samples drawn from it, relative to the other corpora. Give one to every corpus of a list, or to none: then each
    /// token has the same chance, whatever the sizes of the corpora.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub weight: Option<f64>,
}

/// Batch sizes in sequences. Gradient accumulation follows from them: global / (micro × data-parallel size).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchSection {
    /// Sequences per optimizer step over all ranks.
    #[schemars(range(min = 1, max = limit::BATCH))]
    pub global: usize,
    /// Sequences per forward pass on one rank; divides global / data-parallel size.
    #[schemars(range(min = 1, max = limit::BATCH))]
    pub micro: usize,
}

/// Length, precision, device and safety of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// Optimizer steps in the whole run.
    #[schemars(range(min = 1, max = limit::STEPS))]
    pub steps: u64,
    /// Leave with exit code 75 after this step, with a checkpoint (for tests and timed allocations).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = limit::STEPS))]
    pub stop_at: Option<u64>,
    /// Steps whose batch is left out: nothing is computed, nothing updated. The last step is never left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_steps: Vec<u64>,
    /// Type of parameters and activations. Master weights, moments, gradient accumulation, norms and loss are fp32 in both.
    #[serde(default)]
    pub precision: Precision,
    /// Where tensors live.
    #[serde(default)]
    pub device: DeviceChoice,
    /// Which activations the backward pass recomputes instead of keeping.
    #[serde(default)]
    pub recompute: Recompute,
    /// How many of the first blocks of a pipeline stage recompute; the others keep everything. 0: all recompute.
    #[serde(default)]
    #[schemars(range(max = limit::RANKS))]
    pub recompute_blocks: usize,
    /// Largest global gradient norm; larger ones are scaled down to it. 0 turns clipping off.
    #[serde(default = "defaults::one")]
    #[schemars(range(min = 0.0))]
    pub clip_norm: f64,
    /// Weight of the z-loss term, the square of log Z (PaLM, arXiv:2204.02311 §5). 0 turns it off.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub z_loss: f64,
    /// Stop after this many skipped (non-finite) steps in a row.
    #[serde(default = "defaults::max_skipped")]
    #[schemars(range(min = 1, max = limit::STEPS))]
    pub max_skipped_steps: u64,
    /// Traps that are let pass: `learning-rate`, `held-out-in-training` (docs/finetuning.md, Traps).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<RunTrap>,
    /// CPU threads per rank; 0 shares the cores of the node between its ranks.
    #[serde(default)]
    #[schemars(range(max = 4096))]
    pub threads: usize,
}

/// What spoils a fine-tuning and shows in no loss curve, as far as the configuration and the corpora show it together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunTrap {
    /// `optim.lr` is of another scale than the method's.
    LearningRate,
    /// Held-out conversations are in the training data.
    HeldOutInTraining,
}

impl RunTrap {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            RunTrap::LearningRate => "learning-rate",
            RunTrap::HeldOutInTraining => "held-out-in-training",
        }
    }

    /// How it is let pass.
    pub fn hint(self) -> String {
        format!("or let it pass with train.allow: [{}]", self.name())
    }
}

/// Type of parameters and activations. Master weights, moments, gradient accumulation, norms and loss are fp32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bfloat16, 2 bytes a number.
    #[default]
    Bf16,
    /// Single precision, 4 bytes a number.
    Fp32,
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// The GPU with the node-local rank's number (modulo how many there are) where there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU, also where there is a GPU.
    Cpu,
    /// A GPU, as with `auto`; where there is none, the run ends with exit code 14.
    Cuda,
}

/// Which activations the backward pass recomputes instead of keeping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Keep everything; nothing is recomputed.
    #[default]
    None,
    /// Keep what matrix products and attention gave; make norms and SwiGLU again.
    Selective,
    /// Keep only each block's input.
    Full,
}

/// Validation loss on the held-out corpora.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationSection {
    /// Validate every n steps and after the last; 0 never.
    #[schemars(range(max = limit::STEPS))]
    pub every: u64,
    /// Sequences per validation, over all ranks.
    #[schemars(range(min = 1, max = limit::BATCH))]
    pub sequences: usize,
    /// Tasks of `herd eval` that are scored at the same time (docs/evaluation.md).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskSection>,
}

/// A task that a run scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSection {
    /// A file of rows as `herd eval` reads them: multiple choice, continuations or texts.
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub path: PathBuf,
    /// Only so many of its rows, from the beginning; all where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<usize>,
    /// Contexts are a user's turn of the chat template beside the tokenizer.
    #[serde(default)]
    pub chat: bool,
}

/// What is printed and recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// One console line every n steps where there is no terminal.
    #[schemars(range(min = 1, max = limit::STEPS))]
    pub every: u64,
    /// Write TensorBoard event files.
    pub tensorboard: bool,
    /// Replace `metrics.prom` (the last step for Prometheus' node exporter) at most every so many seconds; 0 never.
    #[schemars(range(max = 86_400))]
    pub prometheus_s: u64,
    /// Compare a hash of the parameters across data-parallel replicas every n steps; 0 never.
    #[schemars(range(max = limit::STEPS))]
    pub sync_check_every: u64,
}

/// Upper ends of ranges. They are far above any real run; below them no product of sizes overflows 64 bits.
mod limit {
    pub const BATCH: u64 = 1 << 24;
    pub const STEPS: u64 = 1 << 30;
    pub const RANKS: u64 = 1 << 20;
}

mod defaults {
    pub fn seed() -> u64 {
        1234
    }
    pub fn one() -> f64 {
        1.0
    }
    pub fn tokenizer() -> String {
        "bytes".into()
    }
    pub fn max_skipped() -> u64 {
        3
    }
}

impl Default for ValidationSection {
    fn default() -> Self {
        ValidationSection { every: 0, sequences: 64, tasks: Vec::new() }
    }
}

impl Default for LogSection {
    fn default() -> Self {
        LogSection { every: 10, tensorboard: true, prometheus_s: 5, sync_check_every: 100 }
    }
}

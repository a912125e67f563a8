//! The shape of a Llama 3 model, with Hugging Face's key names.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The largest sizes that are taken for a model's; a file that says more is damaged.
const MOST_WIDTH: usize = 1 << 20;
const MOST_FEED_FORWARD: usize = 1 << 22;
const MOST_LAYERS: usize = 4096;
const MOST_HEADS: usize = 4096;
const MOST_HEAD: usize = 1024;

/// Architecture of Llama 3, 3.1 and 3.2. Keys are those of Hugging Face's `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Number of token ids, padding not counted.
    #[schemars(range(min = 1, max = i32::MAX))]
    pub vocab_size: usize,
    /// Width of the residual stream (H).
    #[schemars(range(min = 1, max = MOST_WIDTH))]
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer (F).
    #[schemars(range(min = 1, max = MOST_FEED_FORWARD))]
    pub intermediate_size: usize,
    /// Number of transformer blocks.
    #[schemars(range(min = 1, max = MOST_LAYERS))]
    pub num_hidden_layers: usize,
    /// Query heads.
    #[schemars(range(min = 1, max = MOST_HEADS))]
    pub num_attention_heads: usize,
    /// Key/value heads; divides `num_attention_heads`.
    #[schemars(range(min = 1, max = MOST_HEADS))]
    pub num_key_value_heads: usize,
    /// Width of one head (D). Default: hidden_size / num_attention_heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MOST_HEAD))]
    pub head_dim: Option<usize>,
    /// Longest sequence the model is meant for.
    #[serde(default = "default_max_position")]
    #[schemars(range(min = 1, max = i32::MAX))]
    pub max_position_embeddings: usize,
    /// Epsilon inside RMSNorm.
    #[serde(default = "default_eps")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[serde(default = "default_theta")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub rope_theta: f64,
    /// Llama 3.1's frequency scaling for long context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output head shares the embedding matrix (Llama 3.2 1B and 3B).
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Standard deviation of the normal distribution that fresh weights are drawn from.
    #[serde(default = "default_init")]
    #[schemars(range(min = 0.0))]
    pub initializer_range: f64,
}

/// `rope_type: llama3`: low frequencies are divided by `factor`, high ones kept, a band between is interpolated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// Always `llama3`.
    pub rope_type: RopeType,
    /// What low frequencies are divided by.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub factor: f64,
    /// Wavelengths above original_max_position_embeddings / this are scaled in full.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub low_freq_factor: f64,
    /// Wavelengths below original_max_position_embeddings / this stay; greater than low_freq_factor.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub high_freq_factor: f64,
    /// Context length before scaling, in tokens.
    #[schemars(range(min = 1, max = i32::MAX))]
    pub original_max_position_embeddings: usize,
}

/// How rotary frequencies are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RopeType {
    /// As in Llama 3.1: by wavelength.
    Llama3,
}

fn default_max_position() -> usize {
    8192
}
fn default_eps() -> f64 {
    1e-5
}
fn default_theta() -> f64 {
    500_000.0
}
fn default_init() -> f64 {
    0.02
}

impl ModelConfig {
    /// Why no Llama has this shape: what files of models are checked for before anything is made of their numbers.
    pub fn fault(&self) -> Option<String> {
        let (h, heads, kv) = (self.hidden_size, self.num_attention_heads, self.num_key_value_heads);
        for (name, value, most) in [
            ("vocab_size", self.vocab_size, i32::MAX as usize),
            ("hidden_size", h, MOST_WIDTH),
            ("intermediate_size", self.intermediate_size, MOST_FEED_FORWARD),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", heads, MOST_HEADS),
            ("num_key_value_heads", kv, MOST_HEADS),
            ("head_dim", self.head_dim(), MOST_HEAD),
        ] {
            if !(1..=most).contains(&value) {
                return Some(format!("{name} is {value}, not 1 to {most}"));
            }
        }
        if !heads.is_multiple_of(kv) {
            return Some(format!("num_attention_heads {heads} is not a multiple of num_key_value_heads {kv}"));
        }
        if self.head_dim.is_none() && !h.is_multiple_of(heads) {
            let fact =
                format!("hidden_size {h} is not a multiple of num_attention_heads {heads}, and there is no head_dim");
            return Some(fact);
        }
        let odd = !self.head_dim().is_multiple_of(2);
        odd.then(|| format!("head_dim {} is odd; rotary embedding needs pairs", self.head_dim()))
    }
    /// D.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }
    /// Width of all query heads together.
    pub fn q_dim(&self) -> usize {
        self.num_attention_heads * self.head_dim()
    }
    /// Width of all key (or value) heads together.
    pub fn kv_dim(&self) -> usize {
        self.num_key_value_heads * self.head_dim()
    }
}

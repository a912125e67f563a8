//! `params.json`: Meta's description of a model, together with what the shapes of its tensors tell.
//!
//! Source: the `ModelArgs` and `FeedForward` of Meta's llama3 and llama-models repositories (defaults, the width of the
//! feed-forward layer), and transformers' convert_llama_weights_to_hf.py for what Meta's file leaves out.

use crate::config::{ModelConfig, RopeScaling, RopeType};
use crate::error::{Error, Exit, Result};
use serde::Deserialize;
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OriginalParams {
    pub dim: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    #[serde(default)]
    pub n_kv_heads: Option<usize>,
    /// -1 in Llama 2's files.
    #[serde(default)]
    pub vocab_size: Option<i64>,
    #[serde(default)]
    pub multiple_of: Option<usize>,
    #[serde(default)]
    pub ffn_dim_multiplier: Option<f64>,
    #[serde(default)]
    pub norm_eps: Option<f64>,
    #[serde(default)]
    pub rope_theta: Option<f64>,
    #[serde(default)]
    pub use_scaled_rope: bool,
    #[serde(default)]
    pub rope_scaling_factor: Option<f64>,
    #[serde(default)]
    pub rope_high_freq_factor: Option<f64>,
    #[serde(default)]
    pub max_seq_len: Option<usize>,
    /// Present in files of models that herd does not compute.
    #[serde(default)]
    pub moe_args: Option<serde_json::Value>,
    #[serde(default)]
    pub vision_args: Option<serde_json::Value>,
    #[serde(default)]
    pub vision_num_cross_attention_layers: Option<i64>,
    #[serde(default)]
    pub quantization_args: Option<serde_json::Value>,
}

/// What only the tensors tell.
pub struct Shapes {
    pub vocab_size: usize,
    pub intermediate_size: usize,
    /// The output matrix is absent or has the bits of the embedding.
    pub tied: bool,
}

impl OriginalParams {
    /// Errors ([`Exit::Model`]): missing, no JSON, sizes that clash, a model that herd does not compute.
    pub fn read(path: &Path) -> Result<OriginalParams> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, "read", &e, Exit::Model))?;
        let wrong = |why: String| Error::new(Exit::Model, format!("{}: {why}", path.display()));
        let p: OriginalParams =
            serde_json::from_slice(crate::text::unmarked(&text)).map_err(|e| wrong(e.to_string()))?;
        let sizes = [("dim", p.dim, 1 << 20), ("n_layers", p.n_layers, 4096), ("n_heads", p.n_heads, 4096)];
        if let Some((key, n, most)) = sizes.into_iter().find(|(_, n, most)| !(1..=*most).contains(n)) {
            return Err(wrong(format!("{key} is {n}, not from 1 to {most}")));
        }
        let kv = p.kv_heads();
        if kv == 0 || !p.n_heads.is_multiple_of(kv) {
            return Err(wrong(format!("n_heads {} is not a multiple of n_kv_heads {kv}", p.n_heads)));
        }
        if !p.dim.is_multiple_of(p.n_heads) || !(p.dim / p.n_heads).is_multiple_of(2) {
            return Err(wrong(format!("dim {} over n_heads {} is no even number", p.dim, p.n_heads)));
        }
        let other = [
            ("moe_args", p.moe_args.is_some()),
            ("vision_args", p.vision_args.is_some()),
            ("vision_num_cross_attention_layers", p.vision_num_cross_attention_layers.is_some_and(|n| n > 0)),
            ("quantization_args", p.quantization_args.is_some()),
        ];
        match other.into_iter().find(|(_, there)| *there) {
            Some((key, _)) => Err(wrong(format!("it has {key}; herd runs the dense text models of Llama 3 only"))),
            None => Ok(p),
        }
    }

    pub fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    pub fn head_dim(&self) -> usize {
        self.dim / self.n_heads
    }

    /// Width of the feed-forward layer by Meta's formula; `None` where the file does not give what it needs.
    pub fn feed_forward(&self) -> Option<usize> {
        let multiple = self.multiple_of.filter(|m| (1..1 << 20).contains(m))?;
        let hidden = 2 * (4 * self.dim) / 3;
        let hidden = self.ffn_dim_multiplier.map_or(hidden, |m| (m * hidden as f64) as usize);
        Some(hidden.div_ceil(multiple) * multiple)
    }

    pub fn model(&self, shapes: &Shapes) -> ModelConfig {
        // Llama 1 and 2 have no rope_theta.
        let theta = self.rope_theta.unwrap_or(10_000.0);
        // Meta's file only says that there is scaling. 3.2's 1B and 3B, the tied ones, scale by 32, 3.1 by 8.
        let factor = self.rope_scaling_factor.unwrap_or(if shapes.tied { 32.0 } else { 8.0 });
        let rope_scaling = self.use_scaled_rope.then_some(RopeScaling {
            rope_type: RopeType::Llama3,
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: self.rope_high_freq_factor.unwrap_or(4.0),
            original_max_position_embeddings: 8192,
        });
        let context = if self.use_scaled_rope {
            131_072
        } else if theta >= 500_000.0 {
            8192
        } else {
            4096
        };
        ModelConfig {
            vocab_size: shapes.vocab_size,
            hidden_size: self.dim,
            intermediate_size: shapes.intermediate_size,
            num_hidden_layers: self.n_layers,
            num_attention_heads: self.n_heads,
            num_key_value_heads: self.kv_heads(),
            head_dim: None,
            max_position_embeddings: self.max_seq_len.unwrap_or(context).max(1),
            rms_norm_eps: self.norm_eps.unwrap_or(1e-5),
            rope_theta: theta,
            rope_scaling,
            tie_word_embeddings: shapes.tied,
            initializer_range: 0.02,
        }
    }
}

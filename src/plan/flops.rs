//! Floating-point operations of a training step, and what known devices can do: the two halves of model FLOPs
//! utilisation (MFU; PaLM, arXiv:2204.02311, appendix B).
//!
//! A multiply-add counts as two. A weight that multiplies costs 2 in the forward pass and 4 in the backward pass, so 6 a
//! token; the embedding is a look-up and costs nothing, the output head multiplies even where it shares the embedding's
//! matrix. Attention adds the products q·k and p·v, each 2·Hq·D per pair of positions forward and twice that backward:
//!
//! `FLOPs per token = 6·(L·(H·(Hq+2·Hkv)·D + Hq·D·H + 3·H·F) + V·H) + 12·L·Hq·D·K`
//!
//! with K the keys that a token looks at: S when every pair is counted (*full*, as PaLM and most papers do), (S+1)/2 when
//! only the pairs below the diagonal are (*causal*, the work that is really needed). Recomputation is not counted. A frozen weight has no
//! gradient and costs 4 instead of 6, an element of an adapter 6.

use crate::config::{Config, ModelConfig};
use crate::layout::adapter_shapes;
use tch::Kind;

/// FLOPs of forward and backward pass together, per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerToken {
    /// Attention counted below the diagonal.
    pub causal: f64,
    /// Attention counted in full.
    pub full: f64,
}

impl PerToken {
    /// For sequences of `s` tokens.
    pub fn new(m: &ModelConfig, s: usize) -> PerToken {
        let attention = 12.0 * m.num_hidden_layers as f64 * m.q_dim() as f64;
        let weights = 6.0 * multiplying_weights(m);
        PerToken { causal: weights + attention * (s as f64 + 1.0) / 2.0, full: weights + attention * s as f64 }
    }

    /// In the run of `config`, which may train a part of the model.
    pub fn of(config: &Config, m: &ModelConfig) -> PerToken {
        let all = PerToken::new(m, config.data.sequence_length);
        let more = match (&config.lora, &config.model.freeze) {
            (Some(lora), _) => {
                let one: usize = adapter_shapes(m, lora, 0).iter().map(|(_, s)| s.iter().product::<usize>()).sum();
                6.0 * (one * m.num_hidden_layers) as f64 - 2.0 * multiplying_weights(m)
            }
            (None, Some(freeze)) => {
                let matrix_frozen = if m.tie_word_embeddings { freeze.embedding } else { freeze.head };
                let head = if matrix_frozen { head_weights(m) } else { 0.0 };
                -2.0 * (freeze.blocks as f64 * block_weights(m) + head)
            }
            (None, None) => 0.0,
        };
        PerToken { causal: all.causal + more, full: all.full + more }
    }
}

/// Weights that take part in a matrix product, per token.
fn multiplying_weights(m: &ModelConfig) -> f64 {
    m.num_hidden_layers as f64 * block_weights(m) + head_weights(m)
}

/// Of a block.
fn block_weights(m: &ModelConfig) -> f64 {
    let f = |n: usize| n as f64;
    f(m.hidden_size) * (2.0 * f(m.q_dim()) + 2.0 * f(m.kv_dim()) + 3.0 * f(m.intermediate_size))
}

fn head_weights(m: &ModelConfig) -> f64 {
    m.vocab_size as f64 * m.hidden_size as f64
}

/// Model FLOPs utilisation: `tokens_per_second` of one device at `per_token` FLOPs against its `peak` FLOP/s.
pub fn utilisation(tokens_per_second: f64, per_token: f64, peak: f64) -> f64 {
    tokens_per_second * per_token / peak
}

/// Dense peak in FLOP/s from the vendor's data sheets, by the name the driver gives ("NVIDIA H100 80GB HBM3"). bf16 is the
/// tensor cores' rate; fp32 the plain units', as libtorch does not use TF32 unless asked. `None` for what is not in the
/// table, CPUs among it: their rate has to be measured.
pub fn peak(device_name: &str, dtype: Kind) -> Option<f64> {
    // Name parts, bf16 and fp32 in TFLOP/s; the first line whose parts all occur.
    const TABLE: &[(&[&str], f64, f64)] = &[
        (&["H100", "PCIe"], 756.0, 51.0),
        (&["H100", "NVL"], 835.0, 60.0),
        (&["H100"], 989.0, 67.0),
        (&["H200", "NVL"], 835.0, 60.0),
        (&["H200"], 989.0, 67.0),
        (&["GH200"], 989.0, 67.0),
        (&["A100"], 312.0, 19.5),
    ];
    let (_, bf16, fp32) = TABLE.iter().find(|(parts, ..)| parts.iter().all(|p| device_name.contains(p)))?;
    match dtype {
        Kind::BFloat16 | Kind::Half => Some(bf16 * 1e12),
        Kind::Float => Some(fp32 * 1e12),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama3_8b() -> ModelConfig {
        serde_json::from_value(serde_json::json!({
            "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8
        }))
        .unwrap()
    }

    #[test]
    fn llama3_8b_costs_what_the_weights_say() {
        // 8.03e9 parameters less the embedding's 0.525e9 (and the norms), times 6; attention 12·32·4096·8192.
        let f = PerToken::new(&llama3_8b(), 8192);
        let weights = 6.0 * (crate::layout::count(&llama3_8b()) - 128256 * 4096 - 65 * 4096) as f64;
        assert_eq!(f.full, weights + 12.0 * 32.0 * 4096.0 * 8192.0);
        assert_eq!(f.full - f.causal, 12.0 * 32.0 * 4096.0 * (8192.0 - 4096.5));
    }

    #[test]
    fn known_devices_by_the_name_the_driver_gives() {
        assert_eq!(peak("NVIDIA H100 80GB HBM3", Kind::BFloat16), Some(989e12));
        assert_eq!(peak("NVIDIA H100 PCIe", Kind::BFloat16), Some(756e12));
        assert_eq!(peak("NVIDIA H200", Kind::Float), Some(67e12));
        assert_eq!(peak("NVIDIA A100-SXM4-80GB", Kind::BFloat16), Some(312e12));
        assert_eq!(peak("AMD EPYC 7763", Kind::BFloat16), None);
    }
}

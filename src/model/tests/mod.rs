//! Layers and the whole model against libtorch's autograd.

mod layers;
mod lora;
mod oracle;
mod positions;
mod preference;
mod rope;
mod whole;

use super::{init, Params};
use crate::config::ModelConfig;
use crate::layout::Layout;
use crate::topology::Topology;
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// Odd sizes everywhere; head width is not hidden / heads; the original context of the scaling is short.
fn config(tied: bool) -> ModelConfig {
    serde_json::from_value(json!({
        "vocab_size": 101, "hidden_size": 36, "intermediate_size": 52, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8},
        "tie_word_embeddings": tied, "initializer_range": 0.2
    }))
    .unwrap()
}

/// Fresh weights, the norms' disturbed so that they are not all one.
fn params(m: &ModelConfig, seed: u64) -> Params {
    let p = Params::zeros(&Layout::new(m, &Topology::solo()), Kind::Float, Device::Cpu);
    for unit in &p.units {
        for param in &unit.layout.params {
            let mut values = vec![0f32; param.len()];
            init::fill(param, &mut values, seed, m.initializer_range);
            let mut view = unit.param(&param.name);
            view.copy_(&Tensor::from_slice(&values).view_as(&view));
            if param.extent.len() == 1 {
                view += noise(&[param.len() as i64], seed) * 0.3;
            }
        }
    }
    p
}

/// Standard normal values that depend on `seed` alone.
fn noise(shape: &[i64], seed: u64) -> Tensor {
    let n: i64 = shape.iter().product();
    let name = format!("{shape:?}");
    let param = crate::layout::Param {
        name,
        kind: crate::layout::Kind::Matrix,
        shape: vec![1, n as usize],
        offset: vec![0, 0],
        extent: vec![1, n as usize],
        start: 0,
        copies: 1,
        owner: true,
    };
    let mut values = vec![0f32; n as usize];
    init::fill(&param, &mut values, seed, 1.0);
    Tensor::from_slice(&values).view(shape)
}

/// Token ids [B,S] in `0..vocab`.
fn ids(b: i64, s: i64, vocab: usize, seed: u64) -> Tensor {
    (noise(&[b, s], seed).abs() * 1e4).to_kind(Kind::Int64).remainder(vocab as i64)
}

/// Fails unless `got` equals `want` to `tolerance` of the largest value of `want`.
fn close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), want.size(), "{what}");
    let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
    let scale = want.abs().max().double_value(&[]);
    assert!(scale > 0.0, "{what}: nothing to compare");
    let error = (got - want).abs().max().double_value(&[]) / scale;
    assert!(error < tolerance, "{what}: relative error {error:.2e}, allowed {tolerance:.0e}");
}

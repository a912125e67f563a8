//! The context axis and document masks, against whole sequences on one rank and against an explicit mask.

use super::shard::{self, Grid};
use super::support::ranks;
use herd::config::ModelConfig;
use herd::model::Documents;
use serde_json::json;
use tch::Kind;

fn model(kv_heads: usize) -> ModelConfig {
    serde_json::from_value(json!({
        "vocab_size": 101, "hidden_size": 36, "intermediate_size": 56, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": kv_heads, "head_dim": 10, "tie_word_embeddings": false,
        "initializer_range": 0.2,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8}
    }))
    .unwrap()
}

/// Boundaries on and off the borders of chunks, single-token documents, a sequence without any.
fn documents(s: usize) -> Documents {
    Documents::through(vec![vec![1, s / 4, s / 4 + 1, s / 2, s - 1], vec![], vec![s / 3, s / 2 + 3]])
}

fn context(sizes: fn(usize) -> [usize; 4], dtype: Kind, tolerance: f64) {
    shard::on_grid(sizes, |axes, topo| {
        for kv_heads in [2, 4] {
            let grid = Grid::new(&model(kv_heads), axes, topo, dtype);
            let unit = 2 * axes.context.size() as i64;
            // Chunks shorter and longer than a block of 64 queries, and not a multiple of anything.
            for chunk in [3, 71] {
                let s = unit * chunk * axes.tensor.size() as i64;
                shard::whole_model(&grid, 3, s, &Documents::whole(), tolerance);
                shard::whole_model(&grid, 3, s, &documents(s as usize), tolerance);
            }
        }
    });
}

#[test]
fn context_of_2_ranks() {
    if ranks(2, "context::context_of_2_ranks") {
        context(|n| [1, n, 1, 1], Kind::Float, 1e-5);
    }
}

#[test]
fn context_of_4_ranks() {
    if ranks(4, "context::context_of_4_ranks") {
        context(|n| [1, n, 1, 1], Kind::Float, 1e-5);
    }
}

#[test]
fn context_with_tensor() {
    if ranks(4, "context::context_with_tensor") {
        context(|n| [2, n / 2, 1, 1], Kind::Float, 1e-5);
    }
}

#[test]
fn context_in_half_precision() {
    if ranks(2, "context::context_in_half_precision") {
        context(|n| [1, n, 1, 1], Kind::BFloat16, 8e-2);
    }
}

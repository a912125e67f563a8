//! Which units each pipeline stage holds. Pure arithmetic.
//!
//! The model is cut into stages × chunks-per-stage chunks of adjacent units, in forward order. Chunk c lies on stage
//! c mod stages (interleaving as in Megatron-LM, arXiv:2104.04473 §2.2). A tied embedding is also held by the last chunk,
//! whose head multiplies with it.
//!
//! Blocks cost the same, the head costs about as much as a few of them, the embedding is a look-up: so the last chunk gets
//! fewer blocks, such that the dearest chunk is as cheap as it can be.

use super::Unit;
use crate::config::ModelConfig;

/// The chunks of the whole model in forward order; `stages * per_stage` of them, each with at least one block where there
/// are enough. The first holds the embedding, the last the head (and the embedding again where the two are tied).
/// `sequence`: tokens of a sequence, for the cost of attention.
pub fn chunks(model: &ModelConfig, stages: usize, per_stage: usize, sequence: usize) -> Vec<Vec<Unit>> {
    let mut first = 0;
    let blocks = |n: usize| {
        first += n;
        (first - n..first).map(Unit::Block).collect()
    };
    let mut out: Vec<Vec<Unit>> = counts(model, stages, per_stage, sequence).into_iter().map(blocks).collect();
    out[0].insert(0, Unit::Embedding);
    if let (true, Some(last)) = (stages > 1 && model.tie_word_embeddings, out.last_mut()) {
        last.push(Unit::Embedding);
    }
    if let Some(last) = out.last_mut() {
        last.push(Unit::Head);
    }
    out
}

/// Blocks of each chunk: the next block always goes where it leaves the cheapest chunk, then the cheapest stage, then to
/// the latest (which in most schedules keeps the fewest micro-batches' activations).
fn counts(model: &ModelConfig, stages: usize, per_stage: usize, sequence: usize) -> Vec<usize> {
    let (n, cost) = (stages * per_stage, Cost::new(model, sequence));
    let mut counts = vec![0; n];
    let total = |counts: &[usize], c: usize| counts[c] as f64 * cost.block() + if c + 1 == n { cost.head } else { 0.0 };
    for given in 0..model.num_hidden_layers {
        let load = |c: usize| {
            let stage: f64 = (c % stages..n).step_by(stages).map(|c| total(&counts, c)).sum();
            // One block for everybody comes first.
            (if given < n { counts[c] } else { 0 }, total(&counts, c), stage)
        };
        let lighter = |a: &usize, b: &usize| {
            let ((ca, ta, sa), (cb, tb, sb)) = (load(*a), load(*b));
            ca.cmp(&cb).then(ta.total_cmp(&tb)).then(sa.total_cmp(&sb)).then(b.cmp(a))
        };
        if let Some(c) = (0..n).min_by(lighter) {
            counts[c] += 1;
        }
    }
    counts
}

/// What one token costs in the forward pass, in multiply-adds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Products with a block's matrices: each costs as much again for the input gradient and for the weight gradient.
    pub matrices: f64,
    /// Attention's products in a block, below the diagonal: twice that in the backward pass, all for the input gradient.
    pub attention: f64,
    /// The logits.
    pub head: f64,
}

impl Cost {
    /// In sequences of `s` tokens.
    pub fn new(m: &ModelConfig, s: usize) -> Cost {
        let f = |n: usize| n as f64;
        Cost {
            matrices: f(m.hidden_size) * (2.0 * f(m.q_dim()) + 2.0 * f(m.kv_dim()) + 3.0 * f(m.intermediate_size)),
            attention: f(m.q_dim()) * (f(s) + 1.0),
            head: f(m.vocab_size) * f(m.hidden_size),
        }
    }

    fn block(&self) -> f64 {
        self.matrices + self.attention
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(layers: usize, vocab: usize) -> ModelConfig {
        serde_json::from_value(serde_json::json!({
            "vocab_size": vocab, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": layers,
            "num_attention_heads": 32, "num_key_value_heads": 8
        }))
        .unwrap()
    }

    #[test]
    fn the_head_weighs_as_much_as_the_blocks_it_replaces() {
        // Llama 3 8B: the head is 525e6 multiply-adds, a block 218e6 and, at 8192 tokens, 34e6 of attention.
        assert_eq!(counts(&model(32, 128256), 4, 1, 8192), [8, 9, 9, 6]);
        assert_eq!(counts(&model(32, 128256), 8, 1, 8192), [4, 4, 4, 4, 4, 5, 5, 2]);
        // A long context makes blocks dear, and a small vocabulary makes the head cheap.
        assert_eq!(counts(&model(32, 128256), 4, 1, 131072), [8, 8, 8, 8]);
        assert_eq!(counts(&model(32, 256), 4, 1, 8192), [8, 8, 8, 8]);
        assert_eq!(counts(&model(10, 256), 4, 1, 8192), [2, 3, 3, 2]);
        assert_eq!(counts(&model(18, 256), 4, 2, 8192), [2, 2, 2, 2, 2, 3, 3, 2]);
    }

    #[test]
    fn every_chunk_has_a_block_and_every_block_a_chunk() {
        for layers in 1..40 {
            for (stages, per_stage) in [(1, 1), (2, 1), (3, 1), (4, 2), (5, 3), (16, 1)] {
                let counts = counts(&model(layers, 128256), stages, per_stage, 4096);
                assert_eq!(counts.iter().sum::<usize>(), layers);
                assert!(layers < stages * per_stage || counts.iter().all(|&n| n > 0), "{layers} {stages} {per_stage}");
                let units = chunks(&model(layers, 128256), stages, per_stage, 4096).concat();
                let all: Vec<Unit> = (0..layers).map(Unit::Block).collect();
                assert_eq!(units[1..=layers], all);
                assert_eq!((units[0], units[layers + 1]), (Unit::Embedding, Unit::Head));
            }
        }
    }
}

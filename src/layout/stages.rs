//! Which units each pipeline stage holds. Pure arithmetic.
//!
//! The model is cut into stages × chunks-per-stage chunks of adjacent units, in forward order. Chunk c lies on stage
//! c mod stages (interleaving as in Megatron-LM, arXiv:2104.04473 §2.2). A tied embedding is also held by the last chunk,
//! whose head multiplies with it.

use super::Unit;
use crate::config::ModelConfig;

/// The chunks of the whole model in forward order; `stages * per_stage` of them, each with at least one block where there
/// are enough. The first holds the embedding, the last the head (and the embedding again where the two are tied).
pub fn chunks(model: &ModelConfig, stages: usize, per_stage: usize) -> Vec<Vec<Unit>> {
    let (n, layers) = (stages * per_stage, model.num_hidden_layers);
    let mut out: Vec<Vec<Unit>> =
        (0..n).map(|c| (layers * c / n..layers * (c + 1) / n).map(Unit::Block).collect()).collect();
    out[0].insert(0, Unit::Embedding);
    if let (true, Some(last)) = (stages > 1 && model.tie_word_embeddings, out.last_mut()) {
        last.push(Unit::Embedding);
    }
    if let Some(last) = out.last_mut() {
        last.push(Unit::Head);
    }
    out
}

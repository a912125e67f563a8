//! GPipe (arXiv:1811.06965 §2.3): every forward pass, then every backward pass. Simple, and the activations of all
//! micro-batches are alive at once. Idle share with equal stages: (P−1)/(M+P−1).

use super::Action;

pub fn list(stage: usize, micros: usize) -> Vec<Action> {
    let forward = (0..micros).map(|micro| Action::Forward { chunk: stage, micro });
    let backward = (0..micros).map(|micro| Action::Backward { chunk: stage, micro });
    forward.chain(backward).collect()
}

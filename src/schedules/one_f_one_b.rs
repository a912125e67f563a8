//! 1F1B (PipeDream-Flush, arXiv:2006.09503 §3.2): a stage starts as many forward passes as there are stages after it, then
//! alternates one forward and one backward pass. The same idle share as GPipe, with at most P micro-batches' activations
//! alive.

use super::Action;

pub fn list(stage: usize, stages: usize, micros: usize) -> Vec<Action> {
    let ahead = (stages - 1 - stage).min(micros);
    let forward = |micro| Action::Forward { chunk: stage, micro };
    let backward = |micro| Action::Backward { chunk: stage, micro };
    let mut out: Vec<Action> = (0..ahead).map(forward).collect();
    for micro in ahead..micros {
        out.extend([forward(micro), backward(micro - ahead)]);
    }
    out.extend((micros - ahead..micros).map(backward));
    out
}

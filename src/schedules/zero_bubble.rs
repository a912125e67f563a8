//! ZB-H1 (Zero Bubble Pipeline Parallelism, arXiv:2401.10241 §3): the backward pass is split into input gradients, which
//! the stage before waits for, and weight gradients, which nobody waits for and which fill the idle time.
//!
//! Input gradients come in the order of 1F1B. A stage lets the weight gradients lag behind them by as many micro-batches as
//! there are stages before it: then every stage has P micro-batches' activations alive, the peak of 1F1B's first stage,
//! and in the last stages, where 1F1B would wait at the end, weight gradients are left to do. Idle time with equal
//! stages: (P−1)·(F+B−W), where 1F1B has (P−1)·(F+B+W).

use super::Action;

pub fn list(stage: usize, stages: usize, micros: usize) -> Vec<Action> {
    let ahead = (stages - 1 - stage).min(micros);
    let lag = stage.min(micros);
    let mut out: Vec<Action> = (0..ahead).map(|micro| Action::Forward { chunk: stage, micro }).collect();
    for micro in 0..micros {
        if micro + ahead < micros {
            out.push(Action::Forward { chunk: stage, micro: micro + ahead });
        }
        out.push(Action::BackwardInput { chunk: stage, micro });
        if micro >= lag {
            out.push(Action::BackwardWeight { chunk: stage, micro: micro - lag });
        }
    }
    out.extend((micros - lag..micros).map(|micro| Action::BackwardWeight { chunk: stage, micro }));
    out
}

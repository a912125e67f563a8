//! Pipeline schedules as data: pure functions from (stages, micro-batches, chunks per stage) to a list of actions for every
//! stage. One executor runs the lists (`parallel/pipeline/executor.rs`), one simulator plays them ([`simulate`]).
//!
//! The model is cut into stages × chunks-per-stage chunks in forward order; chunk c lies on stage c mod stages. What is
//! sent follows from the actions ([`Action::output`]). On each stage every chunk's gradients are added up in the order
//! of the micro-batches, so that all schedules, and a rank alone, make the same bits.

mod gpipe;
mod interleaved;
mod one_f_one_b;
mod zero_bubble;

pub mod simulate;

use crate::config::PipelineSchedule;
use serde::{Deserialize, Serialize};

/// What a stage does next, with one micro-batch in one of its chunks (counted over the whole model).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// The forward pass, of training or of evaluation.
    Forward {
        /// Chunk of the whole model, from 0.
        chunk: usize,
        /// Micro-batch of the step, from 0.
        micro: usize,
    },
    /// Input and weight gradients together.
    Backward {
        /// Chunk of the whole model, from 0.
        chunk: usize,
        /// Micro-batch of the step, from 0.
        micro: usize,
    },
    /// Input gradients alone, which the chunk before waits for.
    BackwardInput {
        /// Chunk of the whole model, from 0.
        chunk: usize,
        /// Micro-batch of the step, from 0.
        micro: usize,
    },
    /// Weight gradients alone, at any time after the input gradients.
    BackwardWeight {
        /// Chunk of the whole model, from 0.
        chunk: usize,
        /// Micro-batch of the step, from 0.
        micro: usize,
    },
}

/// Every stage's actions in the order in which it does them.
pub type Lists = Vec<Vec<Action>>;

/// What one action hands to another: the activations after chunk `from`, or the gradient of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parcel {
    /// Chunk that makes it, from 0.
    pub from: usize,
    /// Chunk that reads it: the next one for activations, the one before for a gradient.
    pub to: usize,
    /// Micro-batch of the step, from 0.
    pub micro: usize,
}

impl Action {
    /// Chunk that it works on, counted from 0 over the whole model.
    pub fn chunk(self) -> usize {
        match self {
            Action::Forward { chunk, .. } | Action::Backward { chunk, .. } => chunk,
            Action::BackwardInput { chunk, .. } | Action::BackwardWeight { chunk, .. } => chunk,
        }
    }

    /// Micro-batch of the step that it works on, from 0.
    pub fn micro(self) -> usize {
        match self {
            Action::Forward { micro, .. } | Action::Backward { micro, .. } => micro,
            Action::BackwardInput { micro, .. } | Action::BackwardWeight { micro, .. } => micro,
        }
    }

    /// What it reads from the neighbouring chunk, in a model of `chunks`. None where it starts from token ids or the loss.
    pub fn input(self, chunks: usize) -> Option<Parcel> {
        match self {
            Action::Forward { chunk, micro } => (chunk > 0).then(|| Parcel { from: chunk - 1, to: chunk, micro }),
            Action::Backward { chunk, micro } | Action::BackwardInput { chunk, micro } => {
                (chunk + 1 < chunks).then_some(Parcel { from: chunk + 1, to: chunk, micro })
            }
            Action::BackwardWeight { .. } => None,
        }
    }

    /// What it hands to the neighbouring chunk, in a model of `chunks`.
    pub fn output(self, chunks: usize) -> Option<Parcel> {
        match self {
            Action::Forward { chunk, micro } => {
                (chunk + 1 < chunks).then_some(Parcel { from: chunk, to: chunk + 1, micro })
            }
            Action::Backward { chunk, micro } | Action::BackwardInput { chunk, micro } => {
                (chunk > 0).then(|| Parcel { from: chunk, to: chunk - 1, micro })
            }
            Action::BackwardWeight { .. } => None,
        }
    }
}

/// The action list of `stage` of `stages`, for `micros` micro-batches and `chunks` chunks a stage, all at least 1. `chunks`
/// must be 1 for all schedules but the interleaved one.
pub fn list(kind: PipelineSchedule, stage: usize, stages: usize, micros: usize, chunks: usize) -> Vec<Action> {
    match kind {
        PipelineSchedule::GPipe => gpipe::list(stage, micros),
        PipelineSchedule::OneFOneB => one_f_one_b::list(stage, stages, micros),
        PipelineSchedule::Interleaved => interleaved::list(stage, stages, micros, chunks),
        PipelineSchedule::ZeroBubble => zero_bubble::list(stage, stages, micros),
    }
}

/// The forward passes alone, for evaluation: every chunk of the stage in the order of the interleaved schedule.
pub fn forward_only(stage: usize, stages: usize, micros: usize, chunks: usize) -> Vec<Action> {
    let all = interleaved::list(stage, stages, micros, chunks);
    all.into_iter().filter(|a| matches!(a, Action::Forward { .. })).collect()
}

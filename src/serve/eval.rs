//! Evaluation: tasks read from JSON rows, put to an engine, and counted. The numbers are those of EleutherAI's lm-evaluation-harness
//! for the same contexts and continuations; a row's score is the same bits alone and in any company, as all of the engine's are.

pub mod put;
pub mod score;
pub mod task;

pub use put::{PutTask, ScoredText, TaskRules};
pub use score::{HeardText, Measure, TaskScore};
pub use task::{EvalTask, TaskKind, TaskRow};

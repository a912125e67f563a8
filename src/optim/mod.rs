//! The optimizer: AdamW on flat fp32 state, learning-rate schedules, clipping.

mod adamw;
mod moment;
mod schedule;

pub use adamw::{clip_factor, Optimizer, Slots};
pub use schedule::learning_rate;

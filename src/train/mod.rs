//! Training: the step, the loop around it, and what a person sees of both.
//!
//! Read `step` first: it is the paper's equations in order. `run` is the loop, `start` what comes before it, `origin` where
//! its state comes from, `first` its first weights, `heritage` what it takes over from the model it starts from, `corpora`
//! what it reads, `reference` what preference pairs are compared with and `measure` how that is computed, `rescue` where its
//! last state goes when the run directory is gone, `state` what a checkpoint holds, `report` what is written down.

mod batch;
mod behind;
mod corpora;
pub mod device_failure;
mod first;
mod heritage;
mod measure;
pub mod metrics;
mod origin;
pub mod progress;
pub mod prometheus;
pub mod records;
mod reference;
mod report;
mod resave;
mod rescue;
mod run;
mod signals;
mod spread;
mod start;
mod state;
mod step;
pub mod tasks;
pub mod tensorboard;
mod validate;

pub use resave::resave;
pub use run::{run, run_until, End};
pub use signals::StopFlag;

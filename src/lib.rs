//! herd trains and runs Llama 3 on Slurm clusters: one native binary, started by `srun`.
//!
//! # Layout
//! Rooms, from the top; a room uses only rooms below it.
//!
//! - [`cli`]: arguments, one file per command, exit codes, human output
//! - [`launch`]: the supervisor: attempts, nodes and spares, requeue, alerts
//! - [`train`]: the step, the loop, metrics, progress
//! - [`generate`]: KV cache, sampling
//! - [`parallel`]: one file per axis
//! - [`plan`]: configuration + world → everything resolved; memory formulas
//! - [`model`]: Llama 3 layers with explicit forward, backward_input, backward_weight
//! - [`optim`]: AdamW on fp32 state, learning-rate schedules, clipping
//! - [`checkpoint`]: the universal HDF5 format, restore, Hugging Face import and export
//! - [`liveness`]: probes, verdicts, the progress watchdog, how a rank leaves
//! - [`slurm`]: the environment that Slurm gives a step, and its commands
//! - [`data`]: tokenizers, indexed token files, sample order
//! - [`kernels`]: fused operations, each with its libtorch reference
//! - [`wire`]: moving bytes between ranks
//! - [`attempt`], [`durable`], [`events`], [`exit_record`], [`foreign`]: the number that fences old processes, files that survive
//!   a crash, what happened, why a process left, panics of other people's code
//! - [`topology`], [`layout`], [`config`], [`error`], [`progress`], [`text`]: values and pure functions

pub mod appended;
pub mod attempt;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod durable;
pub mod error;
pub mod events;
pub mod exit_record;
pub mod foreign;
pub mod generate;
pub mod kernels;
pub mod launch;
pub mod layout;
pub mod liveness;
pub mod model;
pub mod optim;
pub mod parallel;
pub mod plan;
pub mod progress;
pub mod slurm;
pub mod text;
pub mod topology;
pub mod train;
pub mod wire;

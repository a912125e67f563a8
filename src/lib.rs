//! herd trains and runs Llama 3 on Slurm clusters: one native binary, started by `srun`.
//!
//! # Layout
//! Rooms, from the top; a room uses only rooms below it.
//!
//! - [`cli`]: arguments, one file per command, exit codes, human output
//! - [`report`]: a run as a page: what its files say, thinned out; the live page
//! - [`simulate`]: the real supervisor against a simulated cluster
//! - [`launch`]: the supervisor: attempts, nodes and spares, retry policy, alerts
//! - [`doctor`]: what the nodes of a run are like: measured on all at once, judged by their peers
//! - [`train`]: the step, the loop, metrics, progress
//! - [`serve`]: running a model: scheduler of requests, paged cache, sampling, files of requests, HTTP
//! - [`parallel`]: the pipeline's executor, ZeRO over the replicas, every communicator of a rank; tensor and context
//!   parallelism are inside the layers of `model`
//! - [`plan`]: configuration + world → everything resolved; memory and FLOP formulas; what a run will
//!   take on given machines
//! - [`schedules`]: pipeline schedules as lists of actions, and the simulator that plays them
//! - [`optim`]: AdamW on sharded fp32 state, learning-rate schedules, clipping
//! - [`model`]: Llama 3 layers: `forward`, `backward_input`, `backward_weight`, no autograd
//! - [`convert`]: models in other forms: Hugging Face, Meta's originals, GGUF
//! - [`tiers`]: snapshots in the memory of nodes, their second copies, saving behind the steps, restore over all tiers
//! - [`store`]: the object store: upload, download, verification
//! - [`checkpoint`]: the HDF5 format: save, read, verify, prune
//! - [`liveness`]: probes, monitor, watchdog, verdicts, fencing, how a rank leaves
//! - [`slurm`]: what Slurm tells a step about itself, what this site's Slurm can do, its commands
//! - [`data`]: tokenizers, chat templates, indexed token files and loss masks, sample order
//! - [`kernels`]: fused operations, each with its libtorch reference
//! - [`wire`]: tensors between ranks: collectives and messages over MPI, NCCL, and MPI with host staging
//! - [`world`]: the MPI world: ranks, small host messages, meters
//! - [`appended`], [`attempt`], [`durable`], `dynamic`, [`events`], [`exit_record`], [`foreign`], [`json_lines`], [`lazy_file`], `threads`: small files and how a process
//!   leaves: the number that fences old processes, files that survive a crash or are rotated, libraries found while the program runs, what happened, why a process
//!   left, panics of other people's code, lines read in bounded memory, files that are opened when they are first read, threads
//! - [`host`]: the host that a supervisor runs on: clock, processes, files; the real one, or one that is simulated
//! - [`config`], [`error`], [`layout`], [`progress`], [`run_dir`], [`text`], [`topology`]: values and pure functions

#![deny(missing_docs)]

pub mod appended;
pub mod attempt;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod convert;
pub mod data;
pub mod doctor;
pub mod durable;
mod dynamic;
pub mod error;
pub mod events;
pub mod exit_record;
pub mod foreign;
pub mod host;
pub mod json_lines;
pub mod kernels;
pub mod launch;
pub mod layout;
pub mod lazy_file;
pub mod liveness;
pub mod model;
pub mod optim;
pub mod parallel;
pub mod plan;
pub mod progress;
pub mod report;
pub mod run_dir;
pub mod schedules;
pub mod serve;
pub mod simulate;
pub mod slurm;
pub mod store;
pub mod text;
mod threads;
pub mod tiers;
pub mod topology;
pub mod train;
pub mod wire;
pub mod world;

//! Integration tests: they run the real binary, real MPI ranks and, where asked, a real private Slurm.

mod support;

mod chat;
mod checkpoint;
mod cli;
mod config;
mod context;
mod crash;
mod data;
mod data_parallel;
mod errors;
mod generate;
mod inputs;
mod layout;
mod liveness;
mod memory;
mod meta;
mod metrics;
mod model;
mod models_in_out;
mod parity;
mod pipeline;
mod plan;
mod progress;
mod recycle;
mod reshard;
mod shard;
mod slurm;
mod store;
mod tensor;
mod tiers;
mod train;
mod train_errors;
mod wire;
mod zero;

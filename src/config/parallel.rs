//! The `parallel` section: sizes of the axes and how they exchange.

use super::limit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sizes of the parallel axes. Their product is the number of ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ParallelSection {
    /// Tensor-parallel ranks.
    #[schemars(range(min = 1, max = limit::RANKS))]
    pub tensor: usize,
    /// Context-parallel ranks.
    #[schemars(range(min = 1, max = limit::RANKS))]
    pub context: usize,
    /// Pipeline stages.
    #[schemars(range(min = 1, max = limit::RANKS))]
    pub pipeline: usize,
    /// Order of the passes of the pipeline stages.
    pub schedule: PipelineSchedule,
    /// Chunks of the model on each pipeline stage; more than 1 with the interleaved schedule only.
    #[schemars(range(min = 1, max = limit::RANKS))]
    pub chunks: usize,
    /// Data-parallel replicas; 0 takes what the other axes leave of the world.
    #[schemars(range(max = limit::RANKS))]
    pub data: usize,
    /// What the replicas share out (ZeRO, arXiv:1910.02054): 0 nothing, 1 optimizer state, 2 also gradients, 3 also
    /// parameters.
    #[schemars(range(max = 3))]
    pub zero: u8,
    /// Replicas that share one copy of that state (hybrid sharding); divides context × data. 0 takes all of them.
    #[schemars(range(max = limit::RANKS))]
    pub shard_size: usize,
    /// Gradient bucket size in MiB; whole units are put together until it is reached (`zero` 0 and 1).
    #[schemars(range(min = 1, max = 65536))]
    pub bucket_mib: usize,
    /// Reduce gradients and gather parameters while computation goes on.
    pub overlap: bool,
}

/// In which order pipeline stages pass micro-batches forward and backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PipelineSchedule {
    /// All forward, then all backward.
    #[serde(rename = "gpipe")]
    GPipe,
    /// One forward, one backward: activations of at most as many micro-batches as there are stages.
    #[default]
    #[serde(rename = "1f1b")]
    OneFOneB,
    /// 1F1B with several chunks a stage: a shorter bubble for more messages.
    Interleaved,
    /// 1F1B with weight gradients put off into the bubble (ZB-H1).
    ZeroBubble,
}

impl Default for ParallelSection {
    fn default() -> Self {
        ParallelSection {
            tensor: 1,
            context: 1,
            pipeline: 1,
            schedule: PipelineSchedule::default(),
            chunks: 1,
            data: 0,
            zero: 1,
            shard_size: 0,
            bucket_mib: 25,
            overlap: true,
        }
    }
}

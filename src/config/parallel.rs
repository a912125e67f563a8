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

impl Default for ParallelSection {
    fn default() -> Self {
        ParallelSection {
            tensor: 1,
            context: 1,
            pipeline: 1,
            data: 0,
            zero: 1,
            shard_size: 0,
            bucket_mib: 25,
            overlap: true,
        }
    }
}

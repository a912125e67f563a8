//! The topologies between which checkpoints move, and the run that each of them is.

use std::path::Path;

pub struct Topology {
    pub name: &'static str,
    tensor: usize,
    context: usize,
    pipeline: usize,
    data: usize,
    more: &'static [&'static str],
}

const fn topology(
    name: &'static str, [tensor, context, pipeline, data]: [usize; 4], more: &'static [&'static str],
) -> Topology {
    Topology { name, tensor, context, pipeline, data, more }
}

/// Each axis, each ZeRO stage, hybrid sharding, a schedule with chunks; with four tensor ranks each key/value head is held twice.
pub const TOPOLOGIES: [Topology; 8] = [
    topology("one rank", [1, 1, 1, 1], &["parallel.zero=0"]),
    topology("dp2 zero0", [1, 1, 1, 2], &["parallel.zero=0"]),
    topology("dp4 zero1", [1, 1, 1, 4], &["parallel.zero=1"]),
    topology("dp4 zero3 hybrid", [1, 1, 1, 4], &["parallel.zero=3", "parallel.shard_size=2"]),
    topology("tp2 dp2 zero2", [2, 1, 1, 2], &["parallel.zero=2"]),
    topology(
        "pp2 interleaved dp2 zero3",
        [1, 1, 2, 2],
        &["parallel.zero=3", "parallel.schedule=interleaved", "parallel.chunks=2"],
    ),
    topology("tp2 cp2 zero3", [2, 2, 1, 1], &["parallel.zero=3"]),
    topology("tp4 pp2 zero1", [4, 1, 2, 1], &["parallel.zero=1", "parallel.schedule=zero_bubble"]),
];

/// Uneven on purpose: 5 layers over stages of 2 chunks, 263 rows over 4 tensor ranks, 2 KV heads for 4 tensor ranks.
const MODELS: [&str; 2] = [
    "{vocab_size: 263, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 5, num_attention_heads: 4, \
      num_key_value_heads: 2, head_dim: 8, max_position_embeddings: 64, rope_theta: 10000.0}",
    "{vocab_size: 263, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 5, num_attention_heads: 4, \
      num_key_value_heads: 2, max_position_embeddings: 64, rope_theta: 10000.0, tie_word_embeddings: true}",
];

impl Topology {
    pub fn ranks(&self) -> usize {
        self.tensor * self.context * self.pipeline * self.data
    }

    /// Keys of a run of the model `model` in `run_dir`.
    pub fn sets(&self, model: usize, run_dir: &Path, steps: u64, global: u64) -> Vec<String> {
        let mut sets = vec![
            format!("run_dir={}", run_dir.display()),
            format!("model.shape={}", MODELS[model]),
            format!("batch.global={global}"),
            format!("train.steps={steps}"),
            format!("parallel.tensor={}", self.tensor),
            format!("parallel.context={}", self.context),
            format!("parallel.pipeline={}", self.pipeline),
            format!("parallel.data={}", self.data),
        ];
        let same = [
            "data.sequence_length=32",
            "data.validation=[]",
            "validation.every=0",
            "batch.micro=1",
            "train.precision=fp32",
            "train.threads=1",
            "optim.lr=1e-3",
            "optim.warmup_steps=2",
            "checkpoint.keep=0",
            "checkpoint.background=false",
            "log.tensorboard=false",
        ];
        sets.extend(same.iter().chain(self.more).map(|s| s.to_string()));
        sets
    }
}

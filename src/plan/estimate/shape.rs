//! What the time of a step depends on, of a run as it is cut into ranks: sizes and axes, without devices. A plan gives one,
//! and so does a row of published figures of another program.

use super::hardware::{DeviceKind, Hardware};
use crate::config::{Config, ModelConfig, PipelineSchedule, Precision, Recompute};
use crate::layout::Unit;
use crate::plan::memory::KernelForms;
use crate::plan::{axes, Plan, Ranks};
use std::sync::Arc;

/// A step, cut into ranks.
#[derive(Clone, Debug)]
pub struct StepShape {
    /// The whole model's sizes.
    pub model: ModelConfig,
    /// Tokens a sequence.
    pub sequence: usize,
    /// Sequences a micro-batch.
    pub micro: usize,
    /// Micro-batches a step on each rank.
    pub accumulation: usize,
    /// Whether the compute dtype is bf16; fp32 otherwise.
    pub bf16: bool,
    /// Ranks on the tensor axis.
    pub tensor: usize,
    /// Ranks on the context axis.
    pub context: usize,
    /// Stages: ranks on the pipeline axis.
    pub pipeline: usize,
    /// Ranks on the data axis.
    pub data: usize,
    /// Order of passes on the stages.
    pub schedule: PipelineSchedule,
    /// Of the whole model in forward order; chunk c lies on stage c mod `pipeline`.
    pub chunks: Arc<[ChunkSize]>,
    /// 0 where nothing is shared out.
    pub zero: u8,
    /// Replicas that share one copy of the state.
    pub shard: usize,
    /// Bytes of fp32 gradients from which on a bucket is sent, with ZeRO 0 and 1.
    pub bucket_bytes: f64,
    /// Whether replicas exchange while computation goes on.
    pub overlap: bool,
    /// What the backward pass makes again.
    pub recompute: Recompute,
    /// Blocks of a stage that recompute; 0: all.
    pub recompute_blocks: usize,
    /// Kernels that time is counted with.
    pub forms: KernelForms,
    /// Threads of a rank on a CPU.
    pub threads: usize,
    /// Ranks on a node.
    pub local: usize,
    /// Steps between snapshots; 0 never.
    pub snapshot_every: u64,
    /// Whether the update is made in host memory.
    pub offload: bool,
}

/// Units of one chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkSize {
    /// Whether it begins with the embedding.
    pub embedding: bool,
    /// Transformer blocks.
    pub blocks: usize,
    /// Whether it ends with the head.
    pub head: bool,
}

impl ChunkSize {
    /// Of a chunk's units in forward order.
    pub fn of(units: &[Unit]) -> ChunkSize {
        ChunkSize {
            embedding: units.first() == Some(&Unit::Embedding),
            blocks: units.iter().filter(|u| matches!(u, Unit::Block(_))).count(),
            head: units.last() == Some(&Unit::Head),
        }
    }
}

impl StepShape {
    /// Of `plan`, with kernels of these forms.
    pub fn of(plan: &Plan, forms: KernelForms) -> StepShape {
        let chunks = plan.chunks.iter().map(|units| ChunkSize::of(units)).collect();
        StepShape::new(&plan.config, &plan.model, plan.topology.sizes, chunks, forms, (plan.threads, plan.local_size))
    }

    /// Of a configuration that fits a world of `ranks`, without the layout that a plan makes; `chunks` are
    /// the model's on its pipeline.
    pub fn cut(
        config: &Config, model: &ModelConfig, ranks: &Ranks, chunks: Arc<[ChunkSize]>, forms: KernelForms,
    ) -> StepShape {
        let p = &config.parallel;
        let sizes = [p.tensor, p.context, p.pipeline, axes::data_size(p, ranks.size)];
        let threads = if config.train.threads == 0 { ranks.cores.max(1) } else { config.train.threads };
        StepShape::new(config, model, sizes, chunks, forms, (threads, ranks.local_size))
    }

    fn new(
        c: &Config, model: &ModelConfig, sizes: [usize; 4], chunks: Arc<[ChunkSize]>, forms: KernelForms,
        (threads, local): (usize, usize),
    ) -> StepShape {
        let ([tensor, context, pipeline, data], p) = (sizes, &c.parallel);
        let replicas = context * data;
        let shard = match (p.zero, p.shard_size) {
            (0, _) => 1,
            (_, 0) => replicas,
            (_, n) => n.min(replicas),
        };
        StepShape {
            model: model.clone(),
            sequence: c.data.sequence_length,
            micro: c.batch.micro,
            accumulation: c.batch.global / (c.batch.micro * data),
            bf16: c.train.precision == Precision::Bf16,
            tensor,
            context,
            pipeline,
            data,
            schedule: p.schedule,
            chunks,
            zero: if shard == 1 { 0 } else { p.zero },
            shard,
            bucket_bytes: (p.bucket_mib << 20) as f64,
            overlap: p.overlap,
            recompute: c.train.recompute,
            recompute_blocks: c.train.recompute_blocks,
            forms,
            threads,
            local,
            snapshot_every: c.checkpoint.snapshot_every,
            offload: c.optim.offload,
        }
    }

    /// Ranks in all.
    pub fn world(&self) -> usize {
        self.tensor * self.context * self.pipeline * self.data
    }

    /// Ranks with the same parameters and other tokens: context × data.
    pub fn replicas(&self) -> usize {
        self.context * self.data
    }

    /// Chunks on each pipeline stage.
    pub fn per_stage(&self) -> usize {
        self.chunks.len() / self.pipeline
    }

    /// Bytes of the compute dtype.
    pub fn elem(&self) -> f64 {
        if self.bf16 {
            2.0
        } else {
            4.0
        }
    }

    /// Tokens of a micro-batch on one rank.
    pub fn tokens(&self) -> f64 {
        (self.micro * self.sequence) as f64 / self.context as f64
    }

    /// Tokens a step over all ranks.
    pub fn tokens_per_step(&self) -> f64 {
        (self.micro * self.accumulation * self.data * self.sequence) as f64
    }

    /// Chunks of one stage, in forward order.
    pub fn stage(&self, stage: usize) -> impl Iterator<Item = ChunkSize> + '_ {
        self.chunks.iter().skip(stage).step_by(self.pipeline).copied()
    }

    /// Parameters of a block, of the embedding and of the head on one rank of the tensor axis.
    pub fn unit_parameters(&self) -> UnitSizes {
        let (m, t) = (&self.model, self.tensor);
        let (h, d) = (m.hidden_size, m.head_dim());
        let kv = (m.num_key_value_heads / t).max(1) * d;
        let q = m.num_attention_heads / t * d;
        let rows = (m.vocab_size.div_ceil(t) * h) as f64;
        UnitSizes {
            block: (h * (2 * q + 2 * kv + 3 * m.intermediate_size.div_ceil(t)) + 2 * h) as f64,
            embedding: rows,
            head: h as f64 + if m.tie_word_embeddings { 0.0 } else { rows },
        }
    }

    /// Parameters on one rank of a stage.
    pub fn stage_parameters(&self, stage: usize) -> f64 {
        let sizes = self.unit_parameters();
        self.stage(stage).map(|c| sizes.chunk(c)).sum()
    }

    /// How many times slower ranks are where they share cores, and how many of the node's rate units a rank has.
    pub fn share(&self, hardware: &Hardware) -> Share {
        match (hardware.device, hardware.cores) {
            (DeviceKind::Cpu, Some(cores)) => {
                let threads = self.threads.clamp(1, cores);
                Share { speed: threads as f64, crowd: (self.local * threads) as f64 / cores as f64 }
            }
            _ => Share { speed: 1.0, crowd: 1.0 },
        }
    }
}

/// Parameters by kind of unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnitSizes {
    pub block: f64,
    pub embedding: f64,
    pub head: f64,
}

impl UnitSizes {
    pub fn chunk(&self, c: ChunkSize) -> f64 {
        let of = |is: bool, n: f64| if is { n } else { 0.0 };
        of(c.embedding, self.embedding) + c.blocks as f64 * self.block + of(c.head, self.head)
    }
}

/// A rank's share of its node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Of the rate of one device, or core.
    pub speed: f64,
    /// Threads that want to run at once over the cores that there are.
    pub crowd: f64,
}

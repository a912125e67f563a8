//! Runs of other programs whose speed was published, each predicted by the same roofline. One number is fitted for each kind
//! of machine, a factor on speed, and for each row it is the geometric mean over the *other* rows of that kind: no row is
//! fitted to itself.
//!
//! What a source does not say is assumed, and said with the row.

use super::hardware::Hardware;
use super::shape::{ChunkSize, StepShape};
use super::step::{self, StepEstimate};
use crate::config::{ModelConfig, PipelineSchedule, Recompute};
use crate::error::Result;
use crate::plan::flops::PerToken;
use crate::plan::memory::{KernelForm, KernelForms};
use serde::Serialize;
use std::sync::Arc;

/// A published speed beside the one predicted from the other rows.
#[derive(Clone, Debug, Serialize)]
pub struct PublishedRow {
    /// Model, devices and layout, for a table.
    pub name: &'static str,
    /// Name of the device; rows of the same one share a factor.
    pub machine: String,
    /// Where the speed was published.
    pub source: &'static str,
    /// What the source does not say, as it was taken here.
    pub assumed: &'static str,
    /// Share of the peak, as the source counts FLOPs.
    pub published_mfu: f64,
    /// The roofline's, before the common factor.
    pub roofline_mfu: f64,
    /// Geometric mean of published over roofline, of the other rows on this kind of machine.
    pub factor: f64,
    /// The roofline's times the factor.
    pub predicted_mfu: f64,
    /// Predicted over published, less 1.
    pub error: f64,
    /// What the roofline's step goes to.
    pub step: StepEstimate,
}

/// How a source states its speed.
enum Speed {
    /// MFU, attention counted below the diagonal.
    Causal(f64),
    /// Tokens a second and device.
    Tokens(f64),
}

struct Row {
    name: &'static str,
    source: &'static str,
    assumed: &'static str,
    speed: Speed,
    hardware: Hardware,
    shape: StepShape,
}

const LLAMA: &str = "The Llama 3 Herd of Models, arXiv:2407.21783, table 4";
const TITAN: &str = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md";
const TITAN_A100: &str = "torchtitan, docs/performance.md of 2024-06";
const NEMO: &str = "NVIDIA NeMo 24.09 performance summary";

const PAPER: &str =
    "micro-batches of one sequence; the interleaved schedule with one block a chunk; gradients reduce-scattered in \
                     fp32 once a step (the paper says that they are sharded, not how often they are summed); nothing \
                     recomputed; attention counted below the diagonal";
const PAPER_LONG: &str = "as the rows before; attention at 65% and 55% of the peak (arXiv:2407.08608, 16,384 tokens)";
const EAGER: &str =
    "FlashAttention-2 at 35% and 30% of the peak (arXiv:2407.08608); every second product made again; operations \
                     between products move 0.47 of the bytes of herd's reference";
const COMPILED: &str = "as eager, but operations between products fused";

/// Every row, predicted from the others.
///
/// # Errors
/// Those of the pipeline's simulator.
pub fn rows() -> Result<Vec<PublishedRow>> {
    let rows = table();
    let (mut roofline, mut steps) = (Vec::new(), Vec::new());
    for row in &rows {
        let step = step::estimate(&row.shape, &row.hardware)?;
        let rate = row.shape.tokens_per_step() / step.seconds / row.shape.world() as f64;
        roofline.push(rate * per_token(row) / row.hardware.peak(true));
        steps.push(step);
    }
    let published: Vec<f64> = rows.iter().map(published_mfu).collect();
    let logs: Vec<f64> = published.iter().zip(&roofline).map(|(p, r)| (p / r).ln()).collect();
    let others = |i: usize| {
        let alike = |j: &usize| *j != i && rows[*j].hardware.name == rows[i].hardware.name;
        let alike: Vec<f64> = (0..rows.len()).filter(alike).map(|j| logs[j]).collect();
        (alike.iter().sum::<f64>() / alike.len() as f64).exp()
    };
    let predicted = |(i, row): (usize, &Row)| {
        let factor = others(i);
        PublishedRow {
            name: row.name,
            machine: row.hardware.name.clone(),
            source: row.source,
            assumed: row.assumed,
            published_mfu: published[i],
            roofline_mfu: roofline[i],
            factor,
            predicted_mfu: factor * roofline[i],
            error: factor * roofline[i] / published[i] - 1.0,
            step: steps[i],
        }
    };
    Ok(rows.iter().enumerate().map(predicted).collect())
}

/// The largest error of all rows.
pub fn largest_error(rows: &[PublishedRow]) -> f64 {
    rows.iter().map(|r| r.error.abs()).fold(0.0, f64::max)
}

fn per_token(row: &Row) -> f64 {
    PerToken::new(&row.shape.model, row.shape.sequence).causal
}

fn published_mfu(row: &Row) -> f64 {
    match row.speed {
        Speed::Causal(mfu) => mfu,
        Speed::Tokens(rate) => rate * per_token(row) / row.hardware.peak(true),
    }
}

/// Llama 3 of (layers, hidden, intermediate, heads).
fn llama((layers, hidden, intermediate, heads): (usize, usize, usize, usize)) -> ModelConfig {
    ModelConfig {
        vocab_size: 128_256,
        hidden_size: hidden,
        intermediate_size: intermediate,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: 8,
        head_dim: None,
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: None,
        tie_word_embeddings: false,
        initializer_range: 0.02,
    }
}

const B8: (usize, usize, usize, usize) = (32, 4096, 14_336, 32);
const B70: (usize, usize, usize, usize) = (80, 8192, 28_672, 64);
const B405: (usize, usize, usize, usize) = (126, 16_384, 53_248, 128);

/// One stage, fused kernels, ZeRO 3 over all replicas; `batch` sequences a step.
fn sharded(model: ModelConfig, data: usize, micro: usize, batch: usize) -> StepShape {
    let blocks = model.num_hidden_layers;
    StepShape {
        model,
        sequence: 8192,
        micro,
        accumulation: batch / (micro * data),
        bf16: true,
        tensor: 1,
        context: 1,
        pipeline: 1,
        data,
        schedule: PipelineSchedule::OneFOneB,
        chunks: Arc::new([ChunkSize { embedding: true, blocks, head: true }]),
        zero: 3,
        shard: data,
        bucket_bytes: 25e6,
        overlap: true,
        recompute: Recompute::None,
        recompute_blocks: 0,
        forms: KernelForms::FUSED,
        threads: 1,
        local: 8,
        snapshot_every: 0,
        offload: false,
    }
}

/// Llama 3 405B on tensor 8 and pipeline 16, a block a chunk.
fn herd_of_models(context: usize, data: usize, sequence: usize, batch: usize) -> StepShape {
    let chunk = |i| ChunkSize { embedding: i == 0, blocks: usize::from(i > 0 && i < 127), head: i == 127 };
    StepShape {
        sequence,
        tensor: 8,
        context,
        pipeline: 16,
        schedule: PipelineSchedule::Interleaved,
        chunks: (0..128).map(chunk).collect(),
        zero: 1,
        shard: context * data,
        ..sharded(llama(B405), data, 1, batch)
    }
}

/// torchtitan's selective checkpointing by operation makes every second product again.
fn half_recomputed(shape: StepShape) -> StepShape {
    let recompute_blocks = shape.model.num_hidden_layers / 2;
    StepShape { recompute: Recompute::Full, recompute_blocks, ..shape }
}

/// PyTorch without a compiler: between products it moves about 0.47 of the bytes that herd's fp32 reference does. In units of
/// one activation N·H·e a block, forward and backward: norms 148, SwiGLU in bf16 49 (reference 300), rotation 25 (50),
/// residuals 12 (in the product), gradients of weights 16 (32): 250 of 530; cross-entropy 16 of 34 passes over the logits.
fn eager(row: Row) -> Row {
    let mut hardware = row.hardware;
    hardware.efficiency.memory /= 0.47;
    let forms = KernelForms { attention: KernelForm::Fused, ..KernelForms::UNFUSED };
    Row { hardware, shape: StepShape { forms, ..row.shape }, ..row }
}

fn named(name: &str) -> Hardware {
    let found = Hardware::table().into_iter().find(|h| h.name == name);
    found.expect("a device of the table")
}

/// Flash attention reaches more on long sequences than at 8,192 tokens.
fn long(row: Row) -> Row {
    let mut hardware = row.hardware;
    (hardware.efficiency.attention_forward, hardware.efficiency.attention_backward) = (0.65, 0.55);
    Row { hardware, assumed: PAPER_LONG, ..row }
}

/// H100 at 500 W with HBM2e, and FlashAttention-2.
fn titan() -> Hardware {
    let mut h = named("h100");
    h.name = "h100, 500 W".into();
    h.memory_gb_s = 2400.0;
    (h.efficiency.attention_forward, h.efficiency.attention_backward) = (0.35, 0.30);
    h
}

fn table() -> Vec<Row> {
    let paper = |name, context, data, sequence, batch, mfu| Row {
        name,
        source: LLAMA,
        assumed: PAPER,
        speed: Speed::Causal(mfu),
        hardware: named("h100"),
        shape: herd_of_models(context, data, sequence, batch),
    };
    let titan_row = |name, assumed, rate, shape| Row {
        name,
        source: TITAN,
        assumed,
        speed: Speed::Tokens(rate),
        hardware: titan(),
        shape,
    };
    vec![
        paper("405B on 8,192 H100, tensor 8, pipeline 16, data 64", 1, 64, 8192, 2048, 0.43),
        paper("405B on 16,384 H100, tensor 8, pipeline 16, data 128", 1, 128, 8192, 2048, 0.41),
        long(paper("405B on 16,384 H100, tensor 8, context 16, pipeline 16, data 8, 131,072 tokens", 16, 8, 131_072, 128, 0.38)),
        eager(titan_row("8B on 8 H100, FSDP, eager", EAGER, 5762.0, half_recomputed(sharded(llama(B8), 8, 2, 16)))),
        titan_row("8B on 8 H100, FSDP, compiled", COMPILED, 6667.0, half_recomputed(sharded(llama(B8), 8, 2, 16))),
        eager(titan_row("8B on 128 H100, FSDP, eager", EAGER, 5605.0, half_recomputed(sharded(llama(B8), 128, 2, 256)))),
        titan_row("8B on 128 H100, FSDP, compiled", COMPILED, 6514.0, half_recomputed(sharded(llama(B8), 128, 2, 256))),
        Row {
            name: "8B on 8 H100, context 2",
            source: NEMO,
            assumed: "the layout of the 24.07 page (context 2, micro-batches of 1, batch 128); the optimizer's state shared out; \
                      nothing recomputed; everything fused; 700 W",
            speed: Speed::Tokens(10_153.0),
            hardware: named("h100"),
            shape: StepShape { context: 2, zero: 1, shard: 8, ..sharded(llama(B8), 4, 1, 128) },
        },
        eager(Row {
            name: "8B on 64 A100, FSDP, eager",
            source: TITAN_A100,
            assumed: "as the eager rows above; FlashAttention-2 at 60% and 50% of the peak",
            speed: Speed::Tokens(2973.0),
            hardware: named("a100"),
            shape: half_recomputed(sharded(llama(B8), 64, 1, 64)),
        }),
        eager(Row {
            name: "70B on 64 A100, FSDP, eager, full recomputation",
            source: TITAN_A100,
            assumed: "as the eager rows above; FlashAttention-2 at 60% and 50% of the peak",
            speed: Speed::Tokens(331.0),
            hardware: named("a100"),
            shape: StepShape { recompute: Recompute::Full, ..sharded(llama(B70), 64, 1, 64) },
        }),
    ]
}

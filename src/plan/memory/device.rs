//! The CUDA column: what a device's kernels hold that a CPU's do not, and what lies on the card beside tensors.
//!
//! Attention that is fused has no S² term: its backward pass holds the three gradients, the queries' once more in fp32, and, where
//! heads share keys, those of keys and values once for each query head. Row-wise operations
//! are herd's own kernels, which hold nothing beside their results; rows that those do not take (`own::takes_rows`) run over pieces
//! (`kernels::cuda::pieces`), so their temporaries are bounded. On a card without NVRTC all of them do: not counted here.

use crate::kernels::cuda::{attend, own, pieces, unfused_bytes};
use crate::layout::Sharding;
use crate::plan::Plan;
use crate::topology::Axis;

/// Bytes on a CUDA device that are no tensors of herd's, all zero on a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct BesideTensors {
    /// cuBLAS's workspace: 32 MiB on sm_90 and newer, which is what libtorch gives it.
    pub workspace: u64,
    /// NCCL's buffers: of each communicator for collectives over several ranks, and of each direction to a neighbour of the
    /// pipeline. Assumed, not measured.
    pub communicators: u64,
    /// The CUDA context with the kernels of libtorch, cuBLAS and cuDNN that are in use. Assumed, not measured.
    pub context: u64,
}

const MIB: u64 = 1 << 20;
const WORKSPACE: u64 = 32 * MIB;
const COLLECTIVES: u64 = 512 * MIB;
const MESSAGES: u64 = 32 * MIB;
const CONTEXT: u64 = 768 * MIB;

impl BesideTensors {
    /// Beside the tensors of this rank of `plan`.
    pub fn of(plan: &Plan) -> BesideTensors {
        if !plan.device.is_cuda() {
            return BesideTensors::default();
        }
        let messages = 2 * neighbours(plan);
        let communicators = collectives(plan) * COLLECTIVES + messages * MESSAGES;
        BesideTensors { workspace: WORKSPACE, communicators, context: CONTEXT }
    }

    /// Bytes of all three.
    pub fn total(&self) -> u64 {
        self.workspace + self.communicators + self.context
    }
}

/// Communicators of this rank for collectives (`parallel::Wires`, `parallel::groups`), those of one rank left out.
fn collectives(plan: &Plan) -> u64 {
    let (topo, sharding) = (&plan.topology, Sharding::new(&plan.config.parallel, &plan.topology));
    let several = |size: usize| (size > 1) as u64;
    let axes = several(topo.size(Axis::Tensor)) + several(topo.size(Axis::Context));
    let sharers = topo.size(Axis::Tensor) > plan.model.num_key_value_heads;
    let tied = plan.model.tie_word_embeddings && topo.size(Axis::Pipeline) > 1;
    // Gradients and parameters each have one of their own over the ranks that share a copy.
    let replicas = 2 * several(sharding.group) + several(sharding.across_ranks(topo).len());
    axes + replicas + sharers as u64 + tied as u64
}

fn neighbours(plan: &Plan) -> u64 {
    let stages = plan.topology.size(Axis::Pipeline);
    match stages {
        1 => 0,
        2 => 1,
        // With several chunks a stage the pipeline is a ring.
        _ => 2,
    }
}

/// Bytes of a micro-batch's attention backward beyond its activations, of N queries with Q = Hq·D and A = (Hq + 2·Hkv)·D columns.
pub(super) fn attention(plan: &Plan, [n, q, a]: [u128; 3], heads: u128) -> u128 {
    let e = plan.dtype.elt_size_in_bytes() as u128;
    let context = plan.topology.size(Axis::Context) as u128;
    let keys = n * context * (a - q);
    if attend::fuses_kind(plan.dtype, plan.model.head_dim() as i64) {
        let grouped = if a - q < 2 * q { n * context * 2 * q * e } else { 0 };
        return n * q * (e + 4) + keys * e + grouped + 8 * n * heads;
    }
    let length = plan.config.data.sequence_length;
    let sequences = plan.micro_batch;
    unfused_bytes(length, sequences * heads as usize) as u128 + keys * 4 + n * q * 16
}

/// Bytes of the temporaries of the hungriest row-wise operation on N tokens of width H and of F, in the blocks.
pub(super) fn temporaries(plan: &Plan, [n, h, f]: [u128; 3]) -> u128 {
    let narrow = plan.dtype.elt_size_in_bytes() < 4;
    let swiglu = match takes(plan, f) {
        true => 0,
        false => piece(n, 2 * f) * if narrow { 22 } else { 16 },
    };
    swiglu.max(pieces_of(plan, [n, h], if narrow { 36 } else { 24 }))
}

/// Bytes of the loss's temporaries on a chunk of `rows` of V' logits.
pub(super) fn loss_temporaries(plan: &Plan, chunk: [u128; 2]) -> u128 {
    pieces_of(plan, chunk, if plan.dtype.elt_size_in_bytes() < 4 { 16 } else { 12 })
}

/// Of an operation that holds `each` bytes an element of a piece: fp32 copies that live at once, and in bf16 those of the arguments
/// (`kernels::reference`). herd's own kernels hold none.
fn pieces_of(plan: &Plan, [n, width]: [u128; 2], each: u128) -> u128 {
    match takes(plan, width) {
        true => 0,
        false => piece(n, width) * each,
    }
}

fn takes(plan: &Plan, columns: u128) -> bool {
    own::takes_rows(plan.dtype, i64::try_from(columns).unwrap_or(i64::MAX))
}

/// Elements of one piece of N rows.
fn piece(n: u128, width: u128) -> u128 {
    n.min((pieces::ELEMENTS as u128 / width.max(1)).max(1)) * width
}

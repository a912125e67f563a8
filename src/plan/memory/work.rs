//! Activations and short-lived tensors of a step, by the pipeline stage's list of actions.
//!
//! N tokens of a micro-batch on this rank, t ranks of the tensor axis, H, F, V as everywhere, and of one rank Q = Hq·D,
//! A = (Hq + 2·Hkv)·D and V' = V/t. A micro-batch keeps what its blocks keep (`model::block`) from its forward pass to its
//! backward pass; what it needs beyond that is the largest of these moments of the chunk whose turn it is:
//! - *head*: the last block's output and its gradient, N/t·2·H·e, and of one chunk of C tokens the logits, the normed input
//!   and its gradient, C·(V'+2·H)·e, over a tensor axis each rank's own rows of both as well, C/t·2·H·e; or, where the
//!   product of a weight gradient is made in T before it is added in fp32 (`kernels::weight_gradients_in_place` says no),
//!   C·(V'+H)·e and V'·H·e;
//! - *feed-forward backward*: N·(H+3·F/t)·e and what a tensor axis adds (`model::block::backward_bytes`); or, with such a
//!   product, N·H·e and F/t·H·e once some activations have gone;
//! - *attention backward*: the feed-forward half's activations, N/t·2·H·e + N·3·F/t·e, have gone; dy, the gradients of the
//!   attention output and of q|k|v, N·(H/t+Q+A)·e, and each query head's own dk and dv in fp32, N·Q·8; with libtorch's flash
//!   attention (`kernels::attention_on_cpu`) k and v spread over the query heads, three gradients and the copies that add those
//!   of a group, N·7·Q·e, or where it computes in fp32 copies N·9·Q·4. A tensor axis adds the normed input of all ranks and its gradient, N·2·H·e
//!   + N/t·H·e; a context axis the keys and values of the whole sequence and their gradients.
//!
//!
//! Where operations are not fused (`KernelForms`) fp32 copies come on top: of a chunk's logits in the head, of gate and up in
//! the feed-forward half, of the scores of all pairs in attention.
//!
//! With recompute the block whose turn it is has its whole list again in the last two. Where weight gradients are put off,
//! what they read is about the whole list too, until they are made.

use super::device;
use crate::config::{LoraTarget, ModelConfig, Recompute};
use crate::kernels::{self, AttentionOnCpu};
use crate::layout::Unit;
use crate::model::{block, head};
use crate::plan::memory::forms::{self, KernelForm, KernelForms};
use crate::plan::Plan;
use crate::schedules::{self, Action};
use crate::topology::Axis;

/// The worst moment of a step.
#[derive(Clone, Copy, Default)]
pub(super) struct Worst {
    pub activations: u128,
    pub working: u128,
    /// Micro-batches between their forward and backward passes.
    pub alive: u128,
}

/// Sizes of one micro-batch's moments.
pub(super) struct ActivationWork<'a> {
    plan: &'a Plan,
    e: u128,
    /// Tokens, and a tensor rank's share of them.
    n: u128,
    share: u128,
    h: u128,
    f: u128,
    v: u128,
    q: u128,
    a: u128,
    /// Query heads of this rank.
    heads: u128,
    /// Rows of one chunk of logits.
    rows: u128,
    tensor: u128,
    /// Weight gradients are added where they are summed.
    in_place: bool,
    attention_on_cpu: AttentionOnCpu,
    /// Temporaries of row-wise operations in the blocks that are no kernel of their own, and of the loss.
    temporaries: u128,
    loss: u128,
    forms: KernelForms,
}

impl ActivationWork<'_> {
    pub fn new(plan: &Plan, forms: KernelForms) -> ActivationWork<'_> {
        let m = &plan.model;
        let size = |axis| plan.topology.size(axis);
        let (tensor, e) = (size(Axis::Tensor), plan.dtype.elt_size_in_bytes());
        let n = (plan.micro_batch as u128 * plan.config.data.sequence_length as u128) / size(Axis::Context) as u128;
        let (heads, kv) = (m.num_attention_heads / tensor, (m.num_key_value_heads / tensor).max(1));
        let v = m.vocab_size.div_ceil(tensor);
        let tokens = n.min(usize::MAX as u128) as usize;
        let rows = (head::chunk_rows(tokens, v, e, head::CHUNK_BYTES, plan.device) as u128).min(n);
        let (h, f) = (m.hidden_size as u128, m.intermediate_size.div_ceil(tensor) as u128);
        let in_pieces = forms.elementwise == KernelForm::Unfused;
        ActivationWork {
            plan,
            e: e as u128,
            n,
            share: n.div_ceil(tensor as u128),
            h,
            f,
            v: v as u128,
            q: (heads * m.head_dim()) as u128,
            a: ((heads + 2 * kv) * m.head_dim()) as u128,
            heads: heads as u128,
            rows,
            tensor: tensor as u128,
            in_place: kernels::weight_gradients_in_place(plan.dtype, plan.device),
            attention_on_cpu: kernels::attention_on_cpu(plan.dtype),
            temporaries: if in_pieces { device::temporaries(plan, [n, h, f]) } else { 0 },
            loss: if in_pieces { device::loss_temporaries(plan, [rows, v as u128]) } else { 0 },
            forms,
        }
    }

    /// Ids of tokens and targets of the micro-batches under way, and rotary tables.
    pub fn inputs(&self, alive: u128) -> u128 {
        let tables = self.plan.model.head_dim() as u128 * self.plan.config.data.sequence_length as u128;
        alive.max(1) * self.n * 16 + 4 * tables
    }

    /// Goes through this stage's actions.
    pub fn worst(&self) -> Worst {
        let (p, topo) = (&self.plan.config.parallel, &self.plan.topology);
        let (stage, stages) = (topo.coord(Axis::Pipeline), topo.size(Axis::Pipeline));
        let chunks = self.chunks();
        // Beyond this many micro-batches a schedule repeats itself.
        let micros = self.plan.accumulation.min(if p.schedule == crate::config::PipelineSchedule::GPipe {
            usize::MAX
        } else {
            4 * stages * p.chunks
        });
        let actions = match stages {
            1 => vec![Action::Forward { chunk: 0, micro: 0 }, Action::Backward { chunk: 0, micro: 0 }],
            _ => schedules::list(p.schedule, stage, stages, micros, p.chunks),
        };
        let (mut now, mut worst) = (Worst::default(), Worst::default());
        for action in actions {
            let chunk = &chunks[action.chunk() / stages];
            match action {
                Action::Forward { .. } => {
                    now.activations += chunk.kept;
                    now.alive += 1;
                }
                Action::Backward { .. } | Action::BackwardInput { .. } => {
                    let again = self.block(Recompute::None) - self.block(chunk.mode);
                    let back = again + self.feed_forward().max(self.attention());
                    // Blocks whose weight gradients wait have their whole lists by the time of the first block.
                    let waiting = match action {
                        Action::BackwardInput { .. } => (chunk.put_off - chunk.kept).saturating_sub(again),
                        _ => 0,
                    };
                    let back = back + waiting;
                    now.working = match chunk.head {
                        true => self.temporaries.max(self.loss) + back.max(self.head()),
                        false => self.temporaries + back,
                    };
                    if now.activations + now.working > worst.activations + worst.working {
                        worst = now;
                    }
                    now.activations -= chunk.kept;
                    now.alive -= 1;
                    if matches!(action, Action::BackwardInput { .. }) {
                        now.activations += chunk.put_off;
                    }
                }
                Action::BackwardWeight { .. } => now.activations -= chunk.put_off,
            }
        }
        worst
    }

    fn chunks(&self) -> Vec<Kept> {
        let (t, plan) = (&self.plan.config.train, self.plan);
        let (stage, stages) = (plan.topology.coord(Axis::Pipeline), plan.topology.size(Axis::Pipeline));
        let mut number = 0;
        let chunk = |units: &Vec<Unit>| {
            let mut out = Kept { head: units.last() == Some(&Unit::Head), kept: 0, put_off: 0, mode: Recompute::None };
            for _ in units.iter().filter(|u| matches!(u, Unit::Block(_))) {
                let again = t.recompute_blocks == 0 || number < t.recompute_blocks;
                let mode = if again { t.recompute } else { Recompute::None };
                number += 1;
                if again {
                    out.mode = mode;
                }
                out.kept += self.block(mode);
                out.put_off += self.block(Recompute::None);
            }
            out
        };
        plan.chunks.iter().skip(stage).step_by(stages).map(chunk).collect()
    }

    /// What one block keeps.
    fn block(&self, mode: Recompute) -> u128 {
        let adapters = match mode {
            Recompute::Full => 0,
            _ => self.low_bytes(),
        };
        self.n * block::kept_bytes(self.model(), self.e as usize, mode, self.tensor as usize) as u128 + adapters
    }

    /// The adapters' products of A that one block keeps: those of o and down of this rank's tokens, the others of all.
    fn low_bytes(&self) -> u128 {
        let Some(lora) = &self.plan.config.lora else { return 0 };
        let of = |t: &LoraTarget| match t {
            LoraTarget::OProj | LoraTarget::DownProj => self.share,
            _ => self.n,
        };
        lora.targets.iter().map(of).sum::<u128>() * lora.rank as u128 * self.e
    }

    fn model(&self) -> &ModelConfig {
        &self.plan.model
    }

    fn head(&self) -> u128 {
        let ActivationWork { e, share, h, v, rows: c, .. } = *self;
        let product = if self.in_place || self.plan.partial() { 0 } else { v * h };
        let own_rows = if self.tensor > 1 { 2 * c.div_ceil(self.tensor) * h } else { 0 };
        (share * 2 * h + c * (v + h) + product.max(c * h) + own_rows) * e
    }

    fn feed_forward(&self) -> u128 {
        let ActivationWork { e, n, h, f, .. } = *self;
        let alone = n * block::backward_bytes(self.model(), e as usize, self.tensor as usize) as u128;
        let product = if self.in_place { 0 } else { f * h };
        alone.max((n * h + product) * e)
    }

    /// What attention itself holds at its highest point in the backward pass.
    fn kernel(&self) -> u128 {
        let ActivationWork { e, n, q, a, .. } = *self;
        let (m, tensor, context) = (self.model(), self.tensor as usize, self.plan.topology.size(Axis::Context));
        let s = self.plan.config.data.sequence_length;
        match self.forms.attention {
            KernelForm::Unfused => {
                forms::unfused_scores(m, s, self.plan.micro_batch, tensor, context) + forms::unfused_copies(n, q)
            }
            KernelForm::Fused if self.plan.device.is_cuda() => device::attention(self.plan, [n, q, a], self.heads),
            KernelForm::Fused => match self.attention_on_cpu {
                AttentionOnCpu::Own => n * q * 8,
                AttentionOnCpu::Flash => n * 7 * q * e,
                AttentionOnCpu::FlashWidened => n * 9 * q * size_of::<f32>() as u128,
            },
        }
    }

    /// Beyond the activations that have not gone; zero where more has gone than come.
    fn attention(&self) -> u128 {
        let ActivationWork { e, n, share, h, f, q, a, tensor, .. } = *self;
        let gathered = if tensor > 1 { n * 2 * h + share * h } else { 0 };
        let context = self.plan.topology.size(Axis::Context) as u128;
        let others = if context > 1 { n * context * 2 * (a - q) } else { 0 };
        (self.kernel() + (share * h + n * (q + a) + gathered + others) * e)
            .saturating_sub((share * 2 * h + n * 3 * f) * e)
    }
}

/// A chunk of this stage.
struct Kept {
    head: bool,
    /// Bytes from a micro-batch's forward to its backward pass.
    kept: u128,
    /// Bytes from its input gradient to its weight gradient where the two are apart.
    put_off: u128,
    /// Of the block that makes most again.
    mode: Recompute,
}

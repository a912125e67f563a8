//! In which form operations run on a device: fused kernels, or libtorch's plain operations one after another. It is the
//! largest unknown of memory and speed, so it is one value that formulas are given.
//!
//! On the CPU both are fused (`kernels::cpu`). On CUDA attention is (`kernels::cuda::attend`; in fp32 over pieces of the scores, which
//! `device` counts), and row-wise operations count as libtorch's over pieces: in time, since no card has shown what herd's own take;
//! in memory only for rows that those do not take (`device`). Unfused attention, which makes the scores of all pairs in fp32, three at
//! a time at its highest point, is what other programs do and what herd did.

use crate::config::ModelConfig;
use serde::Serialize;
use tch::Device;

/// Fused, or one libtorch operation after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelForm {
    /// Nothing of the size of the scores (or of fp32 copies of activations) exists.
    Fused,
    /// Each operation's result goes through memory.
    Unfused,
}

/// The forms of three groups of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KernelForms {
    /// From q, k and v to the output, forward and backward.
    pub attention: KernelForm,
    /// Norms, rotary embedding, SwiGLU, cross-entropy, AdamW.
    pub elementwise: KernelForm,
    /// Whether a weight's gradient is added where it is summed, by the product itself.
    pub weight_gradients: KernelForm,
}

impl KernelForms {
    /// All three fused.
    pub const FUSED: KernelForms = KernelForms {
        attention: KernelForm::Fused,
        elementwise: KernelForm::Fused,
        weight_gradients: KernelForm::Fused,
    };
    /// All three unfused.
    pub const UNFUSED: KernelForms = KernelForms {
        attention: KernelForm::Unfused,
        elementwise: KernelForm::Unfused,
        weight_gradients: KernelForm::Unfused,
    };

    /// As the code runs on `device`.
    pub fn of(device: Device) -> KernelForms {
        match device {
            Device::Cpu => KernelForms::FUSED,
            _ => KernelForms { elementwise: KernelForm::Unfused, ..KernelForms::FUSED },
        }
    }
}

/// Bytes of one attention call's fp32 scores, three of them alive: 3·Hq·Sq·Sk·4 for each of `sequences`. `heads` of this
/// rank; over `context` ranks a call has a half of this rank's tokens as queries.
pub(super) fn unfused_scores(m: &ModelConfig, s: usize, sequences: usize, tensor: usize, context: usize) -> u128 {
    let heads = (m.num_attention_heads / tensor) as u128;
    let queries = if context > 1 { s / (2 * context) } else { s } as u128;
    // Segments of one sequence come one after another; without a context axis all sequences are one call.
    let calls_at_once = if context > 1 { 1 } else { sequences as u128 };
    calls_at_once * 3 * heads * queries * s as u128 * 4
}

/// fp32 copies beside the scores: q, k and v for every query head, the output and its gradient, and a product under way,
/// of `n` tokens with `q` columns.
pub(super) fn unfused_copies(n: u128, q: u128) -> u128 {
    6 * n * q * 4
}

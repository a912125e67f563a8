//! The optimizer and its learning rate.

use super::limit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// AdamW and its learning-rate schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimSection {
    /// Peak learning rate.
    #[schemars(range(min = 0.0))]
    pub lr: f64,
    /// Learning rate at the end of the schedule.
    #[schemars(range(min = 0.0))]
    pub min_lr: f64,
    /// Steps of linear warm-up: step n of them has n / warmup_steps of the rate.
    #[schemars(range(max = limit::STEPS))]
    pub warmup_steps: u64,
    /// Shape of the learning rate after warm-up.
    pub schedule: Schedule,
    /// Length of the final decay of `wsd`, in steps.
    #[schemars(range(max = limit::STEPS))]
    pub decay_steps: u64,
    /// Decay of the first moment.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta1: f64,
    /// Decay of the second moment.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta2: f64,
    /// Added to the root of the second moment.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub eps: f64,
    /// Decoupled weight decay, applied to matrices only.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// How the two moments lie: `fp32`, or `8bit` with a scale for each 32 (arXiv:2110.02861), which leaves 2.25 bytes of 8 a parameter.
    pub moments: MomentFormat,
    /// Keep master weights and moments in host memory and update there (ZeRO-Offload, arXiv:2101.06840): a device has 12 bytes less for
    /// each parameter that a rank updates, and waits while gradients come and parameters go. On a CPU nothing changes.
    pub offload: bool,
}

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine from `lr` down to `min_lr` at the end of the run.
    #[default]
    Cosine,
    /// Warm-up, stable, decay (arXiv:2404.06395): constant until `decay_steps` before the end, then linear to `min_lr`.
    Wsd,
    /// `lr` until the end of the run.
    Constant,
}

/// How the optimizer's moments lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MomentFormat {
    /// 4 bytes each.
    #[default]
    #[serde(rename = "fp32")]
    Fp32,
    /// 8 bits each, and a scale for each 32.
    #[serde(rename = "8bit")]
    Bits8,
}

impl Default for OptimSection {
    fn default() -> Self {
        OptimSection {
            lr: 3e-4,
            min_lr: 3e-5,
            warmup_steps: 100,
            schedule: Schedule::Cosine,
            decay_steps: 0,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            moments: MomentFormat::Fp32,
            offload: false,
        }
    }
}

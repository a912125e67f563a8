//! Direct preference optimisation: training on pairs of a chosen and a rejected answer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Direct preference optimisation (DPO, arXiv:2305.18290) on pairs of a chosen and a rejected answer, against the model that the
/// run begins with. `{}` takes the defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DpoSection {
    /// β: how strongly the model is held to the reference. Of `ipo` it is the regularisation τ.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub beta: f64,
    /// The loss of a pair.
    pub loss: DpoLoss,
    /// Share of pairs that are taken to be labelled the wrong way round (conservative DPO). Of `sigmoid` only.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 0.5))]
    pub label_smoothing: f64,
    /// Weight of the chosen answer's mean cross-entropy beside it (RPO, arXiv:2404.19733). 0 turns it off.
    #[schemars(range(min = 0.0))]
    pub sft_weight: f64,
    /// Divide the log-probability ratio of each answer by its counting tokens (arXiv:2411.15124 §5.1). Of `sigmoid` only: `ipo` does so.
    pub length_normalized: bool,
    /// Directory for the reference's log-probabilities, which are computed once. Runs that begin with the same model and corpora may
    /// share one. Default: `reference` in the run directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("format" = "path"))]
    pub reference_dir: Option<PathBuf>,
}

/// The loss of a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DpoLoss {
    /// −log σ(β·Δ), Δ the difference of the two log-probability ratios (arXiv:2305.18290).
    #[default]
    Sigmoid,
    /// (Δ − 1/2β)², the ratios averaged over the tokens of each answer as in TRL (arXiv:2310.12036).
    Ipo,
}

impl Default for DpoSection {
    fn default() -> Self {
        DpoSection {
            beta: 0.1,
            loss: DpoLoss::Sigmoid,
            label_smoothing: 0.0,
            sft_weight: 0.0,
            length_normalized: false,
            reference_dir: None,
        }
    }
}

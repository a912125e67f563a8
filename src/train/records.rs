//! `metrics.jsonl` read back: what a person or another program wants of a step, without the whole record.

use jiff::Timestamp;
use serde::Deserialize;

/// One line of `metrics.jsonl`, as far as it is shown; units as in [`StepRecord`](super::metrics::StepRecord). What is absent or
/// not finite is `None`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct StepPoint {
    /// Counted from 1; a line without it is no step's.
    pub step: u64,
    /// When the step (with its validation) had ended.
    pub time: Option<Timestamp>,
    /// Mean cross-entropy, nats per token.
    pub loss: Option<f64>,
    /// The same on held-out data; `None` also in steps that do not validate.
    pub validation_loss: Option<f64>,
    /// Share of the held-out tokens that were guessed right; `None` also in steps that do not validate.
    pub validation_accuracy: Option<f64>,
    /// Of preference pairs: mean reward of the chosen answers less that of the rejected ones.
    #[serde(rename = "rewards/margins")]
    pub reward_margin: Option<f64>,
    /// Share of the preference pairs whose chosen answer has the higher reward.
    #[serde(rename = "rewards/accuracies")]
    pub reward_accuracy: Option<f64>,
    /// The margin of held-out pairs; `None` also in steps that do not validate, as in the next one.
    #[serde(rename = "eval_rewards/margins")]
    pub held_out_margin: Option<f64>,
    /// The accuracy of held-out pairs.
    #[serde(rename = "eval_rewards/accuracies")]
    pub held_out_accuracy: Option<f64>,
    /// Learning rate.
    pub lr: Option<f64>,
    /// Global L2 norm before clipping.
    pub grad_norm: Option<f64>,
    /// Tokens trained on so far, this step included.
    pub tokens: Option<f64>,
    /// Over all ranks.
    pub tokens_per_s: Option<f64>,
    /// Seconds that the step took.
    pub step_s: Option<f64>,
    /// Share of the devices' peak, attention counted for the causal half.
    pub mfu_causal: Option<f64>,
    /// The same with attention counted in full.
    pub mfu_full: Option<f64>,
    /// Bytes of tensors at the highest point, on the rank that wrote.
    pub memory_peak: Option<f64>,
    /// Time of the wires that the step waited for, on the rank that wrote.
    pub comm_exposed_s: Option<f64>,
    /// Time of the wires that computation covered, on the rank that wrote.
    pub comm_hidden_s: Option<f64>,
    /// Time in which the rank that wrote waited for other pipeline stages; `None` also without a pipeline.
    pub pipeline_wait_s: Option<f64>,
    /// Own work of the fastest rank; `None` also with one rank, as in the next three.
    pub rank_work_min_s: Option<f64>,
    /// Own work, mean over the ranks.
    pub rank_work_mean_s: Option<f64>,
    /// Own work of the slowest rank.
    pub rank_work_max_s: Option<f64>,
    /// World rank with the most own work.
    pub slowest_rank: Option<u64>,
    /// No rank updated its parameters; false where the line does not say.
    #[serde(default)]
    pub skipped: bool,
}

impl StepPoint {
    /// `None` for a line that is no step's.
    pub fn read(line: &[u8]) -> Option<StepPoint> {
        serde_json::from_slice(line).ok()
    }

    /// When the step had ended, seconds of Unix time.
    pub fn ended(&self) -> Option<f64> {
        self.time.map(|t| t.as_nanosecond() as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::StepRecord;
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let r = StepRecord {
            step: 7,
            loss: 2.5,
            grad_norm: f64::NAN,
            mfu_full: Some(0.5),
            memory_peak: 1 << 40,
            ..Default::default()
        };
        let p = StepPoint::read(serde_json::to_string(&r).unwrap().as_bytes()).unwrap();
        assert_eq!((p.step, p.loss, p.grad_norm, p.mfu_full), (7, Some(2.5), None, Some(0.5)));
        assert_eq!((p.memory_peak, p.ended()), (Some((1u64 << 40) as f64), Some(0.0)));
        assert!(StepPoint::read(b"{\"loss\":1}").is_none() && StepPoint::read(b"[]").is_none());
    }
}

//! `metrics.jsonl` read back: what a person or another program wants of a step, without the whole record.

use jiff::Timestamp;
use serde::Deserialize;

/// One line of `metrics.jsonl`, as far as it is shown; units as in [`StepRecord`](super::metrics::StepRecord). What is absent or
/// not finite is `None`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct StepPoint {
    pub step: u64,
    pub time: Option<Timestamp>,
    pub loss: Option<f64>,
    pub validation_loss: Option<f64>,
    pub lr: Option<f64>,
    pub grad_norm: Option<f64>,
    pub tokens: Option<f64>,
    pub tokens_per_s: Option<f64>,
    pub step_s: Option<f64>,
    pub mfu_causal: Option<f64>,
    pub mfu_full: Option<f64>,
    pub memory_peak: Option<f64>,
    pub comm_exposed_s: Option<f64>,
    pub comm_hidden_s: Option<f64>,
    pub pipeline_wait_s: Option<f64>,
    pub rank_work_min_s: Option<f64>,
    pub rank_work_mean_s: Option<f64>,
    pub rank_work_max_s: Option<f64>,
    pub slowest_rank: Option<u64>,
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

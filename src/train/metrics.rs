//! What a run writes down of each step: `metrics.jsonl`, one line per step, and TensorBoard event files.
//!
//! A metrics file holds each step once. When a run resumes from an older step, the lines it is about to write again move
//! to `metrics.superseded.jsonl`. Numbers that are not finite are `null` in JSON.

use super::tensorboard::EventFile;
use crate::appended::{self, Appended};
use crate::attempt;
use crate::error::{Error, Exit, Result};
use crate::kernels::device::DeviceMemory;
use crate::model::PairSums;
use crate::run_dir::RunDir;
use crate::{kernels, wire};
use serde::Serialize;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use tch::Device;

/// One training step, over all ranks unless said otherwise.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StepRecord {
    /// Counted from 1.
    pub step: u64,
    /// When the step (with its validation) had ended: wall clock, for comparison with other programs of this host.
    pub time: jiff::Timestamp,
    /// Mean cross-entropy per token, natural logarithm; of preference pairs the mean loss of a pair.
    pub loss: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Global L2 norm before clipping.
    pub grad_norm: f64,
    /// Tokens trained on so far, this step included.
    pub tokens: u64,
    /// Tokens of the step over `step_s`.
    pub tokens_per_s: f64,
    /// Seconds that the step took on the rank that writes, validation and saves left out.
    pub step_s: f64,
    /// Model FLOP/s over the devices' peak, attention counted for the causal half; absent where no peak is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu_causal: Option<f64>,
    /// The same with attention counted in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu_full: Option<f64>,
    /// Part of `step_s` in the linear layers' matrix products, on the rank that writes; absent on devices that run behind
    /// the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matmul_s: Option<f64>,
    /// Bytes of tensors at the highest point, on the rank that writes ([`memory_peak`]).
    pub memory_peak: u64,
    /// Time the wires of the tensor, context and data axes were busy, on the rank that writes, waiting for slower ranks included.
    pub comm_busy_s: f64,
    /// Part of it that the step waited for.
    pub comm_exposed_s: f64,
    /// Part of it that computation covered.
    pub comm_hidden_s: f64,
    /// Time in which the rank that writes waited for other pipeline stages, the bubble included; absent without a pipeline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline_wait_s: Option<f64>,
    /// The ranks' own work of the step (data, forward and backward passes, waiting left out): the least, the mean, the most, and
    /// which rank had the most; absent with one rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank_work_min_s: Option<f64>,
    /// Own work, mean over the ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank_work_mean_s: Option<f64>,
    /// Own work of the slowest rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank_work_max_s: Option<f64>,
    /// World rank with the most own work; of several the highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowest_rank: Option<usize>,
    /// Loss or norm was not finite and no rank updated its parameters.
    pub skipped: bool,
    /// Mean (log Z)² per token, where the z-loss is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub z_loss: Option<f64>,
    /// The same on held-out data, in steps that validate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Share of the held-out tokens that count which the model thinks likeliest, in steps that validate; absent of pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
    /// Measures of tasks by task and name, in steps that score some.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, BTreeMap<String, f64>>,
    /// Of preference pairs.
    #[serde(flatten)]
    pub preference: Option<PreferenceRecord>,
    /// Of held-out preference pairs, in steps that validate.
    #[serde(flatten)]
    pub held_out: Option<HeldOutRecord>,
}

/// Means over held-out preference pairs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct HeldOutRecord {
    /// As [`PreferenceRecord::margins`].
    #[serde(rename = "eval_rewards/margins")]
    pub margins: f64,
    /// As [`PreferenceRecord::accuracies`].
    #[serde(rename = "eval_rewards/accuracies")]
    pub accuracies: f64,
}

impl HeldOutRecord {
    /// Of the sums over all held-out pairs.
    pub fn of(sums: &PairSums) -> HeldOutRecord {
        let PreferenceRecord { margins, accuracies, .. } = PreferenceRecord::of(sums);
        HeldOutRecord { margins, accuracies }
    }
}

/// Means over the preference pairs of a step, under the names that TRL gives them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PreferenceRecord {
    /// β times what the log-probability of the chosen answer has gained over the reference.
    #[serde(rename = "rewards/chosen")]
    pub chosen: f64,
    /// The same of the rejected answer.
    #[serde(rename = "rewards/rejected")]
    pub rejected: f64,
    /// The first less the second.
    #[serde(rename = "rewards/margins")]
    pub margins: f64,
    /// Share of pairs whose chosen answer has the higher reward.
    #[serde(rename = "rewards/accuracies")]
    pub accuracies: f64,
    /// Log-probability of the chosen answer, nats.
    #[serde(rename = "logps/chosen")]
    pub chosen_logps: f64,
    /// Log-probability of the rejected answer, nats.
    #[serde(rename = "logps/rejected")]
    pub rejected_logps: f64,
    /// Pairs in the step.
    pub pairs: f64,
}

impl PreferenceRecord {
    /// Of the sums over all pairs of a step.
    pub fn of(sums: &PairSums) -> PreferenceRecord {
        let mean = |sum: f64| sum / sums.pairs;
        PreferenceRecord {
            chosen: mean(sums.chosen),
            rejected: mean(sums.rejected),
            margins: mean(sums.chosen - sums.rejected),
            accuracies: mean(sums.right),
            chosen_logps: mean(sums.chosen_logps),
            rejected_logps: mean(sums.rejected_logps),
            pairs: sums.pairs,
        }
    }
}

/// Highest bytes of tensors of this process on `device` since the allocator's last reset: of a CPU libtorch's and the wire's.
pub fn memory_peak(device: Device) -> u64 {
    match DeviceMemory::of(device) {
        Some(memory) => memory.tensors.peak,
        None => kernels::memory::peak() + wire::shared_bytes(),
    }
}

/// Writes the records of one run; one rank has it.
pub struct Metrics {
    file: Appended,
    dir: PathBuf,
    tensorboard: Option<EventFile>,
}

impl Metrics {
    /// Appends to the run directory `dir`. `restored`: the step that the run continues after, 0 for a fresh start.
    ///
    /// # Errors
    /// [`Exit::Storage`].
    pub fn open(dir: &Path, restored: u64, tensorboard: bool) -> Result<Metrics> {
        let run = RunDir::new(dir);
        let path = run.metrics();
        supersede(run, restored)?;
        let file = Appended::open(&path)?;
        let tensorboard = match tensorboard {
            true => Some(EventFile::create(&run.tensorboard(), restored)?),
            false => None,
        };
        Ok(Metrics { file, dir: dir.to_path_buf(), tensorboard })
    }

    /// # Errors
    /// [`Exit::Fenced`] when a newer attempt writes here; those of [`Appended::line`].
    pub fn record(&mut self, r: &StepRecord) -> Result<()> {
        attempt::check(&self.dir)?;
        let value = serde_json::to_value(r).map_err(|e| Error::new(Exit::Internal, format!("a step record: {e}")))?;
        self.file.line(&value)?;
        match &mut self.tensorboard {
            Some(t) => t.scalars(r.step, &scalars(r)),
            None => Ok(()),
        }
    }
}

/// A record's numbers under TensorBoard's tags.
fn scalars(r: &StepRecord) -> Vec<(Cow<'static, str>, f64)> {
    let mut out: Vec<(&'static str, f64)> = vec![
        ("train/loss", r.loss),
        ("train/lr", r.lr),
        ("train/grad_norm", r.grad_norm),
        ("train/skipped", r.skipped as u8 as f64),
        ("speed/tokens_per_s", r.tokens_per_s),
        ("speed/step_s", r.step_s),
        ("memory/peak_gib", r.memory_peak as f64 / (1u64 << 30) as f64),
        ("comm/busy_s", r.comm_busy_s),
        ("comm/exposed_s", r.comm_exposed_s),
        ("comm/hidden_s", r.comm_hidden_s),
    ];
    let optional = [
        ("speed/mfu_causal", r.mfu_causal),
        ("speed/mfu_full", r.mfu_full),
        ("comm/pipeline_wait_s", r.pipeline_wait_s),
        ("train/z_loss", r.z_loss),
        ("validation/loss", r.validation_loss),
        ("validation/accuracy", r.validation_accuracy),
    ];
    out.extend(optional.into_iter().filter_map(|(tag, x)| Some((tag, x?))));
    if let Some(p) = &r.preference {
        out.extend([
            ("rewards/chosen", p.chosen),
            ("rewards/rejected", p.rejected),
            ("rewards/margins", p.margins),
            ("rewards/accuracies", p.accuracies),
            ("logps/chosen", p.chosen_logps),
            ("logps/rejected", p.rejected_logps),
        ]);
    }
    if let Some(p) = &r.held_out {
        out.extend([("eval_rewards/margins", p.margins), ("eval_rewards/accuracies", p.accuracies)]);
    }
    let of_task = |(task, measures): (&String, &BTreeMap<String, f64>)| {
        measures.iter().map(|(name, x)| (Cow::from(format!("eval/{task}/{name}")), *x)).collect::<Vec<_>>()
    };
    out.into_iter().map(|(tag, x)| (tag.into(), x)).chain(r.tasks.iter().flat_map(of_task)).collect()
}

/// Leaves the whole lines of steps up to `restored` in the file and appends the others to a file beside it.
fn supersede(run: RunDir, restored: u64) -> Result<()> {
    let path = &run.metrics();
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(path, "read", &e, Exit::Storage)),
    };
    let stays = |line: &[u8]| {
        let step = serde_json::from_slice::<Value>(line).ok().and_then(|v| v["step"].as_u64());
        line.ends_with(b"\n") && step.is_some_and(|s| s <= restored)
    };
    let (kept, old): (Vec<&[u8]>, Vec<&[u8]>) = text.split_inclusive(|&b| b == b'\n').partition(|l| stays(l));
    if old.is_empty() {
        return Ok(());
    }
    let beside = run.superseded_metrics();
    let mut moved = old.concat();
    if !moved.ends_with(b"\n") {
        moved.push(b'\n');
    }
    appended::open(&beside)?.write_all(&moved).map_err(|e| Error::io(&beside, "write to", &e, Exit::Storage))?;
    let new = path.with_extension("jsonl.tmp");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&kept.concat())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|e| Error::io(path, "rewrite", &e, Exit::Storage))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<Value> {
        fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn a_resumed_run_has_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let write = |restored: u64, steps: std::ops::RangeInclusive<u64>, loss: f64| {
            let mut m = Metrics::open(dir.path(), restored, false).unwrap();
            steps.for_each(|step| m.record(&StepRecord { step, loss, ..Default::default() }).unwrap());
        };
        write(0, 1..=5, 1.0);
        // A line that a killed process did not finish.
        appended::open(&path).unwrap().write_all(b"{\"step\":6,\"lo").unwrap();
        write(3, 4..=6, 2.0);
        let got: Vec<_> = lines(&path).iter().map(|v| (v["step"].as_u64(), v["loss"].as_f64())).collect();
        let want: Vec<_> = (1..=6).map(|s| (Some(s), Some(if s <= 3 { 1.0 } else { 2.0 }))).collect();
        assert_eq!(got, want);
        let old = fs::read_to_string(dir.path().join("metrics.superseded.jsonl")).unwrap();
        assert_eq!(old.lines().count(), 3);
        // A fresh start in the same directory.
        write(0, 1..=1, 3.0);
        assert_eq!(lines(&path).len(), 1);
    }

    #[test]
    fn numbers_that_are_not_finite_are_null_and_losses_keep_their_bits() {
        let dir = tempfile::tempdir().unwrap();
        let mut m = Metrics::open(dir.path(), 0, false).unwrap();
        let loss = f64::from_bits(0x4002_3456_789a_bcde);
        m.record(&StepRecord { step: 1, loss, grad_norm: f64::NAN, mfu_full: Some(0.5), ..Default::default() })
            .unwrap();
        let v = &lines(&dir.path().join("metrics.jsonl"))[0];
        assert_eq!(v["loss"].as_f64().unwrap().to_bits(), loss.to_bits());
        assert!(v["grad_norm"].is_null() && v.get("mfu_causal").is_none() && v["mfu_full"] == 0.5);
    }
}

//! What a run says about itself, from one rank: metrics, events, progress. On the other ranks every call does nothing.

use super::metrics::{memory_peak, HeldOutRecord, Metrics, PreferenceRecord, StepRecord};
use super::progress::TrainProgress;
use super::prometheus::PromFile;
use super::state::State;
use super::step::Outcome;
use crate::checkpoint::Saved;
use crate::config;
use crate::error::{Error, Exit, Result};
use crate::events::{Events, RunEvent};
use crate::kernels;
use crate::plan::flops::{self, PerToken};
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::serve::eval::{Measure, TaskScore};
use crate::tiers::keeper::Happened;
use crate::world::World;
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Rank 0's files and console.
pub struct Report {
    inner: Option<Inner>,
    flops: PerToken,
    /// FLOP/s of one rank's device: the data sheet's for a known GPU, measured for a CPU after the first step.
    peak: Option<f64>,
    /// Whether the last state has another place to go to when the run directory is gone.
    may_rescue: bool,
    gone: Option<Error>,
}

struct Inner {
    metrics: Metrics,
    prometheus: Option<PromFile>,
    events: Events,
    progress: TrainProgress,
}

impl Report {
    /// For a run that goes on after step `restored`.
    pub fn open(plan: &Plan, world: &World, restored: u64) -> Result<Report> {
        let config = &plan.config;
        let inner = match world.rank() {
            0 => Some(Inner {
                metrics: Metrics::open(&config.run_dir, restored, config.log.tensorboard)?,
                prometheus: PromFile::new(
                    &config.run_dir,
                    &config.name,
                    config.train.steps,
                    Duration::from_secs(config.log.prometheus_s),
                ),
                events: Events::open(&config.run_dir)?,
                progress: TrainProgress::new(config.train.steps, restored, config.log.every),
            }),
            _ => None,
        };
        Ok(Report {
            inner,
            flops: PerToken::of(config, &plan.model),
            peak: None,
            may_rescue: config.launch.rescue_dir.is_some(),
            gone: None,
        })
    }

    /// One line in `events.jsonl`.
    pub fn event(&mut self, event: &RunEvent) -> Result<()> {
        let written = match &mut self.inner {
            Some(inner) if self.gone.is_none() => inner.events.write(event),
            _ => Ok(()),
        };
        self.bear(written)
    }

    /// A run directory that is gone ends the run, after its state has been saved where that is possible.
    fn bear(&mut self, written: Result<()>) -> Result<()> {
        match written {
            Err(e) if e.exit == Exit::Gone && self.may_rescue => {
                self.note(&format!(
                    "WARNING: {}: this step's state goes to launch.rescue_dir, and the run ends",
                    e.fact
                ));
                self.gone = Some(e);
                Ok(())
            }
            other => other,
        }
    }

    /// Whether the run directory was found gone, on the rank that writes.
    pub fn is_gone(&self) -> bool {
        self.gone.is_some()
    }

    /// One line in `events.jsonl`, and for the person who watches, where there are words for it.
    pub fn tell(&mut self, event: &RunEvent) -> Result<()> {
        if let Some(words) = event.words() {
            self.note(&if event.is_warning() { format!("WARNING: {words}") } else { words });
        }
        self.event(event)
    }

    /// What happened to the state between two steps.
    pub fn kept(&mut self, what: Happened) -> Result<()> {
        let text = |error: Error| error.to_string();
        self.tell(&match what {
            Happened::Saved(Saved { path, bytes, seconds }, step) => {
                RunEvent::Checkpoint { step, path, bytes, seconds }
            }
            Happened::SaveFailed { step, error } => RunEvent::CheckpointFailed { step, error: text(error) },
            Happened::SaveSlow { step, running, took, since_due } => {
                let (save_s, interval_s) = (took.as_secs_f64(), since_due.as_secs_f64());
                RunEvent::CheckpointSlow { step, running, save_s, interval_s }
            }
            Happened::SnapshotSkipped { step, skipped } => RunEvent::SnapshotSkipped { step, skipped },
            Happened::PartnerFailed { error } => RunEvent::PartnerFailed { error: text(error) },
            Happened::PruneFailed { error } => RunEvent::PruneFailed { error: text(error) },
            Happened::NoSecondCopy { error } => RunEvent::NoSecondCopy { error: text(error) },
            Happened::NoSnapshots { error } => RunEvent::NoSnapshots { error: text(error) },
            Happened::OldSnapshotsRemoved { dir } => RunEvent::OldSnapshotsRemoved { dir },
        })
    }

    /// What came of the tasks after `step` steps.
    pub fn scored(&mut self, scores: &[TaskScore], step: u64) -> Result<()> {
        for score in scores {
            let one = |(name, m): &(&str, Measure)| match m.stderr {
                Some(error) => format!("{name} {:.4} ± {error:.4}", m.value),
                None => format!("{name} {:.4}", m.value),
            };
            let words: Vec<String> = score.measures().iter().map(one).collect();
            self.note(&format!("{}: {}", score.name, words.join(", ")));
            let finite = |(name, x): (String, f64)| (name, Some(x).filter(|x| x.is_finite()));
            let measures = values(score).into_iter().map(finite).collect();
            let (task, rows) = (score.name.clone(), score.rows.len() as u64);
            self.event(&RunEvent::Evaluation { step, task, rows, measures })?;
        }
        Ok(())
    }

    /// A line for the person who watches, and in the log.
    pub fn note(&self, text: &str) {
        if let Some(inner) = &self.inner {
            inner.progress.note(text);
        }
    }

    /// A finished step.
    pub fn step(&mut self, plan: &Plan, state: &State, found: &Outcome, took: Duration) -> Result<()> {
        let tokens_per_s = plan.tokens_per_step() as f64 / took.as_secs_f64();
        let per_rank = tokens_per_s / plan.topology.world() as f64;
        let mfu = |per_token| self.peak.map(|peak| flops::utilisation(per_rank, per_token, peak));
        let record = StepRecord {
            step: state.step,
            time: Timestamp::now(),
            loss: found.loss,
            lr: found.lr,
            grad_norm: found.grad_norm,
            tokens: state.tokens,
            tokens_per_s,
            step_s: took.as_secs_f64(),
            mfu_causal: mfu(self.flops.causal),
            mfu_full: mfu(self.flops.full),
            matmul_s: (plan.device == Device::Cpu).then_some(found.matmul.as_secs_f64()),
            memory_peak: memory_peak(plan.device),
            comm_busy_s: found.comm.busy.as_secs_f64(),
            comm_exposed_s: found.comm.exposed.as_secs_f64(),
            comm_hidden_s: found.comm.hidden.as_secs_f64(),
            pipeline_wait_s: (plan.config.parallel.pipeline > 1).then_some(found.pipeline_wait.as_secs_f64()),
            rank_work_min_s: found.spread.map(|s| s.min),
            rank_work_mean_s: found.spread.map(|s| s.mean),
            rank_work_max_s: found.spread.map(|s| s.max),
            slowest_rank: found.spread.map(|s| s.slowest),
            skipped: found.skipped,
            z_loss: (plan.config.train.z_loss > 0.0).then_some(found.z),
            validation_loss: found.validation.as_ref().map(|v| v.loss),
            validation_accuracy: found.validation.as_ref().and_then(|v| v.accuracy),
            preference: found.pairs.as_ref().map(PreferenceRecord::of),
            tasks: found.tasks.iter().map(|s| (s.name.clone(), values(s))).collect(),
            held_out: found.validation.as_ref().and_then(|v| v.pairs.as_ref()).map(HeldOutRecord::of),
        };
        // measured on every rank at once, since ranks of one node share its memory and its clock
        self.peak = self.peak.or_else(|| peak(plan));
        let written = match &mut self.inner {
            Some(inner) if self.gone.is_none() => {
                let written = inner.metrics.record(&record);
                inner.progress.step(&record);
                if let Some(wrong) = inner.prometheus.as_mut().filter(|_| written.is_ok()).and_then(|p| p.step(&record))
                {
                    inner.progress.note(&format!("WARNING: {wrong}"));
                }
                written
            }
            _ => Ok(()),
        };
        self.bear(written)
    }

    /// Leaves the console in order.
    pub fn finish(self) {
        if let Some(inner) = self.inner {
            inner.progress.finish();
        }
    }
}

/// Peak FLOP/s of this rank's device for matrix products in the compute dtype.
fn peak(plan: &Plan) -> Option<f64> {
    match plan.device {
        Device::Cpu => Some(cpu_peak(plan.dtype)),
        _ => flops::peak(&kernels::device::name(plan.device)?, plan.dtype),
    }
}

/// The best of five of herd's own products of 1024 × 1024 matrices on this rank's threads: what a CPU's "peak" can
/// honestly mean. On a busy machine it comes out low, and the utilisation high.
fn cpu_peak(dtype: Kind) -> f64 {
    let n = 1024;
    let a = Tensor::ones([n, n], (dtype, Device::Cpu));
    let once = || {
        let began = Instant::now();
        let _ = kernels::linear(&a, &a, None);
        2.0 * (n * n * n) as f64 / began.elapsed().as_secs_f64()
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}

/// A task's measures by name.
fn values(score: &TaskScore) -> BTreeMap<String, f64> {
    score.measures().into_iter().map(|(name, m)| (name.to_string(), m.value)).collect()
}

/// An event of rank 0 before the run's report is open.
pub fn say(plan: &Plan, world: &World, event: &RunEvent) -> Result<()> {
    match world.rank() {
        0 => Events::open(&plan.config.run_dir)?.write(event),
        _ => Ok(()),
    }
}

/// Creates the run directory and writes down what was resolved, on one rank: `config.yaml` and `plan.json`.
pub fn open_run_directory(plan: &Plan, world: &World) -> Result<()> {
    if world.rank() > 0 {
        return Ok(());
    }
    let dir = &plan.config.run_dir;
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", &e, Exit::Storage))?;
    let yaml = config::to_yaml(&plan.config)?;
    write(&RunDir::new(dir).config(), yaml.as_bytes())?;
    let about = json!({
        "herd_version": env!("CARGO_PKG_VERSION"),
        "parameters": crate::layout::count(&plan.model),
        "world": plan.topology.world(),
        "axes": plan.topology.sizes,
        "dtype": format!("{:?}", plan.dtype),
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "threads": plan.threads,
        "tokens_per_step": plan.tokens_per_step(),
        "memory_bytes_per_rank": crate::plan::memory::Memory::peak(plan).total(),
    });
    write(&RunDir::new(dir).plan(), format!("{about:#}\n").as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    crate::checkpoint::disk::write_atomic(path, bytes)
}

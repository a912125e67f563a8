//! `metrics.prom`: the last step in the text form that Prometheus' node exporter reads from files
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>), for a dashboard of all runs (`configs/grafana.json`).

use super::metrics::StepRecord;
use crate::attempt;
use crate::run_dir::RunDir;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A metric: its name, what it is, and its value in a step, where it has one.
pub struct Metric {
    /// Full name, `herd_` included.
    pub name: &'static str,
    /// `gauge` or `counter`.
    pub kind: &'static str,
    /// Words of the `# HELP` line.
    pub help: &'static str,
    value: fn(&StepRecord) -> Option<f64>,
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&StepRecord) -> Option<f64>) -> Metric {
    Metric { name, kind: "gauge", help, value }
}

/// All metrics of a step.
pub const METRICS: &[Metric] = &[
    gauge("herd_step", "Last finished step.", |r| Some(r.step as f64)),
    gauge("herd_last_step_timestamp_seconds", "When it had ended, Unix time.", |r| {
        Some(r.time.as_millisecond() as f64 / 1e3)
    }),
    Metric { name: "herd_tokens_total", kind: "counter", help: "Tokens trained on.", value: |r| Some(r.tokens as f64) },
    gauge("herd_loss", "Mean cross-entropy of the step, nats per token.", |r| Some(r.loss)),
    gauge("herd_validation_loss", "Mean cross-entropy on held-out data, the last one.", |r| r.validation_loss),
    gauge("herd_validation_accuracy_ratio", "Held-out tokens guessed right, the last ones.", |r| r.validation_accuracy),
    gauge("herd_learning_rate", "Learning rate.", |r| Some(r.lr)),
    gauge("herd_gradient_norm", "L2 norm before clipping.", |r| Some(r.grad_norm)),
    gauge("herd_tokens_per_second", "Tokens a second, all ranks.", |r| Some(r.tokens_per_s)),
    gauge("herd_step_seconds", "Length of the step.", |r| Some(r.step_s)),
    gauge("herd_mfu_causal_ratio", "Model FLOP/s over the peak, causal attention.", |r| r.mfu_causal),
    gauge("herd_mfu_full_ratio", "Model FLOP/s over the peak, full attention.", |r| r.mfu_full),
    gauge("herd_memory_peak_bytes", "Highest bytes of tensors on rank 0.", |r| Some(r.memory_peak as f64)),
    gauge("herd_communication_exposed_seconds", "Time the step waited for wires.", |r| Some(r.comm_exposed_s)),
    gauge("herd_communication_hidden_seconds", "Time of the wires that computation covered.", |r| {
        Some(r.comm_hidden_s)
    }),
    gauge("herd_pipeline_wait_seconds", "Time rank 0 waited for other stages.", |r| r.pipeline_wait_s),
    gauge("herd_rank_work_min_seconds", "Own work in the step of the fastest rank.", |r| r.rank_work_min_s),
    gauge("herd_rank_work_mean_seconds", "Own work in the step, mean of the ranks.", |r| r.rank_work_mean_s),
    gauge("herd_rank_work_max_seconds", "Own work in the step of the slowest rank.", |r| r.rank_work_max_s),
    gauge("herd_slowest_rank", "The rank with the most own work.", |r| r.slowest_rank.map(|x| x as f64)),
    gauge("herd_reward_margin", "Mean reward of the chosen answers less that of the rejected ones.", |r| {
        r.preference.as_ref().map(|p| p.margins)
    }),
    gauge("herd_reward_accuracy_ratio", "Pairs whose chosen answer has the higher reward.", |r| {
        r.preference.as_ref().map(|p| p.accuracies)
    }),
    gauge("herd_skipped", "1 where the step was not finite and was left out.", |r| Some(r.skipped as u8 as f64)),
];

/// Metrics of the run as a whole, beside those of a step.
pub const OF_RUN: &[(&str, &str)] = &[
    ("herd_steps_planned", "Steps of the whole run (train.steps)."),
    ("herd_attempt", "Number of the attempt that runs."),
];

/// Keeps the file of one run; one rank has it.
pub struct PromFile {
    path: PathBuf,
    run: String,
    steps: u64,
    every: Duration,
    written: Option<Instant>,
    /// Loss and accuracy of the last validation.
    validation: (Option<f64>, Option<f64>),
    complained: bool,
}

impl PromFile {
    /// `metrics.prom` in the run directory `dir` of the run `run` with `steps` steps, replaced at most every `every`; `None` for
    /// zero.
    pub fn new(dir: &Path, run: &str, steps: u64, every: Duration) -> Option<PromFile> {
        let path = RunDir::new(dir).prometheus();
        let run = escaped(run);
        (!every.is_zero()).then_some(PromFile {
            path,
            run,
            steps,
            every,
            written: None,
            validation: (None, None),
            complained: false,
        })
    }

    /// Writes the file when it is due, and after the last step. A filesystem that refuses is no reason to stop: what is wrong comes
    /// back once.
    pub fn step(&mut self, r: &StepRecord) -> Option<String> {
        let (loss, accuracy) = self.validation;
        self.validation = (r.validation_loss.or(loss), r.validation_accuracy.or(accuracy));
        if r.step < self.steps && self.written.is_some_and(|t| t.elapsed() < self.every) {
            return None;
        }
        self.written = Some(Instant::now());
        let (validation_loss, validation_accuracy) = self.validation;
        let text = self.text(&StepRecord { validation_loss, validation_accuracy, ..r.clone() });
        // a reader sees the old file or the new one; it need not survive a crash
        let new = self.path.with_extension("prom.tmp");
        let e = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &self.path)).err()?;
        let first = !std::mem::replace(&mut self.complained, true);
        first.then(|| format!("{} could not be written, training goes on: {e}", self.path.display()))
    }

    fn text(&self, r: &StepRecord) -> String {
        let mut out = String::new();
        let mut put = |name: &str, kind: &str, help: &str, value: f64| {
            let _ = writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{run=\"{}\"}} {}",
                self.run,
                number(value)
            );
        };
        for m in METRICS {
            if let Some(value) = (m.value)(r) {
                put(m.name, m.kind, m.help, value);
            }
        }
        let values = [self.steps as f64, attempt::current() as f64];
        OF_RUN.iter().zip(values).for_each(|((name, help), value)| put(name, "gauge", help, value));
        out
    }
}

fn number(x: f64) -> String {
    match x {
        x if x.is_nan() => "NaN".into(),
        x if x.is_infinite() => if x > 0.0 { "+Inf" } else { "-Inf" }.into(),
        x => x.to_string(),
    }
}

/// A label's value: `\`, `"` and line feeds are escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const DASHBOARD: &str = include_str!("../../configs/grafana.json");

    #[test]
    fn the_dashboard_asks_for_what_is_written_and_for_all_of_it() {
        let v: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
        let mut asked = BTreeSet::new();
        let text = v.to_string();
        for (at, _) in text.match_indices("herd_") {
            let end = text[at..].find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap();
            asked.insert(text[at..at + end].to_string());
        }
        let written: BTreeSet<String> =
            METRICS.iter().map(|m| m.name).chain(OF_RUN.iter().map(|m| m.0)).map(String::from).collect();
        assert_eq!(asked, written);
    }

    #[test]
    fn the_file_is_in_the_text_form_and_is_not_written_at_every_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.prom");
        let mut file = PromFile::new(dir.path(), "a \"b\"\\\n", 10, Duration::from_secs(3600)).unwrap();
        let record = |step, validation| StepRecord {
            step,
            loss: 2.5,
            grad_norm: f64::NAN,
            validation_loss: validation,
            ..Default::default()
        };
        assert_eq!(file.step(&record(1, Some(1.5))), None);
        let text = std::fs::read_to_string(&path).unwrap();
        let label = r#"{run="a \"b\"\\\n"}"#;
        for line in [
            format!("herd_loss{label} 2.5"),
            format!("herd_gradient_norm{label} NaN"),
            format!("herd_validation_loss{label} 1.5"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
        assert!(text.contains("# TYPE herd_tokens_total counter") && !text.contains("herd_mfu"));
        file.step(&record(2, None));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "not due");
        file.step(&record(10, None));
        let last = std::fs::read_to_string(&path).unwrap();
        assert!(
            last.contains("herd_step{") && last.contains(" 10\n") && last.contains("herd_validation_loss"),
            "{last}"
        );
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(file.step(&record(10, None)).unwrap().contains("could not be written"));
        assert_eq!(file.step(&record(10, None)), None, "said once");
        assert!(PromFile::new(dir.path(), "x", 10, Duration::ZERO).is_none());
    }
}

//! What a page shows of a run, as JSON: status, thinned-out steps, timeline, ledger, configuration, and what is wrong with the files.

use super::decimate::{Decimator, BUCKETS};
use crate::error::{Error, Exit, Result};
use crate::launch::follow::RunFollower;
use crate::launch::status::RunStatus;
use crate::run_dir::RunDir;
use crate::train::records::StepPoint;
use jiff::Timestamp;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// Columns of the thinned-out steps. Hours since the first step began; seconds, nats, tokens, bytes as in `metrics.jsonl`; the `_part` are fractions of a step.
const COLUMNS: [&str; 21] = [
    "hours",
    "tokens",
    "loss",
    "validation_loss",
    "validation_accuracy",
    "reward_margin",
    "reward_accuracy",
    "held_out_margin",
    "held_out_accuracy",
    "lr",
    "grad_norm",
    "tokens_per_s",
    "step_s",
    "mfu_causal",
    "mfu_full",
    "memory_peak",
    "exposed_part",
    "pipeline_wait_part",
    "rank_work_min_s",
    "rank_work_mean_s",
    "rank_work_max_s",
];
/// Attempts, events and nodes that are listed; older ones are counted.
const LISTED: usize = 500;
/// The longest file that is shown whole, bytes.
const LONGEST: u64 = 256 << 10;
/// Ranks that are counted as slowest, each by itself.
const SLOWEST: usize = 4096;

/// A run that a page shows, read further at each look.
pub struct RunView {
    dir: PathBuf,
    follower: RunFollower,
    series: Series,
}

/// What the steps leave behind.
struct Series {
    columns: Decimator,
    first: Option<f64>,
    best_validation: Option<(f64, u64)>,
    least_loss: Option<(f64, u64)>,
    skipped: u64,
    last_skipped: u64,
    last: Option<StepPoint>,
    /// How often a rank was the slowest.
    slowest: std::collections::BTreeMap<u64, u64>,
}

impl RunView {
    /// # Errors
    /// [`Exit::Usage`] for a directory that is no run's.
    pub fn open(dir: &Path) -> Result<RunView> {
        let columns = Decimator::new(&COLUMNS, BUCKETS);
        let series = Series {
            columns,
            first: None,
            best_validation: None,
            least_loss: None,
            skipped: 0,
            last_skipped: 0,
            last: None,
            slowest: Default::default(),
        };
        Ok(RunView { dir: dir.to_path_buf(), follower: RunFollower::open(dir)?, series })
    }

    /// Reads what is new and says everything.
    ///
    /// # Errors
    /// [`Exit::Storage`].
    pub fn look(&mut self, now: Timestamp) -> Result<Value> {
        if self.follower.is_stale() {
            *self = RunView::open(&self.dir)?;
        }
        let series = &mut self.series;
        let status = self.follower.look(now, &mut |p| series.add(p))?;
        let mut notes = self.follower.notes();
        let run = RunDir::new(&self.dir);
        let config = self.text(&run.config(), &mut notes);
        let tree = match config.as_deref().map(serde_yaml::from_str::<Value>) {
            Some(Ok(tree)) => tree,
            Some(Err(e)) => {
                notes.push(format!("config.yaml is damaged: {e}"));
                Value::Null
            }
            None => Value::Null,
        };
        let plan = match self.text(&run.plan(), &mut notes).as_deref().map(serde_json::from_str::<Value>) {
            Some(Ok(plan)) => plan,
            Some(Err(e)) => {
                notes.push(format!("plan.json is damaged: {e}"));
                Value::Null
            }
            None => Value::Null,
        };
        let path = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        Ok(json!({
            "path": path.display().to_string(),
            "status": status,
            "summary": self.summary(&status),
            "series": self.series.columns.json(),
            "attempts": self.attempts(&mut notes),
            "events": self.events(&mut notes),
            "counts": self.follower.events.counts,
            "ledger": self.ledger(&mut notes),
            "plan": plan, "config": config, "config_tree": tree, "notes": notes,
        }))
    }

    /// A file whole; None where it is absent. What is too large or unreadable is noted.
    fn text(&self, path: &Path, notes: &mut Vec<String>) -> Option<String> {
        let size = std::fs::metadata(path).map(|m| m.len()).ok()?;
        if size > LONGEST {
            let name = path.file_name().unwrap_or_default().display();
            notes.push(format!("{name} has {size} bytes and is left out (at most {LONGEST})"));
            return None;
        }
        match std::fs::read(path) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(e) => {
                notes.push(Error::io(path, "read", &e, Exit::Storage).fact);
                None
            }
        }
    }

    fn summary(&self, status: &RunStatus) -> Value {
        let (s, events) = (&self.series, &self.follower.events);
        let last = s.last.as_ref();
        let saved = events.checkpoints;
        let left = status.step_s.map(|t| t * status.steps.saturating_sub(status.step) as f64);
        json!({
            "first": s.first, "tokens": last.and_then(|p| p.tokens), "mfu_causal": last.and_then(|p| p.mfu_causal),
            "grad_norm": last.and_then(|p| p.grad_norm), "memory_peak": last.and_then(|p| p.memory_peak),
            "validation_loss": s.best_validation.map(|b| b.0), "validation_step": s.best_validation.map(|b| b.1),
            "least_loss": s.least_loss.map(|b| b.0), "least_loss_step": s.least_loss.map(|b| b.1),
            "skipped": s.skipped, "last_skipped": s.last_skipped, "left_s": left,
            "checkpoints": saved, "checkpoint_mean_s": (saved > 0).then(|| events.checkpoint_s / saved as f64),
            "last_checkpoint": events.last_checkpoint, "slowest": s.slowest_ranks(),
        })
    }

    fn attempts(&self, notes: &mut Vec<String>) -> Vec<Value> {
        let all = &self.follower.history.attempts;
        note_left_out(notes, "attempts.json", all.len(), "attempts");
        let row = |a: &crate::launch::history::Record| {
            json!({
                "attempt": a.attempt, "job": a.job, "restarts": a.restarts, "nodes": crate::slurm::compress(&a.nodes),
                "count": a.nodes.len(), "shrunk_to": a.shrunk_to, "started": a.started, "ended": a.ended,
                "last_step": a.last_step, "class": a.class, "reason": a.reason, "fact": a.fact,
                "blamed": crate::slurm::compress(&a.blamed),
            })
        };
        all.iter().skip(all.len().saturating_sub(LISTED)).map(row).collect()
    }

    fn events<'a>(&'a self, notes: &mut Vec<String>) -> Vec<&'a Value> {
        let all = &self.follower.events.kept;
        note_left_out(notes, "events.jsonl", all.len(), "events");
        all.iter().skip(all.len().saturating_sub(LISTED)).map(|e| &e.line).collect()
    }

    fn ledger<'a>(&'a self, notes: &mut Vec<String>) -> Vec<Value> {
        let nodes = &self.follower.ledger.nodes;
        if nodes.len() > LISTED {
            notes.push(format!("ledger.json: {LISTED} of {} nodes are listed", nodes.len()));
        }
        let row = |(name, n): (&'a String, &'a crate::launch::ledger::Node)| {
            json!({ "node": name, "given_up": n.given_up, "paused_until": n.paused_until, "count": n.failures.len(),
                "failures": n.failures.iter().rev().take(5).collect::<Vec<_>>() })
        };
        nodes.iter().take(LISTED).map(row).collect()
    }
}

fn note_left_out(notes: &mut Vec<String>, file: &str, found: usize, what: &str) {
    if found > LISTED {
        notes.push(format!("{file}: the {} oldest {what} are not listed", found - LISTED));
    }
}

impl Series {
    fn add(&mut self, p: &StepPoint) {
        let part = |x: Option<f64>| Some(x? / p.step_s.filter(|s| *s > 0.0)?);
        self.first = self.first.or(p.ended().zip(p.step_s).map(|(end, took)| end - took));
        let values = [
            p.ended().zip(self.first).map(|(end, first)| (end - first) / 3600.0),
            p.tokens,
            p.loss,
            p.validation_loss,
            p.validation_accuracy,
            p.reward_margin,
            p.reward_accuracy,
            p.held_out_margin,
            p.held_out_accuracy,
            p.lr,
            p.grad_norm,
            p.tokens_per_s,
            p.step_s,
            p.mfu_causal,
            p.mfu_full,
            p.memory_peak,
            part(p.comm_exposed_s),
            part(p.pipeline_wait_s),
            p.rank_work_min_s,
            p.rank_work_mean_s,
            p.rank_work_max_s,
        ];
        self.columns.add(p.step, &values);
        let least = |best: Option<(f64, u64)>, x: Option<f64>| match (best, x) {
            (Some((b, at)), Some(x)) if b <= x => Some((b, at)),
            (best, None) => best,
            (_, Some(x)) => Some((x, p.step)),
        };
        self.best_validation = least(self.best_validation, p.validation_loss);
        self.least_loss = least(self.least_loss, p.loss);
        if p.skipped {
            (self.skipped, self.last_skipped) = (self.skipped + 1, p.step);
        }
        if let Some(rank) = p.slowest_rank {
            if self.slowest.len() < SLOWEST || self.slowest.contains_key(&rank) {
                *self.slowest.entry(rank).or_default() += 1;
            }
        }
        self.last = Some(p.clone());
    }

    /// The ranks that were slowest most often, and in which part of the steps.
    fn slowest_ranks(&self) -> Vec<Value> {
        let all: u64 = self.slowest.values().sum();
        let mut ranks: Vec<(u64, u64)> = self.slowest.iter().map(|(r, n)| (*r, *n)).collect();
        ranks.sort_by_key(|(r, n)| (std::cmp::Reverse(*n), *r));
        ranks.iter().take(3).map(|(r, n)| json!({ "rank": r, "part": *n as f64 / all as f64 })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_told_in_a_line_each_and_the_rest_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let step = |s: u64| json!({ "step": s, "time": "2026-01-01T00:00:00Z", "loss": 3.0 / s as f64, "step_s": 2.0, "comm_exposed_s": 0.5 });
        let text = format!("{}\n{{\"step\":\n{}\n{}\n{}\n", step(1), step(3), step(2), step(4));
        std::fs::write(dir.path().join("metrics.jsonl"), text).unwrap();
        for file in ["attempts.json", "ledger.json", "plan.json"] {
            std::fs::write(dir.path().join(file), "{").unwrap();
        }
        std::fs::write(dir.path().join("config.yaml"), "name: </script><b>\n").unwrap();
        let v = RunView::open(dir.path()).unwrap().look(Timestamp::now()).unwrap();
        let notes: Vec<&str> = v["notes"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        assert_eq!(notes.len(), 4, "{notes:?}");
        assert!(notes[0].starts_with("metrics.jsonl: 2 of 5 lines"), "{notes:?}");
        assert_eq!(v["series"]["step"], json!([1, 3, 4]));
        assert_eq!(v["series"]["columns"]["exposed_part"]["mean"][0], 0.25);
        assert_eq!(v["summary"]["least_loss_step"], 4);
        assert_eq!(v["status"]["name"], "</script><b>");
    }

    #[test]
    fn a_run_that_goes_on_is_read_further_and_one_that_resumed_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let lines = |steps: std::ops::RangeInclusive<u64>| -> String {
            steps.map(|s| json!({ "step": s, "loss": 1.0 }).to_string() + "\n").collect()
        };
        std::fs::write(&path, lines(1..=3)).unwrap();
        let mut view = RunView::open(dir.path()).unwrap();
        let steps = |view: &mut RunView| view.look(Timestamp::now()).unwrap()["series"]["steps"].clone();
        assert_eq!(steps(&mut view), 3);
        use std::io::Write;
        crate::appended::open(&path).unwrap().write_all(lines(4..=5).as_bytes()).unwrap();
        assert_eq!(steps(&mut view), 5);
        std::fs::write(dir.path().join("new"), lines(1..=4)).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(steps(&mut view), 4);
    }
}

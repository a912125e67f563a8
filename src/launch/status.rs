//! How a run fares, from what its run directory holds: nothing is asked of Slurm, so it works on any host that sees the
//! directory, also long after the job.
//!
//! The *effective training time ratio* is the time spent in steps that count over the time since the first start:
//! Σ `step_s` of `metrics.jsonl`, where each step stands once, over (end − first start), waiting in the queue between two
//! jobs included. What is missing to 1 is split: a gap between two steps with the start of an attempt in it is lost to that
//! fault (noticing, restarting, doing steps again); everything else is start-up, checkpoints and validation.

use super::history::{Class, History, Record};
use super::ledger::{self, Ledger, Standing};
use crate::events::{LoggedEvent, RunEvent};
use crate::slurm::compress;
use crate::train::records::StepPoint;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};

/// How a run fares at one moment; what `herd status --json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunStatus {
    /// `name` of the configuration; empty where there is none.
    pub name: String,
    /// Where it stands, by the last event about the run as a whole.
    pub state: RunState,
    /// What is behind the state, for people.
    pub detail: String,
    /// Last finished step, counted from 1; 0 before the first.
    pub step: u64,
    /// Steps of the whole run, `train.steps`; 0 where that is not known.
    pub steps: u64,
    /// Of the last step; `None` before the first, and where it is not finite.
    pub loss: Option<f64>,
    /// Median over the last steps.
    pub tokens_per_s: Option<f64>,
    /// Seconds of a step: median over the last steps.
    pub step_s: Option<f64>,
    /// Seconds since the last step ended, or until the run ended.
    pub since_last_step_s: Option<f64>,
    /// Starts of the ranks, in all jobs.
    pub attempts: usize,
    /// Jobs in its history; one that was requeued counts once.
    pub jobs: usize,
    /// Times that the job went back into the queue, or another followed it.
    pub requeues: usize,
    /// Oldest first, of the events that are kept.
    pub faults: Vec<FaultRow>,
    /// Steps done again after faults.
    pub steps_lost: usize,
    /// Seconds since the first start.
    pub wall_s: f64,
    /// Part of it in steps that count.
    pub training_s: f64,
    /// Part of it lost to faults.
    pub lost_s: f64,
    /// `training_s` over `wall_s`; 0 before the first step.
    pub effective_time_ratio: f64,
    /// Nodes that have failed, by name.
    pub nodes: BTreeMap<String, NodeLine>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// No event tells of a start.
    #[default]
    NotStarted,
    /// Started, and no word of an end since; also where it was killed without one.
    Running,
    /// Between two jobs.
    Queued,
    /// All steps are done.
    Finished,
    /// Ended before its last step: given up, cancelled, or asked to.
    Stopped,
}

/// One fault, and how it was mended.
#[derive(Clone, Debug, Serialize)]
pub struct FaultRow {
    /// The attempt that it ended, from 1.
    pub attempt: u64,
    /// When its event was written; the beginning of 1970 where that is not known.
    pub time: Timestamp,
    /// Last finished step when it happened.
    pub step: u64,
    /// What kind of fault; `None` for one that this herd does not know.
    pub class: Option<Class>,
    /// Short word for the cause, as in the ledger.
    pub reason: String,
    /// One line for people.
    pub fact: String,
    /// Nodes that it is counted against; empty where nobody is blamed.
    pub nodes: Vec<String>,
    /// From the notice to the next new step.
    pub recovered_s: Option<f64>,
    /// Steps done again after it; `None` until it is mended, and where an earlier fault was still being mended.
    pub steps_lost: Option<u64>,
}

/// What the ledger says of one node, in short.
#[derive(Clone, Debug, Serialize)]
pub struct NodeLine {
    /// Its failures in the ledger, late answers included.
    pub failures: usize,
    /// `in use`, `last resort` or `given up`.
    pub standing: &'static str,
    /// Reason of its newest failure.
    pub last: String,
}

/// What a status is made of.
pub struct StatusParts<'a> {
    /// `config.yaml`, or null.
    pub config: &'a Value,
    /// Every start of the ranks.
    pub history: &'a History,
    /// Without the frequent kinds, oldest first.
    pub events: &'a VecDeque<LoggedEvent>,
    /// Times that the job went back into the queue, or another followed it.
    pub requeues: usize,
    /// Steps that were done again.
    pub steps_lost: usize,
    /// The run's own ledger of nodes.
    pub ledger: &'a Ledger,
    /// What its finished steps add up to.
    pub steps: &'a StepTally,
}

/// How a run fares.
pub fn of(parts: &StatusParts, now: Timestamp) -> RunStatus {
    let StatusParts { config, history, events, ledger, steps, .. } = parts;
    let mut s = RunStatus {
        name: config["name"].as_str().unwrap_or_default().into(),
        steps: config["train"]["steps"].as_u64().unwrap_or(0),
        attempts: history.attempts.iter().filter(|a| !a.nodes.is_empty()).count(),
        jobs: count_changes(history.attempts.iter().map(|a| a.job)),
        requeues: parts.requeues,
        faults: faults(events),
        steps_lost: parts.steps_lost,
        nodes: nodes(ledger, now),
        ..RunStatus::default()
    };
    (s.state, s.detail) = state(history, events);
    steps.progress(&mut s);
    steps.times(&mut s, &history.attempts, now);
    s
}

fn count_changes(mut jobs: impl Iterator<Item = u64>) -> usize {
    let mut last = None;
    jobs.by_ref().filter(|j| last.replace(*j) != Some(*j)).count()
}

/// Whether it is a word about the run as a whole, by the supervisor or the ranks.
fn is_about_the_run(event: &RunEvent) -> bool {
    use RunEvent::*;
    matches!(
        event,
        Launch { .. }
            | LaunchEnded { .. }
            | Requeue { .. }
            | NotRequeued { .. }
            | Successor { .. }
            | Finished { .. }
            | Stopped { .. }
            | Start { .. }
            | Resume { .. }
    )
}

fn state(history: &History, events: &VecDeque<LoggedEvent>) -> (RunState, String) {
    let last = events.iter().rev().filter_map(|e| e.event.as_ref()).find(|e| is_about_the_run(e));
    let running = || match history.attempts.last().filter(|a| a.ended.is_none()) {
        Some(a) => format!("attempt {} of job {} on {}", a.attempt, a.job, compress(&a.nodes)),
        None => "by hand, or between two attempts".into(),
    };
    match last {
        None => (RunState::NotStarted, String::new()),
        Some(RunEvent::Finished { .. }) => (RunState::Finished, String::new()),
        Some(RunEvent::LaunchEnded { exit: 0, why }) => (RunState::Finished, why.clone()),
        Some(RunEvent::LaunchEnded { why, .. }) => (RunState::Stopped, why.clone()),
        Some(RunEvent::Stopped { .. }) if history.attempts.is_empty() => {
            (RunState::Stopped, "saved and left on request".into())
        }
        Some(RunEvent::Requeue { why, .. } | RunEvent::Successor { why, .. }) => (RunState::Queued, why.clone()),
        Some(RunEvent::NotRequeued { state, .. }) if state == "CANCELLED" => {
            (RunState::Stopped, "the job was cancelled".into())
        }
        Some(RunEvent::NotRequeued { why, .. }) => (RunState::Queued, why.clone()),
        Some(_) => (RunState::Running, running()),
    }
}

fn faults(events: &VecDeque<LoggedEvent>) -> Vec<FaultRow> {
    let mut out: Vec<FaultRow> = Vec::new();
    for logged in events {
        match &logged.event {
            Some(RunEvent::Fault { attempt, step, class, reason, fact, nodes, .. }) => out.push(FaultRow {
                attempt: *attempt,
                time: logged.time.unwrap_or_default(),
                step: *step,
                class: *class,
                reason: reason.clone(),
                fact: fact.clone(),
                nodes: nodes.clone(),
                recovered_s: None,
                steps_lost: None,
            }),
            // belongs to the first fault of a row: what came after it came while it was being mended
            Some(RunEvent::Recovered { seconds, steps_lost, .. }) => {
                let open = out.iter().rposition(|f| f.recovered_s.is_some()).map_or(0, |i| i + 1);
                if let Some(f) = out.get_mut(open) {
                    (f.recovered_s, f.steps_lost) = (Some(*seconds), Some(*steps_lost));
                }
            }
            _ => {}
        }
    }
    out
}

fn nodes(ledger: &Ledger, now: Timestamp) -> BTreeMap<String, NodeLine> {
    let line = |(name, node): (&String, &ledger::Node)| {
        let standing = match ledger.standing(name, now) {
            Standing::Good => "in use",
            Standing::Paused => "last resort",
            Standing::GivenUp => "given up",
        };
        let last = node.failures.last().map_or(String::new(), |f| f.reason.clone());
        (name.clone(), NodeLine { failures: node.failures.len(), standing, last })
    };
    ledger.nodes.iter().map(line).collect()
}

/// Steps that a speed is the median of.
const RECENT: usize = 20;

/// What the steps add up to, taken in one by one.
#[derive(Debug, Default)]
pub struct StepTally {
    /// When each attempt after the first was started.
    starts: Vec<f64>,
    /// When the run was started, or its first step began.
    first: Option<f64>,
    last: Option<StepPoint>,
    /// When the last step had ended that says so.
    last_end: Option<f64>,
    recent: VecDeque<(Option<f64>, Option<f64>)>,
    training_s: f64,
    lost_s: f64,
}

impl StepTally {
    /// Without any step yet; `history` tells when the attempts were started.
    pub fn new(history: &History) -> StepTally {
        let mut starts = history.attempts.iter().map(|a| seconds(a.started));
        StepTally { first: starts.next(), starts: starts.collect(), ..StepTally::default() }
    }

    /// The last step taken in, counted from 1; `None` before the first.
    pub fn last_step(&self) -> Option<u64> {
        self.last.as_ref().map(|p| p.step)
    }

    /// Takes the next step in.
    pub fn add(&mut self, p: &StepPoint) {
        let began = p.ended().zip(p.step_s).map(|(end, took)| end - took);
        self.first = self.first.or(began);
        let before = self.last_end.or(self.first);
        if let (Some(before), Some(begin)) = (before, began) {
            if self.starts.iter().any(|t| (before..=begin).contains(t)) {
                self.lost_s += (begin - before).max(0.0);
            }
        }
        self.training_s += p.step_s.unwrap_or(0.0);
        self.last_end = p.ended().or(self.last_end);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((p.tokens_per_s, p.step_s));
        self.last = Some(p.clone());
    }

    fn progress(&self, s: &mut RunStatus) {
        let Some(last) = &self.last else { return };
        s.step = last.step;
        s.loss = last.loss;
        s.tokens_per_s = median(self.recent.iter().filter_map(|r| r.0));
        s.step_s = median(self.recent.iter().filter_map(|r| r.1));
    }

    /// Splits the time since the first start.
    fn times(&self, s: &mut RunStatus, attempts: &[Record], now: Timestamp) {
        let (Some(first), Some(last)) = (self.first, self.last_end) else { return };
        let end = match s.state {
            RunState::Running => seconds(now),
            _ => attempts.iter().filter_map(|a| a.ended).map(seconds).fold(last, f64::max),
        };
        s.since_last_step_s = Some((end - last).max(0.0));
        s.wall_s = (end - first).max(0.0);
        s.training_s = self.training_s;
        s.lost_s = self.lost_s;
        // a fault that is not mended yet
        if self.starts.iter().any(|t| *t > last) {
            s.lost_s += end - last;
        }
        s.effective_time_ratio = if s.wall_s > 0.0 { s.training_s / s.wall_s } else { 0.0 };
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

fn seconds(t: Timestamp) -> f64 {
    t.as_nanosecond() as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::super::follow::read;
    use super::*;
    use crate::error::Exit;
    use serde_json::json;
    use std::path::Path;

    fn at(s: f64) -> Timestamp {
        Timestamp::from_nanosecond((1e9 * (1_000_000.0 + s)) as i128).unwrap()
    }

    /// Ten steps of a second; a fault in step 6 at 5.5 s, noticed at 6, the next attempt starts at 7, resumes after step 4
    /// and begins step 5 at 9.
    fn run(dir: &Path) {
        let step = |step: u64, end: f64| json!({ "step": step, "time": at(end), "step_s": 1.0, "loss": 2.0, "tokens_per_s": 50.0 });
        let metrics: Vec<Value> =
            (1..=4).map(|i| step(i, i as f64)).chain((5..=10).map(|i| step(i, i as f64 + 5.0))).collect();
        let text = |lines: &[Value]| lines.iter().map(|l| format!("{l}\n")).collect::<String>();
        std::fs::write(dir.join("metrics.jsonl"), text(&metrics)).unwrap();
        std::fs::write(dir.join("metrics.superseded.jsonl"), text(&[step(5, 5.0)])).unwrap();
        let events = [
            json!({ "time": at(-1.0), "kind": "launch", "job": 7 }),
            json!({ "time": at(6.0), "kind": "fault", "attempt": 1, "step": 5, "class": "node", "reason": "missed_probes",
                "fact": "n2 is silent", "nodes": ["n2"] }),
            json!({ "time": at(10.0), "kind": "recovered", "attempt": 2, "steps_lost": 1, "seconds": 4.0 }),
            json!({ "time": at(15.0), "kind": "finished" }),
            json!({ "time": at(15.0), "kind": "launch_ended", "exit": 0, "why": "the last step is done" }),
        ];
        std::fs::write(dir.join("events.jsonl"), text(&events) + "half a li").unwrap();
        std::fs::write(dir.join("config.yaml"), "name: demo\ntrain: {steps: 10}\n").unwrap();
        let record = |attempt, started: f64, ended: f64, class| Record {
            attempt,
            job: 7,
            restarts: 0,
            nodes: vec!["n1".into(), "n2".into()],
            shrunk_to: None,
            srun: None,
            started: at(started),
            ended: Some(at(ended)),
            last_step: 5,
            class: Some(class),
            reason: String::new(),
            fact: String::new(),
            blamed: vec![],
        };
        let attempts = vec![record(1, -1.0, 6.0, Class::Node), record(2, 7.0, 15.0, Class::Done)];
        History { attempts, ..Default::default() }.write(dir).unwrap();
    }

    #[test]
    fn time_is_split_into_training_faults_and_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path());
        let s = read(dir.path(), at(100.0)).unwrap();
        assert_eq!((s.state, s.step, s.steps, s.attempts, s.jobs, s.steps_lost), (RunState::Finished, 10, 10, 2, 1, 1));
        assert_eq!((s.wall_s, s.training_s), (16.0, 10.0));
        // from the end of step 4, which counts, to the beginning of step 5 that counts
        assert!((s.lost_s - 5.0).abs() < 1e-6, "{}", s.lost_s);
        assert!((s.effective_time_ratio - 10.0 / 16.0).abs() < 1e-9);
        let f = &s.faults[0];
        assert_eq!((f.recovered_s, f.steps_lost, f.class), (Some(4.0), Some(1), Some(Class::Node)));
        assert_eq!((s.loss, s.tokens_per_s), (Some(2.0), Some(50.0)));
    }

    #[test]
    fn a_run_without_anything_and_a_folder_that_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), at(0.0)).unwrap_err().exit, Exit::Usage);
        std::fs::write(dir.path().join("config.yaml"), "name: x\n").unwrap();
        let s = read(dir.path(), at(0.0)).unwrap();
        assert_eq!((s.state, s.wall_s, s.effective_time_ratio), (RunState::NotStarted, 0.0, 0.0));
    }
}

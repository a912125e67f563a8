//! What the supervisor writes down about its attempts: history, ledger of nodes, events, alerts.

use super::alert::{Alerts, Sent};
use super::context::{Fault, JobContext, LaunchState};
use super::history::{Class, History, Record, NO_ANSWER, UNFIT};
use super::ledger::{Book, Failure};
use super::place::Placement;
use super::run_log;
use super::seen::Finding;
use crate::appended;
use crate::config::{AlertKind, LaunchSection};
use crate::error::{Error, Exit, Result};
use crate::events::{Events, RunEvent};
use crate::host;
use jiff::SignedDuration;
use serde_json::json;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// The longest pause of a node that was only late.
const LATE_PAUSE_S: f64 = 600.0;
/// The shortest pause of a node that cannot run the ranks: it does not mend itself while memory goes to disk.
const UNFIT_PAUSE_S: f64 = 600.0;
/// How long after a filesystem has refused to write it is asked again.
const STORAGE_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Records {
    pub book: Book,
    pub history: History,
    pub alerts: Alerts,
    events: Events,
    run_dir: PathBuf,
    job: u64,
    limits: LaunchSection,
    /// How long a filesystem that refuses to write is asked again.
    patience: Duration,
    /// Raised by a signal.
    asked: Arc<AtomicBool>,
}

impl Records {
    /// Those of the run directory; `history` has been read from there.
    pub fn open(context: &JobContext, history: History) -> Result<Records> {
        let (config, run_dir) = (&context.launch.config, context.run_dir.clone());
        let about = [
            ("run".to_string(), json!(config.name)),
            ("run_dir".into(), json!(run_dir)),
            ("job".into(), json!(context.job.address())),
        ];
        Ok(Records {
            book: Book::open(&run_dir, config.launch.ledger.as_deref())?,
            history,
            alerts: Alerts::new(&config.alerts, about.into_iter().collect()),
            events: Events::open(&run_dir)?,
            run_dir,
            job: context.job.id,
            limits: config.launch.clone(),
            patience: Duration::from_secs_f64(config.liveness.storage_s),
            asked: context.asked.clone(),
        })
    }

    /// One line in `events.jsonl`.
    pub fn say(&mut self, event: RunEvent) -> Result<()> {
        self.patiently(|r| r.events.write(&event))
    }

    /// Writes `attempts.json`.
    pub fn write_history(&mut self) -> Result<()> {
        self.patiently(|r| r.history.write(&r.run_dir))
    }

    /// Does again what the filesystem refuses, each second for `liveness.storage_s`: a disk that is full may be freed, and
    /// the allocation with all that it holds in memory is worth the wait.
    pub fn patiently<T>(&mut self, mut work: impl FnMut(&mut Records) -> Result<T>) -> Result<T> {
        let limit = self.patience;
        let began = host::now();
        loop {
            match work(self) {
                Err(e)
                    if e.exit == Exit::Storage && host::since(began) < limit && !self.asked.load(Ordering::Relaxed) =>
                {
                    if host::since(began) < STORAGE_AGAIN {
                        tracing::warn!("{e}; trying again for {} s", limit.as_secs_f64());
                    }
                    host::sleep(STORAGE_AGAIN);
                    appended::wait_for(&self.run_dir, appended::PATIENCE).map_err(|e| self.without_run_dir(e))?;
                }
                done => return done,
            }
        }
    }

    /// The end of a run whose directory is gone: nothing can be written down, so it is said, and the operators are told.
    pub fn without_run_dir(&mut self, e: Error) -> Error {
        self.alerts.tell(
            AlertKind::Stopped,
            "",
            &format!("the run has stopped: {}", e.fact),
            json!({ "exit": e.exit.code() }),
        );
        for sent in self.alerts.finish() {
            if let Some(why) = &sent.failure {
                tracing::warn!("alert {:?} by {} failed: {why}", sent.kind, sent.channel);
            }
        }
        e
    }

    /// An attempt begins, whose srun has this pid.
    pub fn begin(
        &mut self, context: &JobContext, state: &mut LaunchState, placement: &Placement, srun: u32,
    ) -> Result<()> {
        self.history.attempts.push(begun(context, state, &placement.active, Some(srun)));
        state.slots = placement.active.clone();
        self.write_history()?;
        let (nodes, spares) = (placement.active.join(","), placement.spares.join(","));
        let world = placement.active.len() * context.launch.ranks_per_node;
        tracing::info!("attempt {}: {world} ranks on {nodes}; spares: {spares}", state.number);
        self.say(RunEvent::AttemptStarted { attempt: state.number, nodes, spares, world })
    }

    /// Writes down how the attempt ended: history, ledger, events, alerts.
    pub fn close(&mut self, state: &mut LaunchState, found: &Finding) -> Result<()> {
        let (now, step) = (host::wall(), run_log::last_step(&self.run_dir));
        if let Some(record) = self.history.attempts.last_mut() {
            record.ended = Some(now);
            record.last_step = step;
            record.class = Some(found.class);
            (record.reason, record.fact) = (found.reason.clone(), found.fact.clone());
            record.blamed = found.nodes.clone();
        }
        self.write_history()?;
        if !found.class.is_fault() {
            return Ok(());
        }
        state.fault.get_or_insert_with(|| Fault::at(step));
        tracing::warn!("attempt {}: {}", state.number, found.fact);
        let event = RunEvent::Fault {
            attempt: state.number,
            step,
            class: Some(found.class),
            reason: found.reason.clone(),
            fact: found.fact.clone(),
            nodes: found.nodes.clone(),
            ranks: found.ranks.clone(),
        };
        let fields = event.fields();
        self.say(event)?;
        self.alerts.tell(AlertKind::Fault, &state.number.to_string(), &found.fact, fields);
        let pause = found.class == Class::Node;
        #[cfg(test)]
        if host::planted() == Some(host::Planted::HealthyBlamed) {
            self.blame(state.number, &state.slots[..1], "planted", true)?;
        }
        self.blame(state.number, &found.nodes, &found.reason, pause)
    }

    /// Whether a node has failed in this run, and no attempt had it since.
    pub fn unused_since_failure(&self, node: &str) -> bool {
        let Some(failed) = self.book.ledger.nodes.get(node).and_then(|n| n.failures.last()) else { return false };
        let all = &self.history.attempts;
        let is_ours = all.iter().any(|a| (a.job, a.attempt) == (failed.job, failed.attempt));
        is_ours && !all.iter().any(|a| a.attempt > failed.attempt && a.nodes.iter().any(|n| n == node))
    }

    /// Counts a failure in an attempt against nodes; one past its limit is given up, and the operators are told its history.
    pub fn blame(&mut self, attempt: u64, nodes: &[String], reason: &str, pause: bool) -> Result<()> {
        if nodes.is_empty() {
            return Ok(());
        }
        let pause_s = match reason {
            NO_ANSWER => self.limits.node_pause_s.min(LATE_PAUSE_S),
            UNFIT => self.limits.node_pause_s.max(UNFIT_PAUSE_S),
            _ => self.limits.node_pause_s,
        };
        let pause = pause.then(|| SignedDuration::from_secs_f64(pause_s));
        let limit = self.limits.node_failures;
        for node in nodes {
            let failure = Failure { time: host::wall(), job: self.job, attempt, reason: reason.to_string() };
            if self.book.ledger.record(node, failure, pause, limit) {
                let failures = &self.book.ledger.nodes[node].failures;
                let past: Vec<String> = failures
                    .iter()
                    .map(|f| format!("{} at {} (job {})", f.reason, f.time.strftime("%F %T"), f.job))
                    .collect();
                let text = format!("node {node} has failed {} times and is given up: {}", past.len(), past.join("; "));
                tracing::error!("{text}");
                let event = RunEvent::NodeGivenUp { node: node.clone(), failures: failures.clone() };
                let fields = event.fields();
                self.say(event)?;
                self.alerts.tell(AlertKind::NodeGivenUp, node, &text, fields);
            }
        }
        self.patiently(|r| r.book.save())
    }

    /// The first step after a fault, of ranks that went on after step `from`: how long it took, and what was lost.
    pub fn note_recovery(&mut self, state: &mut LaunchState, from: Option<u64>) -> Result<()> {
        let (Some(fault), Some(from)) = (&state.fault, from) else { return Ok(()) };
        let step = run_log::last_step(&self.run_dir);
        if step <= from {
            return Ok(());
        }
        let (seconds, lost) = (host::since(fault.noticed).as_secs_f64(), fault.step.saturating_sub(from));
        state.fault = None;
        tracing::info!("training again after {seconds:.1} s, from step {from}: {lost} steps are done again");
        let attempt = state.number;
        self.say(RunEvent::Recovered { attempt, step, resumed_at: from, steps_lost: lost, seconds })
    }

    pub fn note_alerts(&mut self) {
        for sent in self.alerts.results() {
            self.note_alert(sent);
        }
    }

    pub fn finish_alerts(&mut self) {
        for sent in self.alerts.finish() {
            self.note_alert(sent);
        }
    }

    fn note_alert(&mut self, sent: Sent) {
        match &sent.failure {
            None => tracing::info!("alert {:?} sent by {}", sent.kind, sent.channel),
            Some(why) => tracing::warn!("alert {:?} by {} failed: {why}", sent.kind, sent.channel),
        }
        let _ = self.say(RunEvent::Alert { about: Some(sent.kind), by: sent.channel.into(), failure: sent.failure });
    }
}

/// An attempt on `nodes` that begins now.
pub(super) fn begun(context: &JobContext, state: &LaunchState, nodes: &[String], srun: Option<u32>) -> Record {
    Record {
        attempt: state.number,
        job: context.job.id,
        restarts: context.job.restarts,
        nodes: nodes.to_vec(),
        shrunk_to: state.shrunk_to,
        started: host::wall(),
        srun,
        ended: None,
        last_step: 0,
        class: None,
        reason: String::new(),
        fact: String::new(),
        blamed: vec![],
    }
}

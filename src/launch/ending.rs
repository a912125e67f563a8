//! How a supervisor leaves: done, given up, requeued, or followed by a successor.

use super::flush::empty_memory;
use super::history::{Class, Record};
use super::policy::Decision;
use super::records::begun;
use super::run_log;
use super::supervise::Supervisor;
use crate::config::AlertKind;
use crate::error::{Error, Exit, Result};
use crate::events::RunEvent;
use crate::host;
use crate::run_dir::RunDir;
use crate::slurm::control;
use crate::slurm::Job;
use serde_json::{json, Value};
use std::time::Duration;

/// How often a controller that does not say how the job stands is asked again, and for how long.
const CONTROLLER_AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// How the job stands, from a controller that may be away for a while.
pub(super) fn job_state(job: &Job) -> Result<String> {
    let (began, mut told) = (host::now(), false);
    loop {
        match control::job_state(&job.address()) {
            Ok(state) => return Ok(state.unwrap_or_else(|| "UNKNOWN".into())),
            Err(e) if host::since(began) >= CONTROLLER_AWAY.1 => return Err(e),
            Err(e) if !std::mem::replace(&mut told, true) => {
                tracing::warn!("{e}: asking again, for {} s at most", CONTROLLER_AWAY.1.as_secs());
            }
            Err(_) => {}
        }
        host::sleep(CONTROLLER_AWAY.0);
    }
}

/// Whether Slurm has it as a job that runs. SIGNALING: a signal is on its way to some of its processes.
pub(super) fn is_running(state: &str) -> bool {
    state == "RUNNING" || state == "SIGNALING"
}

impl Supervisor {
    /// The end: `exit` becomes the job's exit code.
    pub(super) fn leave(&mut self, exit: Exit, why: &str) -> Result<Exit> {
        let absent = self.absent_at_the_end();
        self.empty_memory(&absent);
        self.give_back(&absent);
        // the next start by a person has a budget of its own
        self.records.history.counted_from = self.records.history.attempts.len();
        self.records.write_history()?;
        self.say(RunEvent::LaunchEnded { exit: exit.code(), why: why.into() })?;
        match exit {
            Exit::Ok => {
                tracing::info!("{why}");
                self.records.alerts.tell(AlertKind::Finished, "", why, Value::Null);
            }
            Exit::Requeue => tracing::info!("{why}"),
            _ => {
                tracing::error!("the run has stopped: {why}");
                self.records.alerts.tell(
                    AlertKind::Stopped,
                    "",
                    &format!("the run has stopped: {why}"),
                    json!({ "exit": exit.code() }),
                );
            }
        }
        self.records.finish_alerts();
        Ok(exit)
    }

    /// Back into the queue, if the job is still one that runs. A job that is being cancelled stays cancelled, and one that
    /// Slurm has itself put back needs nothing from us.
    pub(super) fn requeue(&mut self, why: &str, for_want_of_nodes: bool) -> Result<Exit> {
        if !self.context.launch.config.launch.requeue {
            return self.leave(Exit::Requeue, &format!("{why}; launch.requeue is false"));
        }
        let state = match job_state(&self.context.job) {
            Ok(state) => state,
            Err(e) => return self.not_requeued(&format!("{why}; its state is not known: {e}")),
        };
        if !is_running(&state) {
            self.say(RunEvent::NotRequeued { job: self.context.job.address(), state: state.clone(), why: why.into() })?;
            tracing::info!("{why}; the job is {state}, which is Slurm's doing: nothing more from here");
            self.records.finish_alerts();
            return Ok(Exit::Requeue);
        }
        let absent = self.absent_at_the_end();
        self.empty_memory(&absent);
        self.give_back(&absent);
        if self.context.site.requeues_preempted() && control::is_preempted_for_requeue(&self.context.job) {
            let why = format!(
                "{why}; the job is preempted, and Slurm {} puts it back into the queue itself",
                self.context.site.version
            );
            self.say(RunEvent::Requeue {
                job: self.context.job.address(),
                why: why.clone(),
                by: Some("slurm".into()),
            })?;
            tracing::info!("{why}");
            self.records.finish_alerts();
            return Ok(Exit::Requeue);
        }
        if for_want_of_nodes {
            self.records.alerts.tell(
                AlertKind::Requeued,
                &self.state.number.to_string(),
                &format!("back in the queue: {why}"),
                Value::Null,
            );
        }
        self.say(RunEvent::Requeue { job: self.context.job.address(), why: why.into(), by: None })?;
        self.records.finish_alerts();
        tracing::info!("{why}: job {} goes back into the queue", self.context.job.address());
        let job = &self.context.job;
        let asked_again = |e: Error| {
            tracing::warn!("the requeue failed: {e}; once more when the controller answers");
            match job_state(job)? {
                state if is_running(&state) => control::requeue(job),
                // it was done, and only the answer was lost
                _ => Ok(()),
            }
        };
        match control::requeue(job).or_else(asked_again) {
            Ok(()) => Ok(Exit::Requeue),
            Err(e) => self.not_requeued(&format!("{why}; and the requeue failed: {e}")),
        }
    }

    /// The job was to go back into the queue and does not: nobody but a person starts it again.
    fn not_requeued(&mut self, why: &str) -> Result<Exit> {
        let text = format!("job {} is not back in the queue: {why}", self.context.job.address());
        tracing::error!("{text}");
        self.records.alerts.tell(AlertKind::Stopped, "", &text, json!({ "exit": Exit::Requeue.code() }));
        self.leave(Exit::Requeue, why)
    }

    /// Not enough nodes are left for the plan.
    pub(super) fn too_few(&mut self, alive: &[String]) -> Result<Exit> {
        let need = self.context.launch.nodes_for(self.state.shrunk_to);
        let avoid = self.records.book.ledger.avoided(host::wall());
        let why = format!("the plan needs {need} nodes, and {} of this job's are left", alive.len());
        let now = host::wall();
        // counted like an attempt, so that a job that never gets good nodes ends some day
        let record = Record {
            ended: Some(now),
            last_step: run_log::last_step(&self.context.run_dir),
            class: Some(Class::Node),
            reason: "too_few_nodes".into(),
            fact: why.clone(),
            started: now,
            ..begun(&self.context, &self.state, &[], None)
        };
        self.records.history.attempts.push(record);
        self.records.write_history()?;
        if let Decision::Stop { exit, why } = self.consider(Exit::GaveUp) {
            return self.leave(exit, &why);
        }
        if self.context.launch.config.launch.successor {
            let absent = self.absent_at_the_end();
            self.empty_memory(&absent);
            let program = self.program.current()?;
            match control::submit_successor(&self.context.job, &avoid, &self.context.launch.own_command(program)) {
                Ok(next) => {
                    let text = format!("{why}; job {next} follows without {}", avoid.join(", "));
                    self.say(RunEvent::Successor { job: next.clone(), exclude: avoid, why })?;
                    self.records.alerts.tell(AlertKind::Requeued, &next, &text, Value::Null);
                    tracing::warn!("{text}");
                    self.records.finish_alerts();
                    return Ok(Exit::Requeue);
                }
                Err(e) => tracing::error!("no successor: {e}; the job is requeued instead"),
            }
        }
        self.requeue(&why, true)
    }

    fn empty_memory(&mut self, absent: &[String]) {
        empty_memory(&self.context, &mut self.records, &mut self.program, absent);
    }

    /// Nodes of the job that do not answer; asked only where one has failed, or where snapshots are to be fetched.
    fn absent_at_the_end(&self) -> Vec<String> {
        let failed = self.context.job.nodes.iter().any(|n| self.records.book.ledger.nodes.contains_key(n));
        match failed || self.context.launch.config.checkpoint.snapshot_every > 0 {
            true => self.context.roll_call(&self.context.job.nodes),
            false => Vec::new(),
        }
    }

    /// Dead nodes leave the job, so that it neither stays COMPLETING until Slurm gives them up, nor, if it goes back into the
    /// queue, comes out of that as one that Slurm 22.05 never starts again (BadConstraints, for a job with `--exclusive`).
    fn give_back(&mut self, absent: &[String]) {
        let kept: Vec<String> = self.context.job.nodes.iter().filter(|n| !absent.contains(n)).cloned().collect();
        // a job without its first node is ending anyway
        if absent.is_empty() || self.context.job.nodes.first().is_none_or(|first| absent.contains(first)) {
            return;
        }
        let result = match control::shrink(&self.context.job, &kept, &RunDir::new(&self.context.run_dir).launch()) {
            Ok(()) => "given back".to_string(),
            Err(e) => e.to_string(),
        };
        tracing::info!("dead nodes {}: {result}", absent.join(", "));
        let _ = self.say(RunEvent::GaveBack { nodes: absent.to_vec(), result });
    }
}

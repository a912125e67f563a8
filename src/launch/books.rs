//! What the supervisor writes down about its attempts: history, ledger of nodes, events, alerts.

use super::history::{Class, Record, NO_ANSWER};
use super::ledger::{Failure, Standing};
use super::place::Placement;
use super::policy::Decision;
use super::ranks::RunningRanks;
use super::seen::Finding;
use super::supervise::{step_name, Fault, Supervisor};
use super::{standby, watch};
use crate::config::AlertKind;
use crate::error::{Error, Exit, Result};
use crate::events::RunEvent;
use crate::host;
use crate::slurm::control;
use jiff::SignedDuration;
use std::time::Duration;

/// The longest pause of a node that was only late.
const LATE_PAUSE_S: f64 = 600.0;

impl Supervisor {
    pub(super) fn begin_record(&mut self, placement: &Placement, srun: u32) -> Result<()> {
        let record = Record {
            attempt: self.number,
            job: self.job.id,
            restarts: self.job.restarts,
            nodes: placement.active.clone(),
            shrunk_to: self.shrunk_to,
            started: host::wall(),
            srun: Some(srun),
            ended: None,
            last_step: 0,
            class: None,
            reason: String::new(),
            fact: String::new(),
            blamed: vec![],
        };
        self.slots = placement.active.clone();
        self.history.attempts.push(record);
        self.write_history()?;
        let (nodes, spares) = (placement.active.join(","), placement.spares.join(","));
        let world = placement.active.len() * self.launch.ranks_per_node;
        tracing::info!("attempt {}: {world} ranks on {nodes}; spares: {spares}", self.number);
        self.say(RunEvent::AttemptStarted { attempt: self.number, nodes, spares, world })
    }

    /// Writes down how the attempt ended: history, ledger, events, alerts.
    pub(super) fn close(&mut self, found: &Finding) -> Result<()> {
        let (now, step) = (host::wall(), watch::last_step(&self.run_dir));
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
        if self.fault.is_none() {
            self.fault = Some(Fault { noticed: host::now(), step });
        }
        tracing::warn!("attempt {}: {}", self.number, found.fact);
        let event = RunEvent::Fault {
            attempt: self.number,
            step,
            class: Some(found.class),
            reason: found.reason.clone(),
            fact: found.fact.clone(),
            nodes: found.nodes.clone(),
            ranks: found.ranks.clone(),
        };
        let fields = event.fields();
        self.say(event)?;
        self.alerts.tell(AlertKind::Fault, &self.number.to_string(), &found.fact, fields);
        let pause = found.class == Class::Node;
        #[cfg(test)]
        if host::planted() == Some(host::Planted::HealthyBlamed) {
            let first = self.slots[..1].to_vec();
            self.blame(&first, "planted", true)?;
        }
        self.blame(&found.nodes, &found.reason, pause)
    }

    /// Counts a failure against nodes; one past its limit is given up, and the operators are told its history.
    pub(super) fn blame(&mut self, nodes: &[String], reason: &str, pause: bool) -> Result<()> {
        if nodes.is_empty() {
            return Ok(());
        }
        let config = &self.launch.config.launch;
        let longest = if reason == NO_ANSWER { LATE_PAUSE_S } else { f64::MAX };
        let pause = pause.then(|| SignedDuration::from_secs_f64(config.node_pause_s.min(longest)));
        let limit = config.node_failures;
        for node in nodes {
            let failure =
                Failure { time: host::wall(), job: self.job.id, attempt: self.number, reason: reason.to_string() };
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
        self.patiently(|s| s.book.save())
    }

    /// The ranks of a supervisor that a signal has ended, under the same parent: they have gone on, and this one goes on with them.
    pub(super) fn adopted(&mut self) -> Result<Option<(RunningRanks, Placement)>> {
        let Some(parent) = self.parent.as_ref().filter(|p| p.starts > 0) else { return Ok(None) };
        let same_job =
            |r: &&Record| r.job == self.job.id && r.restarts == self.job.restarts && r.attempt == self.number;
        let open = self.history.attempts.last().filter(|r| r.ended.is_none()).filter(same_job);
        let held = open.and_then(|r| Some((r.nodes.clone(), parent.holds(r.srun?)?)));
        parent.end_others(held.as_ref().map(|(_, srun)| srun.pid()));
        let (signal, starts) = (parent.ended_by, parent.starts);
        let Some((active, srun)) = held else { return Ok(None) };
        let (pid, reader) = (srun.pid(), parent.reader());
        let reader = reader.map_err(|e| Error::new(Exit::Internal, format!("the parent's pipe: {e}")))?;
        let name = step_name(self.number);
        let ranks = RunningRanks::adopt(&self.the_attempt(&name, &active), srun, reader);
        let text = format!(
            "the supervisor was ended by signal {signal} and is there again; attempt {} has gone on meanwhile",
            self.number
        );
        tracing::warn!("{text}");
        let node = standby::here(&self.job);
        let event = RunEvent::SupervisorRestarted { signal, starts, attempt: self.number, srun: pid, node };
        let fields = event.fields();
        self.say(event)?;
        self.alerts.tell(AlertKind::Fault, &format!("supervisor-{starts}"), &text, fields);
        let standing = |n: &String| self.book.ledger.standing(n, host::wall());
        let left = self.job.nodes.iter().filter(|n| !active.contains(n) && standing(n) == Standing::Good);
        let spares = left.cloned().collect();
        Ok(Some((ranks, Placement { active, spares })))
    }

    /// The first decision: an attempt that nobody has closed was left by a supervisor that is lost.
    pub(super) fn after_the_last_supervisor(&mut self) -> Result<Decision> {
        let step = watch::last_step(&self.run_dir);
        let again = Decision::Again { wait: Duration::ZERO, skip: None };
        if let Some(lost) = self.lost.clone() {
            self.fault = Some(Fault { noticed: host::now(), step });
            self.say(RunEvent::TakenOver { job: self.job.id, lost, by: standby::here(&self.job) })?;
            // what is left of its ranks leaves by itself within a moment; nobody waits for it
            control::kill_step_beside(&self.job, &step_name(self.number));
        }
        // Slurm may start a job once more whose run was done, where somebody asked for that before
        let is_done = |r: &&Record| r.job == self.job.id && r.class == Some(Class::Done);
        if self.history.attempts.last().filter(is_done).is_some_and(|r| r.last_step >= self.launch.config.train.steps) {
            tracing::info!("the run was done before Slurm started the job again");
            return Ok(Decision::Done);
        }
        // what was started again after a signal says nothing about its node
        let started_again = self.parent.as_ref().is_some_and(|p| p.starts > 0);
        let Some(record) = self.history.attempts.last_mut().filter(|r| r.ended.is_none()) else { return Ok(again) };
        record.ended = Some(host::wall());
        record.last_step = step;
        record.class = Some(Class::Supervisor);
        record.reason = "supervisor_lost".into();
        record.fact = match &self.lost {
            Some(node) => format!("node {node} is lost, and the supervisor of attempt {} with it", record.attempt),
            None => format!("the supervisor of attempt {} left no word", record.attempt),
        };
        let first = record.nodes.first().filter(|_| record.job == self.job.id && !started_again);
        let host = self.lost.clone().or_else(|| first.cloned());
        let (attempt, fact) = (record.attempt, record.fact.clone());
        self.write_history()?;
        self.say(RunEvent::Fault {
            attempt,
            step,
            class: Some(Class::Supervisor),
            reason: "supervisor_lost".into(),
            fact,
            nodes: host.iter().cloned().collect(),
            ranks: Vec::new(),
        })?;
        // Slurm starts a job again by itself when the node of its batch script is lost.
        self.blame(&host.into_iter().collect::<Vec<_>>(), "supervisor_lost", self.lost.is_some())?;
        self.fault = Some(Fault { noticed: host::now(), step });
        Ok(self.consider(Exit::GaveUp))
    }

    /// The first step after a fault: how long it took, and what was lost.
    pub(super) fn note_recovery(&mut self, ranks: &RunningRanks) -> Result<()> {
        let (Some(fault), Some(from)) = (&self.fault, ranks.resumed_at()) else { return Ok(()) };
        let step = watch::last_step(&self.run_dir);
        if step <= from {
            return Ok(());
        }
        let (seconds, lost) = (host::since(fault.noticed).as_secs_f64(), fault.step.saturating_sub(from));
        self.fault = None;
        tracing::info!("training again after {seconds:.1} s, from step {from}: {lost} steps are done again");
        self.say(RunEvent::Recovered { attempt: self.number, step, resumed_at: from, steps_lost: lost, seconds })
    }

    pub(super) fn note_alerts(&mut self) {
        for sent in self.alerts.results() {
            self.note_alert(sent);
        }
    }

    pub(super) fn note_alert(&mut self, sent: super::alert::Sent) {
        match &sent.failure {
            None => tracing::info!("alert {:?} sent by {}", sent.kind, sent.channel),
            Some(why) => tracing::warn!("alert {:?} by {} failed: {why}", sent.kind, sent.channel),
        }
        let _ = self.say(RunEvent::Alert { about: Some(sent.kind), by: sent.channel.into(), failure: sent.failure });
    }
}

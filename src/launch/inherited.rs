//! What a supervisor finds of the one before it: ranks that have gone on, or an attempt that nobody has closed.

use super::context::{step_name, Fault};
use super::history::{Class, Record};
use super::ledger::Standing;
use super::place::Placement;
use super::policy::Decision;
use super::ranks::RunningRanks;
use super::run_log::{Signs, Tail};
use super::supervise::Supervisor;
use super::{run_log, standby};
use crate::attempt;
use crate::config::AlertKind;
use crate::error::{Error, Exit, Result};
use crate::events::RunEvent;
use crate::host;
use crate::run_dir::RunDir;
use crate::slurm::control;
use std::time::Duration;

impl Supervisor {
    /// The ranks of a supervisor that a signal has ended, under the same parent: they have gone on, and this one goes on with them.
    pub(super) fn adopted(&mut self) -> Result<Option<(RunningRanks, Placement)>> {
        let Some(parent) = self.parent.as_ref().filter(|p| p.starts > 0) else { return Ok(None) };
        let (context, number) = (&self.context, self.state.number);
        let is_open = |r: &&Record| r.ended.is_none() && r.is_of(&context.job) && r.attempt == number;
        let open = self.records.history.attempts.last().filter(is_open);
        let held = open.and_then(|r| Some((r.nodes.clone(), parent.holds(r.srun?)?)));
        parent.end_others(held.as_ref().map(|(_, srun)| srun.pid()));
        let (signal, starts) = (parent.ended_by, parent.starts);
        let Some((active, srun)) = held else { return Ok(None) };
        let (pid, reader) = (srun.pid(), parent.reader());
        let reader = reader.map_err(|e| Error::new(Exit::Internal, format!("the parent's pipe: {e}")))?;
        let name = step_name(number);
        let ranks = RunningRanks::adopt(&context.rank_start(number, &name, &active), srun, reader);
        let text = format!(
            "the supervisor was ended by signal {signal} and is there again; attempt {number} has gone on meanwhile"
        );
        tracing::warn!("{text}");
        let node = standby::here(&context.job);
        let event = RunEvent::SupervisorRestarted { signal, starts, attempt: number, srun: pid, node };
        let value = event.fields();
        self.say(event)?;
        self.records.alerts.tell(AlertKind::Fault, &format!("supervisor-{starts}"), &text, value);
        let standing = |n: &String| self.records.book.ledger.standing(n, host::wall());
        let left = self.context.job.nodes.iter().filter(|n| !active.contains(n) && standing(n) == Standing::Good);
        let spares = left.cloned().collect();
        Ok(Some((ranks, Placement { active, spares })))
    }

    /// The first decision: an attempt that nobody has closed was left by a supervisor that is lost.
    pub(super) fn after_the_last_supervisor(&mut self) -> Result<Decision> {
        let step = run_log::last_step(&self.context.run_dir);
        let again = Decision::Again { wait: Duration::ZERO, skip: None };
        if let Some(lost) = self.context.lost.clone() {
            self.state.fault = Some(Fault::at(step));
            let by = standby::here(&self.context.job);
            self.say(RunEvent::TakenOver { job: self.context.job.id, lost, by })?;
            // what is left of its ranks leaves by itself within a moment; nobody waits for it
            control::kill_step_beside(&self.context.job, &step_name(self.state.number));
        }
        // Slurm may start a job once more whose run was done, where somebody asked for that before
        let (id, steps) = (self.context.job.id, self.context.launch.config.train.steps);
        let is_done = |r: &Record| r.job == id && r.class == Some(Class::Done) && r.last_step >= steps;
        let attempts = &mut self.records.history.attempts;
        if attempts.last().is_some_and(is_done) {
            tracing::info!("the run was done before Slurm started the job again");
            return Ok(Decision::Done);
        }
        // what was started again after a signal says nothing about its node
        let started_again = self.parent.as_ref().is_some_and(|p| p.starts > 0);
        let Some(record) = attempts.last_mut().filter(|r| r.ended.is_none()) else { return Ok(again) };
        // Slurm starts a job again by itself when the node of its batch script is lost. Where the ranks were asked to stop, it
        // was the job that Slurm ended, and no node has failed.
        let mut signs = Signs::default();
        signs.read(&mut Tail::from_start(RunDir::new(&self.context.run_dir).events()), record.attempt);
        // a file that cannot be read now says nothing
        let newest = attempt::newest(&self.context.run_dir).ok().flatten();
        let announced = newest.filter(|a| a.attempt == record.attempt);
        let counts = record.job == id && !started_again && !signs.asked;
        let own = announced.map(|a| a.host).filter(|host| counts && self.context.job.nodes.contains(host));
        record.ended = Some(host::wall());
        record.last_step = step;
        record.class = Some(Class::Supervisor);
        record.reason = "supervisor_lost".into();
        record.fact = match &self.context.lost {
            Some(node) => format!("node {node} is lost, and the supervisor of attempt {} with it", record.attempt),
            None => format!("the supervisor of attempt {} left no word", record.attempt),
        };
        let host = self.context.lost.clone().or(own);
        let (attempt, fact) = (record.attempt, record.fact.clone());
        self.records.write_history()?;
        self.say(RunEvent::Fault {
            attempt,
            step,
            class: Some(Class::Supervisor),
            reason: "supervisor_lost".into(),
            fact,
            nodes: host.iter().cloned().collect(),
            ranks: Vec::new(),
        })?;
        let (host, pause) = (host.into_iter().collect::<Vec<_>>(), self.context.lost.is_some());
        self.records.blame(self.state.number, &host, "supervisor_lost", pause)?;
        self.state.fault = Some(Fault::at(step));
        Ok(self.consider(Exit::GaveUp))
    }
}

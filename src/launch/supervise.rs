//! The supervisor: one loop on the job's first node that starts the ranks, watches, and starts them again.
//!
//! It trusts nothing but the run directory, so the next supervisor (after a requeue, or after the loss of this one's node)
//! goes on where this one stood. It never waits for a dead node: not for its srun, not for scancel, not for Slurm to notice.

use super::alert::Alerts;
use super::classify::{classify, Finding, Seen};
use super::history::{Class, History, Record};
use super::ledger::{Book, Failure, Standing};
use super::place::{fewer_replicas, place, Placement};
use super::policy::{decide, Decision};
use super::ranks::{Ranks, TICK};
use super::{rollcall, watch, Launch};
use crate::attempt;
use crate::config::AlertKind;
use crate::error::{Error, Exit, Result};
use crate::events::Events;
use crate::slurm::{compress, control, Job, StepLine};
use jiff::{SignedDuration, Timestamp};
use serde_json::{json, Value};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long all nodes may take to answer a roll call, and what each of them adds.
const ROLL_CALL: Duration = Duration::from_secs(3);
const ROLL_CALL_NODE: Duration = Duration::from_millis(10);
/// How often nodes are asked while the ranks start.
const START_CALL: Duration = Duration::from_secs(4);
/// How often a controller that does not answer is asked again, and for how long.
const CONTROLLER_AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// How often the run directory is asked whether another supervisor has taken over.
const FENCE: Duration = Duration::from_secs(1);

pub struct Supervisor {
    pub(super) launch: Launch,
    pub(super) job: Job,
    pub(super) run_dir: PathBuf,
    pub(super) book: Book,
    pub(super) history: History,
    pub(super) events: Events,
    pub(super) alerts: Alerts,
    pub(super) number: u64,
    asked: Arc<AtomicBool>,
    /// Replicas, where they are fewer than configured.
    pub(super) shrunk_to: Option<usize>,
    /// Slots of the last attempt of this job.
    slots: Vec<String>,
    fault: Option<Fault>,
}

/// A fault that is being mended.
struct Fault {
    noticed: Instant,
    step: u64,
}

/// What a search for nodes came to.
enum Found {
    Nodes(Placement),
    TooFew {
        alive: Vec<String>,
    },
    /// Another supervisor has taken over meanwhile.
    Overtaken,
    /// A signal came meanwhile.
    Asked,
}

impl Supervisor {
    /// Reads the run directory. `asked` is raised by a signal.
    pub fn open(launch: Launch, job: Job, asked: Arc<AtomicBool>) -> Result<Supervisor> {
        let config = &launch.config;
        let run_dir = config.run_dir.clone();
        let here = run_dir.join("launch");
        std::fs::create_dir_all(&here).map_err(|e| Error::io(&here, "create", &e, Exit::Storage))?;
        let history = History::read(&run_dir)?;
        let about = [
            ("run".to_string(), json!(config.name)),
            ("run_dir".into(), json!(run_dir)),
            ("job".into(), json!(job.address())),
        ];
        let s = Supervisor {
            book: Book::open(&run_dir, config.launch.ledger.as_deref())?,
            events: Events::open(&run_dir)?,
            alerts: Alerts::new(&config.alerts, about.into_iter().collect()),
            number: attempt::newest(&run_dir)?.map_or(0, |a| a.attempt),
            shrunk_to: None,
            slots: Vec::new(),
            fault: None,
            history,
            launch,
            job,
            run_dir,
            asked,
        };
        attempt::adopt(s.number);
        s.refuse_a_second_job()?;
        Ok(s)
    }

    /// Runs the ranks until the run is done, stops, or the job goes back into the queue.
    pub fn run(mut self) -> Result<Exit> {
        let nodes = compress(&self.job.nodes);
        self.say("launch", json!({ "job": self.job.id, "restarts": self.job.restarts, "nodes": nodes }))?;
        let mut decision = self.after_the_last_supervisor()?;
        loop {
            match decision {
                Decision::Again { wait, skip } => {
                    if let Some(step) = skip.filter(|s| !self.history.skip_steps.contains(s)) {
                        self.history.skip_steps.push(step);
                        self.say("skip_batch", json!({ "step": step }))?;
                    }
                    if !self.pause(wait) {
                        return self.requeue("a signal came between two attempts", false);
                    }
                }
                Decision::Done => return self.leave(Exit::Ok, "the last step is done"),
                Decision::Stop { exit, why } => return self.leave(exit, &why),
                Decision::Requeue { why } => return self.requeue(&why, false),
            }
            let placement = match self.find_nodes()? {
                Found::Nodes(placement) => placement,
                Found::TooFew { alive } if self.shrink(&alive) => {
                    decision = Decision::Again { wait: Duration::ZERO, skip: None };
                    continue;
                }
                Found::TooFew { alive } => return self.too_few(&alive),
                Found::Overtaken => return self.overtaken(),
                Found::Asked => return self.requeue("a signal came between two attempts", false),
            };
            let Some(found) = self.attempt(&placement)? else {
                return self.overtaken();
            };
            decision = self.consider(found.exit);
        }
    }

    /// One attempt from its number to what its end means; `None` when another supervisor has taken the run over.
    fn attempt(&mut self, placement: &Placement) -> Result<Option<Finding>> {
        if !self.claim_number()? {
            return Ok(None);
        }
        let nodes = &placement.active;
        let hosts_file = self.run_dir.join(format!("launch/hosts-{:04}", self.number));
        let name = format!("herd-{:04}", self.number);
        let line = StepLine {
            job: &self.job,
            name: &name,
            nodes,
            ranks_per_node: self.launch.ranks_per_node,
            mpi: &self.launch.config.launch.mpi,
            hosts_file: &hosts_file,
        };
        let limit = Duration::from_secs_f64(self.launch.config.launch.start_timeout_s);
        let program = self.launch.rank_command(self.shrunk_to, &self.history.skip_steps);
        let mut ranks =
            Ranks::start(self.number, &line, &program, &self.launch.config.launch.srun, &self.run_dir, limit)?;
        self.begin_record(placement)?;

        let mut asked_them = false;
        let (mut looked, mut called) = (Instant::now(), Instant::now());
        let seen = loop {
            if let Some(seen) = ranks.poll() {
                break seen;
            }
            if !asked_them && self.asked.load(Ordering::Relaxed) {
                asked_them = true;
                ranks.ask_to_stop();
                self.say("asked_to_stop", json!({ "attempt": self.number }))?;
            }
            self.note_recovery(&ranks)?;
            if looked.elapsed() > FENCE {
                looked = Instant::now();
                if watch::overtaken(&self.run_dir, self.number) {
                    return Ok(None);
                }
                self.note_alerts();
            }
            // until the ranks have met, nobody else watches their nodes
            if !ranks.have_met() && called.elapsed() > START_CALL {
                let absent = self.roll_call(nodes);
                if absent.len() < nodes.len() {
                    ranks.lost(&absent);
                }
                called = Instant::now();
            }
        };
        self.note_recovery(&ranks)?;
        let at_stop = self.launch.config.train.stop_at.is_some_and(|s| watch::last_step(&self.run_dir) >= s);
        let found = classify(&Seen { at_stop, ..seen });
        // the ranks are ended while the books are kept
        let killer = ranks.begin_to_end(&self.job);
        self.close(&found)?;
        ranks.end();
        if found.class.is_fault() {
            // ranks on nodes that live are gone within this moment, and their memory with them
            let end = Instant::now() + Duration::from_millis(500);
            while !killer.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(Some(found))
    }

    /// Takes the next number for this supervisor alone: of two that try, the filesystem lets one create the file.
    fn claim_number(&mut self) -> Result<bool> {
        if watch::overtaken(&self.run_dir, self.number) {
            return Ok(false);
        }
        let number = self.number + 1;
        let path = self.run_dir.join(format!("launch/attempt-{number:04}"));
        match std::fs::OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                // ours from a life before this, if nobody has announced it
                std::thread::sleep(Duration::from_secs(1));
                if attempt::newest(&self.run_dir)?.is_some_and(|a| a.attempt >= number) {
                    return Ok(false);
                }
            }
            Err(e) => return Err(Error::io(&path, "create", &e, Exit::Storage)),
        }
        match attempt::announce(&self.run_dir, number, true) {
            Err(e) if e.exit == Exit::Fenced => return Ok(false),
            other => other?,
        }
        self.number = number;
        attempt::adopt(number);
        Ok(true)
    }

    fn begin_record(&mut self, placement: &Placement) -> Result<()> {
        let record = Record {
            attempt: self.number,
            job: self.job.id,
            restarts: self.job.restarts,
            nodes: placement.active.clone(),
            shrunk_to: self.shrunk_to,
            started: Timestamp::now(),
            ended: None,
            last_step: 0,
            class: None,
            reason: String::new(),
            fact: String::new(),
            blamed: vec![],
        };
        self.slots = placement.active.clone();
        self.history.attempts.push(record);
        self.history.write(&self.run_dir)?;
        let (nodes, spares) = (placement.active.join(","), placement.spares.join(","));
        let world = placement.active.len() * self.launch.ranks_per_node;
        tracing::info!("attempt {}: {world} ranks on {nodes}; spares: {spares}", self.number);
        self.say("attempt_started", json!({ "attempt": self.number, "nodes": nodes, "spares": spares, "world": world }))
    }

    /// Writes down how the attempt ended: history, ledger, events, alerts.
    fn close(&mut self, found: &Finding) -> Result<()> {
        let (now, step) = (Timestamp::now(), watch::last_step(&self.run_dir));
        if let Some(record) = self.history.attempts.last_mut() {
            record.ended = Some(now);
            record.last_step = step;
            record.class = Some(found.class);
            (record.reason, record.fact) = (found.reason.clone(), found.fact.clone());
            record.blamed = found.nodes.clone();
        }
        self.history.write(&self.run_dir)?;
        if !found.class.is_fault() {
            return Ok(());
        }
        if self.fault.is_none() {
            self.fault = Some(Fault { noticed: Instant::now(), step });
        }
        tracing::warn!("attempt {}: {}", self.number, found.fact);
        let value = json!({
            "attempt": self.number, "step": step, "class": found.class, "reason": found.reason, "fact": found.fact,
            "nodes": found.nodes, "ranks": found.ranks,
        });
        self.say("fault", value.clone())?;
        self.alerts.tell(AlertKind::Fault, &self.number.to_string(), &found.fact, value);
        let pause = found.class == Class::Node;
        self.blame(&found.nodes, &found.reason, pause)
    }

    /// Counts a failure against nodes; one past its limit is given up, and the operators are told its history.
    pub(super) fn blame(&mut self, nodes: &[String], reason: &str, pause: bool) -> Result<()> {
        if nodes.is_empty() {
            return Ok(());
        }
        let config = &self.launch.config.launch;
        let pause = pause.then(|| SignedDuration::from_secs_f64(config.node_pause_s));
        let limit = config.node_failures;
        for node in nodes {
            let failure =
                Failure { time: Timestamp::now(), job: self.job.id, attempt: self.number, reason: reason.to_string() };
            if self.book.ledger.record(node, failure, pause, limit) {
                let failures = &self.book.ledger.nodes[node].failures;
                let past: Vec<String> = failures
                    .iter()
                    .map(|f| format!("{} at {} (job {})", f.reason, f.time.strftime("%F %T"), f.job))
                    .collect();
                let text = format!("node {node} has failed {} times and is given up: {}", past.len(), past.join("; "));
                tracing::error!("{text}");
                let value = json!({ "node": node, "failures": failures });
                self.say("node_given_up", value.clone())?;
                self.alerts.tell(AlertKind::NodeGivenUp, node, &text, value);
            }
        }
        self.book.save()
    }

    /// What the policy says about the attempts that count.
    pub(super) fn consider(&self, exit: Exit) -> Decision {
        let counted = self.history.counted_from.min(self.history.attempts.len());
        decide(&self.launch.config.launch, &self.history.attempts[counted..], exit, Timestamp::now())
    }

    /// The first decision: an attempt that nobody has closed was left by a supervisor that is lost.
    fn after_the_last_supervisor(&mut self) -> Result<Decision> {
        let step = watch::last_step(&self.run_dir);
        let again = Decision::Again { wait: Duration::ZERO, skip: None };
        let Some(record) = self.history.attempts.last_mut().filter(|r| r.ended.is_none()) else { return Ok(again) };
        record.ended = Some(Timestamp::now());
        record.last_step = step;
        record.class = Some(Class::Supervisor);
        record.reason = "supervisor_lost".into();
        record.fact = format!("the supervisor of attempt {} left no word", record.attempt);
        let host = record.nodes.first().filter(|_| record.job == self.job.id).cloned();
        let (attempt, fact) = (record.attempt, record.fact.clone());
        self.history.write(&self.run_dir)?;
        let value = json!({
            "attempt": attempt, "step": step, "class": Class::Supervisor, "reason": "supervisor_lost", "fact": fact,
            "nodes": host.iter().collect::<Vec<_>>(), "ranks": [],
        });
        self.say("fault", value)?;
        // Slurm starts a job again by itself when the node of its batch script is lost.
        self.blame(&host.into_iter().collect::<Vec<_>>(), "supervisor_lost", false)?;
        self.fault = Some(Fault { noticed: Instant::now(), step });
        Ok(self.consider(Exit::GaveUp))
    }

    /// A run directory belongs to one job at a time.
    fn refuse_a_second_job(&self) -> Result<()> {
        let other = self.history.attempts.last().filter(|r| r.ended.is_none() && r.job != self.job.id);
        let Some(other) = other else { return Ok(()) };
        match control::job_state(&other.job.to_string()) {
            Ok(Some(state)) if state == "RUNNING" || state == "COMPLETING" => Err(Error::new(
                Exit::World,
                format!("{} is in use by job {}, which is {state}", self.run_dir.display(), other.job),
            )
            .hint("cancel that job, or give this one another run_dir")),
            _ => Ok(()),
        }
    }

    /// Nodes that answer, for as many slots as the plan needs.
    fn find_nodes(&mut self) -> Result<Found> {
        let need = self.launch.nodes_for(self.shrunk_to);
        let mut away: Vec<String> = Vec::new();
        let began = Instant::now();
        loop {
            let now = Timestamp::now();
            let ledger = &self.book.ledger;
            let standing = |n: &str| match away.iter().any(|a| a == n) {
                true => Standing::GivenUp,
                false => ledger.standing(n, now),
            };
            let Some(mut placement) = place(&self.job.nodes, &self.slots, need, standing) else {
                let alive = self.job.nodes.iter().filter(|n| standing(n) < Standing::GivenUp).cloned().collect();
                return Ok(Found::TooFew { alive });
            };
            placement.spares.truncate(self.launch.spares.unwrap_or(usize::MAX));
            let absent = self.roll_call(&placement.active);
            if absent.is_empty() {
                return Ok(Found::Nodes(placement));
            }
            if absent.len() == need && need > 1 && began.elapsed() < CONTROLLER_AWAY.1 {
                // nobody at all: the controller is away, or this node is cut off and Slurm has begun anew elsewhere
                if watch::overtaken(&self.run_dir, self.number) {
                    return Ok(Found::Overtaken);
                }
                tracing::warn!("no node answers: is the controller away, or this node cut off?");
                if !self.pause(CONTROLLER_AWAY.0) {
                    return Ok(Found::Asked);
                }
                continue;
            }
            tracing::warn!("no answer from {}", absent.join(", "));
            self.say("no_answer", json!({ "nodes": absent, "attempt": self.number + 1 }))?;
            self.blame(&absent, "no_answer", true)?;
            away.extend(absent);
        }
    }

    /// Those of `nodes` that do not answer.
    pub(super) fn roll_call(&self, nodes: &[String]) -> Vec<String> {
        let limit = ROLL_CALL + ROLL_CALL_NODE * nodes.len() as u32;
        rollcall::absent(&self.job, nodes, &self.run_dir.join("launch/hosts-rollcall"), limit)
    }

    /// Goes on with fewer replicas on the nodes that live, where the configuration allows it.
    fn shrink(&mut self, alive: &[String]) -> bool {
        let config = &self.launch.config;
        let now = self.shrunk_to.unwrap_or(self.launch.replicas);
        let ranks = alive.len() * self.launch.ranks_per_node;
        let others = self.launch.ranks_per_replica;
        let whole_nodes = |d: &usize| (d * others).is_multiple_of(self.launch.ranks_per_node);
        let fewer = fewer_replicas(ranks, others, now, config.batch.global, config.batch.micro).filter(whole_nodes);
        let Some(replicas) = fewer.filter(|_| config.launch.shrink) else { return false };
        let text = format!("{} nodes are left: going on with {replicas} of {now} replicas", alive.len());
        tracing::warn!("{text}");
        self.shrunk_to = Some(replicas);
        let _ = self.say("shrunk", json!({ "replicas": replicas, "before": now, "nodes": alive }));
        self.alerts.tell(AlertKind::Shrunk, &replicas.to_string(), &text, Value::Null);
        true
    }

    /// The first step after a fault: how long it took, and what was lost.
    fn note_recovery(&mut self, ranks: &Ranks) -> Result<()> {
        let (Some(fault), Some(from)) = (&self.fault, ranks.resumed_at()) else { return Ok(()) };
        let step = watch::last_step(&self.run_dir);
        if step <= from {
            return Ok(());
        }
        let (seconds, lost) = (fault.noticed.elapsed().as_secs_f64(), fault.step.saturating_sub(from));
        self.fault = None;
        tracing::info!("training again after {seconds:.1} s, from step {from}: {lost} steps are done again");
        let value =
            json!({ "attempt": self.number, "step": step, "resumed_at": from, "steps_lost": lost, "seconds": seconds });
        self.say("recovered", value)
    }

    /// Waits; false when a signal came meanwhile.
    fn pause(&self, wait: Duration) -> bool {
        let end = Instant::now() + wait;
        loop {
            if self.asked.load(Ordering::Relaxed) {
                return false;
            }
            if Instant::now() >= end {
                return true;
            }
            std::thread::sleep(TICK.min(wait));
        }
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
        let _ = self.say("alert", json!({ "about": sent.kind, "by": sent.channel, "failure": sent.failure }));
    }

    /// One line in `events.jsonl`.
    pub(super) fn say(&mut self, kind: &str, fields: Value) -> Result<()> {
        self.events.event(kind, fields)
    }
}

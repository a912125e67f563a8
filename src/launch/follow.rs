//! A run directory followed while it grows: each look reads only what came since the last one, in bounded memory.

use super::history::History;
use super::ledger;
use super::status::{self, RunStatus, StepTally};
use crate::error::{Error, Exit, Result};
use crate::events::{LoggedEvent, RunEvent};
use crate::json_lines::JsonLines;
use crate::run_dir::RunDir;
use crate::train::records::StepPoint;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

/// Events that are kept; older ones are counted.
const EVENTS: usize = 5000;
/// Different kinds of events that are counted apart.
const KINDS: usize = 200;

/// Whether it comes with every so many steps, as checkpoints do: such are counted, and not kept.
fn is_frequent(event: &RunEvent) -> bool {
    use RunEvent::*;
    matches!(event, Validation { .. } | SnapshotSkipped { .. } | Alert { .. })
}

/// What `events.jsonl` said so far.
#[derive(Debug, Default)]
pub struct EventLog {
    /// Oldest first, without the frequent ones.
    pub kept: VecDeque<LoggedEvent>,
    /// Older events that are not kept any more.
    pub dropped: u64,
    /// Events by kind, kept or not; where there are very many, the later kinds are counted as `others`.
    pub counts: BTreeMap<String, u64>,
    /// Times that the job went back into the queue, or another followed it.
    pub requeues: usize,
    /// Checkpoints that came to be on disk.
    pub checkpoints: u64,
    /// Seconds that they took together.
    pub checkpoint_s: f64,
    /// The event of the newest of them, as its line says; `None` before the first.
    pub last_checkpoint: Option<Value>,
}

impl EventLog {
    fn add(&mut self, logged: LoggedEvent) {
        let kind = logged.kind();
        let known = self.counts.contains_key(kind) || self.counts.len() < KINDS;
        *self.counts.entry(if known { kind.into() } else { "others".into() }).or_default() += 1;
        match &logged.event {
            Some(RunEvent::Requeue { .. } | RunEvent::Successor { .. }) => self.requeues += 1,
            Some(RunEvent::Checkpoint { seconds, .. }) => {
                self.checkpoints += 1;
                self.checkpoint_s += seconds;
                self.last_checkpoint = Some(logged.line);
                return;
            }
            Some(event) if is_frequent(event) => return,
            _ => {}
        }
        if self.kept.len() == EVENTS {
            self.kept.pop_front();
            self.dropped += 1;
        }
        self.kept.push_back(logged);
    }
}

/// Reads a run directory once, and then what is new in it.
pub struct RunFollower {
    dir: PathBuf,
    /// `attempts.json` as it was read last; empty where it could not be.
    pub history: History,
    /// What `events.jsonl` said up to the last look.
    pub events: EventLog,
    /// The run's own `ledger.json` as it was read last; empty where it could not be.
    pub ledger: ledger::Ledger,
    /// What could not be read besides lines: one line each.
    pub problems: Vec<String>,
    tally: StepTally,
    steps_file: JsonLines,
    events_file: JsonLines,
    superseded: JsonLines,
}

impl RunFollower {
    /// # Errors
    /// [`Exit::Usage`] for a directory that is no run's.
    pub fn open(dir: &Path) -> Result<RunFollower> {
        let run = RunDir::new(dir);
        if ![run.metrics(), run.events(), run.attempts(), run.config()].iter().any(|f| f.exists()) {
            return Err(Error::new(Exit::Usage, format!("{} is no run directory", dir.display()))
                .hint("give the run_dir of a configuration"));
        }
        let mut problems = Vec::new();
        let mut bear = |e: Error| problems.push(e.to_string());
        let history = History::read(dir).map_err(&mut bear).unwrap_or_default();
        let ledger = ledger::read(&run.ledger()).map_err(&mut bear).unwrap_or_default();
        Ok(RunFollower {
            dir: dir.to_path_buf(),
            tally: StepTally::new(&history),
            history,
            ledger,
            events: EventLog::default(),
            problems,
            steps_file: JsonLines::new(&run.metrics()),
            events_file: JsonLines::new(&run.events()),
            superseded: JsonLines::new(&run.superseded_metrics()),
        })
    }

    /// Whether a file was replaced or an attempt begun since: what was read no longer holds, and another follower is to read
    /// from the beginning.
    pub fn is_stale(&self) -> bool {
        let files = [&self.steps_file, &self.events_file, &self.superseded];
        files.iter().any(|f| f.is_replaced())
            || History::read(&self.dir).is_ok_and(|h| h.attempts.len() != self.history.attempts.len())
    }

    /// Reads what is new, and gives each new step to `each`.
    ///
    /// # Errors
    /// [`Exit::Storage`].
    pub fn look(&mut self, now: Timestamp, each: &mut dyn FnMut(&StepPoint)) -> Result<RunStatus> {
        let tally = &mut self.tally;
        self.steps_file.read(&mut |line| match StepPoint::read(line) {
            // each step stands once, in order: what goes back is damaged
            Some(p) if tally.last_step().is_none_or(|last| p.step > last) => {
                tally.add(&p);
                each(&p);
                true
            }
            _ => false,
        })?;
        let events = &mut self.events;
        self.events_file.read(&mut |line| match serde_json::from_slice(line).ok().and_then(LoggedEvent::read) {
            Some(event) => {
                events.add(event);
                true
            }
            None => false,
        })?;
        self.superseded.read(&mut |_| true)?;
        // how the last attempt stands is written in place
        if let Ok(history) = History::read(&self.dir) {
            self.history = history;
        }
        if let Ok(ledger) = ledger::read(&RunDir::new(&self.dir).ledger()) {
            self.ledger = ledger;
        }
        let config: Value = match std::fs::read_to_string(RunDir::new(&self.dir).config()) {
            Ok(text) => serde_yaml::from_str(&text).unwrap_or(Value::Null),
            Err(_) => Value::Null,
        };
        let parts = status::StatusParts {
            config: &config,
            history: &self.history,
            events: &self.events.kept,
            requeues: self.events.requeues,
            steps_lost: self.superseded.lines() as usize,
            ledger: &self.ledger,
            steps: &self.tally,
        };
        Ok(status::of(&parts, now))
    }

    /// What was left out of what is shown, one line each.
    pub fn notes(&self) -> Vec<String> {
        let files = [&self.steps_file, &self.events_file];
        let mut out: Vec<String> = files.iter().filter_map(|f| f.complaint()).collect();
        out.extend(self.problems.iter().cloned());
        if self.events.dropped > 0 {
            out.push(format!("events.jsonl: the {} oldest events are counted, not listed", self.events.dropped));
        }
        out
    }
}

/// How a run fares now.
///
/// # Errors
/// Those of [`RunFollower::open`] and [`RunFollower::look`]; [`Exit::Storage`] where the history or the ledger is damaged.
pub fn read(dir: &Path, now: Timestamp) -> Result<RunStatus> {
    RunFollower::open(dir)?;
    History::read(dir)?;
    ledger::read(&RunDir::new(dir).ledger())?;
    RunFollower::open(dir)?.look(now, &mut |_| ())
}

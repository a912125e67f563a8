//! `events.jsonl`: what happened to a run, one line each. Ranks, the supervisor and the commands append [`RunEvent`]s to it;
//! whoever reads it takes [`LoggedEvent`]s.

mod kinds;
mod parts;
mod table;
mod words;

pub use kinds::RunEvent;
pub use parts::{Class, CorpusLoss, Failure, Tally, Traffic};
pub use table::markdown;

use crate::appended::Appended;
use crate::attempt;
use crate::error::{Error, Exit, Result};
use crate::host;
use crate::run_dir::RunDir;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{json, Map, Value};
use std::path::{Path, PathBuf};

/// `events.jsonl`: faults, restores, saves, stops. Any process may append; a line is one write.
pub struct Events {
    file: Appended,
    dir: PathBuf,
}

impl Events {
    /// # Errors
    /// [`Exit::Storage`].
    pub fn open(dir: &Path) -> Result<Events> {
        Ok(Events { file: Appended::open(&RunDir::new(dir).events())?, dir: dir.to_path_buf() })
    }

    /// Appends `{"time": RFC 3339, "kind": kind, "attempt": n, …fields}`. An event that is about an attempt names it itself.
    ///
    /// # Errors
    /// [`Exit::Fenced`] when a newer attempt writes here; those of [`Appended::line`].
    pub fn write(&mut self, event: &RunEvent) -> Result<()> {
        attempt::check(&self.dir)?;
        self.file.line(&line(event, host::wall(), attempt::current())?)
    }
}

/// An event as it is written by attempt `attempt`.
fn line(event: &RunEvent, time: Timestamp, attempt: u64) -> Result<Value> {
    let mut line = Map::new();
    line.insert("time".into(), json!(format!("{time:.3}")));
    // where they stand in the line; what the event says comes in their place
    line.insert("kind".into(), Value::Null);
    line.insert("attempt".into(), json!(attempt));
    match serde_json::to_value(event) {
        Ok(Value::Object(fields)) => line.extend(fields),
        Ok(_) => {}
        Err(e) => return Err(Error::new(Exit::Internal, format!("an event cannot be written: {e}"))),
    }
    Ok(Value::Object(line))
}

/// A line of `events.jsonl`, read back.
#[derive(Clone, Debug)]
pub struct LoggedEvent {
    /// When it was written, by the writer's clock; `None` where the line says no time that can be read.
    pub time: Option<Timestamp>,
    /// The attempt that wrote it, or that it is about.
    pub attempt: Option<u64>,
    /// `None`: a kind that this herd does not know, or fields that it cannot read.
    pub event: Option<RunEvent>,
    /// All that the line says.
    pub line: Value,
}

impl LoggedEvent {
    /// `None` for a value that is no object.
    pub fn read(line: Value) -> Option<LoggedEvent> {
        let fields = line.as_object()?;
        let time = fields.get("time").and_then(Value::as_str).and_then(|t| t.parse().ok());
        let attempt = fields.get("attempt").and_then(Value::as_u64);
        Some(LoggedEvent { time, attempt, event: RunEvent::deserialize(&line).ok(), line })
    }

    /// Its kind as a word, also where this herd does not know it.
    pub fn kind(&self) -> &str {
        self.line["kind"].as_str().unwrap_or("unknown")
    }
}

#[cfg(test)]
#[path = "events/tests.rs"]
mod tests;

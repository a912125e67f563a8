//! `events.jsonl`: what happened to a run, one line each. Ranks, the supervisor and the commands append to it.

use crate::appended::Appended;
use crate::attempt;
use crate::error::Result;
use crate::host;
use crate::run_dir::RunDir;
use serde_json::{json, Map, Value};
use std::path::{Path, PathBuf};

/// `events.jsonl`: faults, restores, saves, stops. Any process may append; a line is one write.
pub struct Events {
    file: Appended,
    dir: PathBuf,
}

impl Events {
    /// # Errors
    /// [`Exit::Storage`](crate::error::Exit::Storage).
    pub fn open(dir: &Path) -> Result<Events> {
        Ok(Events { file: Appended::open(&RunDir::new(dir).events())?, dir: dir.to_path_buf() })
    }

    /// Appends `{"time": RFC 3339, "kind": kind, "attempt": n, …fields}`; `fields` is a JSON object or null.
    ///
    /// # Errors
    /// [`Exit::Fenced`](crate::error::Exit::Fenced) when a newer attempt writes here; those of [`Appended::line`].
    pub fn event(&mut self, kind: &str, fields: Value) -> Result<()> {
        attempt::check(&self.dir)?;
        let mut line = Map::new();
        line.insert("time".into(), json!(format!("{:.3}", host::wall())));
        line.insert("kind".into(), json!(kind));
        line.insert("attempt".into(), json!(attempt::current()));
        if let Value::Object(fields) = fields {
            line.extend(fields);
        }
        self.file.line(&Value::Object(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    #[test]
    fn events_have_a_time_a_kind_and_an_attempt() {
        let dir = tempfile::tempdir().unwrap();
        Events::open(dir.path()).unwrap().event("restore", json!({ "step": 7 })).unwrap();
        Events::open(dir.path()).unwrap().event("stop", Value::Null).unwrap();
        let text = std::fs::read_to_string(dir.path().join("events.jsonl")).unwrap();
        let v: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert!(v[0]["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
        assert!(v[0]["kind"] == "restore" && v[0]["step"] == 7 && v[1]["kind"] == "stop");
        assert_eq!(v[1]["attempt"], attempt::current());
    }

    #[test]
    fn an_older_attempt_appends_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::open(dir.path()).unwrap();
        attempt::announce(dir.path(), attempt::current() + 1, true).unwrap();
        assert_eq!(events.event("restore", Value::Null).unwrap_err().exit, Exit::Fenced);
        assert_eq!(std::fs::read(dir.path().join("events.jsonl")).unwrap(), b"");
    }
}

//! `events.jsonl`: what happened to a run, one line each. Ranks, the supervisor and the commands append to it.

use crate::attempt;
use crate::error::{Error, Exit, Result};
use serde_json::{json, Map, Value};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// `events.jsonl`: faults, restores, saves, stops. Any process may append; a line is one write.
pub struct Events {
    file: File,
    path: PathBuf,
    dir: PathBuf,
    /// The last line may be there in part: on a full disk.
    torn: bool,
}

impl Events {
    /// # Errors
    /// [`Exit::Storage`].
    pub fn open(dir: &Path) -> Result<Events> {
        let path = dir.join("events.jsonl");
        Ok(Events { file: append(&path)?, path, dir: dir.to_path_buf(), torn: false })
    }

    /// Appends `{"time": RFC 3339, "kind": kind, "attempt": n, …fields}`; `fields` is a JSON object or null.
    ///
    /// # Errors
    /// [`Exit::Fenced`] when a newer attempt writes here; [`Exit::Storage`].
    pub fn event(&mut self, kind: &str, fields: Value) -> Result<()> {
        attempt::check(&self.dir)?;
        let mut line = Map::new();
        line.insert("time".into(), json!(format!("{:.3}", jiff::Timestamp::now())));
        line.insert("kind".into(), json!(kind));
        line.insert("attempt".into(), json!(attempt::current()));
        if let Value::Object(fields) = fields {
            line.extend(fields);
        }
        if self.torn {
            let ended = self.file.write_all(b"\n");
            ended.map_err(|e| Error::io(&self.path, "write to", &e, Exit::Storage))?;
        }
        let written = write_line(&mut self.file, &self.path, &Value::Object(line));
        self.torn = written.is_err();
        written
    }
}

pub(crate) fn append(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|e| Error::io(path, "open", &e, Exit::Storage))
}

pub(crate) fn write_line(file: &mut File, path: &Path, value: &Value) -> Result<()> {
    let line = format!("{value}\n");
    file.write_all(line.as_bytes()).map_err(|e| Error::io(path, "write to", &e, Exit::Storage))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_full_disk_is_a_storage_error() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let e = write_line(&mut { file }, Path::new("/dev/full"), &json!({})).unwrap_err();
        assert_eq!(e.exit, Exit::Storage);
    }
}

//! What the ranks have written: progress, `finished` and `stopped`, read from the ends of files that others append to.

use crate::attempt;
use crate::events::{LoggedEvent, RunEvent};
use crate::run_dir::RunDir;
use crate::text::whole_lines;
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// New events of a file that others append to.
pub struct Tail {
    path: PathBuf,
    at: u64,
    part: Vec<u8>,
}

impl Tail {
    /// From the file's present end on.
    pub fn from_end(path: PathBuf) -> Tail {
        let at = std::fs::metadata(&path).map_or(0, |m| m.len());
        Tail { path, at, part: Vec::new() }
    }

    /// All of a file.
    pub fn from_start(path: PathBuf) -> Tail {
        Tail { path, at: 0, part: Vec::new() }
    }

    /// Events that have come since the last call. A file that cannot be read now is read the next time.
    pub fn news(&mut self) -> Vec<LoggedEvent> {
        let mut read = || -> std::io::Result<()> {
            let mut file = File::open(&self.path)?;
            let len = file.metadata()?.len();
            if len < self.at {
                // somebody has begun it anew
                self.at = 0;
                self.part.clear();
            }
            if len > self.at {
                file.seek(SeekFrom::Start(self.at))?;
                self.at += file.take(len - self.at).read_to_end(&mut self.part)? as u64;
            }
            Ok(())
        };
        let _ = read();
        let whole = whole_lines(&mut self.part);
        whole.split(|&b| b == b'\n').filter_map(|line| LoggedEvent::read(serde_json::from_slice(line).ok()?)).collect()
    }
}

/// What the ranks of one attempt have said of themselves.
#[derive(Debug, Default)]
pub struct Signs {
    /// They have found each other: MPI_Init is behind them.
    pub met: bool,
    /// They have begun to look for a state, of which the first rank has so many bytes to read.
    pub restoring: Option<u64>,
    /// They have a state, and say what they do.
    pub started: bool,
    /// The step they go on after, once they know it.
    pub from: Option<u64>,
    /// All steps are done.
    pub finished: bool,
    /// They have saved and left before the last step.
    pub stopped: bool,
    /// A supervisor has asked them to save and stop.
    pub asked: bool,
}

impl Signs {
    /// Takes in new events; those of other attempts are left out.
    pub fn read(&mut self, tail: &mut Tail, number: u64) {
        let ours = |logged: &LoggedEvent| logged.attempt.is_none_or(|a| a == number);
        for event in tail.news().into_iter().filter(ours).filter_map(|logged| logged.event) {
            match event {
                RunEvent::Finished { .. } => self.finished = true,
                RunEvent::Stopped { .. } => self.stopped = true,
                RunEvent::AskedToStop { .. } => self.asked = true,
                RunEvent::Met { .. } => self.met = true,
                RunEvent::Restoring { bytes } => self.restoring = Some(bytes),
                RunEvent::SlurmJob { .. } => self.started = true,
                RunEvent::Start { .. } => (self.started, self.from) = (true, Some(0)),
                RunEvent::Resume { step, .. } => (self.started, self.from) = (true, Some(step)),
                _ => {}
            }
            self.met |= self.started;
        }
    }
}

/// The last finished step in `metrics.jsonl`, 0 for none.
pub fn last_step(run_dir: &Path) -> u64 {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(RunDir::new(run_dir).metrics())?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(64 << 10)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(&[][..], |end| &bytes[..end]);
    let steps = whole.rsplit(|&b| b == b'\n').filter_map(|l| serde_json::from_slice::<Value>(l).ok());
    steps.filter_map(|v| v["step"].as_u64()).next().unwrap_or(0)
}

/// Whether attempt `number` of the run has been overtaken by a newer one. A file that cannot be read now says nothing.
pub fn overtaken(run_dir: &Path, number: u64) -> bool {
    attempt::newest(run_dir).ok().flatten().is_some_and(|a| a.attempt > number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn whole_lines_once_each() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        std::fs::write(&path, "{\"kind\":\"finished\"}\n").unwrap();
        let mut tail = Tail::from_end(path.clone());
        let mut signs = Signs::default();
        signs.read(&mut tail, 3);
        assert!(!signs.finished, "what was there before says nothing");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        write!(file, "{{\"kind\":\"finished\",\"attempt\":2}}\n{{\"kind\":\"stop").unwrap();
        signs.read(&mut tail, 3);
        assert!(!signs.finished && !signs.stopped);
        write!(file, "ped\"}}\nnot json\n{{\"kind\":\"finished\",\"attempt\":3}}\n").unwrap();
        signs.read(&mut tail, 3);
        assert!(signs.finished && signs.stopped);
        let mut absent = Tail::from_end(dir.path().join("absent"));
        assert!(absent.news().is_empty());
    }

    #[test]
    fn the_last_step_is_that_of_the_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(last_step(dir.path()), 0);
        std::fs::write(dir.path().join("metrics.jsonl"), "{\"step\":1}\n{\"step\":2}\n{\"step\":").unwrap();
        assert_eq!(last_step(dir.path()), 2);
        let long: String = (1..=9000).map(|i| format!("{{\"step\":{i},\"loss\":1.0}}\n")).collect();
        std::fs::write(dir.path().join("metrics.jsonl"), long).unwrap();
        assert_eq!(last_step(dir.path()), 9000);
    }
}

//! The file of answers: lines are appended as they come and synced in groups, and the file itself says which requests are done.
//!
//! A process may be killed between two bytes. So when the file is opened again, a last line without an end is cut off, and every
//! other must be an answer to a request of this very input. What the file was made of stands in a note beside it; another
//! input or other settings that would change answers are refused.

use crate::appended::is_at;
use crate::durable::{refused, sync_dir, write_atomic};
use crate::error::{Error, Exit, Result};
use crate::serve::batch::answer::line_of;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Lines wait for no longer than this for their sync.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How long another process that still has the file is waited for: one that was killed may be on its way out.
const PATIENCE: Duration = Duration::from_secs(10);

/// The open file.
pub struct Output {
    file: File,
    path: PathBuf,
    synced: Instant,
    dirty: bool,
}

/// What was found.
pub struct AnswersFound {
    /// Lines of the input that are answered.
    pub done: HashSet<u64>,
    /// What there is to say, a line each.
    pub says: Vec<String>,
}

/// Where the note lies.
pub fn note_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".herd.json");
    path.with_file_name(name)
}

/// When the answers in `path` were begun, as the note beside it says; `None` where there are none, or no such note.
pub fn began(path: &Path) -> Option<jiff::Zoned> {
    std::fs::metadata(path).ok().filter(|m| m.len() > 0)?;
    let note: Value = serde_json::from_slice(&std::fs::read(note_path(path)).ok()?).ok()?;
    note["began"].as_str()?.parse().ok()
}

impl Output {
    /// Opens `path` for the answers to the requests `numbers`. `note` says what they are made of: under `must` what has to be the
    /// same, under `may` what changes last bits only.
    ///
    /// Errors: [`Exit::Data`] where the file is another's, [`Exit::Storage`].
    pub fn open(path: &Path, note: &Value, numbers: impl Iterator<Item = u64>) -> Result<(Output, AnswersFound)> {
        let mut found = AnswersFound { done: HashSet::new(), says: vec![] };
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let mut file = file.map_err(refused(path, "open"))?;
        // before anything is compared: another process may be about to write the first answers
        lock_file(&file, path, &mut found.says)?;
        let there = file.metadata().is_ok_and(|m| m.len() > 0);
        let place = note_path(path);
        match std::fs::read(&place) {
            Ok(text) => compare(path, &place, &text, note, there, &mut found)?,
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(refused(&place, "read")(e)),
            Err(_) if there => {
                let fact = format!("{} is not empty, and no {} says what it is", path.display(), place.display());
                return Err(Error::new(Exit::Data, fact).hint("name another file, or move it away"));
            }
            Err(_) => {}
        }
        write_atomic(&place, format!("{note:#}\n").as_bytes())?;
        let numbers: BTreeSet<u64> = numbers.collect();
        answered(&mut file, path, &numbers, &mut found)?;
        sync_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok((Output { file, path: path.into(), synced: Instant::now(), dirty: false }, found))
    }

    /// Appends whole lines, without their ends.
    pub fn append(&mut self, lines: &[String]) -> Result<()> {
        if !lines.is_empty() {
            if !is_at(&self.file, &self.path) {
                let fact = format!("{} was moved or removed while it was written to", self.path.display());
                return Err(Error::new(Exit::Storage, fact).hint("bring it back and start again"));
            }
            let text: String = lines.iter().flat_map(|l| [l.as_str(), "\n"]).collect();
            self.file.write_all(text.as_bytes()).map_err(refused(&self.path, "write to"))?;
            self.dirty = true;
        }
        match self.dirty && self.synced.elapsed() >= SYNC_EVERY {
            true => self.sync(),
            false => Ok(()),
        }
    }

    /// Makes what was appended durable.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(refused(&self.path, "sync"))?;
        (self.synced, self.dirty) = (Instant::now(), false);
        Ok(())
    }
}

/// The note that is there against the one that would be written.
fn compare(path: &Path, place: &Path, text: &[u8], note: &Value, there: bool, found: &mut AnswersFound) -> Result<()> {
    let old: Value = serde_json::from_slice(text).unwrap_or(Value::Null);
    if !there {
        return Ok(());
    }
    let differ = |part: &str| -> Vec<String> {
        let (then, now) = (&old[part], &note[part]);
        let keys = now.as_object().into_iter().flatten().map(|(key, _)| key);
        keys.filter(|key| then[*key] != now[*key])
            .map(|key| format!("{key} was {}, now {}", then[key], now[key]))
            .collect()
    };
    let must = differ("must");
    if !must.is_empty() {
        let mut e = Error::several(Exit::Data, format!("{} was begun with something else", path.display()), must);
        e.hint = Some(format!("name another file, or remove this one and {}", place.display()));
        return Err(e);
    }
    found
        .says
        .extend(differ("may").into_iter().map(|d| format!("{d}: what is answered now may differ in its last bits")));
    Ok(())
}

/// No two processes append to one file.
pub(in crate::serve) fn lock_file(file: &File, path: &Path, says: &mut Vec<String>) -> Result<()> {
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(std::fs::TryLockError::WouldBlock) if began.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                let fact = format!("another process writes to {}", path.display());
                return Err(Error::new(Exit::Fenced, fact).hint("wait for it, or end it"));
            }
            Err(std::fs::TryLockError::Error(e)) => {
                says.push(format!(
                    "{} cannot be locked ({e}): see to it that no other batch writes to it",
                    path.display()
                ));
                return Ok(());
            }
        }
    }
}

/// Reads the answers that are there and leaves the file at its end.
fn answered(file: &mut File, path: &Path, numbers: &BTreeSet<u64>, found: &mut AnswersFound) -> Result<()> {
    let failed = |e| refused(path, "read")(e);
    let mut from = BufReader::new(file.try_clone().map_err(failed)?);
    let (mut end, mut number, mut line) = (0u64, 0, Vec::new());
    loop {
        line.clear();
        let n = from.read_until(b'\n', &mut line).map_err(failed)? as u64;
        if line.last() != Some(&b'\n') {
            if n > 0 {
                found.says.push(format!("{}: the last line was cut short and is made again", path.display()));
            }
            break;
        }
        (end, number) = (end + n, number + 1);
        let value: Value = serde_json::from_slice(&line).unwrap_or(Value::Null);
        let answers = value["id"].as_str().and_then(line_of).filter(|n| numbers.contains(n));
        let fact = match answers {
            Some(n) if found.done.insert(n) => continue,
            Some(n) => format!("line {number} answers line {n} of the requests a second time"),
            None => format!("line {number} is no answer to any of the requests"),
        };
        return Err(Error::new(Exit::Data, format!("{}: {fact}", path.display()))
            .hint("name another file, or take that line out"));
    }
    file.set_len(end).map_err(refused(path, "cut"))?;
    file.seek(SeekFrom::Start(end)).map_err(failed)?;
    Ok(())
}

//! Accepted requests on disk, so that the next server of the same run finishes what this one could not: killed, at its time limit, or
//! with a node lost. Only those are kept whose clients can come back for them, by an `Idempotency-Key`.
//!
//! A line of JSON an event: `accepted` (durable before the client hears anything), `tokens` of a text, several times a second and
//! durable within one, `done`. Opened again, it is written anew with what is unfinished.

use crate::durable::{refused, write_atomic};
use crate::error::Result;
use crate::run_dir::RunDir;
use crate::serve::batch::output::lock_file;
use crate::serve::batch::request::Form;
use crate::threads::lock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum Line {
    /// `made_by`: what its tokens depend on; empty in lines of older servers.
    Accepted {
        key: String,
        form: Form,
        body: String,
        #[serde(default)]
        made_by: String,
    },
    /// `at`: how many tokens of the text stand before these; lines of older servers lack it.
    Tokens {
        key: String,
        text: usize,
        #[serde(default)]
        at: Option<usize>,
        tokens: Vec<u32>,
    },
    Done {
        key: String,
    },
}

/// A request that was accepted and not finished.
#[derive(Clone, Debug, PartialEq)]
pub struct Unfinished {
    /// The client's `Idempotency-Key`.
    pub key: String,
    /// Which path it was sent to.
    pub form: Form,
    /// The request's body, JSON as it was sent.
    pub body: String,
    /// What its tokens depend on: where it differs, those below are no part of the answer.
    pub made_by: String,
    /// By text, the tokens so far.
    pub texts: BTreeMap<usize, Vec<u32>>,
}

/// The open file, for both sides.
#[derive(Clone)]
pub struct SharedJournal(Arc<Mutex<Journal>>);

struct Journal {
    file: File,
    path: PathBuf,
    dirty: bool,
    /// The last line may be there in part.
    torn: bool,
    /// It could not be written to, which was said.
    failed: bool,
    /// Held as long as this server lives: one server a run.
    _lock: File,
}

impl SharedJournal {
    /// Opens the journal of the run directory `run`; what an earlier server left unfinished, in order, and what there is to say.
    ///
    /// Errors ([`crate::error::Exit::Storage`]): another server has it, or it cannot be read or written.
    pub fn open(run: &Path) -> Result<(SharedJournal, Vec<Unfinished>, Vec<String>)> {
        let (path, mut says) = (RunDir::new(run).serve_journal(), Vec::new());
        let lock_path = RunDir::new(run).serve_lock();
        let open = |p: &Path| OpenOptions::new().create(true).truncate(false).read(true).write(true).open(p);
        let held = open(&lock_path).map_err(refused(&lock_path, "open"))?;
        lock_file(&held, &lock_path, &mut says)?;
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(refused(&path, "read")(e)),
        };
        let (unfinished, unread) = read(&text);
        if unread > 0 {
            says.push(format!("{}: {unread} lines were cut short or are no events, and are left out", path.display()));
        }
        let mut anew = String::new();
        for u in &unfinished {
            anew += &line(&Line::Accepted {
                key: u.key.clone(),
                form: u.form,
                body: u.body.clone(),
                made_by: u.made_by.clone(),
            });
            for (&text, tokens) in &u.texts {
                anew += &line(&Line::Tokens { key: u.key.clone(), text, at: Some(0), tokens: tokens.clone() });
            }
        }
        write_atomic(&path, anew.as_bytes())?;
        let mut file = open(&path).map_err(refused(&path, "open"))?;
        file.seek(SeekFrom::End(0)).map_err(refused(&path, "open"))?;
        let journal = Journal { file, path, dirty: false, torn: false, failed: false, _lock: held };
        Ok((SharedJournal(Arc::new(Mutex::new(journal))), unfinished, says))
    }

    /// A request, in place of what stands there under its key. Durable when it returns.
    pub fn accepted(&self, key: &str, form: Form, body: &str, made_by: &str) -> Result<()> {
        self.with(|j| {
            j.append(&Line::Accepted { key: key.into(), form, body: body.into(), made_by: made_by.into() })?;
            j.file.sync_data().map_err(refused(&j.path, "sync"))
        })
    }

    /// Further tokens of a text, behind the first `at`. Where they cannot be written, a next server makes them again, and those behind them.
    pub fn tokens(&self, key: &str, text: usize, at: usize, tokens: &[u32]) {
        self.loosely(|j| j.append(&Line::Tokens { key: key.into(), text, at: Some(at), tokens: tokens.into() }));
    }

    /// A request is done, or refused for good: no next server takes it up. Durable with the next [`SharedJournal::sync`].
    pub fn done(&self, key: &str) {
        self.loosely(|j| j.append(&Line::Done { key: key.into() }));
    }

    /// Makes durable what was written since the last time.
    pub fn sync(&self) {
        self.loosely(|j| match std::mem::take(&mut j.dirty) {
            true => j.file.sync_data().map_err(refused(&j.path, "sync")),
            false => Ok(()),
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut Journal) -> T) -> T {
        work(&mut lock(&self.0))
    }

    /// A failure is said once, and nobody's answer waits for it.
    fn loosely(&self, work: impl FnOnce(&mut Journal) -> Result<()>) {
        self.with(|j| match work(j) {
            Err(e) if !j.failed => {
                j.failed = true;
                tracing::warn!("{e}: requests that a next server finds here are made again from their last tokens");
            }
            _ => {}
        });
    }
}

impl Journal {
    fn append(&mut self, event: &Line) -> Result<()> {
        let end = if self.torn { "\n" } else { "" };
        let written = self.file.write_all(format!("{end}{}", line(event)).as_bytes());
        self.torn = written.is_err();
        written.map_err(refused(&self.path, "write to"))?;
        self.dirty = true;
        Ok(())
    }
}

fn line(event: &Line) -> String {
    // Strings and numbers always have a form in JSON.
    serde_json::to_string(event).unwrap_or_default() + "\n"
}

/// What is unfinished, in order of acceptance; and how many lines cannot be read.
fn read(text: &str) -> (Vec<Unfinished>, usize) {
    let (mut all, mut unread) = (Vec::<Unfinished>::new(), 0);
    for line in text.lines().filter(|line| !line.is_empty()) {
        let of = |all: &mut Vec<Unfinished>, key: &str| all.iter().position(|u| u.key == key);
        match serde_json::from_str(line) {
            Ok(Line::Accepted { key, form, body, made_by }) => {
                all.retain(|u| u.key != key);
                all.push(Unfinished { key, form, body, made_by, texts: BTreeMap::new() });
            }
            Ok(Line::Tokens { key, text, at, tokens }) => {
                if let Some(i) = of(&mut all, &key) {
                    grow(all[i].texts.entry(text).or_default(), at, tokens);
                }
            }
            Ok(Line::Done { key }) => all.retain(|u| u.key != key),
            Err(_) => unread += 1,
        }
    }
    (all, unread)
}

/// Puts `tokens` behind the first `at` of a text. Behind a line that could not be written nothing counts: it would leave a gap.
fn grow(text: &mut Vec<u32>, at: Option<usize>, tokens: Vec<u32>) {
    let at = at.unwrap_or(text.len());
    if at <= text.len() {
        text.truncate(at);
        text.extend(tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unfinished_is_found_again_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (j, none, _) = SharedJournal::open(dir.path()).unwrap();
        assert!(none.is_empty());
        j.accepted("a", Form::Chat, "{}", "A").unwrap();
        j.accepted("b", Form::Completion, "{\"prompt\":\"x\\n\"}", "B").unwrap();
        j.tokens("b", 1, 0, &[7]);
        j.tokens("a", 0, 0, &[1, 2]);
        j.tokens("b", 1, 1, &[8]);
        j.done("a");
        drop(j);
        let path = RunDir::new(dir.path()).serve_journal();
        let cut = std::fs::read_to_string(&path).unwrap() + "{\"event\":\"tokens\",\"key\":\"b\",\"te";
        std::fs::write(&path, cut).unwrap();
        for again in 0..2 {
            let (_, found, says) = SharedJournal::open(dir.path()).unwrap();
            assert_eq!((found.len(), says.len()), (1, 1 - again), "{says:?}");
            assert_eq!((&found[0].body[..], &found[0].made_by[..]), ("{\"prompt\":\"x\\n\"}", "B"));
            assert_eq!(found[0].texts, [(1, vec![7, 8])].into_iter().collect());
        }
    }

    /// A disk that was full for a moment: the text goes on from before the gap, and the request behind the torn line is whole.
    #[test]
    fn what_was_not_written_leaves_neither_a_gap_nor_a_broken_line() {
        let dir = tempfile::tempdir().unwrap();
        let (j, ..) = SharedJournal::open(dir.path()).unwrap();
        j.accepted("a", Form::Completion, "{}", "").unwrap();
        j.tokens("a", 0, 0, &[1, 2]);
        // tokens 3 and 4 are written in part
        j.with(|j| {
            j.file.write_all(b"{\"event\":\"tokens\",\"key\":\"a\",\"text\":0,\"at\":2,\"tok").unwrap();
            j.torn = true;
        });
        j.accepted("b", Form::Chat, "{}", "").unwrap();
        j.tokens("a", 0, 4, &[5, 6]);
        drop(j);
        let (j, found, says) = SharedJournal::open(dir.path()).unwrap();
        assert_eq!(found.iter().map(|u| &u.key[..]).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((found[0].texts[&0].clone(), says.len()), (vec![1, 2], 1));
        // made again from there, and from the beginning where another model goes on
        j.tokens("a", 0, 2, &[3]);
        j.tokens("b", 0, 0, &[9]);
        j.accepted("b", Form::Chat, "{}", "other").unwrap();
        drop(j);
        let (_, found, _) = SharedJournal::open(dir.path()).unwrap();
        assert_eq!((found[0].texts[&0].clone(), found[1].texts.len()), (vec![1, 2, 3], 0));
    }
}

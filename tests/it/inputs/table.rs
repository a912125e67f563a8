//! A row of a table of inputs, and how it is checked.

use crate::support::{herd, python, text};
use herd::data::indexed::{with_ending, Indexed};
use herd::data::Tokenizer;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

/// Something a user has, and what herd must make of it.
pub struct Case {
    name: &'static str,
    make: fn(&Path),
    args: &'static str,
    pipe: Option<&'static str>,
    but: Option<&'static str>,
    variables: Vec<(&'static str, &'static str)>,
    code: i32,
    /// Most lines on stderr where it is refused.
    lines: usize,
    says: Vec<&'static str>,
    never: Vec<&'static str>,
    documents: Vec<(&'static str, Vec<&'static str>)>,
}

/// `herd ARGS` (split at spaces) in a directory in which `make` has put its files; it must succeed.
pub fn case(name: &'static str, make: fn(&Path), args: &'static str) -> Case {
    let (says, never, documents, variables) = (vec![], vec![], vec![], vec![]);
    Case { name, make, args, pipe: None, but: None, variables, code: 0, lines: 1, says, never, documents }
}

impl Case {
    /// Standard input is this file, through a pipe that hands over a few bytes at a time.
    pub fn pipe(mut self, file: &'static str) -> Case {
        self.pipe = Some(file);
        self
    }

    /// An environment variable; `DIR` in its value is the directory.
    pub fn variable(mut self, name: &'static str, value: &'static str) -> Case {
        self.variables.push((name, value));
        self
    }

    /// It must end with `code`, one line on stderr, and leave no new file.
    pub fn refused(mut self, code: i32) -> Case {
        self.code = code;
        self
    }

    /// It must end with `code`, with several problems, one line each, and leave no new file.
    pub fn fails(mut self, code: i32) -> Case {
        (self.code, self.lines) = (code, usize::MAX);
        self
    }

    /// What lies below this directory may change and come.
    pub fn but(mut self, directory: &'static str) -> Case {
        self.but = Some(directory);
        self
    }

    /// Words that must be on one of its streams.
    pub fn says(mut self, words: &[&'static str]) -> Case {
        self.says.extend(words);
        self
    }

    /// Words that must be on neither.
    pub fn never(mut self, words: &[&'static str]) -> Case {
        self.never.extend(words);
        self
    }

    /// The token file `prefix` must hold these documents (read with the tokenizer it was made with; `|` ends each).
    pub fn writes(mut self, prefix: &'static str, documents: &[&'static str]) -> Case {
        self.documents.push((prefix, documents.to_vec()));
        self
    }

    fn run(&self) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        (self.make)(dir);
        let before = self.files(dir);
        let out = self.output(dir);
        let (said, after) = (text(&out), self.files(dir));
        let fail = |what: String| Err(format!("{}: {what}\n    herd {}\n    {}", self.name, self.args, said.trim()));
        if out.status.code() != Some(self.code) {
            return fail(format!("ended with {:?}, not {}", out.status.code(), self.code));
        }
        if let Some(words) = self.says.iter().find(|w| !said.contains(**w)) {
            return fail(format!("does not say `{words}`"));
        }
        if let Some(words) = self.never.iter().chain(&["internal error", "panic"]).find(|w| said.contains(**w)) {
            return fail(format!("says `{words}`"));
        }
        if let Some((path, _)) = before.iter().find(|(path, content)| after.get(*path) != Some(content)) {
            return fail(format!("{} was changed", path.display()));
        }
        if self.code != 0 {
            if String::from_utf8_lossy(&out.stderr).lines().count() > self.lines {
                return fail("an error is one line".into());
            }
            if let Some(path) = after.keys().find(|path| !before.contains_key(*path)) {
                return fail(format!("left {}", path.display()));
            }
        }
        for (prefix, want) in &self.documents {
            let got = documents(&dir.join(prefix));
            if got.iter().ne(want.iter().copied()) {
                return fail(format!("{prefix} holds {got:?}, not {want:?}"));
            }
        }
        Ok(())
    }

    fn files(&self, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = files(dir);
        all.retain(|path, _| self.but.is_none_or(|but| !path.starts_with(dir.join(but))));
        all
    }

    fn output(&self, dir: &Path) -> Output {
        let mut command = herd();
        command.args(self.args.split_whitespace()).current_dir(dir).env("HOME", dir).env_remove("SLURM_JOB_ID");
        for (name, value) in &self.variables {
            command.env(name, value.replace("DIR", dir.to_str().unwrap()));
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        if let Some(file) = self.pipe {
            let content = std::fs::read(dir.join(file)).unwrap();
            for piece in content.chunks(7) {
                // Who refuses does not read on.
                if stdin.write_all(piece).is_err() {
                    break;
                }
            }
        }
        drop(stdin);
        child.wait_with_output().unwrap()
    }
}

/// The rows of one subject.
pub type Subject = (&'static str, Vec<Case>);

/// Runs every row, one a core, and fails with all that went wrong. With `HERD_RECORD=1` what was counted goes into
/// benchmarks/results/inputs.json before.
pub fn check(subjects: &[Subject]) {
    let rows: Vec<&Case> = subjects.iter().flat_map(|(_, rows)| rows).collect();
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(why) = tried(row) {
                wrong.lock().unwrap().push(why);
            }
        }
    };
    std::thread::scope(|s| {
        (0..std::thread::available_parallelism().map_or(1, |n| n.get())).for_each(|_| drop(s.spawn(work)));
    });
    let wrong = wrong.into_inner().unwrap();
    if std::env::var("HERD_RECORD").is_ok_and(|v| v == "1") {
        record(subjects, &wrong);
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// An input that cannot be made counts as wrong, and the others go on.
fn tried(row: &Case) -> Result<(), String> {
    let run = std::panic::catch_unwind(|| row.run());
    run.unwrap_or_else(|_| Err(format!("{}: cannot be tried (the panic is above)", row.name)))
}

fn record(subjects: &[Subject], wrong: &[String]) {
    let tried: BTreeMap<&str, usize> = subjects.iter().map(|(name, rows)| (*name, rows.len())).collect();
    let counted = serde_json::json!({ "tried": tried, "wrong": wrong }).to_string();
    let mut child = python().arg("benchmarks/inputs.py").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(counted.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "benchmarks/inputs.py writes the results");
}

/// Every file under `dir` with its content.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => drop(all.insert(path.clone(), std::fs::read(&path).unwrap_or_default())),
        }
    }
    all
}

/// The documents of a token file as text, the special tokens of `bytes` as `^` and `|`.
fn documents(prefix: &Path) -> Vec<String> {
    if !with_ending(prefix, ".idx").exists() {
        return vec![format!("no {}", prefix.display())];
    }
    let file = Indexed::open(prefix).unwrap();
    let bytes = Tokenizer::open("bytes").unwrap();
    let mut at = 0;
    let read = |n: herd::error::Result<u64>| {
        let (n, mut ids) = (n.unwrap(), Vec::new());
        file.read(at, n as usize, 258, &mut ids).unwrap();
        at += n;
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        bytes.decode(&ids).replace("<|end_of_text|>", "|").replace("<|begin_of_text|>", "^")
    };
    file.document_lengths().map(read).collect()
}

/// Puts a file into the directory of a row.
pub fn put(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

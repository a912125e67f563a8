//! One command, run again and again with a fault at another of its operations each time.
//!
//! A small library, preloaded, counts the command's operations on a directory (each file made, written, synced, renamed,
//! removed) and kills the process, or fails the call, at the n-th. n goes up until the command ends undisturbed, so every
//! point is met, not a lucky few.

use crate::support::text;
use serde_json::{json, Value};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FAULTS: &str = include_str!("../../../src/checkpoint/tests/faults.c");

/// What went wrong, for the table.
pub type Checked = Result<(), String>;

/// A command and what must be true whatever happens to it. All functions get a directory of their own for each run.
pub struct Case<'a> {
    pub name: &'a str,
    /// `kill`, or errors of the filesystem; taken in turn. With `+` behind it an error stays.
    pub faults: &'a [&'a str],
    /// Only this MPI rank meets them.
    pub rank: Option<usize>,
    /// Of so many writes one counts.
    pub writes: usize,
    /// `make test` takes one point in so many.
    pub stride: usize,
    pub prepare: &'a dyn Fn(&Path),
    pub command: &'a dyn Fn(&Path) -> Command,
    /// Where operations count.
    pub watch: &'a dyn Fn(&Path) -> PathBuf,
    pub after: &'a dyn Fn(&Path, &Output) -> Checked,
}

/// Runs cases and keeps the table.
pub struct Drive {
    dir: tempfile::TempDir,
    library: PathBuf,
    rows: Vec<Value>,
}

impl Drive {
    /// In memory: thousands of syncs.
    pub fn new() -> Drive {
        Drive::below(Path::new("/dev/shm"))
    }

    /// On a disk, where saves write around the page cache.
    pub fn on_disk() -> Drive {
        Drive::below(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    fn below(place: &Path) -> Drive {
        let dir = tempfile::tempdir_in(place).unwrap();
        let (source, library) = (dir.path().join("faults.c"), dir.path().join("faults.so"));
        fs::write(&source, FAULTS).unwrap();
        let mut cc = Command::new("cc");
        let built = cc.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
        assert!(built.unwrap().success(), "cc builds the fault injector");
        Drive { dir, library, rows: Vec::new() }
    }

    pub fn run(&mut self, case: &Case) {
        let stride = match std::env::var("HERD_CRASH").as_deref() {
            Ok("full") => 1,
            Ok(part) if !case.name.contains(part) => return,
            Ok(_) => 1,
            Err(_) => case.stride,
        };
        for (points, n) in (1..5000).step_by(stride).enumerate() {
            let fault = case.faults[(n / stride) % case.faults.len()];
            match self.point(case, fault, n) {
                Some(row) => self.rows.push(row),
                None => {
                    eprintln!("{}: {points} points", case.name);
                    assert!(points > 0, "{}: no operation was seen", case.name);
                    return;
                }
            }
        }
        panic!("{}: the command never came to its end", case.name);
    }

    /// `None`: the command ended before its n-th operation.
    fn point(&self, case: &Case, fault: &str, n: usize) -> Option<Value> {
        let (at, mark) = (self.dir.path().join("at"), self.dir.path().join("mark"));
        let _ = fs::remove_dir_all(&at);
        let _ = fs::remove_file(&mark);
        fs::create_dir(&at).unwrap();
        (case.prepare)(&at);
        let mut command = (case.command)(&at);
        command.env("LD_PRELOAD", &self.library).env("FAULT_PATH", (case.watch)(&at)).env("FAULT_MARK", &mark);
        command.env("FAULT_AT", n.to_string()).env("FAULT_WRITES", case.writes.to_string());
        command.env("FAULT_KIND", fault.trim_end_matches('+'));
        if fault.ends_with('+') {
            command.env("FAULT_LAST", "1000000");
        }
        if let Some(rank) = case.rank {
            command.env("FAULT_RANK", rank.to_string());
        }
        let out = command.output().unwrap();
        let Ok(call) = fs::read_to_string(&mark) else {
            assert!(out.status.success(), "{}: undisturbed, it fails: {}", case.name, text(&out));
            return None;
        };
        let call = call.replace(&*at.to_string_lossy(), "");
        let checked = (case.after)(&at, &out);
        if let Err(e) = &checked {
            eprintln!("{}, {fault} at operation {n}, {call}: {e}\n{}", case.name, text(&out));
        }
        Some(json!({
            "case": case.name, "fault": fault, "point": n, "call": call, "ok": checked.is_ok(), "error": checked.err(),
        }))
    }

    /// Writes the table down, and fails if a point did.
    pub fn finish(self) {
        record(&self.rows);
        let failed: Vec<&Value> = self.rows.iter().filter(|r| r["ok"] != true).collect();
        assert!(failed.is_empty(), "{} of {} points failed: {failed:#?}", failed.len(), self.rows.len());
    }
}

/// Adds rows to the table that `make checkpoint-faults` asks for.
pub fn record(rows: &[Value]) {
    let Some(path) = std::env::var_os("HERD_CRASH_OUT") else { return };
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    let lines: String = rows.iter().map(|r| format!("{r}\n")).collect();
    file.write_all(lines.as_bytes()).unwrap();
}

/// What a command that must succeed says.
pub fn good(c: &mut Command) -> Result<String, String> {
    let out = c.output().map_err(|e| e.to_string())?;
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        false => Err(format!("{c:?}: {}", text(&out))),
    }
}

pub fn must(what: bool, why: impl FnOnce() -> String) -> Checked {
    what.then_some(()).ok_or_else(why)
}

/// Files and directories, all of them.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

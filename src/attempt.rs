//! Which attempt of the run this process belongs to, and whether a newer one has taken over.
//!
//! A run is started again after every fault, and a process of an older start may still be there: stopped, cut off, or
//! asleep in a dead filesystem. Each start has a number, the run directory's `attempt.json` holds the newest, and a
//! process with a lower one is *fenced*: it may neither write nor join. The file is read before every write that others
//! would believe (a checkpoint's commit, a line of metrics or events) and by a process that finds that it has slept.
//! Between the look and the write there is a moment that no file can close; what is written in it is a whole line or a
//! whole checkpoint of the same run.

use crate::durable::write_atomic;
use crate::error::{Error, Exit, Result};
use crate::host::{self, FileAccess};
use crate::run_dir::RunDir;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// What `attempt.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The attempt that may write.
    pub attempt: u64,
    /// Written by a supervisor; a run without one counts by itself.
    pub supervised: bool,
    /// Host of the process that wrote it.
    pub host: String,
    /// For people only: clocks of different nodes are never compared.
    pub time: jiff::Timestamp,
}

/// `u64::MAX`: not adopted yet.
static ADOPTED: AtomicU64 = AtomicU64::new(u64::MAX);

/// The attempt of this process: what [`adopt`] was given, else HERD_ATTEMPT, which a supervisor sets for each `srun`, else
/// SLURM_RESTART_COUNT, else 0.
pub fn current() -> u64 {
    if let Some(n) = host::attempt().get() {
        return n;
    }
    match ADOPTED.load(Ordering::Relaxed) {
        u64::MAX => from_environment(|name| std::env::var(name).ok()).0,
        n => n,
    }
}

/// Makes `attempt` the number of this process. The ranks of one start agree on it before the first message.
pub fn adopt(attempt: u64) {
    match host::is_given() {
        true => host::attempt().set(Some(attempt)),
        false => ADOPTED.store(attempt, Ordering::Relaxed),
    }
}

/// The number, and whether a supervisor gave it.
fn from_environment(var: impl Fn(&str) -> Option<String>) -> (u64, bool) {
    let number = |name: &str| var(name).and_then(|text| text.trim().parse().ok());
    match number("HERD_ATTEMPT") {
        Some(n) => (n, true),
        None => (number("SLURM_RESTART_COUNT").unwrap_or(0), false),
    }
}

/// The newest attempt; `None` in a run directory that has not been started in.
///
/// # Errors
/// [`Exit::Storage`]: the file cannot be read, or is not what a supervisor or a rank writes.
pub fn newest(run_dir: &Path) -> Result<Option<Attempt>> {
    let path = RunDir::new(run_dir).newest_attempt();
    let text = match host::at_file(&path, FileAccess::Read).and_then(|()| std::fs::read(&path)) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path, "read", &e, Exit::Storage)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| {
        Error::new(Exit::Storage, format!("{} is damaged: {e}", path.display()))
            .hint("make sure that no process of the run is left, then remove the file")
    })
}

/// Names `attempt` as the one that may write, in a run directory that is made if absent; for the supervisor, before each
/// start.
///
/// # Errors
/// [`Exit::Fenced`] when a newer one is named already; [`Exit::Storage`].
pub fn announce(run_dir: &Path, attempt: u64, supervised: bool) -> Result<()> {
    if let Some(other) = newest(run_dir)?.filter(|a| a.attempt > attempt) {
        return Err(fenced(attempt, &other));
    }
    let value = Attempt { attempt, supervised, host: host::node(), time: host::wall() };
    std::fs::create_dir_all(run_dir).map_err(|e| Error::io(run_dir, "create", &e, Exit::Storage))?;
    let text = serde_json::to_string_pretty(&value).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
    write_atomic(&RunDir::new(run_dir).newest_attempt(), format!("{text}\n").as_bytes())
}

/// Takes the run directory for this start, on one rank; the number is then given to all ranks, which [`adopt`] it.
///
/// Under a supervisor the number is given, and a newer one in the file is [`Exit::Fenced`]. Without one each start takes
/// the next number, so that the newest start of two by hand is the one that writes.
///
/// # Errors
/// [`Exit::Fenced`], [`Exit::Storage`].
pub fn claim(run_dir: &Path) -> Result<u64> {
    claim_from(run_dir, from_environment(|name| std::env::var(name).ok()))
}

fn claim_from(run_dir: &Path, (given, supervised): (u64, bool)) -> Result<u64> {
    let found = newest(run_dir)?;
    let attempt = match (&found, supervised) {
        (Some(found), false) => given.max(found.attempt + 1),
        _ => given,
    };
    if !supervised || found.is_none_or(|f| f.attempt != attempt) {
        announce(run_dir, attempt, supervised)?;
    }
    Ok(attempt)
}

/// Whether this process may still write to the run directory: one small read.
///
/// # Errors
/// [`Exit::Fenced`] when a newer attempt is named; [`Exit::Storage`].
pub fn check(run_dir: &Path) -> Result<()> {
    check_for(run_dir, current())
}

/// [`check`] for another attempt than this process's.
pub fn check_for(run_dir: &Path, attempt: u64) -> Result<()> {
    #[cfg(test)]
    if host::planted() == Some(host::Planted::Unfenced) {
        return Ok(());
    }
    match newest(run_dir)? {
        Some(other) if other.attempt > attempt => Err(fenced(attempt, &other)),
        _ => Ok(()),
    }
}

fn fenced(own: u64, newer: &Attempt) -> Error {
    Error::new(
        Exit::Fenced,
        format!(
            "this process belongs to attempt {own} of the run, but attempt {} was started on {}",
            newer.attempt, newer.host
        ),
    )
    .hint("nothing to do: the newer attempt goes on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_s_number_comes_first() {
        let env = |pairs: &'static [(&'static str, &'static str)]| {
            from_environment(|k| pairs.iter().find(|(name, _)| *name == k).map(|(_, v)| v.to_string()))
        };
        assert_eq!(env(&[("HERD_ATTEMPT", "7"), ("SLURM_RESTART_COUNT", "2")]), (7, true));
        assert_eq!(env(&[("SLURM_RESTART_COUNT", "2")]), (2, false));
        assert_eq!(env(&[("HERD_ATTEMPT", "seven")]), (0, false));
    }

    #[test]
    fn an_older_attempt_is_fenced_and_cannot_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(check_for(dir, 0).is_ok(), "a directory without attempts");
        announce(dir, 3, true).unwrap();
        assert!(check_for(dir, 3).is_ok() && check_for(dir, 4).is_ok());
        for e in [check_for(dir, 2), announce(dir, 2, true), claim_from(dir, (2, true)).map(|_| ())] {
            let e = e.unwrap_err();
            assert!(e.exit == Exit::Fenced && e.fact.contains("attempt 2") && e.fact.contains("attempt 3"), "{e}");
        }
        assert_eq!(newest(dir).unwrap().unwrap().attempt, 3);
        assert_eq!(claim_from(dir, (3, true)).unwrap(), 3);
    }

    #[test]
    fn starts_by_hand_take_the_next_number() {
        let dir = tempfile::tempdir().unwrap();
        let claims: Vec<u64> = [0, 0, 7, 2].map(|given| claim_from(dir.path(), (given, false)).unwrap()).into();
        assert_eq!(claims, [0, 1, 7, 8]);
        assert!(check_for(dir.path(), 7).is_err());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(RunDir::new(dir.path()).newest_attempt(), "{\"attempt\": -1").unwrap();
        let e = check_for(dir.path(), 0).unwrap_err();
        assert!(e.exit == Exit::Storage && e.fact.contains("attempt.json"), "{e}");
    }
}

//! Verdict files: `verdicts/attempt-NNNN/NODE.jsonl` in the run directory holds what the ranks of one node have said in an
//! attempt, a JSON document a line. A fault that all ranks complain of makes a file a node, not one a rank.
//!
//! Only processes of one node append to a file, each line by one write, so that lines stay whole also where appends of several
//! hosts would not. A file is read once when it is first seen; what was appended later is read when all has been said.

use super::verdict::Verdict;
use crate::appended::{self, gone, is_gone};
use crate::durable::{refused, sync_dir};
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use crate::text::whole_lines;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// How many files are read at the same time: on shared storage an open is a round trip.
const READERS: usize = 16;

impl Verdict {
    /// Where it lies in a run directory.
    pub fn path(&self, run_dir: &Path) -> PathBuf {
        RunDir::new(run_dir).node_verdicts(self.attempt, &self.accuser_node)
    }

    /// Appends it to its node's file; whether it is the first one there.
    ///
    /// # Errors
    /// [`Exit::Gone`]: there is no run directory any more; [`Exit::Storage`].
    pub fn write(&self, run_dir: &Path) -> Result<bool> {
        if is_gone(run_dir) {
            return Err(gone(run_dir));
        }
        let dir = RunDir::new(run_dir).attempt_verdicts(self.attempt);
        for dir in [RunDir::new(run_dir).verdicts(), dir.clone()] {
            match std::fs::create_dir(&dir) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(refused(&dir, "create")(e)),
                _ => {}
            }
        }
        let path = self.path(run_dir);
        let first = !path.exists();
        let mut file = appended::open(&path)?;
        let text = serde_json::to_string(self).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
        // the first end of line closes what a full disk may have left of another's
        file.write_all(format!("\n{text}\n").as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(refused(&path, "write"))?;
        if first {
            sync_dir(&dir)?;
        }
        Ok(first)
    }
}

/// The verdicts of one attempt, as far as they have been read.
pub struct VerdictFolder {
    dir: PathBuf,
    attempt: u64,
    /// How much of each file has been read.
    read: BTreeMap<OsString, u64>,
    found: Vec<Verdict>,
}

impl VerdictFolder {
    /// Of one attempt of the run; nothing is read yet.
    pub fn new(run_dir: &Path, attempt: u64) -> VerdictFolder {
        VerdictFolder {
            dir: RunDir::new(run_dir).attempt_verdicts(attempt),
            attempt,
            read: BTreeMap::new(),
            found: Vec::new(),
        }
    }

    /// The verdicts by accuser, after a look for files that were not there before. What was appended to others is left.
    /// Lines that cannot be understood are left out: a broken one must not hide the others.
    ///
    /// # Errors
    /// [`Exit::Storage`] when the directory cannot be read.
    pub fn look(&mut self) -> Result<&[Verdict]> {
        let mut names = self.names()?;
        names.retain(|n| !self.read.contains_key(n));
        Ok(self.take_in(names))
    }

    /// The same, after a look at all files, for what was appended to them too.
    ///
    /// # Errors
    /// As for [`VerdictFolder::look`].
    pub fn all(&mut self) -> Result<&[Verdict]> {
        let names = self.names()?;
        Ok(self.take_in(names))
    }

    fn names(&self) -> Result<Vec<OsString>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(&self.dir, "read", &e, Exit::Storage)),
        };
        Ok(entries.flatten().map(|e| e.file_name()).filter(|n| n.to_string_lossy().ends_with(".jsonl")).collect())
    }

    fn take_in(&mut self, names: Vec<OsString>) -> &[Verdict] {
        if names.is_empty() {
            return &self.found;
        }
        let files: Vec<_> = names.into_iter().map(|n| (self.read.get(&n).copied().unwrap_or(0), n)).collect();
        let dir = &self.dir;
        // a file that cannot be read now is read the next time
        let read = |part: &[(u64, OsString)]| -> Vec<(OsString, u64, Vec<Verdict>)> {
            let read = |(at, name): &(u64, OsString)| {
                let (end, found) = lines(&dir.join(name), *at).ok()?;
                Some((name.clone(), end, found))
            };
            part.iter().filter_map(read).collect()
        };
        let news: Vec<_> = std::thread::scope(|s| {
            let parts = files.chunks(files.len().div_ceil(READERS).max(8));
            let begun = parts.map(|part| (part, std::thread::Builder::new().spawn_scoped(s, move || read(part)).ok()));
            let threads: Vec<_> = begun.collect();
            // where there is no thread to be had, here
            let ended = threads.into_iter().map(|(part, thread)| match thread {
                Some(thread) => thread.join().unwrap_or_default(),
                None => read(part),
            });
            ended.flatten().collect()
        });
        for (name, end, found) in news {
            self.read.insert(name, end);
            self.found.extend(found.into_iter().filter(|v| v.attempt == self.attempt));
        }
        // of two by one rank for one reason the first is nearest the cause
        self.found.sort_by_key(|v| (v.accuser, v.reason as u8));
        self.found.dedup_by_key(|v| (v.accuser, v.reason as u8));
        &self.found
    }
}

/// The verdicts in the whole lines of a file from `at` on, and where the next begins.
fn lines(path: &Path, at: u64) -> std::io::Result<(u64, Vec<Verdict>)> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole = whole_lines(&mut bytes);
    let found = whole.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    Ok((at + whole.len() as u64, found))
}

#[cfg(test)]
mod tests {
    use super::super::verdict::tests::verdict;
    use super::super::verdict::{Evidence, Suspect, Waiting};
    use super::super::{Phase, Reason};
    use super::*;

    fn names(folder: &mut VerdictFolder) -> Vec<(usize, Reason)> {
        folder.look().unwrap().iter().map(|v| (v.accuser, v.reason)).collect()
    }

    #[test]
    fn written_and_read_back_and_the_first_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = VerdictFolder::new(dir.path(), 2);
        assert_eq!(folder.all().unwrap(), []);
        let mut v = verdict(3, Reason::MissedProbes, &[1]);
        v.evidence = Evidence {
            age_s: Some(15.5),
            suspects: vec![Suspect { rank: 4, node: "n4".into(), age_s: 11.0 }],
            waiting: vec![Waiting {
                rank: 0,
                step: 7,
                phase: Phase::Reduce,
                wire: "data".into(),
                operation: 9,
                waits_for: vec![1],
            }],
            ..Default::default()
        };
        assert!(v.write(dir.path()).unwrap());
        assert!(v.path(dir.path()).ends_with("verdicts/attempt-0002/n3.jsonl"));
        assert!(!verdict(3, Reason::MissedProbes, &[]).write(dir.path()).unwrap());
        verdict(0, Reason::PeerLost, &[]).write(dir.path()).unwrap();
        Verdict { attempt: 1, ..verdict(5, Reason::Signal, &[]) }.write(dir.path()).unwrap();
        std::fs::write(dir.path().join("verdicts/attempt-0002/n9.jsonl"), "{\n").unwrap();
        std::fs::write(dir.path().join("verdicts/attempt-0002-rank-00007.json"), "of an older herd").unwrap();
        let all = folder.look().unwrap();
        assert_eq!((all.len(), &all[1]), (2, &v));
    }

    #[test]
    fn ranks_of_a_node_share_a_file_that_is_read_once_and_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let of = |rank: usize, reason| Verdict { accuser_node: "rack/n".into(), ..verdict(rank, reason, &[]) };
        let mut folder = VerdictFolder::new(dir.path(), 2);
        of(4, Reason::PeerLost).write(dir.path()).unwrap();
        let path = of(4, Reason::PeerLost).path(dir.path());
        assert_eq!(names(&mut folder), [(4, Reason::PeerLost)]);
        // What a full disk left of a line closes no other's.
        appended::open(&path).unwrap().write_all(b"{\"attempt\": 2, ").unwrap();
        of(5, Reason::PeerLost).write(dir.path()).unwrap();
        of(4, Reason::IoError).write(dir.path()).unwrap();
        assert_eq!(names(&mut folder), [(4, Reason::PeerLost)], "known files are left");
        folder.all().unwrap();
        let mut want = vec![(4, Reason::PeerLost), (4, Reason::IoError), (5, Reason::PeerLost)];
        want.sort_by_key(|(rank, reason)| (*rank, *reason as u8));
        assert_eq!(names(&mut folder), want);
        appended::open(&path).unwrap().write_all(b"{\"attempt\"").unwrap();
        assert_eq!(folder.all().unwrap().len(), 3);
    }

    #[test]
    fn all_ranks_of_eight_nodes_leave_eight_files() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|s| {
            for node in 0..8 {
                let write = move |rank: usize, dir: &Path| {
                    let v = verdict(rank, Reason::PeerLost, &[]);
                    Verdict { accuser_node: format!("n{node}"), ..v }.write(dir).unwrap();
                };
                let dir = dir.path();
                (8 * node..8 * node + 8).for_each(|rank| _ = s.spawn(move || write(rank, dir)));
            }
        });
        let mut folder = VerdictFolder::new(dir.path(), 2);
        assert_eq!(folder.all().unwrap().iter().map(|v| v.accuser).collect::<Vec<_>>(), (0..64).collect::<Vec<_>>());
        assert_eq!(folder.read.len(), 8);
        assert_eq!(std::fs::read_dir(dir.path().join("verdicts/attempt-0002")).unwrap().count(), 8);
    }

    #[test]
    fn a_run_directory_that_is_gone_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        assert_eq!(verdict(0, Reason::PeerLost, &[]).write(&run).unwrap_err().exit, Exit::Gone);
        assert!(!run.exists());
    }
}

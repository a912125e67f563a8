//! Finding the newest checkpoint that is whole.

use super::disk::entries;
use super::manifest::FileEntry;
use super::read::{manifest_bytes, Checkpoint, Compared};
use super::team::Team;
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::world::World;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// What happened while looking for a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Looks like a checkpoint but is not whole; the next older one is tried.
    CheckpointRejected {
        /// Its directory.
        path: PathBuf,
        /// What is not whole about it.
        reason: String,
    },
    /// Whole: every byte of every file has been checked.
    CheckpointChosen {
        /// Its directory.
        path: PathBuf,
        /// Steps finished when it was saved.
        step: u64,
        /// Bytes of its data files, the manifest not among them.
        bytes: u64,
    },
    /// A step in memory that was tried, or newer than what was taken, and is not whole.
    SnapshotRejected {
        /// Steps finished when it was taken.
        step: u64,
        /// What is missing or damaged.
        reason: String,
    },
}

impl Event {
    pub(crate) fn chosen(c: &Checkpoint) -> Event {
        Event::CheckpointChosen { path: c.path().into(), step: c.meta().step, bytes: c.bytes() }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::CheckpointRejected { path, reason } => {
                write!(f, "checkpoint {} is not whole and is passed over: {reason}", path.display())
            }
            Event::CheckpointChosen { path, step, .. } => {
                write!(f, "checkpoint {} of step {step} is whole", path.display())
            }
            Event::SnapshotRejected { step, reason } => {
                write!(f, "the snapshots of step {step} are passed over: {reason}")
            }
        }
    }
}

/// A directory that has the name of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate {
    pub step: u64,
    /// False for `step-N.old-*`, which a crash in the middle of a replacement leaves behind.
    pub current: bool,
    pub path: PathBuf,
}

/// Checkpoints by name, newest first; temporary directories are none.
pub(crate) fn candidates(checkpoints: &Path) -> Result<Vec<Candidate>> {
    let mut found: Vec<Candidate> = entries(checkpoints)?
        .into_iter()
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.strip_prefix("step-")?.to_string();
            let (step, current) = match name.split_once(".old-") {
                Some((step, _)) => (step, false),
                None => (name.as_str(), true),
            };
            let digits = !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit());
            Some(Candidate { step: step.parse().ok().filter(|_| digits)?, current, path })
        })
        .filter(|c| c.path.is_dir())
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Everything in `checkpoints` that has the name of a checkpoint, newest first, with what opening it says. Checksums of
/// data are not compared.
pub fn list(checkpoints: &Path) -> Result<Vec<(PathBuf, Result<Checkpoint>)>> {
    let all = candidates(checkpoints)?;
    Ok(all.into_iter().map(|c| (c.path.clone(), open(&c))).collect())
}

fn open(c: &Candidate) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(&c.path)?;
    check_step(c, &checkpoint)?;
    Ok(checkpoint)
}

fn check_step(c: &Candidate, checkpoint: &Checkpoint) -> Result<()> {
    match checkpoint.meta().step {
        step if step == c.step => Ok(()),
        step => Err(Error::new(Exit::Checkpoint, format!("{} holds step {step}", c.path.display()))
            .hint("the directory was renamed; give it its own name back")),
    }
}

/// The newest checkpoint in `checkpoints` of which every byte is as it was written; `None` when there is none.
/// Collective: the ranks share the files out for the check and all return the same one. `report` is told, on every rank,
/// of each that had to be passed over and of the one chosen.
pub fn newest_valid(checkpoints: &Path, world: &World, report: &mut dyn FnMut(&Event)) -> Result<Option<Checkpoint>> {
    newest_checked(checkpoints, Team(Some(world)), &Meter::default(), report)
}

/// As [`newest_valid`], for a process that belongs to no world; `meter` counts what is read of each that is tried.
pub fn newest_valid_alone(
    checkpoints: &Path, meter: &Meter, report: &mut dyn FnMut(&Event),
) -> Result<Option<Checkpoint>> {
    newest_checked(checkpoints, Team(None), meter, report)
}

fn newest_checked(
    checkpoints: &Path, team: Team, meter: &Meter, report: &mut dyn FnMut(&Event),
) -> Result<Option<Checkpoint>> {
    let mut passed = Vec::new();
    loop {
        let Some(found) = newest_opened(checkpoints, &passed, team, report)? else { return Ok(None) };
        meter.begin("verify", found.bytes());
        match check(&found, &Compared::counting(meter), team) {
            Ok(()) => {
                report(&Event::chosen(&found));
                return Ok(Some(found));
            }
            Err(e) if e.exit == Exit::Checkpoint => {
                report(&Event::CheckpointRejected { path: found.path().into(), reason: e.fact });
                passed.push(found.path().to_path_buf());
            }
            Err(e) => return Err(e),
        }
    }
}

/// The newest checkpoint that has a whole manifest and all its files with their sizes, but for those in `passed`. Collective
/// over the team.
pub(crate) fn newest_opened(
    checkpoints: &Path, passed: &[PathBuf], team: Team, report: &mut dyn FnMut(&Event),
) -> Result<Option<Checkpoint>> {
    let mut found = team.agree(if team.rank() == 0 { candidates(checkpoints) } else { Ok(Vec::new()) })?;
    found.retain(|c| !passed.contains(&c.path));
    for i in 0.. {
        // Rank 0 alone reads directory and manifest: thousands of ranks asking for one file is a storm.
        let candidate = found.get(i);
        let packed = candidate.map(|c| pack(c, &manifest_bytes(&c.path).and_then(|b| parse(c, &b).map(|_| b))));
        let packed = team.broadcast(packed.unwrap_or_default())?;
        let Some((path, manifest)) = unpack(&packed, checkpoints)? else { return Ok(None) };
        match manifest.and_then(|bytes| opened(&path, &bytes, team)) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(e) if e.exit == Exit::Checkpoint || e.exit == Exit::Storage => {
                report(&Event::CheckpointRejected { path, reason: e.fact });
            }
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

fn parse(c: &Candidate, bytes: &[u8]) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::from_manifest(&c.path, bytes)?;
    check_step(c, &checkpoint)?;
    Ok(checkpoint)
}

/// Directory name, then manifest or what is wrong with it.
fn pack(c: &Candidate, manifest: &Result<Vec<u8>>) -> Vec<u8> {
    let name = c.path.file_name().unwrap_or_default().to_string_lossy();
    let (ok, body) = match manifest {
        Ok(bytes) => (b'1', bytes.clone()),
        Err(e) => (b'0', e.fact.clone().into_bytes()),
    };
    [name.as_bytes(), &[b'\n', ok], &body].concat()
}

type Packed = (PathBuf, Result<Vec<u8>>);

fn unpack(packed: &[u8], checkpoints: &Path) -> Result<Option<Packed>> {
    if packed.is_empty() {
        return Ok(None);
    }
    let broken = || Error::new(Exit::Internal, "rank 0 sent a candidate that cannot be read");
    let end = packed.iter().position(|&b| b == b'\n').filter(|end| end + 1 < packed.len()).ok_or_else(broken)?;
    let path = checkpoints.join(String::from_utf8_lossy(&packed[..end]).as_ref());
    let body = packed[end + 2..].to_vec();
    let manifest = match packed[end + 1] {
        b'1' => Ok(body),
        _ => Err(Error::new(Exit::Checkpoint, String::from_utf8_lossy(&body))),
    };
    Ok(Some((path, manifest)))
}

/// The step directory `path`, as [`Checkpoint::open`]: rank 0 reads the manifest, each rank looks at its share of the files.
/// Collective.
pub(crate) fn open_step(path: &Path, team: Team) -> Result<Checkpoint> {
    let mine = if team.rank() == 0 { manifest_bytes(path) } else { Ok(Vec::new()) };
    let manifest = team.broadcast(team.agree(mine)?)?;
    opened(path, &manifest, team).map_err(|e| e.context(path.display()))
}

/// The checkpoint, if no rank finds a file of its share missing or of another size.
fn opened(path: &Path, manifest: &[u8], team: Team) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::from_manifest(path, manifest)?;
    let problem = share(&checkpoint, team).find_map(|(_, f)| checkpoint.size_problem(f));
    agree(problem, team).map(|()| checkpoint)
}

/// Whether every byte is as it was written: each rank looks at its share of the files, or where there are fewer files than
/// ranks (an import is one) of their datasets, but not again at what it has compared. Collective over the team.
///
/// Errors: [`Exit::Checkpoint`], on every rank.
pub(crate) fn check(checkpoint: &Checkpoint, compared: &Compared, team: Team) -> Result<()> {
    if checkpoint.files().len() >= team.size() {
        return agree(share(checkpoint, team).find_map(|(i, _)| checkpoint.problem(i, compared)), team);
    }
    let is_mine = |number: usize| number % team.size() == team.rank();
    let mut before = 0;
    let problem = checkpoint.files().enumerate().find_map(|(i, file)| {
        let first = before;
        before += file.datasets.len();
        let size = checkpoint.size_problem(file).filter(|_| is_mine(i));
        size.or_else(|| checkpoint.sum_problem(i, compared, &|d| is_mine(first + d), is_mine(i)))
    });
    agree(problem, team)
}

fn share<'a>(checkpoint: &'a Checkpoint, team: Team<'a>) -> impl Iterator<Item = (usize, &'a FileEntry)> {
    checkpoint.files().enumerate().skip(team.rank()).step_by(team.size())
}

/// The first rank's problem, on every rank.
pub(crate) fn agree(problem: Option<String>, team: Team) -> Result<()> {
    let all = team.all_gather(problem.unwrap_or_default().into_bytes())?;
    match all.iter().find(|p| !p.is_empty()) {
        Some(p) => Err(Error::new(Exit::Checkpoint, String::from_utf8_lossy(p))),
        None => Ok(()),
    }
}

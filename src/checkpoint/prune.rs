//! Retention: which checkpoints go, and in which order their files go.

use super::disk::{self, entries};
use super::manifest;
use super::read::Checkpoint;
use super::recycle;
use super::restore::list;
use crate::error::Result;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A temporary directory that nobody has written to for this long belongs to a save that died: a living one writes all
/// the time, and clocks of nodes may differ by seconds.
const STALE: Duration = Duration::from_secs(15 * 60);

/// What [`prune`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Checkpoints, newest first.
    pub checkpoints: Vec<PathBuf>,
    /// Left behind by saves that died.
    pub temporary: Vec<PathBuf>,
}

/// Which whole checkpoints stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many; 0: all.
    pub newest: usize,
    /// Those whose step is a multiple of this; 0: none for that reason.
    pub every: u64,
    /// The one with the lowest validation loss of its own step.
    pub best: bool,
    /// Files of one that goes stay for the next save (`recycled`); otherwise those that stayed so far go too.
    pub recycle: bool,
}

impl From<usize> for Keep {
    fn from(newest: usize) -> Keep {
        Keep { newest, ..Keep::default() }
    }
}

impl Keep {
    fn stays(&self, c: &Checkpoint, place: usize, best: Option<u64>) -> bool {
        let step = c.meta().step;
        let milestone = self.every > 0 && step > 0 && step.is_multiple_of(self.every);
        self.newest == 0 || place <= self.newest || milestone || best == Some(step)
    }
}

/// Keeps the valid checkpoints that `keep` names and removes older ones, invalid ones that are older than a valid one,
/// and stale temporary directories. Valid means here: manifest whole, every file there in its size. Not collective: call
/// it on one rank, after a save.
///
/// The manifest goes first, so that a half-removed checkpoint is none.
///
/// `may_remove`, asked with the step, spares checkpoints that are still needed for something else: an upload, an export.
pub fn prune(checkpoints: &Path, keep: impl Into<Keep>, may_remove: &dyn Fn(u64) -> bool) -> Result<Pruned> {
    prune_after(checkpoints, keep, u64::MAX, may_remove)
}

/// [`prune`] after the save of step `saved`, which is whole. What has a higher step is of an earlier start, and was passed over when this
/// one began: it may look valid and hold wrong bytes, so it stays, and no other goes in its favour.
pub fn prune_after(
    checkpoints: &Path, keep: impl Into<Keep>, saved: u64, may_remove: &dyn Fn(u64) -> bool,
) -> Result<Pruned> {
    prune_upto(checkpoints, keep.into(), false, may_remove, &mut |_| true, saved)
}

/// As [`prune`], but a checkpoint counts as valid only if `whole` says so, asked of the newest until one is; `dry` only
/// tells what would go.
pub fn prune_if(
    checkpoints: &Path, keep: Keep, dry: bool, may_remove: &dyn Fn(u64) -> bool,
    whole: &mut dyn FnMut(&Checkpoint) -> bool,
) -> Result<Pruned> {
    prune_upto(checkpoints, keep, dry, may_remove, whole, u64::MAX)
}

/// Whole, and the best, are only those up to step `upto`.
fn prune_upto(
    checkpoints: &Path, keep: Keep, dry: bool, may_remove: &dyn Fn(u64) -> bool,
    whole: &mut dyn FnMut(&Checkpoint) -> bool, upto: u64,
) -> Result<Pruned> {
    let mut out = Pruned { temporary: stale(checkpoints)?, ..Pruned::default() };
    let recycled = if keep.recycle { Vec::new() } else { recycle::left(checkpoints)? };
    let (mut kept, mut sure, mut gone) = (0, false, Vec::new());
    let all = list(checkpoints)?;
    let best =
        all.iter().filter_map(|(_, c)| c.as_ref().ok()).filter_map(|c| Some((c.meta().validation?, c.meta().step)));
    let best = best
        .filter(|(_, step)| keep.best && *step <= upto)
        .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
        .map(|(_, step)| step);
    for (path, opened) in all {
        let aside = path.to_string_lossy().contains(".old-");
        let stays = match &opened {
            // Until a whole one is found nothing goes: what looks damaged may be all there is.
            Ok(c) if !sure => {
                sure = c.meta().step <= upto && whole(c);
                kept += sure as usize;
                true
            }
            Err(_) if !sure => true,
            Ok(_) if aside => false,
            Ok(c) => {
                kept += 1;
                keep.stays(c, kept, best)
            }
            Err(_) => keep.newest == 0,
        };
        let spared = opened.as_ref().is_ok_and(|c| !may_remove(c.meta().step));
        if !stays && !spared {
            gone.push((path, keep.recycle && opened.is_ok()));
        }
    }
    if !dry {
        gone.iter().try_for_each(|(path, recycle)| remove(path, checkpoints, *recycle))?;
        out.temporary.iter().try_for_each(|path| remove(path, checkpoints, false))?;
        if !keep.recycle {
            recycle::clear(checkpoints)?;
        }
    }
    out.checkpoints = gone.into_iter().map(|(path, _)| path).collect();
    out.temporary.extend(recycled);
    Ok(out)
}

fn remove(path: &Path, checkpoints: &Path, recycle: bool) -> Result<()> {
    let manifest = path.join(manifest::NAME);
    match std::fs::remove_file(&manifest) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(disk::refused(&manifest, "remove")(e)),
        Err(_) => {}
        Ok(()) => disk::sync_dir(path)?,
    }
    if !(recycle && recycle::put(path, checkpoints)?) {
        disk::remove_dir(path)?;
    }
    disk::sync_dir(checkpoints)
}

/// Temporary directories of saves that died.
fn stale(checkpoints: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(checkpoints)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("step-") && name.contains(".tmp-") && idle(&path) >= STALE {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Time since the last change of a directory or of a file in it; zero where that cannot be told.
fn idle(path: &Path) -> Duration {
    let modified = |p: &Path| std::fs::metadata(p).and_then(|m| m.modified());
    let Ok(files) = entries(path) else { return Duration::ZERO };
    let mut newest = SystemTime::UNIX_EPOCH;
    for p in files.iter().map(PathBuf::as_path).chain([path]) {
        match modified(p) {
            Ok(t) => newest = newest.max(t),
            Err(_) => return Duration::ZERO,
        }
    }
    SystemTime::now().duration_since(newest).unwrap_or(Duration::ZERO)
}

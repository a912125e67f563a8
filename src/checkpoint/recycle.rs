//! The files of a checkpoint that goes, kept for the next save to write over.
//!
//! A disk takes blocks that it has had before faster than blocks that nobody has ever written, where storage is given out as
//! it is written to (disks of virtual machines, thin volumes); and a save into room that is there already does not find the
//! disk full. PostgreSQL treats the segments of its log in the same way.
//!
//! The directory `recycled` has no manifest, so it is no checkpoint, and no name that a reader looks for. At most one is kept.

use super::disk::{self, entries, file_name};
use crate::error::Result;
use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const NAME: &str = "recycled";

/// Puts the directory of a checkpoint that is none any more aside; false where there is one already.
pub(crate) fn put(directory: &Path, checkpoints: &Path) -> Result<bool> {
    match fs::rename(directory, checkpoints.join(NAME)) {
        Ok(()) => Ok(true),
        // rename(2): there are files in the other.
        Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => Ok(false),
        Err(e) => Err(disk::refused(directory, "keep the files of")(e)),
    }
}

/// Makes `temporary` of what was put aside, with the files that `ranks` ranks may write over; false where there is nothing.
pub(crate) fn take(checkpoints: &Path, temporary: &Path, ranks: usize) -> Result<bool> {
    let aside = checkpoints.join(NAME);
    if !aside.is_dir() {
        return Ok(false);
    }
    // Its time must be that of a living save before it has the name of one: see `prune`.
    match fs::File::open(&aside)
        .and_then(|d| d.set_modified(SystemTime::now()))
        .and_then(|()| fs::rename(&aside, temporary))
    {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        taken => taken.map_err(disk::refused(&aside, "take over"))?,
    }
    let names: HashSet<String> = (0..ranks).map(file_name).collect();
    for path in entries(temporary)? {
        if !(path.file_name().and_then(|n| n.to_str()).is_some_and(|n| names.contains(n)) && ours_alone(&path)) {
            fs::remove_file(&path).map_err(disk::refused(&path, "remove"))?;
        }
    }
    Ok(true)
}

/// A file that has no second name: somebody's copy by links (`cp -al`) must not change.
fn ours_alone(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.is_file() && m.nlink() == 1)
}

/// What [`clear`] would remove.
pub(crate) fn left(checkpoints: &Path) -> Result<Vec<PathBuf>> {
    let ours = |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.split('.').next() == Some(NAME));
    Ok(entries(checkpoints)?.into_iter().filter(ours).collect())
}

/// Removes what was put aside, unless a save takes it first.
pub(crate) fn clear(checkpoints: &Path) -> Result<()> {
    left(checkpoints)?.iter().filter(|p| !p.ends_with(NAME)).try_for_each(|p| disk::remove_dir(p))?;
    // Under a name of its own: a save that took it half-way would miss files.
    let (path, gone) = (checkpoints.join(NAME), checkpoints.join(format!("{NAME}.old-{}", std::process::id())));
    match fs::rename(&path, &gone) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        moved => moved.map_err(disk::refused(&path, "remove")).and_then(|()| disk::remove_dir(&gone)),
    }
}

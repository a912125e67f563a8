//! Checkpoint directories: put in place, moved aside, removed, and what the filesystem refuses beforehand.

pub use crate::durable::{refused, sync_dir, write_atomic, write_synced};

use crate::error::{Error, Exit, Result};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `step-NNNNNNNN`.
pub fn directory(step: u64) -> String {
    format!("step-{step:08}")
}

/// The file of one rank, in the directory of a checkpoint.
pub fn file_name(rank: usize) -> String {
    format!("rank-{rank:05}.h5")
}

/// Paths of everything in a directory; one that does not exist is empty.
pub fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let refused = |e: std::io::Error| Error::io(directory, "list", &e, Exit::Checkpoint);
    match std::fs::read_dir(directory) {
        Ok(all) => all.map(|e| e.map(|e| e.path())).collect::<std::io::Result<_>>().map_err(refused),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(refused(e)),
    }
}

/// Removes a directory and everything in it; one that is absent is fine.
pub fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(refused(path, "remove")(e)),
        _ => Ok(()),
    }
}

/// Refuses a file that the process's own size limit forbids, before HDF5 meets the limit half-way.
pub fn check_size_limit(path: &Path, bytes: u64) -> Result<()> {
    match rustix::process::getrlimit(rustix::process::Resource::Fsize).current {
        Some(limit) if limit < bytes => Err(Error::new(
            Exit::Storage,
            format!("{} needs {bytes} bytes, but the file size limit of this process is {limit}", path.display()),
        )
        .hint("raise it with `ulimit -f unlimited`")),
        _ => Ok(()),
    }
}

/// Puts `new` at `path` in one step, whatever is there; what was there is afterwards at `new`, if it still exists.
///
/// Where the filesystem cannot exchange two names, the old directory is first moved to `aside`, and there is a moment in
/// which only that name leads to it: readers look there too.
pub fn replace(new: &Path, path: &Path, aside: &Path) -> Result<()> {
    let failed = refused(path, "rename the checkpoint to");
    if !path.exists() {
        return std::fs::rename(new, path).map_err(failed);
    }
    if exchanged(new, path) {
        return Ok(());
    }
    remove_dir(aside)?;
    std::fs::rename(path, aside).map_err(&failed)?;
    std::fs::rename(new, path).map_err(failed)
}

/// Whether two names were exchanged, by the C library's call: tests put a filesystem in its place that cannot.
fn exchanged(a: &Path, b: &Path) -> bool {
    let c = |p: &Path| CString::new(p.as_os_str().as_bytes());
    let (Ok(a), Ok(b)) = (c(a), c(b)) else { return false };
    // SAFETY: both are strings that end with a zero and live until the call returns.
    unsafe { libc::renameat2(libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), libc::RENAME_EXCHANGE) == 0 }
}

//! Files and directories that must survive a crash: sync, rename, and what the filesystem refuses.

use crate::error::{Error, Exit, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// An operation on `path` failed.
pub fn refused(path: &Path, doing: &str) -> impl Fn(std::io::Error) -> Error {
    let (path, doing) = (path.to_path_buf(), doing.to_string());
    move |e| {
        let error = Error::io(&path, &doing, &e, Exit::Storage);
        match e.kind() {
            std::io::ErrorKind::FileTooLarge => error.hint("raise the file size limit (ulimit -f)"),
            _ => error,
        }
    }
}

/// Makes a directory's entries durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|d| d.sync_all()).map_err(refused(path, "sync"))
}

/// Writes a small file whole: temporary name, sync, rename, sync of the directory.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    write_synced(&temporary, bytes)?;
    std::fs::rename(&temporary, path).map_err(refused(path, "write"))?;
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => sync_dir(p),
        _ => sync_dir(Path::new(".")),
    }
}

/// Writes and syncs a small file that nobody looks for yet.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut f = File::create(path)?;
        f.write_all(bytes)?;
        f.sync_all()
    };
    write().map_err(refused(path, "write"))
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
    use rustix::fs::{renameat_with, RenameFlags, CWD};
    let failed = refused(path, "rename the checkpoint to");
    if !path.exists() {
        return std::fs::rename(new, path).map_err(failed);
    }
    if renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE).is_ok() {
        return Ok(());
    }
    remove_dir(aside)?;
    std::fs::rename(path, aside).map_err(&failed)?;
    std::fs::rename(new, path).map_err(failed)
}

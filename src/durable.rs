//! Small files that must survive a crash: written whole under another name, synced, renamed.

use crate::error::{Error, Exit, Result};
use crate::host::{self, FileAccess};
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
        host::at_file(path, FileAccess::Write)?;
        let mut f = File::create(path)?;
        f.write_all(bytes)?;
        f.sync_all()
    };
    write().map_err(refused(path, "write"))
}

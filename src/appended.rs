//! Files that lines are appended to for as long as a run lasts. Somebody may rotate, move or remove one meanwhile, or the whole
//! directory, and an open file would go on taking what nobody will read. So the file is looked for by its name before each line:
//! one that is another, or none, is opened anew, which is said; a directory that is gone is [`Exit::Gone`] after a short while.

use crate::error::{Error, Exit, Result};
use crate::host::{self, FileAccess};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a directory that is gone is waited for: a filesystem may be mounted again.
pub const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(200);

/// A file that whole lines are appended to; any process may do so, and a line is one write.
pub struct Appended {
    file: File,
    path: PathBuf,
    /// The last line may be there in part: on a full disk.
    torn: bool,
}

impl Appended {
    /// # Errors
    /// [`Exit::Storage`].
    pub fn open(path: &Path) -> Result<Appended> {
        Ok(Appended { file: open(path)?, path: path.to_path_buf(), torn: false })
    }

    /// Appends a value and a line's end.
    ///
    /// # Errors
    /// [`Exit::Gone`]: the directory is not there for [`PATIENCE`]; [`Exit::Storage`].
    pub fn line(&mut self, value: &Value) -> Result<()> {
        self.follow()?;
        let refused = |e| Error::io(&self.path, "write to", &e, Exit::Storage);
        if self.torn {
            self.file.write_all(b"\n").map_err(refused)?;
        }
        let written = host::at_file(&self.path, FileAccess::Write);
        let written = written.and_then(|()| self.file.write_all(format!("{value}\n").as_bytes())).map_err(refused);
        self.torn = written.is_err();
        written
    }

    /// Opens the file anew where its name no longer leads to it.
    fn follow(&mut self) -> Result<()> {
        if is_at(&self.file, &self.path) {
            return Ok(());
        }
        let dir = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        wait_for(dir, PATIENCE)?;
        self.file = open(&self.path)?;
        self.torn = false;
        tracing::warn!(
            "{} was moved or removed while it was written to: what comes now is in a new file of that name",
            self.path.display()
        );
        Ok(())
    }
}

/// Whether `path` leads to `file`. A filesystem that does not answer says nothing: the next write tells.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
        (_, Err(e)) => !means_gone(&e),
        _ => true,
    }
}

/// Whether a directory is gone: removed, renamed, or its filesystem unmounted or stale.
pub fn is_gone(dir: &Path) -> bool {
    std::fs::metadata(dir).is_err_and(|e| means_gone(&e))
}

fn means_gone(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::StaleNetworkFileHandle)
        || e.raw_os_error() == Some(libc::ENOTCONN)
}

/// Waits for a directory that is gone.
///
/// # Errors
/// [`Exit::Gone`].
pub fn wait_for(dir: &Path, patience: Duration) -> Result<()> {
    let began = host::now();
    while is_gone(dir) {
        if host::since(began) >= patience {
            return Err(gone(dir));
        }
        host::sleep(LOOK.min(patience));
    }
    Ok(())
}

/// The error of a directory that is gone.
pub fn gone(dir: &Path) -> Error {
    Error::new(Exit::Gone, format!("the run directory {} is gone: removed, moved, or not mounted", dir.display())).hint(
        "bring it back and start again; launch.rescue_dir names a place where the last state is saved in such a case",
    )
}

/// For appending; made if absent.
pub fn open(path: &Path) -> Result<File> {
    let file =
        host::at_file(path, FileAccess::Write).and_then(|()| OpenOptions::new().create(true).append(true).open(path));
    file.map_err(|e| Error::io(path, "open", &e, Exit::Storage))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_rotated_away_is_written_anew_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut file = Appended::open(&path).unwrap();
        file.line(&json!(1)).unwrap();
        std::fs::rename(&path, dir.path().join("events.jsonl.1")).unwrap();
        file.line(&json!(2)).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.line(&json!(3)).unwrap();
        file.line(&json!(4)).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("events.jsonl.1")).unwrap(), "1\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "3\n4\n");
    }

    #[test]
    fn a_directory_that_comes_back_goes_on_and_one_that_is_gone_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (run, away) = (dir.path().join("run"), dir.path().join("away"));
        std::fs::create_dir(&run).unwrap();
        let mut file = Appended::open(&run.join("m")).unwrap();
        std::fs::rename(&run, &away).unwrap();
        assert!(is_gone(&run) && !is_gone(&away) && is_gone(&away.join("m/x")));
        let e = wait_for(&run, Duration::ZERO).unwrap_err();
        assert!(e.exit == Exit::Gone && e.fact.contains("run is gone"), "{e}");
        let back = std::thread::spawn({
            let (run, away) = (run.clone(), away.clone());
            move || {
                std::thread::sleep(Duration::from_millis(300));
                std::fs::rename(away, run).unwrap();
            }
        });
        file.line(&json!("here")).unwrap();
        back.join().unwrap();
        assert_eq!(std::fs::read_to_string(run.join("m")).unwrap(), "\"here\"\n");
    }

    #[test]
    fn a_full_disk_is_a_storage_error() {
        let full = Path::new("/dev/full");
        assert_eq!(Appended::open(full).unwrap().line(&json!({})).unwrap_err().exit, Exit::Storage);
    }
}

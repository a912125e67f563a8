//! A file that is opened when it is first read and read at places (pread), never mapped: what was read is not held in this
//! process, and a file that is cut off meanwhile is an error instead of the end of the process. One process looks at it,
//! others are told how long it was.

use crate::error::{Error, Exit, Result};
use crate::threads::lock;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

const UNCHANGED: &str = "do not change a file that a run has open: write a new one";

/// Goes to other processes without the open file.
#[derive(Debug, Serialize, Deserialize)]
pub struct LazyFile {
    /// Where it is, on every rank that reads it.
    pub path: PathBuf,
    /// Bytes that it had when it was looked at, here or on another rank.
    pub len: u64,
    /// What it means that it is missing or another.
    exit: Exit,
    #[serde(skip)]
    file: Mutex<Option<Arc<File>>>,
}

impl LazyFile {
    /// Opens the file and looks how long it is.
    pub fn find(path: PathBuf, exit: Exit) -> Result<LazyFile> {
        let file = LazyFile::given(path, 0, exit);
        let opened = file.open()?;
        let len = file.len_of(&opened)?;
        Ok(LazyFile { len, file: Mutex::new(Some(Arc::new(opened))), ..file })
    }

    /// A file that another rank has looked at.
    pub fn given(path: PathBuf, len: u64, exit: Exit) -> LazyFile {
        LazyFile { path, len, exit, file: Mutex::new(None) }
    }

    /// Fills `out` with the bytes from `at` on.
    pub fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        self.reach()?.read_exact_at(out, at).map_err(|e| self.refused(&e))
    }

    /// What an error while the file was read says.
    pub fn refused(&self, e: &std::io::Error) -> Error {
        match e.kind() {
            ErrorKind::UnexpectedEof => {
                let fact = format!(
                    "{} has fewer than the {} bytes it had when it was looked at",
                    self.path.display(),
                    self.len
                );
                Error::new(self.exit, fact).hint(UNCHANGED)
            }
            _ => Error::io(&self.path, "read", e, self.exit),
        }
    }

    /// The open file, as it was when it was looked at.
    pub fn reach(&self) -> Result<Arc<File>> {
        let mut held = lock(&self.file);
        if let Some(file) = &*held {
            return Ok(file.clone());
        }
        let file = self.open()?;
        match self.len_of(&file)? {
            len if len == self.len => Ok(held.insert(Arc::new(file)).clone()),
            len => {
                let fact =
                    format!("{} has {len} bytes, it had {} when it was looked at", self.path.display(), self.len);
                Err(Error::new(self.exit, fact).hint(UNCHANGED))
            }
        }
    }

    /// Closes it until it is read again: commands go through thousands of files.
    pub fn close(&self) {
        lock(&self.file).take();
    }

    fn open(&self) -> Result<File> {
        File::open(&self.path).map_err(|e| Error::io(&self.path, "read", &e, self.exit))
    }

    fn len_of(&self, file: &File) -> Result<u64> {
        Ok(file.metadata().map_err(|e| Error::io(&self.path, "read", &e, self.exit))?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_what_it_was_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [7; 100]).unwrap();
        let found = LazyFile::find(path.clone(), Exit::Data).unwrap();
        let given: LazyFile = serde_json::from_slice(&serde_json::to_vec(&found).unwrap()).unwrap();
        let mut out = [0; 60];
        given.read(40, &mut out).unwrap();
        assert_eq!((out, given.len), ([7; 60], 100));
        // Cut off while it is open, and found so when it is opened again.
        File::options().write(true).open(&path).unwrap().set_len(50).unwrap();
        let e = given.read(40, &mut out).unwrap_err();
        assert!(e.exit == Exit::Data && e.fact.contains("fewer than the 100 bytes"), "{e}");
        given.close();
        let e = given.read(0, &mut out).unwrap_err();
        assert!(e.exit == Exit::Data && e.fact.contains("has 50 bytes, it had 100"), "{e}");
        std::fs::remove_file(&path).unwrap();
        assert!(given.read(0, &mut out).unwrap_err().fact.contains("no such file"));
    }
}

//! `<prefix>.mask`: which tokens of the `.bin` count in the loss, one byte each in the same order, 1 or 0. Byte i says whether a
//! model is to learn to write token i behind the ones before it, so the first of a document never counts.
//! `numpy.fromfile(path, "u1")` reads it.

use crate::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// What stands behind the prefix in the mask's file name.
pub const ENDING: &str = ".mask";

/// What the sidecar says of a loss mask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskNote {
    /// Tokens that count.
    pub trained: u64,
    /// xxh3-128 of the `.mask`, 32 hexadecimal digits.
    pub xxh3_128: String,
}

/// A mask being written, removed unless it was renamed.
pub(super) struct MaskWriter {
    pub path: PathBuf,
    file: BufWriter<File>,
    hash: Xxh3,
    trained: u64,
}

impl MaskWriter {
    pub fn create(path: &Path) -> Result<MaskWriter> {
        let file = File::create(path).map_err(|e| Error::io(path, "create", &e, Exit::Storage))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(MaskWriter { path: path.into(), file, hash: Xxh3::new(), trained: 0 })
    }

    /// The mask of a document of `tokens` tokens.
    pub fn push(&mut self, mask: &[u8], tokens: usize) -> Result<()> {
        if mask.len() != tokens || mask.iter().any(|&m| m > 1) {
            let fact = format!("a mask of {} bytes for {tokens} tokens, largest {:?}", mask.len(), mask.iter().max());
            return Err(Error::new(Exit::Internal, fact));
        }
        self.hash.update(mask);
        self.trained += mask.iter().map(|&m| m as u64).sum::<u64>();
        self.file.write_all(mask).map_err(|e| Error::io(&self.path, "write", &e, Exit::Storage))
    }

    /// Syncs the file, which is still under its temporary name.
    pub fn finish(&mut self) -> Result<MaskNote> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(|e| Error::io(&self.path, "sync", &e, Exit::Storage))?;
        Ok(MaskNote { trained: self.trained, xxh3_128: format!("{:032x}", self.hash.digest128()) })
    }
}

impl Drop for MaskWriter {
    fn drop(&mut self) {
        // Gone already after a commit.
        let _ = std::fs::remove_file(&self.path);
    }
}

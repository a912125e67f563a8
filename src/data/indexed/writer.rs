//! Streams documents into an indexed token file. Everything goes to temporary names first; ids, mask and index are
//! synced and renamed by [`IndexedWriter::finish`], the sidecar last. A writer that is dropped before leaves nothing behind.

use super::mask::{MaskWriter, ENDING};
use super::{sidecar, with_ending, Sidecar, TokenDtype, TokenizerNote, HEADER, MAGIC, VERSION};
use crate::data::chat::ChatNote;
use crate::error::{Error, Exit, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// An indexed token file being written. Memory: 4 bytes a document.
pub struct IndexedWriter {
    prefix: PathBuf,
    bin: Option<BufWriter<File>>,
    bin_temp: PathBuf,
    dtype: TokenDtype,
    vocab_size: usize,
    lengths: Vec<i32>,
    tokens: u64,
    highest: Option<u32>,
    hash: Xxh3,
    buffer: Vec<u8>,
    mask: Option<MaskWriter>,
}

/// What [`IndexedWriter::finish`] cannot know itself.
pub struct IndexedWritten {
    /// The tokenizer that made the ids.
    pub tokenizer: TokenizerNote,
    /// How the loss mask came to be; of a file with one.
    pub chat: Option<ChatNote>,
    /// What the ids came from, in order: input files as they were named, or the prefixes of merged token files.
    pub sources: Vec<String>,
    /// `all`, `train` or `validation`.
    pub split: String,
    /// Share of documents held out for validation; 0 for `all`.
    pub holdout: f64,
    /// Bytes of text that became these tokens.
    pub text_bytes: u64,
}

impl IndexedWriter {
    /// Starts `<prefix>.bin`, u16 if `vocab_size` ≤ 65,536, else i32. The directory must exist.
    pub fn create(prefix: &Path, vocab_size: usize) -> Result<IndexedWriter> {
        if vocab_size == 0 || vocab_size > 1 << 31 {
            return Err(Error::new(Exit::Data, format!("a vocabulary of {vocab_size} does not fit 31-bit ids")));
        }
        let bin_temp = temporary(prefix, ".bin");
        let file = File::create(&bin_temp).map_err(|e| Error::io(&bin_temp, "create", &e, Exit::Storage))?;
        Ok(IndexedWriter {
            prefix: prefix.to_owned(),
            bin: Some(BufWriter::with_capacity(1 << 20, file)),
            bin_temp,
            dtype: TokenDtype::for_vocab(vocab_size),
            vocab_size,
            lengths: Vec::new(),
            tokens: 0,
            highest: None,
            hash: Xxh3::new(),
            buffer: Vec::new(),
            mask: None,
        })
    }

    /// As [`IndexedWriter::create`], with a loss mask beside the ids.
    pub fn create_masked(prefix: &Path, vocab_size: usize) -> Result<IndexedWriter> {
        let mut writer = IndexedWriter::create(prefix, vocab_size)?;
        writer.mask = Some(MaskWriter::create(&temporary(prefix, ENDING))?);
        Ok(writer)
    }

    /// Appends one document and, to a file with a loss mask, which of its tokens count: a byte each, 0 or 1. Refuses what
    /// [`IndexedWriter::push`] does, and a mask of another length.
    pub fn push_masked(&mut self, ids: &[u32], mask: &[u8]) -> Result<()> {
        self.append(ids)?;
        match &mut self.mask {
            Some(writer) => writer.push(mask, ids.len()),
            None => Ok(()),
        }
    }

    /// Appends one document to a file without a loss mask. Refuses an id outside the vocabulary and a document of 2³¹ ids or more.
    pub fn push(&mut self, ids: &[u32]) -> Result<()> {
        self.push_masked(ids, &[])
    }

    fn append(&mut self, ids: &[u32]) -> Result<()> {
        let number = self.lengths.len();
        let length = i32::try_from(ids.len()).map_err(|_| {
            Error::new(Exit::Data, format!("document {number} has {} tokens; the index holds {}", ids.len(), i32::MAX))
                .hint("split it, e.g. with --split-documents blank-lines")
        })?;
        if let Some((at, &id)) = ids.iter().enumerate().find(|(_, &id)| id as usize >= self.vocab_size) {
            let fact =
                format!("document {number}, token {at}: id {id} is outside the vocabulary of {}", self.vocab_size);
            return Err(Error::new(Exit::Data, fact));
        }
        self.highest = self.highest.max(ids.iter().max().copied());
        self.buffer.clear();
        match self.dtype {
            TokenDtype::U16 => self.buffer.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            TokenDtype::I32 => self.buffer.extend(ids.iter().flat_map(|&id| (id as i32).to_le_bytes())),
        }
        self.hash.update(&self.buffer);
        if let Some(bin) = &mut self.bin {
            bin.write_all(&self.buffer).map_err(|e| Error::io(&self.bin_temp, "write", &e, Exit::Storage))?;
        }
        self.lengths.push(length);
        self.tokens += ids.len() as u64;
        Ok(())
    }

    /// Documents so far.
    pub fn documents(&self) -> u64 {
        self.lengths.len() as u64
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Commits `.bin`, `.idx` and the sidecar, replacing files of these names.
    pub fn finish(mut self, about: IndexedWritten) -> Result<Sidecar> {
        let bin = self.bin.take().ok_or_else(|| Error::new(Exit::Internal, "token file was finished before"))?;
        let file = bin.into_inner().map_err(|e| Error::io(&self.bin_temp, "write", e.error(), Exit::Storage))?;
        file.sync_all().map_err(|e| Error::io(&self.bin_temp, "sync", &e, Exit::Storage))?;
        drop(file);

        let sidecar = Sidecar {
            format: sidecar::FORMAT.into(),
            version: sidecar::VERSION,
            tokenizer: about.tokenizer,
            dtype: self.dtype.name().into(),
            documents: self.documents(),
            tokens: self.tokens,
            highest_id: self.highest,
            text_bytes: about.text_bytes,
            sources: about.sources,
            split: about.split,
            holdout: about.holdout,
            bin_xxh3_128: format!("{:032x}", self.hash.digest128()),
            mask: self.mask.as_mut().map(|m| m.finish()).transpose()?,
            chat: about.chat,
        };
        let idx_temp = Temp::write(&self.prefix, ".idx", |w| write_index(w, self.dtype, &self.lengths))?;
        let note_temp = Temp::write(&self.prefix, ".json", |w| w.write_all(&sidecar.to_json()))?;

        // The old sidecar must not vouch for new ids, not even for a moment.
        let note = with_ending(&self.prefix, ".json");
        match std::fs::remove_file(&note) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&note, "replace", &e, Exit::Storage))
            }
            _ => {}
        }
        rename(&self.bin_temp, &with_ending(&self.prefix, ".bin"))?;
        let mask = with_ending(&self.prefix, ENDING);
        match &self.mask {
            Some(writer) => rename(&writer.path, &mask)?,
            // The mask of what is replaced is not one of these ids.
            None if mask.exists() => {
                std::fs::remove_file(&mask).map_err(|e| Error::io(&mask, "remove", &e, Exit::Storage))?
            }
            None => {}
        }
        idx_temp.rename(&with_ending(&self.prefix, ".idx"))?;
        note_temp.rename(&note)?;
        sync_directory(&self.prefix)?;
        Ok(sidecar)
    }
}

impl Drop for IndexedWriter {
    fn drop(&mut self) {
        // Gone already after a commit.
        let _ = std::fs::remove_file(&self.bin_temp);
    }
}

fn write_index(w: &mut dyn Write, dtype: TokenDtype, lengths: &[i32]) -> std::io::Result<()> {
    let n = lengths.len() as u64;
    w.write_all(MAGIC)?;
    w.write_all(&VERSION.to_le_bytes())?;
    w.write_all(&[dtype as u8])?;
    w.write_all(&n.to_le_bytes())?;
    // The document index has one entry more than there are documents.
    w.write_all(&(n + 1).to_le_bytes())?;
    debug_assert_eq!(HEADER, 34);
    for length in lengths {
        w.write_all(&length.to_le_bytes())?;
    }
    let mut offset = 0i64;
    for &length in lengths {
        w.write_all(&offset.to_le_bytes())?;
        offset += length as i64 * dtype.size() as i64;
    }
    for document in 0..=n as i64 {
        w.write_all(&document.to_le_bytes())?;
    }
    Ok(())
}

/// A written and synced temporary file, removed unless renamed.
struct Temp(PathBuf);

impl Temp {
    fn write(prefix: &Path, ending: &str, fill: impl Fn(&mut dyn Write) -> std::io::Result<()>) -> Result<Temp> {
        let temp = Temp(temporary(prefix, ending));
        let all = || {
            let mut w = BufWriter::with_capacity(1 << 20, File::create(&temp.0)?);
            fill(&mut w)?;
            w.into_inner().map_err(|e| e.into_error())?.sync_all()
        };
        all().map_err(|e| Error::io(&temp.0, "write", &e, Exit::Storage))?;
        Ok(temp)
    }

    fn rename(self, to: &Path) -> Result<()> {
        rename(&self.0, to)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Carries the process id, so that two writers of one prefix do not share a file.
fn temporary(prefix: &Path, ending: &str) -> PathBuf {
    with_ending(prefix, &format!("{ending}.tmp-{}", std::process::id()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|e| Error::io(to, "commit", &e, Exit::Storage))
}

/// A rename is on disk once its directory is.
fn sync_directory(prefix: &Path) -> Result<()> {
    let dir = match prefix.parent() {
        Some(d) if !d.as_os_str().is_empty() => d,
        _ => Path::new("."),
    };
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io(dir, "sync", &e, Exit::Storage))
}

//! Reading an indexed token file: ids at a place, and where documents begin. Nothing of it is held in memory.
//!
//! One process opens and checks it ([`Indexed::open`], [`Indexed::look`]); the others of a run are told what it found
//! ([`IndexedFacts`]) and read only what they need. Ids are checked against the vocabulary each time they are read, the index
//! where it is used.

use super::check::{check, IndexExtent};
use super::index::Index;
use super::lookup::Lookup;
use super::mask::ENDING;
use super::{with_ending, Sidecar, TokenDtype, HEADER};
use crate::error::{Error, Exit, Result};
use crate::lazy_file::LazyFile;
use crate::progress::Meter;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// How many pieces of a file stand for all of it, and their bytes.
const PIECES: u64 = 64;
const PIECE: u64 = 4096;
/// Bytes up to which an index is read whole for its identity.
const WHOLE: u64 = 64 << 20;
/// Bytes read at a time where all of a file is.
const STRIDE: u64 = 4 << 20;

/// An open token file. Token positions count from 0 over all documents in file order.
pub struct Indexed {
    bin: LazyFile,
    index: Index,
    /// Path of its files without their endings.
    pub prefix: PathBuf,
    /// How the `.bin` stores an id.
    pub dtype: TokenDtype,
    tokens: u64,
    /// The loss mask, where there is one.
    mask: Option<LazyFile>,
    /// What herd wrote beside it; absent where another rank has read it.
    pub sidecar: Option<Sidecar>,
}

/// What the process that has opened a token file tells the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedFacts {
    /// Path of its files without their endings, the same on every rank.
    pub prefix: PathBuf,
    /// How the `.bin` stores an id.
    pub dtype: TokenDtype,
    /// Sequences; herd writes one a document, other programs may write several.
    pub sequences: u64,
    /// Entries of the document index: documents + 1.
    pub entries: u64,
    /// Tokens of all documents.
    pub tokens: u64,
    /// [`Indexed::masked`].
    pub masked: bool,
    /// [`Indexed::identity`].
    pub content: String,
}

impl Indexed {
    /// Opens `<prefix>.bin`, `<prefix>.idx` and, where there is one, `<prefix>.json`, and checks all of the index.
    pub fn open(prefix: &Path) -> Result<Indexed> {
        Indexed::look(prefix, |_| IndexExtent::All)
    }

    /// As [`Indexed::open`]; how much of the index is checked, `extent` says by its bytes.
    pub fn look(prefix: &Path, extent: impl FnOnce(u64) -> IndexExtent) -> Result<Indexed> {
        let idx = find(prefix, ".idx")?;
        let bin = find(prefix, ".bin")?;
        let extent = extent(idx.len);
        let index = Index::parse(idx)?;
        let tokens = check(&index, (&bin.path, bin.len), extent)?;
        let (dtype, sidecar) = (index.dtype, Sidecar::read(prefix)?);
        let mask = match with_ending(prefix, ENDING) {
            path if path.exists() || sidecar.as_ref().is_some_and(|s| s.mask.is_some()) => {
                Some(LazyFile::find(path, Exit::Data)?)
            }
            _ => None,
        };
        let file = Indexed { bin, index, prefix: prefix.to_owned(), dtype, tokens, mask, sidecar };
        file.check_sidecar()?;
        file.check_mask()?;
        file.close();
        Ok(file)
    }

    /// A file that another rank has opened: nothing is read yet.
    pub fn given(facts: &IndexedFacts) -> Indexed {
        let IndexedFacts { prefix, dtype, sequences, entries, tokens, masked, .. } = facts.clone();
        let idx =
            LazyFile::given(with_ending(&prefix, ".idx"), HEADER as u64 + 12 * sequences + 8 * entries, Exit::Data);
        let bin = LazyFile::given(with_ending(&prefix, ".bin"), tokens * dtype.size() as u64, Exit::Data);
        let index = Index { file: idx, dtype, sequences, entries };
        let mask = masked.then(|| LazyFile::given(with_ending(&prefix, ENDING), tokens, Exit::Data));
        Indexed { bin, index, prefix, dtype, tokens, mask, sidecar: None }
    }

    /// For [`Indexed::given`] on other ranks.
    pub fn facts(&self) -> Result<IndexedFacts> {
        Ok(IndexedFacts {
            prefix: self.prefix.clone(),
            dtype: self.dtype,
            sequences: self.index.sequences,
            entries: self.index.entries,
            tokens: self.tokens,
            masked: self.masked(),
            content: self.identity()?,
        })
    }

    /// Closes the files until something is read of them.
    pub fn close(&self) {
        self.bin.close();
        self.index.file.close();
        self.mask.iter().for_each(LazyFile::close);
    }

    /// Whether it has a loss mask.
    pub fn masked(&self) -> bool {
        self.mask.is_some()
    }

    /// Appends the mask of the tokens `start..start + count` to `out`, 1 for each that counts. A file without a mask, and a byte
    /// that is neither 0 nor 1, are errors.
    pub fn read_mask(&self, start: u64, count: usize, out: &mut Vec<u8>) -> Result<()> {
        let Some(mask) = &self.mask else {
            return Err(Error::new(Exit::Data, format!("{} has no loss mask", self.prefix.display()))
                .hint("`herd data chat` makes files with one"));
        };
        let before = out.len();
        out.resize(before + count, 0);
        mask.read(start, &mut out[before..])?;
        match out[before..].iter().position(|&m| m > 1) {
            None => Ok(()),
            Some(at) => {
                let (place, value) = (start + at as u64, out[before + at]);
                let fact = format!("{}: byte {place} is {value}, neither 0 nor 1", mask.path.display());
                Err(Error::new(Exit::Data, fact).hint("it is damaged, or no mask of this token file"))
            }
        }
    }

    /// Token positions of document `d`.
    pub fn document(&self, d: u64) -> Result<Range<u64>> {
        Lookup::new(&self.index, self.tokens).document(d)
    }

    /// Whether this node has the file as it was when it was checked.
    pub fn reach(&self) -> Result<()> {
        self.bin.reach().map(|_| ())
    }

    /// Tokens of all documents.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Documents, by the document index.
    pub fn documents(&self) -> u64 {
        self.index.entries - 1
    }

    /// Sequences; herd writes one a document, other programs may write several.
    pub fn sequences(&self) -> u64 {
        self.index.sequences
    }

    /// Tokens of each document, in order. Reads all of the index.
    pub fn document_lengths(&self) -> impl Iterator<Item = Result<u64>> + '_ {
        let (mut entries, mut lengths) = (self.index.documents(STRIDE / 8), self.index.lengths(STRIDE / 8));
        let mut from = 0;
        (1..self.index.entries).map(move |d| {
            let sequences = from..entries.get(d)? as u64;
            from = sequences.end;
            sequences.map(|s| Ok(lengths.get(s)? as u64)).sum()
        })
    }

    /// Where documents begin inside `range` of token positions, its first left out: ascending, each place once. An index
    /// that is damaged there is an error.
    pub fn document_starts(&self, range: Range<u64>) -> Result<Vec<u64>> {
        Lookup::new(&self.index, self.tokens).starts(range)
    }

    /// Appends the ids `start..start + count` to `out`. `start + count` must not pass [`Indexed::tokens`]; an id that is
    /// not below `vocab_size` is an error naming its place.
    pub fn read(&self, start: u64, count: usize, vocab_size: usize, out: &mut Vec<i64>) -> Result<()> {
        if start.checked_add(count as u64).is_none_or(|end| end > self.tokens) {
            let fact = format!("tokens {start}..+{count} of {}, which holds {}", self.bin.path.display(), self.tokens);
            return Err(Error::new(Exit::Internal, fact));
        }
        let size = self.dtype.size();
        let mut bytes = vec![0; count * size];
        self.bin.read(start * size as u64, &mut bytes)?;
        let before = out.len();
        match self.dtype {
            TokenDtype::U16 => out.extend(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]) as i64)),
            TokenDtype::I32 => {
                out.extend(bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as i64))
            }
        }
        match out[before..].iter().position(|&id| id < 0 || id >= vocab_size as i64) {
            None => Ok(()),
            Some(at) => {
                let (id, position) = (out[before + at], start + at as u64);
                let fact = format!(
                    "{}: token {position} is id {id}, outside the vocabulary of {vocab_size}",
                    self.bin.path.display()
                );
                Err(Error::new(Exit::Data, fact).hint("the file was made with another tokenizer, or is damaged"))
            }
        }
    }

    /// Reads every id (checked against `vocab_size`) and, with a sidecar, the checksum. Returns the highest id.
    pub fn check_all(&self, vocab_size: usize, meter: &Meter) -> Result<Option<u32>> {
        const AT_ONCE: u64 = 1 << 20;
        let (mut ids, mut highest, mut at) = (Vec::new(), None, 0);
        meter.begin("check", if self.sidecar.is_some() { 2 * self.bin.len } else { self.bin.len });
        while at < self.tokens {
            let n = AT_ONCE.min(self.tokens - at);
            ids.clear();
            self.read(at, n as usize, vocab_size, &mut ids)?;
            highest = highest.max(ids.iter().max().map(|&id| id as u32));
            at += n;
            meter.add(n * self.dtype.size() as u64);
        }
        if let Some(note) = &self.sidecar {
            self.check_sum(&self.bin, &note.bin_xxh3_128, |n| meter.add(n))?;
            if let (Some(mask), Some(note)) = (&self.mask, &note.mask) {
                self.check_sum(mask, &note.xxh3_128, |_| ())?;
            }
        }
        Ok(highest)
    }

    /// Reads `file` whole: its xxh3-128 must be what the sidecar says.
    fn check_sum(&self, file: &LazyFile, noted: &str, read: impl Fn(u64)) -> Result<()> {
        let mut hash = Xxh3::new();
        hash_all(file, &mut hash, read)?;
        let found = format!("{:032x}", hash.digest128());
        if found == noted {
            return Ok(());
        }
        let note = with_ending(&self.prefix, ".json");
        let fact = format!("{}: checksum is {found}, {} says {noted}", file.path.display(), note.display());
        Err(Error::new(Exit::Data, fact).hint("the file is damaged; make it again"))
    }

    /// What tells the content from that of other files: the sidecar's checksum of all ids (`xxh3:`); without one, for reading
    /// all of it takes too long, the hash of the index and of [`PIECES`] pieces of the `.bin`, evenly spread (`sampled:`); of
    /// an index of more than [`WHOLE`] bytes as many pieces as of the `.bin` (`pieces:`).
    pub fn identity(&self) -> Result<String> {
        if let Some(note) = &self.sidecar {
            let mask = note.mask.as_ref().map(|m| format!("+{}", m.xxh3_128)).unwrap_or_default();
            return Ok(format!("xxh3:{}{mask}", note.bin_xxh3_128));
        }
        let (idx, mut hash) = (&self.index.file, Xxh3::new());
        let kind = match idx.len {
            n if n <= WHOLE => hash_all(idx, &mut hash, |_| ()).map(|()| "sampled"),
            _ => hash_pieces(idx, &mut hash).map(|()| "pieces"),
        }?;
        hash_pieces(&self.bin, &mut hash)?;
        self.mask.iter().try_for_each(|mask| hash_pieces(mask, &mut hash))?;
        self.close();
        Ok(format!("{kind}:{:032x}", hash.digest128()))
    }

    /// The mask is of these tokens.
    fn check_mask(&self) -> Result<()> {
        let Some(mask) = &self.mask else { return Ok(()) };
        let noted = self.sidecar.as_ref().is_some_and(|s| s.mask.is_none());
        if mask.len == self.tokens && !noted {
            return Ok(());
        }
        let fact = match noted {
            true => format!("{} lies beside a token file that was made without a mask", mask.path.display()),
            false => format!("{} has {} bytes for {} tokens", mask.path.display(), mask.len, self.tokens),
        };
        Err(Error::new(Exit::Data, fact).hint("the files are not of one run: make them again with `herd data chat`"))
    }

    fn check_sidecar(&self) -> Result<()> {
        let Some(note) = &self.sidecar else { return Ok(()) };
        let ours = (self.documents(), self.tokens, self.dtype.name());
        let theirs = (note.documents, note.tokens, note.dtype.as_str());
        if ours != theirs {
            let fact = format!(
                "{}.json says {} documents, {} tokens, {}; the index {}, {}, {}",
                self.prefix.display(),
                theirs.0,
                theirs.1,
                theirs.2,
                ours.0,
                ours.1,
                ours.2
            );
            return Err(Error::new(Exit::Data, fact).hint("the three files are not of one run"));
        }
        Ok(())
    }
}

fn find(prefix: &Path, ending: &str) -> Result<LazyFile> {
    let found = LazyFile::find(with_ending(prefix, ending), Exit::Data);
    found.map_err(|e| e.hint("a corpus is named without .bin or .idx"))
}

/// All bytes; `read` is told of each part's.
fn hash_all(file: &LazyFile, hash: &mut Xxh3, read: impl Fn(u64)) -> Result<()> {
    let mut bytes = Vec::new();
    for at in (0..file.len).step_by(STRIDE as usize) {
        bytes.resize(STRIDE.min(file.len - at) as usize, 0);
        file.read(at, &mut bytes)?;
        hash.update(&bytes);
        read(bytes.len() as u64);
    }
    Ok(())
}

fn hash_pieces(file: &LazyFile, hash: &mut Xxh3) -> Result<()> {
    let last = file.len.saturating_sub(PIECE);
    for i in 0..PIECES {
        let at = (last as u128 * i as u128 / (PIECES - 1) as u128) as u64;
        let mut bytes = vec![0; PIECE.min(file.len - at) as usize];
        file.read(at, &mut bytes)?;
        hash.update(&bytes);
    }
    Ok(())
}

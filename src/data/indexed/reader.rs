//! Memory-mapped reading of an indexed token file, after checking everything the index says against itself and against
//! the length of the `.bin`. Ids are checked against the vocabulary each time they are read.

use super::{with_ending, Sidecar, TokenDtype, HEADER, MAGIC, VERSION};
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// How many pieces of a `.bin` stand for all of it, and their bytes.
const PIECES: usize = 64;
const PIECE: usize = 4096;

/// An open token file. Token positions count from 0 over all documents in file order.
pub struct Indexed {
    bin: Map,
    idx: Map,
    pub prefix: PathBuf,
    pub dtype: TokenDtype,
    /// Sequences; herd and Megatron's text preprocessing write one a document.
    sequences: usize,
    /// Entries of the document index: documents + 1.
    entries: usize,
    tokens: u64,
    pub sidecar: Option<Sidecar>,
}

impl Indexed {
    /// Opens `<prefix>.bin`, `<prefix>.idx` and, where there is one, `<prefix>.json`. Reads the whole index once.
    pub fn open(prefix: &Path) -> Result<Indexed> {
        let idx = Map::open(&with_ending(prefix, ".idx"))?;
        let bin = Map::open(&with_ending(prefix, ".bin"))?;
        let header = Header::parse(&idx)?;
        let mut file = Indexed {
            bin,
            idx,
            prefix: prefix.to_owned(),
            dtype: header.dtype,
            sequences: header.sequences,
            entries: header.entries,
            tokens: 0,
            sidecar: Sidecar::read(prefix)?,
        };
        file.tokens = file.check_index()?;
        file.check_sidecar()?;
        Ok(file)
    }

    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    pub fn documents(&self) -> u64 {
        self.entries as u64 - 1
    }

    pub fn sequences(&self) -> u64 {
        self.sequences as u64
    }

    /// Tokens of each document, in order.
    pub fn document_lengths(&self) -> impl Iterator<Item = u64> + '_ {
        (1..self.entries).map(|d| {
            let (from, to) = (self.document_index(d - 1) as usize, self.document_index(d) as usize);
            (from..to).map(|s| self.length(s) as u64).sum()
        })
    }

    /// Where documents begin inside `range` of token positions, its first left out: ascending, each place once.
    pub fn document_starts(&self, range: Range<u64>) -> Vec<u64> {
        // The first entry after the range's start: entries are in order.
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = (low + high) / 2;
            match self.document_start(middle) <= range.start {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        let mut starts: Vec<u64> =
            (low..self.entries).map(|d| self.document_start(d)).take_while(|&at| at < range.end).collect();
        // Documents without tokens begin where the next does.
        starts.dedup();
        starts
    }

    /// Appends the ids `start..start + count` to `out`. `start + count` must not pass [`Indexed::tokens`]; an id that is
    /// not below `vocab_size` is an error naming its place.
    pub fn read(&self, start: u64, count: usize, vocab_size: usize, out: &mut Vec<i64>) -> Result<()> {
        if start.checked_add(count as u64).is_none_or(|end| end > self.tokens) {
            let fact = format!("tokens {start}..+{count} of {}, which holds {}", self.bin.path.display(), self.tokens);
            return Err(Error::new(Exit::Internal, fact));
        }
        let size = self.dtype.size();
        let bytes = &self.bin.bytes()[start as usize * size..][..count * size];
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
        let all = self.bin.bytes().len() as u64;
        meter.begin("check", if self.sidecar.is_some() { 2 * all } else { all });
        while at < self.tokens {
            let n = AT_ONCE.min(self.tokens - at);
            ids.clear();
            self.read(at, n as usize, vocab_size, &mut ids)?;
            highest = highest.max(ids.iter().max().map(|&id| id as u32));
            at += n;
            meter.add(n * self.dtype.size() as u64);
        }
        if let Some(note) = &self.sidecar {
            let mut hash = Xxh3::new();
            for part in self.bin.bytes().chunks(1 << 22) {
                hash.update(part);
                meter.add(part.len() as u64);
            }
            let found = format!("{:032x}", hash.digest128());
            if found != note.bin_xxh3_128 {
                let fact = format!(
                    "{}: checksum is {found}, {} says {}",
                    self.bin.path.display(),
                    with_ending(&self.prefix, ".json").display(),
                    note.bin_xxh3_128
                );
                return Err(Error::new(Exit::Data, fact).hint("the file is damaged; make it again"));
            }
        }
        Ok(highest)
    }

    /// What tells the content from that of other files: the sidecar's checksum of all ids (`xxh3:`); without one, the hash of
    /// the index and of [`PIECES`] pieces of the `.bin`, evenly spread (`sampled:`), for reading all of it takes too long.
    pub fn identity(&self) -> String {
        if let Some(note) = &self.sidecar {
            return format!("xxh3:{}", note.bin_xxh3_128);
        }
        let (bin, mut hash) = (self.bin.bytes(), Xxh3::new());
        hash.update(self.idx.bytes());
        let last = bin.len().saturating_sub(PIECE);
        for i in 0..PIECES {
            let at = (last as u128 * i as u128 / (PIECES - 1) as u128) as usize;
            hash.update(&bin[at..bin.len().min(at + PIECE)]);
        }
        format!("sampled:{:032x}", hash.digest128())
    }

    fn length(&self, sequence: usize) -> i32 {
        i32::from_le_bytes(self.idx.array(HEADER + 4 * sequence))
    }

    fn offset(&self, sequence: usize) -> i64 {
        i64::from_le_bytes(self.idx.array(HEADER + 4 * self.sequences + 8 * sequence))
    }

    /// Position of the first token of document `entry`; of the last entry, the end of the file.
    fn document_start(&self, entry: usize) -> u64 {
        match self.document_index(entry) as usize {
            sequence if sequence >= self.sequences => self.tokens,
            sequence => self.offset(sequence) as u64 / self.dtype.size() as u64,
        }
    }

    fn document_index(&self, entry: usize) -> i64 {
        i64::from_le_bytes(self.idx.array(HEADER + 12 * self.sequences + 8 * entry))
    }

    /// Lengths, offsets, document index and size of the `.bin` must tell one story. Returns the tokens.
    fn check_index(&self) -> Result<u64> {
        let bad = |what: String| {
            Error::new(Exit::Data, format!("{}: {what}", self.idx.path.display())).hint("the index is damaged")
        };
        let size = self.dtype.size() as i64;
        let mut expected = 0i64;
        for s in 0..self.sequences {
            let (length, offset) = (self.length(s) as i64, self.offset(s));
            if length < 0 {
                return Err(bad(format!("sequence {s} has length {length}")));
            }
            if offset != expected {
                let fact = format!("sequence {s} starts at byte {offset}, but the ones before it end at {expected}");
                return Err(bad(fact));
            }
            expected += length * size;
        }
        let mut last = 0;
        for e in 0..self.entries {
            let d = self.document_index(e);
            let ok = if e == 0 { d == 0 } else { d >= last };
            if !ok || d > self.sequences as i64 {
                let fact = format!("document entry {e} is {d} after {last}, with {} sequences", self.sequences);
                return Err(bad(fact));
            }
            last = d;
        }
        if last != self.sequences as i64 {
            return Err(bad(format!("the last document ends at sequence {last} of {}", self.sequences)));
        }
        let found = self.bin.bytes().len();
        if found as i64 != expected {
            let relation = if (found as i64) < expected { "shorter" } else { "longer" };
            let fact = format!(
                "{} has {found} bytes, {relation} than the {expected} its index says ({} tokens of {size} bytes)",
                self.bin.path.display(),
                expected / size,
            );
            return Err(Error::new(Exit::Data, fact).hint("the file is cut off, or .bin and .idx are not of one run"));
        }
        Ok((expected / size) as u64)
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

struct Header {
    dtype: TokenDtype,
    sequences: usize,
    entries: usize,
}

impl Header {
    /// Checks magic, version, dtype and that the file is exactly as long as its counts ask for.
    fn parse(idx: &Map) -> Result<Header> {
        let bad = |what: String, hint: &str| {
            Err(Error::new(Exit::Data, format!("{}: {what}", idx.path.display())).hint(hint))
        };
        let found = idx.bytes().len();
        if !idx.bytes().starts_with(&MAGIC[..MAGIC.len().min(found)]) || found == 0 {
            let start = idx.bytes()[..found.min(MAGIC.len())].escape_ascii();
            return bad(format!("starts with \"{start}\", not with MMIDIDX"), "this is no Megatron index");
        }
        if found < HEADER {
            return bad(format!("has {found} bytes, its header alone takes {HEADER}"), "the file is cut off");
        }
        let version = u64::from_le_bytes(idx.array(9));
        if version != VERSION {
            return bad(format!("version {version}, herd reads {VERSION}"), "make it again with a current Megatron");
        }
        let dtype = match idx.bytes()[17] {
            8 => TokenDtype::U16,
            4 => TokenDtype::I32,
            code => {
                let name = match code {
                    1 => " (u8)",
                    2 => " (i8)",
                    3 => " (i16)",
                    5 => " (i64)",
                    6 => " (f64)",
                    7 => " (f32)",
                    _ => "",
                };
                return bad(format!("dtype code {code}{name}"), "herd reads token ids as 8 (u16) and 4 (i32)");
            }
        };
        let (sequences, entries) = (u64::from_le_bytes(idx.array(18)), u64::from_le_bytes(idx.array(26)));
        if entries == 0 {
            return bad("has an empty document index".into(), "the index is damaged");
        }
        let wanted = HEADER as u128 + 12 * sequences as u128 + 8 * entries as u128;
        // Multimodal files append one mode byte a sequence; their images are no tokens.
        if found as u128 != wanted {
            let relation = if (found as u128) < wanted { "cut off" } else { "too long" };
            let fact = format!(
                "{relation}: has {found} bytes, {sequences} sequences and {entries} document entries take {wanted}"
            );
            return bad(fact, "the index is damaged, or multimodal");
        }
        Ok(Header { dtype, sequences: sequences as usize, entries: entries as usize })
    }
}

/// A whole file, mapped read-only.
struct Map {
    path: PathBuf,
    map: Option<Mmap>,
}

impl Map {
    fn open(path: &Path) -> Result<Map> {
        let map = || {
            let file = File::open(path)?;
            if file.metadata()?.len() == 0 {
                return Ok(None);
            }
            // SAFETY: the map is read-only and token files are never changed in place: herd and Megatron write a new file.
            // Bytes are only copied out, so a foreign write could at worst yield other ids, which are checked when read.
            unsafe { Mmap::map(&file) }.map(Some)
        };
        match map() {
            Ok(map) => Ok(Map { path: path.to_owned(), map }),
            Err(e) => Err(Error::io(path, "read", &e, Exit::Data).hint("a corpus is named without .bin or .idx")),
        }
    }

    fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// `N` bytes at `at`; the length of the file was checked against the counts before.
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut a = [0; N];
        a.copy_from_slice(&self.bytes()[at..at + N]);
        a
    }
}

//! The `.idx` of a corpus: its header, and its three columns, of which only blocks that are asked for are read.

use super::{TokenDtype, HEADER, MAGIC, VERSION};
use crate::error::{Error, Exit, Result};
use crate::lazy_file::LazyFile;

/// Values read at a time where a few are looked up: a page of the file.
pub(super) const PAGE: u64 = 512;

pub(super) struct Index {
    pub file: LazyFile,
    pub dtype: TokenDtype,
    /// Sequences; herd and Megatron's text preprocessing write one a document.
    pub sequences: u64,
    /// Entries of the document index: documents + 1.
    pub entries: u64,
}

impl Index {
    /// Checks magic, version, dtype and that the file is exactly as long as its counts ask for.
    pub fn parse(file: LazyFile) -> Result<Index> {
        let bad = |what: String, hint: &str| {
            Err(Error::new(Exit::Data, format!("{}: {what}", file.path.display())).hint(hint))
        };
        let found = file.len;
        let mut start = [0; HEADER];
        let known = &mut start[..HEADER.min(found as usize)];
        file.read(0, known)?;
        let magic = &known[..known.len().min(MAGIC.len())];
        if !MAGIC.starts_with(magic) || found == 0 {
            let fact = format!("starts with \"{}\", not with MMIDIDX", magic.escape_ascii());
            return bad(fact, "this is no Megatron index");
        }
        if found < HEADER as u64 {
            return bad(format!("has {found} bytes, its header alone takes {HEADER}"), "the file is cut off");
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| start[at + i]));
        let version = number(9);
        if version != VERSION {
            return bad(format!("version {version}, herd reads {VERSION}"), "make it again with a current Megatron");
        }
        let dtype = match start[17] {
            8 => TokenDtype::U16,
            4 => TokenDtype::I32,
            code => {
                let fact = format!("dtype code {code}{}", foreign(code));
                return bad(fact, "herd reads token ids as 8 (u16) and 4 (i32)");
            }
        };
        let (sequences, entries) = (number(18), number(26));
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
        Ok(Index { file, dtype, sequences, entries })
    }

    /// Tokens of each sequence.
    pub fn lengths(&self, block: u64) -> Column<'_> {
        Column::new(self, HEADER as u64, 4, self.sequences, block)
    }

    /// Byte in the `.bin` where each sequence starts.
    pub fn offsets(&self, block: u64) -> Column<'_> {
        Column::new(self, HEADER as u64 + 4 * self.sequences, 8, self.sequences, block)
    }

    /// Sequence with which each document starts; the last entry is the number of sequences.
    pub fn documents(&self, block: u64) -> Column<'_> {
        Column::new(self, HEADER as u64 + 12 * self.sequences, 8, self.entries, block)
    }

    pub fn bad(&self, what: String) -> Error {
        Error::new(Exit::Data, format!("{}: {what}", self.file.path.display())).hint("the index is damaged")
    }
}

/// The name of a dtype that Megatron has and herd does not read.
fn foreign(code: u8) -> &'static str {
    match code {
        1 => " (u8)",
        2 => " (i8)",
        3 => " (i16)",
        5 => " (i64)",
        6 => " (f64)",
        7 => " (f32)",
        _ => "",
    }
}

/// Numbers of one kind, one after the other in the index. Holds the block that was read last.
pub(super) struct Column<'a> {
    index: &'a Index,
    at: u64,
    width: u64,
    count: u64,
    block: u64,
    first: u64,
    bytes: Vec<u8>,
}

impl<'a> Column<'a> {
    fn new(index: &'a Index, at: u64, width: u64, count: u64, block: u64) -> Column<'a> {
        Column { index, at, width, count, block, first: 0, bytes: Vec::new() }
    }

    /// Number `i`.
    pub fn get(&mut self, i: u64) -> Result<i64> {
        if i >= self.count {
            return Err(self.index.bad(format!("number {i} of {} is asked for", self.count)));
        }
        let held = self.bytes.len() as u64 / self.width;
        if i < self.first || i - self.first >= held {
            self.load(i / self.block * self.block)?;
        }
        let bytes = &self.bytes[((i - self.first) * self.width) as usize..][..self.width as usize];
        Ok(match bytes.try_into() {
            Ok(wide) => i64::from_le_bytes(wide),
            Err(_) => i32::from_le_bytes(std::array::from_fn(|b| bytes[b])) as i64,
        })
    }

    fn load(&mut self, first: u64) -> Result<()> {
        let n = self.block.min(self.count - first);
        self.bytes.resize((n * self.width) as usize, 0);
        self.first = first;
        self.index.file.read(self.at + first * self.width, &mut self.bytes).inspect_err(|_| self.bytes.clear())
    }
}

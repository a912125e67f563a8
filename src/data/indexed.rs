//! Megatron's indexed token files: `<prefix>.bin` holds the ids of all documents one after another, `<prefix>.idx` where
//! each begins. Conversations have `<prefix>.mask` beside them: which tokens count in the loss. herd adds `<prefix>.json`,
//! which says with which tokenizer they were made; files without it are read as well. Byte layout: `docs/data.md`, after Megatron-LM's `core/datasets/indexed_dataset.py`.

mod check;
mod index;
mod lookup;
mod mask;
mod reader;
mod sidecar;
mod writer;

pub use check::IndexExtent;
pub use mask::{MaskNote, ENDING as MASK_ENDING};
pub use reader::{Indexed, IndexedFacts};
pub use sidecar::{Sidecar, TokenizerNote};
pub use writer::{IndexedWriter, IndexedWritten};

use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const VERSION: u64 = 1;
/// Magic, version, dtype code, sequences, entries of the document index.
const HEADER: usize = 9 + 8 + 1 + 8 + 8;

/// How an id is stored. The discriminant is Megatron's dtype code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum TokenDtype {
    /// Signed, 4 bytes, little-endian.
    I32 = 4,
    /// Unsigned, 2 bytes, little-endian.
    U16 = 8,
}

impl TokenDtype {
    /// The smaller one that holds every id below `vocab_size`.
    pub fn for_vocab(vocab_size: usize) -> TokenDtype {
        if vocab_size <= 1 << 16 {
            TokenDtype::U16
        } else {
            TokenDtype::I32
        }
    }

    /// Bytes of one id.
    pub fn size(self) -> usize {
        match self {
            TokenDtype::U16 => 2,
            TokenDtype::I32 => 4,
        }
    }

    /// `u16` or `i32`.
    pub fn name(self) -> &'static str {
        match self {
            TokenDtype::U16 => "u16",
            TokenDtype::I32 => "i32",
        }
    }
}

/// `<prefix><ending>`; appended, since a prefix may itself hold a dot.
pub fn with_ending(prefix: &Path, ending: &str) -> PathBuf {
    let mut s = prefix.as_os_str().to_owned();
    s.push(ending);
    s.into()
}

/// Whether `path` begins as the index of a token file does.
pub fn is_index(path: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut start)).is_ok() && start == *MAGIC
}

/// The prefix that a person may have written with one of the endings.
pub fn prefix_of(path: &Path) -> PathBuf {
    match path.extension().and_then(|e| e.to_str()) {
        Some("bin" | "idx" | "mask") => path.with_extension(""),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests;

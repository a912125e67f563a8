//! What a file is by its first bytes: a compression that is undone, a container or an encoding that is not read and is
//! named, or content.

use super::ahead::Ahead;
use super::gzip::Members;
use super::{unreadable, Format};
use crate::error::{Error, Exit};
use std::io::{BufRead, Read, Result};

/// Bytes that are looked at: the mark of a tar archive lies at 257.
pub const LOOK: usize = 512;
/// The mark at both ends of a Parquet file.
const PARQUET: &[u8] = b"PAR1";
/// The largest window that the zstd format has, 2 GiB; memory is used only as far as a file fills it.
const WINDOW_LOG: u32 = 31;

/// Compressions that are undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Packing {
    /// Told by the first bytes. A zstd file may begin with a skippable frame, as those of pzstd do.
    fn of(start: &[u8]) -> Packing {
        match start {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packing::Zstd,
            _ => Packing::None,
        }
    }

    /// ` in gzip`, for a report.
    pub fn words(self) -> &'static str {
        match self {
            Packing::None => "",
            Packing::Gzip => " in gzip",
            Packing::Zstd => " in zstd",
        }
    }

    /// What `raw` holds: all members or frames, one after another.
    fn unpack<R: Read + 'static>(self, raw: Ahead<R>) -> Result<Box<dyn BufRead>> {
        Ok(match self {
            Packing::None => Box::new(raw),
            Packing::Gzip => Box::new(Ahead::new(Members::new(raw))),
            Packing::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(raw)?;
                decoder.window_log_max(WINDOW_LOG)?;
                Box::new(Ahead::new(decoder))
            }
        })
    }
}

/// Something that is not read.
struct Foreign {
    /// With its article: `an xz file`.
    what: &'static str,
    /// What to do instead.
    hint: &'static str,
    /// It is text as well, so that `--format text` may ask for it.
    text: bool,
}

const UNPACK: &str = "unpack it into a pipe, and give the input as `-`";
const EXTRACT: &str = "extract it first, and name the files";
const CONVERT: &str = "convert it to JSON lines or Parquet";
const RECODE: &str = "convert it, as in `iconv -f UTF-16 -t UTF-8`";
const RECODE_32: &str = "convert it, as in `iconv -f UTF-32 -t UTF-8`";
// without a mark iconv takes the order of bytes of its host
const RECODE_LE: &str = "convert it, as in `iconv -f UTF-16LE -t UTF-8`";
const RECODE_BE: &str = "convert it, as in `iconv -f UTF-16BE -t UTF-8`";

/// Where a mark lies, the mark, what it marks.
const MARKS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"\xfd7zXZ\0", "an xz file", UNPACK),
    (0, b"BZh", "a bzip2 file", UNPACK),
    (0, b"\x04\x22\x4d\x18", "an lz4 file", UNPACK),
    (0, b"LZIP\x01", "an lzip file", UNPACK),
    (0, b"\x5d\0\0", "an lzma file", UNPACK),
    (0, b"\x1f\x9d", "a file of Unix compress", UNPACK),
    (0, b"\xff\x06\0\0sNaPpY", "a snappy file", UNPACK),
    (0, b"PK\x03\x04", "a zip archive", EXTRACT),
    (0, b"PK\x05\x06", "a zip archive", EXTRACT),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", EXTRACT),
    (0, b"Rar!\x1a\x07", "a RAR archive", EXTRACT),
    (257, b"ustar", "a tar archive", EXTRACT),
    (0, b"ARROW1\0\0", "an Arrow or Feather file", CONVERT),
    (0, b"Obj\x01", "an Avro file", CONVERT),
    (0, b"ORC\x0a\x0b", "an ORC file", CONVERT),
    (0, b"ORC\x08", "an ORC file", CONVERT),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", CONVERT),
    (0, b"SQLite format 3\0", "an SQLite database", CONVERT),
    (0, b"\x93NUMPY", "a NumPy array", CONVERT),
    (0, b"%PDF-", "a PDF document", "extract its text first"),
    (0, b"MMIDIDX\0\0", "the index of a token file", "its tokens are tokenized already: name the corpus in data.train"),
    (0, b"\0\0\xfe\xff", "UTF-32 text", RECODE_32),
    (0, b"\xff\xfe\0\0", "UTF-32 text", RECODE_32),
    (0, b"\xff\xfe", "UTF-16 text", RECODE),
    (0, b"\xfe\xff", "UTF-16 text", RECODE),
];

/// What `raw` holds, unpacked, and what it was in.
///
/// # Errors
/// [`Exit::Data`] for what is not read, outside or inside, by its name; [`unreadable`] for damage.
pub fn unpacked<R: Read + 'static>(
    name: &str, mut raw: Ahead<R>, format: Format,
) -> crate::error::Result<(Packing, Ahead<Box<dyn BufRead>>)> {
    let failed = |e: std::io::Error| unreadable(name, &e);
    let start = raw.at_least(LOOK).map_err(failed)?;
    let packing = Packing::of(start);
    refuse(name, "is", start, format)?;
    let mut content = Ahead::new(packing.unpack(raw).map_err(failed)?);
    if packing != Packing::None {
        let start = content.at_least(LOOK).map_err(failed)?;
        let inner = match Packing::of(start) {
            Packing::None if is_parquet(start) => Some("a Parquet file"),
            Packing::None => None,
            _ => Some("another compressed file"),
        };
        if let Some(inner) = inner {
            return Err(Error::new(Exit::Data, format!("{name} holds {inner}{}", packing.words()))
                .hint("unpack it first, and name what comes out"));
        }
        refuse(name, "holds", start, format)?;
    }
    Ok((packing, content))
}

/// The mark is four letters: a text may begin with them, but not go on with the control character that follows here.
pub fn is_parquet(start: &[u8]) -> bool {
    start.starts_with(PARQUET) && start.get(PARQUET.len()).is_none_or(|b| *b < b' ' && !b.is_ascii_whitespace())
}

fn refuse(name: &str, verb: &str, start: &[u8], format: Format) -> crate::error::Result<()> {
    match foreign(start).filter(|f| !(f.text && format == Format::Text)) {
        None => Ok(()),
        Some(f) => {
            let fact = format!(
                "{name} {verb} {}; herd reads text in UTF-8, JSON and Parquet, and unpacks gzip and zstd",
                f.what
            );
            Err(Error::new(Exit::Data, fact).hint(f.hint))
        }
    }
}

/// What `start`, the first bytes of a file or of what it unpacks to, says it is, if that is nothing that is read.
fn foreign(start: &[u8]) -> Option<Foreign> {
    let marked = |(at, mark, ..): &&(usize, &[u8], &str, &str)| start.get(*at..).is_some_and(|s| s.starts_with(mark));
    if let Some((_, mark, what, hint)) = MARKS.iter().find(marked) {
        // three letters alone may begin a text: a level and the mark of a block follow
        let whole = mark != b"BZh" || start.get(4..7).is_some_and(|s| s == b"1AY" || s == b"\x17\x72\x45");
        return whole.then_some(Foreign { what, hint, text: false });
    }
    if start.starts_with(b"WARC/1.") {
        return Some(Foreign { what: "a WARC archive", hint: "extract the text of its records first", text: true });
    }
    utf16_without_mark(start).map(|hint| Foreign { what: "UTF-16 text without a mark", hint, text: false })
}

/// Eight characters of Latin script in UTF-16: every other byte is zero, and no other. How to convert it.
fn utf16_without_mark(start: &[u8]) -> Option<&'static str> {
    let zeros = |from: usize| start.iter().skip(from).step_by(2).take(8).filter(|&&b| b == 0).count();
    match (zeros(0), zeros(1)) {
        _ if start.len() < 16 => None,
        (0, 8) => Some(RECODE_LE),
        (8, 0) => Some(RECODE_BE),
        _ => None,
    }
}

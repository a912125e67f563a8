//! The table of contents of a zip archive whose entries are stored uncompressed, as `torch.save` writes it.
//!
//! Source: PKWARE APPNOTE.TXT 6.3 §4.3 (records) and §4.5.3 (zip64 extra field).

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Longest comment behind the end record.
const TAIL: u64 = 22 + 65535;
/// Larger tables are no model's.
const MAX_DIRECTORY: u64 = 1 << 30;

/// Where an entry's bytes are in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZipEntry {
    pub at: u64,
    pub len: u64,
}

/// Every entry by name. Errors say what is wrong in words that fit behind the file's name.
pub fn entries(file: &File) -> Result<HashMap<String, ZipEntry>, String> {
    let io = |e: std::io::Error| format!("it cannot be read: {e}");
    let size = file.metadata().map_err(io)?.len();
    let read = |at: u64, len: u64| -> Result<Vec<u8>, String> {
        if at.checked_add(len).is_none_or(|end| end > size) {
            return Err(format!("it is cut off: bytes {at} + {len} of {size}"));
        }
        let mut out = vec![0; len as usize];
        file.read_exact_at(&mut out, at).map_err(io)?;
        Ok(out)
    };
    let tail_at = size.saturating_sub(TAIL);
    let tail = read(tail_at, size - tail_at)?;
    let end = (0..tail.len().saturating_sub(21)).rev().find(|&i| tail[i..].starts_with(b"PK\x05\x06"));
    let end = end.ok_or("it is no zip archive, or is cut off: its end record is missing")?;
    let record = &tail[end..];
    let (mut count, mut len, mut at) = (u16_at(record, 10), u32_at(record, 12), u32_at(record, 16));
    // A zip64 archive has a locator right before the end record.
    let locator = end.checked_sub(20).map(|i| &tail[i..end]).filter(|l| l.starts_with(b"PK\x06\x07"));
    if let Some(locator) = locator {
        let record = read(u64_at(locator, 8), 56)?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err("its zip64 end record is damaged".into());
        }
        (count, len, at) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
    }
    if len > MAX_DIRECTORY {
        return Err(format!("its table of contents would have {len} bytes"));
    }
    let directory = read(at, len)?;
    let mut found = HashMap::new();
    let mut rest = &directory[..];
    for _ in 0..count {
        let (name, entry, after) = directory_entry(rest)?;
        // The data starts behind the local header, whose extra field has a length of its own.
        let local = read(entry.at, 30)?;
        if !local.starts_with(b"PK\x03\x04") {
            return Err(format!("the header of {name} is damaged"));
        }
        let data = entry.at + 30 + u16_at(&local, 26) + u16_at(&local, 28);
        if data.checked_add(entry.len).is_none_or(|end| end > size) {
            return Err(format!("it is cut off: {name} passes its end"));
        }
        found.insert(name, ZipEntry { at: data, len: entry.len });
        rest = after;
    }
    Ok(found)
}

/// Name, place of the local header with the data's length, and what follows.
fn directory_entry(bytes: &[u8]) -> Result<(String, ZipEntry, &[u8]), String> {
    let damaged = || "its table of contents is damaged".to_string();
    if bytes.len() < 46 || !bytes.starts_with(b"PK\x01\x02") {
        return Err(damaged());
    }
    let (name_len, extra_len, comment) = (u16_at(bytes, 28), u16_at(bytes, 30), u16_at(bytes, 32));
    let end = 46 + name_len + extra_len + comment;
    if bytes.len() < end as usize {
        return Err(damaged());
    }
    let name = String::from_utf8_lossy(&bytes[46..46 + name_len as usize]).into_owned();
    if u16_at(bytes, 10) != 0 || u16_at(bytes, 8) & 1 != 0 {
        return Err(format!("{name} is compressed or encrypted"));
    }
    let (mut packed, mut len, mut at) = (u32_at(bytes, 20), u32_at(bytes, 24), u32_at(bytes, 42));
    let mut extra = &bytes[46 + name_len as usize..(46 + name_len + extra_len) as usize];
    while extra.len() >= 4 {
        let field_len = (u16_at(extra, 2) as usize).min(extra.len() - 4);
        if u16_at(extra, 0) == 1 {
            // Only what does not fit 32 bits is here, in this order.
            let mut numbers = extra[4..4 + field_len].chunks_exact(8).map(|c| u64_at(c, 0));
            for value in [&mut len, &mut packed, &mut at] {
                if *value == 0xffff_ffff {
                    *value = numbers.next().ok_or_else(damaged)?;
                }
            }
        }
        extra = &extra[4 + field_len..];
    }
    if packed != len {
        return Err(format!("{name} is compressed"));
    }
    Ok((name, ZipEntry { at, len }, &bytes[end as usize..]))
}

fn u16_at(b: &[u8], at: usize) -> u64 {
    b[at..at + 2].iter().rev().fold(0, |n, &x| n << 8 | u64::from(x))
}
fn u32_at(b: &[u8], at: usize) -> u64 {
    b[at..at + 4].iter().rev().fold(0, |n, &x| n << 8 | u64::from(x))
}
fn u64_at(b: &[u8], at: usize) -> u64 {
    b[at..at + 8].iter().rev().fold(0, |n, &x| n << 8 | u64::from(x))
}

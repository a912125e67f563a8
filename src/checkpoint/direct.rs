//! Writes that go from memory to the disk, around the page cache: for saves behind the steps, which should cost the cores
//! that compute as little as can be.

use crate::kernels::sum::Sum;
use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What offset, length and memory must be multiples of on every filesystem with 4 KiB pages or smaller blocks.
const PAGE: usize = 4096;
/// Bytes of one write.
const ROOM: usize = 4 << 20;
/// Bytes copied before they are summed: they wait in the first-level cache.
const TURN: usize = 16 << 10;

/// A second handle of a file, and aligned memory.
pub struct Direct {
    file: File,
    room: Vec<u8>,
    start: usize,
}

impl Direct {
    /// `None` where the filesystem does not know such writes.
    pub fn open(path: &Path) -> Option<Direct> {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
        let room = vec![0; ROOM + PAGE];
        let start = room.as_ptr().align_offset(PAGE);
        (start < PAGE).then_some(Direct { file, room, start })
    }

    /// Writes as many of the first bytes as go directly, adds them to `sum`, and returns how many they are; the caller sees to
    /// the others.
    pub fn write(&mut self, bytes: &[u8], at: u64, sum: &mut Sum) -> Result<usize> {
        let whole = bytes.len() / PAGE * PAGE;
        if !at.is_multiple_of(PAGE as u64) {
            return Ok(0);
        }
        let mut done = 0;
        for part in bytes[..whole].chunks(ROOM) {
            let room = &mut self.room[self.start..self.start + part.len()];
            let before = sum.clone();
            for (from, to) in part.chunks(TURN).zip(room.chunks_mut(TURN)) {
                to.copy_from_slice(from);
                sum.update(from);
            }
            match self.file.write_all_at(room, at + done as u64) {
                // The filesystem took the flag and refuses the write: the page cache takes it.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                    *sum = before;
                    return Ok(done);
                }
                other => other?,
            }
            done += part.len();
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pages_go_directly_and_the_rest_is_left() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, []).unwrap();
        let Some(mut direct) = Direct::open(&path) else {
            eprintln!("skipped: no direct writes on this filesystem");
            return;
        };
        let bytes: Vec<u8> = (0..ROOM + 3 * PAGE + 5).map(|i| (i / 7) as u8).collect();
        let mut sum = Sum::default();
        let done = direct.write(&bytes, 2 * PAGE as u64, &mut sum).unwrap();
        assert!(done == 0 || done == ROOM + 3 * PAGE, "{done}");
        assert_eq!(std::fs::read(&path).unwrap().get(2 * PAGE..2 * PAGE + done).unwrap_or_default(), &bytes[..done]);
        assert_eq!(sum.digest(), xxhash_rust::xxh3::xxh3_64(&bytes[..done]));
        assert_eq!(direct.write(&bytes, 4, &mut sum).unwrap(), 0);
        assert_eq!(direct.write(&bytes[..100], 0, &mut sum).unwrap(), 0);
    }
}

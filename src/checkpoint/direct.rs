//! Writes that go from memory to the disk, around the page cache: the disk works while the next bytes are copied and summed,
//! and no core copies into pages that may have to be made first.

use crate::kernels::sum::Sum;
use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::thread::JoinHandle;

/// What offset, length and memory must be multiples of on every filesystem with 4 KiB pages or smaller blocks.
const PAGE: usize = 4096;
/// Bytes of one write.
const ROOM: usize = 4 << 20;
/// Writes that may wait for the disk.
const ROOMS: usize = 3;
/// Bytes copied before they are summed: they wait in the first-level cache.
const TURN: usize = 16 << 10;

/// A second handle of a file with a thread that writes to it. Dropping it ends the thread after the write under way.
pub struct Direct {
    /// `None` once it is being dropped.
    writes: Option<Sender<Write>>,
    done: Receiver<(Room, Result<()>)>,
    free: Vec<Room>,
    under_way: usize,
    thread: Option<JoinHandle<()>>,
}

/// Aligned memory.
struct Room {
    memory: Vec<u8>,
    start: usize,
}

struct Write {
    room: Room,
    len: usize,
    at: u64,
}

impl Room {
    fn new() -> Option<Room> {
        let memory = vec![0; ROOM + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        (start < PAGE).then_some(Room { memory, start })
    }

    fn part(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + len]
    }
}

impl Direct {
    /// `None` where the filesystem does not know such writes. Its first page is written to find out.
    pub fn open(path: &Path) -> Result<Option<Direct>> {
        let Some(mut free) = (0..ROOMS).map(|_| Room::new()).collect::<Option<Vec<Room>>>() else { return Ok(None) };
        let mut first = || -> Result<File> {
            let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
            file.write_all_at(free[0].part(PAGE), 0)?;
            Ok(file)
        };
        let file = match first() {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            other => other?,
        };
        let (writes, queue) = channel();
        let (report, done) = channel();
        let thread =
            std::thread::Builder::new().name("herd-disk".into()).spawn(move || serve(&file, &queue, &report))?;
        Ok(Some(Direct { writes: Some(writes), done, free, under_way: 0, thread: Some(thread) }))
    }

    /// Starts to write as many of the first bytes as go directly, adds them to `sum`, and returns how many they are; the
    /// caller sees to the others. Errors may be those of earlier writes.
    pub fn write(&mut self, bytes: &[u8], at: u64, sum: &mut Sum) -> Result<usize> {
        let whole = bytes.len() / PAGE * PAGE;
        if !at.is_multiple_of(PAGE as u64) {
            return Ok(0);
        }
        let mut done = 0;
        for part in bytes[..whole].chunks(ROOM) {
            let mut room = self.room()?;
            for (from, to) in part.chunks(TURN).zip(room.part(part.len()).chunks_mut(TURN)) {
                to.copy_from_slice(from);
                sum.update(from);
            }
            let write = Write { room, len: part.len(), at: at + done as u64 };
            self.writes.as_ref().and_then(|w| w.send(write).ok()).ok_or_else(gone)?;
            self.under_way += 1;
            done += part.len();
        }
        Ok(done)
    }

    /// Waits for all writes.
    pub fn finish(mut self) -> Result<()> {
        while self.under_way > 0 {
            self.one_done()?;
        }
        Ok(())
    }

    fn room(&mut self) -> Result<Room> {
        if self.free.is_empty() {
            self.one_done()?;
        }
        self.free.pop().ok_or_else(gone)
    }

    fn one_done(&mut self) -> Result<()> {
        let (room, result) = self.done.recv().map_err(|_| gone())?;
        self.under_way -= 1;
        self.free.push(room);
        result
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.writes = None;
        // A panic there has been said by the panic's own message; there is nothing to add.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The thread: one write after the other. After one that failed the others are not tried.
fn serve(file: &File, queue: &Receiver<Write>, report: &Sender<(Room, Result<()>)>) {
    let mut failed = false;
    for Write { mut room, len, at } in queue {
        let result = if failed { Err(gone()) } else { file.write_all_at(room.part(len), at) };
        failed |= result.is_err();
        if report.send((room, result)).is_err() {
            return;
        }
    }
}

fn gone() -> std::io::Error {
    std::io::Error::other("an earlier write failed")
}

/// Whether files of this directory are on a disk of this host, where direct writes are no slower than others: on network
/// filesystems the client's cache is what keeps several servers at work.
pub fn on_local_disk(directory: &Path) -> bool {
    rustix::fs::statfs(directory).is_ok_and(|s| LOCAL.contains(&(s.f_type as u64)))
}

/// `f_type` of statfs(2): ext2 to ext4, XFS.
const LOCAL: [u64; 2] = [0xEF53, 0x5846_5342];

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty file, if direct writes are known here.
    fn file() -> Option<(tempfile::TempDir, std::path::PathBuf, Direct)> {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, []).unwrap();
        let direct = Direct::open(&path).unwrap();
        if direct.is_none() {
            eprintln!("skipped: no direct writes on this filesystem");
        }
        Some((dir, path, direct?))
    }

    #[test]
    fn whole_pages_go_directly_and_the_rest_is_left() {
        let Some((_dir, path, mut direct)) = file() else { return };
        let bytes: Vec<u8> = (0..ROOM + 3 * PAGE + 5).map(|i| (i / 7) as u8).collect();
        let mut sum = Sum::default();
        let done = direct.write(&bytes, 2 * PAGE as u64, &mut sum).unwrap();
        assert_eq!(done, ROOM + 3 * PAGE);
        assert_eq!(sum.digest(), xxhash_rust::xxh3::xxh3_64(&bytes[..done]));
        assert_eq!(direct.write(&bytes, 4, &mut sum).unwrap(), 0);
        assert_eq!(direct.write(&bytes[..100], 0, &mut sum).unwrap(), 0);
        // More writes than rooms.
        for i in 1..10 {
            direct.write(&bytes[..2 * PAGE], ((2 * i + 1) * ROOM) as u64, &mut sum).unwrap();
        }
        direct.finish().unwrap();
        let there = std::fs::read(&path).unwrap();
        assert_eq!(there[2 * PAGE..2 * PAGE + done], bytes[..done]);
        for i in 1..10 {
            assert_eq!(there[(2 * i + 1) * ROOM..][..2 * PAGE], bytes[..2 * PAGE]);
        }
    }

    #[test]
    fn a_write_that_is_refused_is_said_and_ends_the_others() {
        let Some((_dir, _, mut direct)) = file() else { return };
        let (bytes, mut sum) = (vec![1; PAGE], Sum::default());
        // Past the largest file that there can be.
        let far = (i64::MAX as u64) / PAGE as u64 * PAGE as u64;
        let failed = (0..2 * ROOMS).map(|_| direct.write(&bytes, far, &mut sum)).find_map(|r| r.err());
        let code = failed.expect("some write fails").raw_os_error();
        assert!(matches!(code, Some(libc::EFBIG | libc::EINVAL)), "{code:?}");
        assert!(direct.finish().is_err());
    }
}

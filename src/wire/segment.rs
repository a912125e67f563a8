//! Memory that all ranks of one node map: the ground of the shared-memory wire.
//!
//! A memfd opened through /proc rather than MPI_Win_allocate_shared (MPI 4.1 §12.2.3): it leaves no file behind when a
//! process is killed, is not limited by the size of /dev/shm, may use huge pages, and running out of memory is an
//! answer instead of a SIGBUS.

use crate::error::Result;
use crate::world::comm::Comm;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicBool;

/// How the parts of a segment lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentParts {
    /// Each on pages of its own.
    OnPages,
    /// With nothing in between: together one array.
    BackToBack,
}

/// One part per rank, each zero-filled and `stride` bytes from the next. Mapped until the process ends: tensors that
/// point into it have no way to say when they are gone.
#[derive(Clone, Copy)]
pub(super) struct ShmSegment {
    base: *mut u8,
    stride: usize,
}

// SAFETY: an address range that stays mapped; its users synchronise through the wire.
unsafe impl Send for ShmSegment {}
unsafe impl Sync for ShmSegment {}

const HUGE_PAGE: usize = 2 << 20;
const PAGE: usize = 4096;

impl ShmSegment {
    /// At least `bytes` per rank. Collective over `comm`, whose ranks are on one node; `None` on all ranks when one of
    /// them cannot (no memory, no /proc, processes that may not see each other).
    pub(super) fn create(
        comm: &Comm, bytes: usize, parts: SegmentParts, stop: &AtomicBool,
    ) -> Result<Option<ShmSegment>> {
        let (rank, size) = (comm.rank()?, comm.size());
        let stride = match parts {
            SegmentParts::BackToBack => bytes,
            SegmentParts::OnPages => bytes.next_multiple_of(if bytes < HUGE_PAGE { PAGE } else { HUGE_PAGE }),
        };
        let total = stride * size;
        let made = if rank == 0 { make(total) } else { None };
        let mine = made.as_ref().and_then(|fd| identity(fd.as_raw_fd())).unwrap_or_default();
        let facts = [mine[0], mine[1], std::process::id() as u64, made.as_ref().map_or(0, |f| f.as_raw_fd() as u64)];
        let root = &comm.all_gather(&facts, stop)?[..4];
        let fd = match rank {
            0 => made,
            _ => open(root[2], root[3]).filter(|fd| identity(fd.as_raw_fd()) == Some([root[0], root[1]])),
        };
        let segment = fd.as_ref().and_then(|fd| map(fd.as_raw_fd(), total, stride, rank));
        // Also keeps the descriptor of rank 0 open until everybody has followed it.
        let all = comm.all_gather(&[segment.is_some() as u8], stop)?;
        Ok(segment.filter(|_| all.iter().all(|&ok| ok == 1)))
    }

    /// Start of rank `r`'s part.
    pub(super) fn part(&self, r: usize) -> *mut u8 {
        self.base.wrapping_add(r * self.stride)
    }

    /// Where `bytes` bytes at `p` lie in rank `r`'s part.
    pub(super) fn offset(&self, r: usize, p: *const u8, bytes: usize) -> Option<usize> {
        let at = (p as usize).checked_sub(self.part(r) as usize)?;
        (at + bytes <= self.stride).then_some(at)
    }
}

fn make(total: usize) -> Option<OwnedFd> {
    // SAFETY: a literal name; the descriptor is checked and owned from here on.
    unsafe {
        let fd = libc::memfd_create(c"herd-wire".as_ptr(), libc::MFD_CLOEXEC);
        let fd = (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))?;
        (libc::ftruncate(fd.as_raw_fd(), total as libc::off_t) == 0).then_some(fd)
    }
}

/// Device and inode, to tell that two descriptors are the same memory.
fn identity(fd: RawFd) -> Option<[u64; 2]> {
    // SAFETY: `stat` is plain data and an out parameter.
    unsafe {
        let mut s: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &mut s) == 0).then_some([s.st_dev, s.st_ino])
    }
}

fn open(pid: u64, fd: u64) -> Option<OwnedFd> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/fd/{fd}"));
    file.ok().map(OwnedFd::from)
}

/// Maps all parts and claims the pages of this rank's own, which places them near it.
fn map(fd: RawFd, total: usize, stride: usize, rank: usize) -> Option<ShmSegment> {
    // SAFETY: a fresh mapping of `total` bytes; every call below stays inside it.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let base = libc::mmap(std::ptr::null_mut(), total, protection, libc::MAP_SHARED, fd, 0);
        if base == libc::MAP_FAILED {
            return None;
        }
        // Advice: no huge pages is no failure.
        libc::madvise(base, total, libc::MADV_HUGEPAGE);
        // Whole pages: where parts meet on one, both claim it.
        let (first, end) = (rank * stride / PAGE * PAGE, ((rank + 1) * stride).next_multiple_of(PAGE));
        let own = base.cast::<u8>().add(first);
        let claimed = libc::madvise(own.cast(), end - first, libc::MADV_POPULATE_WRITE) == 0
            // Linux before 5.14 does not know it.
            || libc::posix_fallocate(fd, first as libc::off_t, (end - first) as libc::off_t) == 0;
        if !claimed {
            libc::munmap(base, total);
        }
        claimed.then_some(ShmSegment { base: base.cast(), stride })
    }
}

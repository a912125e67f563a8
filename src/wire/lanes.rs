//! Messages between ranks of one node without a copy in between: the receiver reads the sender's memory.
//!
//! A lane is one direction of a pair: a ring of letters in shared memory, each saying where the sender's tensor lies.
//! The receiver copies with process_vm_readv(2) and marks the letter taken. Nothing polls: whoever writes to a lane
//! rings the other rank's bell, a futex that its thread sleeps on.

use crate::error::{Error, Exit, Result};
use crate::wire::buffer::TensorBuf;
use crate::wire::futex;
use crate::wire::message::TensorMessage;
use crate::wire::segment::{SegmentParts, ShmSegment};
use crate::world::comm::Comm;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Letters of one lane under way; more wait with the sender.
const DEPTH: u32 = 64;
/// Bytes that the thread copies before it looks at other lanes and the stop flag.
pub(super) const SLICE: usize = 16 << 20;

/// Where a message lies in the memory of the rank that sends it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Letter {
    address: u64,
    bytes: u64,
    kind: i64,
    /// Written by the receiver: how long the copy took.
    nanos: u64,
}

#[repr(C, align(128))]
struct Counter(AtomicU32);

/// The sender writes `posted` and letters, the receiver `taken` and `nanos`. Counts wrap.
#[repr(C)]
struct CmaRing {
    posted: Counter,
    taken: Counter,
    ring: [Letter; DEPTH as usize],
}

/// Start of a rank's part of the segment; a lane from each rank of the node follows.
#[repr(C)]
struct Head {
    bell: Counter,
}

/// What goes on with one other rank of this node.
struct Peer {
    wire_rank: usize,
    node_rank: usize,
    pid: i32,
    /// Of which the first `posted - taken` are in the lane.
    sends: VecDeque<TensorMessage>,
    posted: u32,
    taken: u32,
    receives: VecDeque<TensorMessage>,
    received: u32,
    /// Bytes of the first receive that are here, and when its copy began.
    copied: usize,
    since: Option<Instant>,
}

/// All lanes of this rank.
pub(super) struct CmaRings {
    segment: ShmSegment,
    me: usize,
    peers: Vec<Peer>,
}

impl CmaRings {
    /// Collective over `node`, ranks of one node; `wire_rank` is this one's rank on the wire. `None` on all of them
    /// where one may not read another's memory (a container without ptrace rights, Yama's ptrace_scope).
    pub(super) fn new(node: &Comm, wire_rank: usize, stop: &AtomicBool) -> Result<Option<CmaRings>> {
        let (me, size) = (node.rank()?, node.size());
        let bytes = std::mem::size_of::<Head>() + size * std::mem::size_of::<CmaRing>();
        let Some(segment) = ShmSegment::create(node, bytes, SegmentParts::OnPages, stop)? else { return Ok(None) };
        let proof = Box::new(std::process::id() as u64 ^ 0x6865_7264_6c61_6e65);
        let facts = [wire_rank as u64, std::process::id() as u64, &raw const *proof as u64, *proof];
        let all = node.all_gather(&facts, stop)?;
        let mut peers = Vec::new();
        let mut reachable = true;
        for (node_rank, f) in all.chunks(4).enumerate().filter(|(r, _)| *r != me) {
            let mut seen = 0u64;
            // SAFETY: eight writable bytes.
            let read = unsafe { read_memory(f[1] as i32, f[2], (&raw mut seen).cast(), 8) };
            reachable &= read.is_ok() && seen == f[3];
            peers.push(Peer {
                wire_rank: f[0] as usize,
                node_rank,
                pid: f[1] as i32,
                sends: VecDeque::new(),
                posted: 0,
                taken: 0,
                receives: VecDeque::new(),
                received: 0,
                copied: 0,
                since: None,
            });
        }
        // Also keeps everybody's proof alive until all have looked.
        let all = node.all_gather(&[reachable as u8], stop)?;
        Ok(all.iter().all(|&ok| ok == 1).then_some(CmaRings { segment, me, peers }))
    }

    /// Rung by peers; lives as long as the process.
    pub(super) fn bell(&self) -> &'static AtomicU32 {
        bell(self.segment, self.me)
    }

    /// Takes the job if its peer is on this node.
    pub(super) fn accept(&mut self, job: TensorMessage) -> Option<TensorMessage> {
        match self.peers.iter_mut().find(|p| p.wire_rank == job.peer) {
            Some(p) if job.send => p.sends.push_back(job),
            Some(p) => p.receives.push_back(job),
            None => return Some(job),
        }
        None
    }

    pub(super) fn is_idle(&self) -> bool {
        self.peers.iter().all(|p| p.sends.is_empty() && p.receives.is_empty())
    }

    pub(super) fn take_jobs(&mut self) -> Vec<TensorMessage> {
        self.peers.iter_mut().flat_map(|p| p.sends.drain(..).chain(p.receives.drain(..))).collect()
    }

    /// Whether a message is here that has not been copied.
    pub(super) fn is_ready(&self) -> bool {
        self.peers.iter().any(|p| {
            // SAFETY: mapped for ever.
            let posted = unsafe { &(*lane(self.segment, self.me, p.node_rank)).posted.0 };
            !p.receives.is_empty() && posted.load(Ordering::Acquire) != p.received
        })
    }

    /// Moves what can be moved, at most `slice` bytes of a message; whether anything was.
    pub(super) fn step(&mut self, slice: usize) -> Result<bool> {
        let mut moved = false;
        for p in &mut self.peers {
            let out = lane(self.segment, p.node_rank, self.me);
            let into = lane(self.segment, self.me, p.node_rank);
            // SAFETY: lanes are mapped for ever; their counters say who may touch which letter.
            unsafe {
                moved |= p.see_taken(out);
                moved |= p.post(out, bell(self.segment, p.node_rank));
                moved |= p.receive(into, bell(self.segment, p.node_rank), slice)?;
            }
        }
        Ok(moved)
    }
}

impl Peer {
    /// Finishes the sends that the other rank has copied.
    unsafe fn see_taken(&mut self, lane: *mut CmaRing) -> bool {
        let before = self.taken;
        let now = (*lane).taken.0.load(Ordering::Acquire);
        while self.taken != now {
            let nanos = (*lane).ring[(self.taken % DEPTH) as usize].nanos;
            if let Some(job) = self.sends.pop_front() {
                job.finish(Ok(Duration::from_nanos(nanos)));
            }
            self.taken = self.taken.wrapping_add(1);
        }
        self.taken != before
    }

    unsafe fn post(&mut self, lane: *mut CmaRing, bell: &AtomicU32) -> bool {
        let before = self.posted;
        while let Some(job) = self.sends.get(self.posted.wrapping_sub(self.taken) as usize) {
            if self.posted.wrapping_sub(self.taken) == DEPTH {
                break;
            }
            let span = TensorBuf::of(&job.tensor);
            let letter =
                Letter { address: span.at(0) as u64, bytes: job.bytes() as u64, kind: job.kind() as i64, nanos: 0 };
            (&raw mut (*lane).ring[(self.posted % DEPTH) as usize]).write(letter);
            self.posted = self.posted.wrapping_add(1);
            (*lane).posted.0.store(self.posted, Ordering::Release);
        }
        if self.posted != before {
            ring(bell);
        }
        self.posted != before
    }

    /// Copies what has been sent here and is wanted, up to `slice` bytes of the last of it.
    unsafe fn receive(&mut self, lane: *mut CmaRing, bell: &AtomicU32, slice: usize) -> Result<bool> {
        let mut moved = false;
        while let Some(job) = self.receives.front() {
            if (*lane).posted.0.load(Ordering::Acquire) == self.received {
                break;
            }
            let letter = &raw mut (*lane).ring[(self.received % DEPTH) as usize];
            let Letter { address, bytes, kind, .. } = letter.read();
            if (bytes, kind) != (job.bytes() as u64, job.kind() as i64) {
                let fact = format!(
                    "rank {} sent {bytes} bytes of dtype {kind} where {} bytes of dtype {} were to be received",
                    self.wire_rank,
                    job.bytes(),
                    job.kind() as i64
                );
                return Err(Error::new(Exit::Internal, fact));
            }
            let since = *self.since.get_or_insert_with(Instant::now);
            let n = slice.min(bytes as usize - self.copied);
            let to = TensorBuf::of(&job.tensor).at(0).wrapping_add(self.copied);
            read_memory(self.pid, address + self.copied as u64, to, n).map_err(|e| {
                let fact = format!("cannot read the memory of rank {}, process {}: {e}", self.wire_rank, self.pid);
                Error::new(Exit::Peer, fact)
            })?;
            moved = true;
            self.copied += n;
            if self.copied < bytes as usize {
                break;
            }
            (&raw mut (*letter).nanos).write(since.elapsed().as_nanos() as u64);
            self.received = self.received.wrapping_add(1);
            (*lane).taken.0.store(self.received, Ordering::Release);
            ring(bell);
            (self.copied, self.since) = (0, None);
            if let Some(job) = self.receives.pop_front() {
                job.finish(Ok(since.elapsed()));
            }
        }
        Ok(moved)
    }
}

fn bell(segment: ShmSegment, rank: usize) -> &'static AtomicU32 {
    // SAFETY: every part starts with a head, zero-filled when made, mapped for ever.
    unsafe { &(*segment.part(rank).cast::<Head>()).bell.0 }
}

/// The lane to `to` from `from`.
fn lane(segment: ShmSegment, to: usize, from: usize) -> *mut CmaRing {
    let at = std::mem::size_of::<Head>() + from * std::mem::size_of::<CmaRing>();
    segment.part(to).wrapping_add(at).cast()
}

/// Says that something changed for the rank that sleeps on this bell.
pub(super) fn ring(bell: &AtomicU32) {
    bell.fetch_add(1, Ordering::SeqCst);
    futex::wake(bell);
}

/// Copies `len` bytes at `address` of another process.
///
/// # Safety
/// `to` is writable for `len` bytes.
unsafe fn read_memory(pid: i32, address: u64, to: *mut u8, len: usize) -> std::io::Result<()> {
    let mut done = 0;
    while done < len {
        let local = libc::iovec { iov_base: to.wrapping_add(done).cast(), iov_len: len - done };
        let remote = libc::iovec { iov_base: (address as usize + done) as *mut _, iov_len: len - done };
        match libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) {
            -1 => return Err(std::io::Error::last_os_error()),
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => done += n as usize,
        }
    }
    Ok(())
}

//! Collectives among the ranks of one node through memory that all of them map.
//!
//! A tensor made by [`crate::wire::Wire::tensor`] lies in such memory: its peers read it where it is, and a reduction costs
//! one pass over the data. Other tensors go through a small stage per rank, slab by slab. Ranks meet at counters in
//! shared memory and sleep on a futex, because spinning would take the core of a rank that computes.

use crate::error::{Error, Exit, Result};
use crate::threads::lock;
use crate::wire::buffer::TensorBuf;
use crate::wire::combine::combine;
use crate::wire::futex::{sleep, wake};
use crate::wire::segment::{SegmentParts, ShmSegment};
use crate::world::comm::Comm;
use crate::world::ffi::stopped;
use crate::world::Op;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tch::Kind;

/// Bytes of a stage; two of them per rank fit a second-level cache.
const STAGE: usize = 256 << 10;
/// Shares of a tensor start at multiples of this many elements, so that ranks do not write to the same cache line.
const GRAIN: usize = 64;

/// The segments that tensors may lie in, the same list on every rank.
pub(super) struct ShmMemory {
    comm: Comm,
    stop: Arc<AtomicBool>,
    segments: Mutex<Vec<ShmSegment>>,
}

/// Bytes that tensors made by [`crate::wire::Wire::tensor`] hold outside libtorch's allocator, in this process.
pub fn shared_bytes() -> u64 {
    SHARED_BYTES.load(Ordering::Relaxed)
}

static SHARED_BYTES: AtomicU64 = AtomicU64::new(0);

impl ShmMemory {
    /// `bytes` zero bytes in a new segment, the same call on every rank; `None` when a rank has no room.
    pub(super) fn allocate(&self, bytes: usize) -> Result<Option<*mut u8>> {
        let rank = self.comm.rank()?;
        let new = ShmSegment::create(&self.comm, bytes, SegmentParts::OnPages, &self.stop)?;
        SHARED_BYTES.fetch_add(new.map_or(0, |_| bytes as u64), Ordering::Relaxed);
        lock(&self.segments).extend(new);
        Ok(new.map(|s| s.part(rank)))
    }

    /// `bytes` zero bytes of every rank, back to back, the same call on every rank; `None` when a rank has no room.
    pub(super) fn window(&self, bytes: usize) -> Result<Option<*mut u8>> {
        let new = ShmSegment::create(&self.comm, bytes, SegmentParts::BackToBack, &self.stop)?;
        SHARED_BYTES.fetch_add(new.map_or(0, |_| bytes as u64), Ordering::Relaxed);
        Ok(new.map(|s| s.part(0)))
    }
}

/// What a rank has started: published to its peers before they meet.
#[derive(Clone, Copy, PartialEq)]
#[repr(C)]
struct Call {
    name: u32,
    kind: i32,
    len: u64,
    root: u64,
}

const NAMES: [&str; 4] = ["all-reduce", "reduce-scatter", "all-gather", "broadcast"];

impl Call {
    fn new(name: usize, kind: Kind, t: TensorBuf, root: usize) -> Call {
        Call { name: name as u32, kind: kind as i32, len: t.len as u64, root: root as u64 }
    }

    fn words(&self) -> String {
        let name = NAMES.get(self.name as usize).unwrap_or(&"?");
        format!("{name} of {} elements (dtype {}, root {})", self.len, self.kind, self.root)
    }
}

/// A [`Call`] and where its tensor lies: segment and offset, or no segment.
#[derive(Clone, Copy)]
#[repr(C)]
struct Notice {
    call: Call,
    segment: i64,
    offset: u64,
}

/// Head of a rank's part of the control segment. Stages and notices are used in turn: what is written for meeting k
/// is rewritten for meeting k+2, when every rank has come to k+1 and is done reading.
#[repr(C, align(128))]
struct Slot {
    /// Meetings this rank has come to.
    came: AtomicU32,
    notice: [Notice; 2],
}

/// The ranks of one axis on one node.
pub(super) struct ShmCollectives {
    rank: usize,
    size: usize,
    stop: Arc<AtomicBool>,
    control: ShmSegment,
    memory: Arc<ShmMemory>,
    meetings: u32,
}

impl ShmCollectives {
    /// Collective over `comm`, whose ranks are on one node. `None` when they cannot share memory.
    pub(super) fn new(comm: Comm, stop: Arc<AtomicBool>) -> Result<std::result::Result<ShmCollectives, Comm>> {
        let Some(control) =
            ShmSegment::create(&comm, std::mem::size_of::<Slot>() + 2 * STAGE, SegmentParts::OnPages, &stop)?
        else {
            return Ok(Err(comm));
        };
        let (rank, size) = (comm.rank()?, comm.size());
        let memory = Arc::new(ShmMemory { comm, stop: stop.clone(), segments: Mutex::default() });
        Ok(Ok(ShmCollectives { rank, size, stop, control, memory, meetings: 0 }))
    }

    pub(super) fn memory(&self) -> Arc<ShmMemory> {
        self.memory.clone()
    }

    /// # Safety
    /// For this and the other collectives: the spans are valid, aligned and nobody else's until the call returns `Ok`;
    /// after an error they must never be freed.
    pub(super) unsafe fn all_reduce(&mut self, kind: Kind, op: Op, t: TensorBuf) -> Result<()> {
        let call = Call::new(0, kind, t, 0);
        if let Some(all) = self.direct(call, t)? {
            let share = |r: usize| (t.len * r / self.size).next_multiple_of(GRAIN).min(t.len);
            let (a, b) = (share(self.rank), share(self.rank + 1));
            let outputs: Vec<*mut u8> = all.iter().map(|p| p.add(a * t.width)).collect();
            let inputs: Vec<*const u8> = outputs.iter().map(|p| p.cast_const()).collect();
            combine(kind, op, &inputs, &outputs, b - a);
            return self.meet(call.name);
        }
        let slab = STAGE / t.width;
        for a in (0..t.len).step_by(slab) {
            let n = slab.min(t.len - a);
            std::ptr::copy_nonoverlapping(t.at(a), self.stage(self.rank), n * t.width);
            let stages = self.exchange(call, t)?;
            combine(kind, op, &stages, &[t.at(a)], n);
        }
        Ok(())
    }

    /// `output` gets this rank's chunk of the sum of all `input`s; it may be that chunk of `input`.
    ///
    /// # Safety
    /// See [`ShmCollectives::all_reduce`].
    pub(super) unsafe fn reduce_scatter(
        &mut self, kind: Kind, op: Op, input: TensorBuf, output: TensorBuf,
    ) -> Result<()> {
        let call = Call::new(1, kind, input, 0);
        let chunk = output.len;
        if let Some(all) = self.direct(call, input)? {
            let inputs: Vec<*const u8> =
                all.iter().map(|p| p.add(self.rank * chunk * input.width).cast_const()).collect();
            combine(kind, op, &inputs, &[output.at(0)], chunk);
            return self.meet(call.name);
        }
        let slab = (STAGE / input.width / self.size).max(1);
        for a in (0..chunk).step_by(slab) {
            let n = slab.min(chunk - a);
            let place = |r: usize| r * slab * input.width;
            for r in 0..self.size {
                let to = self.stage(self.rank).add(place(r));
                std::ptr::copy_nonoverlapping(input.at(r * chunk + a), to, n * input.width);
            }
            let stages = self.exchange(call, input)?;
            let inputs: Vec<*const u8> = stages.iter().map(|p| p.add(place(self.rank))).collect();
            combine(kind, op, &inputs, &[output.at(a)], n);
        }
        Ok(())
    }

    /// `input` may be this rank's chunk of `output`.
    ///
    /// # Safety
    /// See [`ShmCollectives::all_reduce`].
    pub(super) unsafe fn all_gather(&mut self, kind: Kind, input: TensorBuf, output: TensorBuf) -> Result<()> {
        let call = Call::new(2, kind, input, 0);
        if let Some(all) = self.direct(call, input)? {
            for (r, &from) in all.iter().enumerate() {
                let to = output.at(r * input.len);
                if from != to {
                    std::ptr::copy_nonoverlapping(from, to, input.len * input.width);
                }
            }
            return self.meet(call.name);
        }
        let slab = STAGE / input.width;
        for a in (0..input.len).step_by(slab) {
            let bytes = slab.min(input.len - a) * input.width;
            std::ptr::copy_nonoverlapping(input.at(a), self.stage(self.rank), bytes);
            for (r, stage) in self.exchange(call, input)?.into_iter().enumerate() {
                std::ptr::copy_nonoverlapping(stage, output.at(r * input.len + a), bytes);
            }
        }
        Ok(())
    }

    /// # Safety
    /// See [`ShmCollectives::all_reduce`].
    pub(super) unsafe fn broadcast(&mut self, kind: Kind, t: TensorBuf, root: usize) -> Result<()> {
        let call = Call::new(3, kind, t, root);
        if let Some(all) = self.direct(call, t)? {
            std::ptr::copy(all[root], t.at(0), t.len * t.width);
            return self.meet(call.name);
        }
        let slab = STAGE / t.width;
        for a in (0..t.len).step_by(slab) {
            let bytes = slab.min(t.len - a) * t.width;
            if self.rank == root {
                std::ptr::copy_nonoverlapping(t.at(a), self.stage(root), bytes);
            }
            let stages = self.exchange(call, t)?;
            if self.rank != root {
                std::ptr::copy_nonoverlapping(stages[root], t.at(a), bytes);
            }
        }
        Ok(())
    }

    /// Everyone's tensor of a call too long for one stage, when all of them lie in shared memory.
    unsafe fn direct(&mut self, call: Call, t: TensorBuf) -> Result<Option<Vec<*mut u8>>> {
        if t.len * t.width <= STAGE {
            return Ok(None);
        }
        let notices = self.announce(call, t)?;
        let segments = lock(&self.memory.segments);
        let find = |(r, n): (usize, &Notice)| {
            let segment = usize::try_from(n.segment).ok().and_then(|s| segments.get(s))?;
            Some(segment.part(r).wrapping_add(n.offset as usize))
        };
        Ok(notices.iter().enumerate().map(find).collect())
    }

    /// Meets the others, all with full stages; returns the stages of this meeting in rank order.
    unsafe fn exchange(&mut self, call: Call, t: TensorBuf) -> Result<Vec<*const u8>> {
        let stages = (0..self.size).map(|r| self.stage(r).cast_const()).collect();
        self.announce(call, t)?;
        Ok(stages)
    }

    /// Meets the others and checks that all started the same call.
    unsafe fn announce(&mut self, call: Call, t: TensorBuf) -> Result<Vec<Notice>> {
        let (segment, offset) = {
            let segments = lock(&self.memory.segments);
            let find = |s: &ShmSegment| s.offset(self.rank, t.at(0), t.len * t.width);
            let found = segments.iter().enumerate().find_map(|(i, s)| Some((i as i64, find(s)? as u64)));
            found.unwrap_or((-1, 0))
        };
        let turn = self.turn();
        let notice = |r: usize| &raw mut (*self.control.part(r).cast::<Slot>()).notice[turn];
        notice(self.rank).write(Notice { call, segment, offset });
        let notice: Vec<*mut Notice> = (0..self.size).map(notice).collect();
        self.meet(call.name)?;
        let all: Vec<Notice> = notice.into_iter().map(|n| n.read()).collect();
        match all.iter().position(|n| n.call != call) {
            None => Ok(all),
            Some(r) => {
                let fact = format!(
                    "ranks of one axis started different collectives: rank {} {}, rank {r} {}",
                    self.rank,
                    call.words(),
                    all[r].call.words()
                );
                let calls: Vec<Call> = all.iter().map(|n| n.call).collect();
                Err(Error { rank: odd_one(&calls), ..Error::new(Exit::Internal, fact) })
            }
        }
    }

    fn turn(&self) -> usize {
        self.meetings as usize % 2
    }

    fn stage(&self, r: usize) -> *mut u8 {
        self.control.part(r).wrapping_add(std::mem::size_of::<Slot>() + self.turn() * STAGE)
    }

    fn came(&self, r: usize) -> &AtomicU32 {
        // SAFETY: the control segment starts with a slot per rank, zero-filled when made, mapped for ever.
        unsafe { &(*self.control.part(r).cast::<Slot>()).came }
    }

    /// Returns when every rank has come to this meeting; what they wrote before is seen after.
    fn meet(&mut self, name: u32) -> Result<()> {
        self.meetings = self.meetings.wrapping_add(1);
        self.came(self.rank).store(self.meetings, Ordering::SeqCst);
        wake(self.came(self.rank));
        for r in (0..self.size).filter(|r| *r != self.rank) {
            let word = self.came(r);
            let mut spins = 0;
            loop {
                let now = word.load(Ordering::Acquire);
                if now.wrapping_sub(self.meetings) as i32 >= 0 {
                    break;
                }
                if self.stop.load(Ordering::Relaxed) {
                    return Err(stopped(NAMES[name as usize]));
                }
                spins += 1;
                match spins {
                    0..100 => std::hint::spin_loop(),
                    _ => sleep(word, now, LOOK),
                }
            }
        }
        Ok(())
    }
}

/// How often the stop flag is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// The only rank that started something else than all others, who are at least two.
fn odd_one(calls: &[Call]) -> Option<usize> {
    let alone = |r: &usize| calls.iter().filter(|c| **c == calls[*r]).count() == 1;
    let mut odd = (0..calls.len()).filter(alone);
    match (odd.next(), odd.next()) {
        (Some(r), None) if calls.len() > 2 => Some(r),
        _ => None,
    }
}

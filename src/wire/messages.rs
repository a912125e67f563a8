//! Collectives by messages, with a fixed order of arithmetic.
//!
//! MPI_Allreduce promises neither the order of summation nor equal bits on all ranks (MPI 4.1 §6.9.1), so sums are made
//! here: rank i receives everyone's piece i, combines in rank order, and sends the result round: the traffic of a
//! reduce-scatter and an all-gather, which is the least possible. Long tensors go in slabs, the next slab's pieces
//! travelling with the last one's results.

use crate::error::Result;
use crate::wire::buffer::TensorBuf;
use crate::wire::combine::combine;
use crate::world::comm::Comm;
use crate::world::requests::Requests;
use crate::world::{leak, Op};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use tch::Kind;

/// Bytes of a tensor under way at once: the size of the receive buffer.
const SLAB: usize = 8 << 20;
/// Below this many bytes in all, everybody gets everything at once and combines for itself: one exchange, not two.
const SMALL: usize = 32 << 10;

const PIECES: i32 = 2;
const RESULTS: i32 = 3;

pub(super) struct MpiCollectives {
    comm: Comm,
    rank: usize,
    size: usize,
    stop: Arc<AtomicBool>,
    /// Other ranks' pieces, 64-byte aligned by its element type's allocation; leaked if a wait fails.
    scratch: Vec<u64>,
}

impl MpiCollectives {
    pub(super) fn new(comm: Comm, stop: Arc<AtomicBool>) -> Result<MpiCollectives> {
        let (rank, size) = (comm.rank()?, comm.size());
        Ok(MpiCollectives { comm, rank, size, stop, scratch: Vec::new() })
    }

    /// # Safety
    /// For this and the other collectives: the spans are valid, aligned and nobody else's until the call returns `Ok`;
    /// after an error they must never be freed.
    pub(super) unsafe fn all_reduce(&mut self, kind: Kind, op: Op, t: TensorBuf) -> Result<()> {
        let n = t.len;
        if n * t.width * self.size <= SMALL {
            return self.all_to_all_reduce(kind, op, t);
        }
        let slab = SLAB / t.width;
        let count = n.div_ceil(slab);
        let size = self.size;
        let piece = |s: usize, r: usize| {
            let (a, b) = (s * slab, n.min((s + 1) * slab));
            a + (b - a) * r / size..a + (b - a) * (r + 1) / size
        };
        let room = self.room(slab.div_ceil(size) * t.width);
        let mut req = Requests::default();
        self.swap_pieces(&mut req, t, |r| piece(0, r), room)?;
        for s in 0..count {
            req.wait(&self.stop, "all-reduce")?;
            let mine = piece(s, self.rank);
            let out = t.at(mine.start);
            combine(kind, op, &self.inputs(out, room), &[out], mine.len());
            for r in self.others() {
                let theirs = piece(s, r);
                req.recv(&self.comm, t.at(theirs.start), theirs.len() * t.width, r, RESULTS)?;
                req.send(&self.comm, out, mine.len() * t.width, r, RESULTS)?;
            }
            if s + 1 < count {
                self.swap_pieces(&mut req, t, |r| piece(s + 1, r), room)?;
            }
        }
        req.wait(&self.stop, "all-reduce")
    }

    unsafe fn all_to_all_reduce(&mut self, kind: Kind, op: Op, t: TensorBuf) -> Result<()> {
        let room = self.room(t.len * t.width);
        let mut req = Requests::default();
        self.swap_pieces(&mut req, t, |_| 0..t.len, room)?;
        req.wait(&self.stop, "all-reduce")?;
        combine(kind, op, &self.inputs(t.at(0), room), &[t.at(0)], t.len);
        Ok(())
    }

    /// `output` gets this rank's chunk of the combination of all `input`s.
    ///
    /// # Safety
    /// See [`MpiCollectives::all_reduce`].
    pub(super) unsafe fn reduce_scatter(
        &mut self, kind: Kind, op: Op, input: TensorBuf, output: TensorBuf,
    ) -> Result<()> {
        let slab = (SLAB / input.width / self.size).max(1);
        let room = self.room(slab * input.width);
        for a in (0..output.len).step_by(slab) {
            let b = output.len.min(a + slab);
            let mut req = Requests::default();
            self.swap_pieces(&mut req, input, |r| r * output.len + a..r * output.len + b, room)?;
            req.wait(&self.stop, "reduce-scatter")?;
            let own = input.at(self.rank * output.len + a);
            combine(kind, op, &self.inputs(own, room), &[output.at(a)], b - a);
        }
        Ok(())
    }

    /// # Safety
    /// See [`MpiCollectives::all_reduce`].
    pub(super) unsafe fn all_gather(&mut self, input: TensorBuf, output: TensorBuf) -> Result<()> {
        let own = output.at(self.rank * input.len);
        if input.at(0) != own {
            std::ptr::copy_nonoverlapping(input.at(0), own, input.len * input.width);
        }
        let slab = (SLAB / input.width / self.size).max(1);
        for a in (0..input.len).step_by(slab) {
            let bytes = slab.min(input.len - a) * input.width;
            let mut req = Requests::default();
            for r in self.others() {
                req.recv(&self.comm, output.at(r * input.len + a), bytes, r, RESULTS)?;
                req.send(&self.comm, input.at(a), bytes, r, RESULTS)?;
            }
            req.wait(&self.stop, "all-gather")?;
        }
        Ok(())
    }

    /// # Safety
    /// See [`MpiCollectives::all_reduce`].
    pub(super) unsafe fn broadcast(&mut self, t: TensorBuf, root: usize) -> Result<()> {
        let mut req = Requests::default();
        req.broadcast(&self.comm, t.at(0), t.len * t.width, root)?;
        req.wait(&self.stop, "broadcast")
    }

    /// The other ranks, nearest above first, so that not everybody talks to the same one at once.
    fn others(&self) -> impl Iterator<Item = usize> {
        let (rank, size) = (self.rank, self.size);
        (1..size).map(move |d| (rank + d) % size)
    }

    /// Makes the scratch hold one `bytes`-long slot per rank; returns the distance between slots.
    fn room(&mut self, bytes: usize) -> usize {
        let room = bytes.next_multiple_of(64);
        self.scratch.resize(self.scratch.len().max(room * self.size / 8), 0);
        room
    }

    unsafe fn slot(&self, r: usize, room: usize) -> *mut u8 {
        self.scratch.as_ptr().cast::<u8>().cast_mut().add(r * room)
    }

    /// Starts: piece `r` of mine to rank `r`, everyone's piece of mine into the scratch.
    unsafe fn swap_pieces(
        &self, req: &mut Requests, t: TensorBuf, piece: impl Fn(usize) -> Range<usize>, room: usize,
    ) -> Result<()> {
        let mine = piece(self.rank).len() * t.width;
        for r in self.others() {
            let theirs = piece(r);
            req.recv(&self.comm, self.slot(r, room), mine, r, PIECES)?;
            req.send(&self.comm, t.at(theirs.start), theirs.len() * t.width, r, PIECES)?;
        }
        Ok(())
    }

    /// Everyone's piece in rank order: `own` and the scratch.
    unsafe fn inputs(&self, own: *mut u8, room: usize) -> Vec<*const u8> {
        (0..self.size).map(|r| if r == self.rank { own } else { self.slot(r, room) }.cast_const()).collect()
    }

    /// Gives up the scratch, which MPI may still write to after a failed wait.
    pub(super) fn leak(&mut self) {
        leak(std::mem::take(&mut self.scratch));
    }
}

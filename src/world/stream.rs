//! Long messages between single ranks on host memory, outside of any axis: copies of snapshots.

use crate::error::Result;
use crate::world::ffi::{stopped, Backoff};
use crate::world::requests::Requests;
use crate::world::World;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Told of each part as it comes: (number of the stream, bytes of it, what is in them).
pub type Arrived<'a> = &'a mut dyn FnMut(usize, Range<usize>, &[u8]);

/// Bytes of one message: small enough that what arrives is still in cache when it is looked at.
const CHUNK: usize = 1 << 20;
/// Messages of one stream under way.
const WINDOW: usize = 4;
const TAG: i32 = 7;

/// A stream that is to be received: as many bytes as `into` has, from rank `from`.
pub struct Incoming<'a> {
    /// World rank that sends it.
    pub from: usize,
    /// Where it goes, as long as the stream.
    pub into: &'a mut [u8],
}

/// One stream's messages.
struct Flow {
    peer: usize,
    start: *mut u8,
    len: usize,
    asked: usize,
    done: usize,
    under_way: VecDeque<Requests>,
}

impl World {
    /// Sends `out` to a rank and receives every stream of `ins`, in pieces; `arrived` is told which bytes of which stream
    /// have come, in order. All ranks that exchange with each other call it, each from one thread of this `World`
    /// ([`World::duplicate`]); at most one stream goes from one rank to another.
    ///
    /// # Safety
    /// After an error the memory of `out` and `ins` may still be read and written: it must never be freed
    /// ([`super::or_leak`]).
    pub unsafe fn exchange(&self, out: Option<(&[u8], usize)>, ins: &mut [Incoming], arrived: Arrived) -> Result<()> {
        let mut sending = out.map(|(bytes, to)| Flow::new(to, bytes.as_ptr().cast_mut(), bytes.len()));
        let mut coming: Vec<Flow> =
            ins.iter_mut().map(|i| Flow::new(i.from, i.into.as_mut_ptr(), i.into.len())).collect();
        let mut pause = Backoff::default();
        loop {
            let mut moved = false;
            if let Some(flow) = &mut sending {
                // SAFETY: `out` is borrowed until this returns; the caller keeps it after an error.
                moved |= unsafe { flow.step(self, true)? }.is_some();
            }
            for (i, flow) in coming.iter_mut().enumerate() {
                // SAFETY: as above, and nobody else has `into`.
                if let Some(range) = unsafe { flow.step(self, false)? } {
                    // SAFETY: these bytes have arrived: MPI does not touch them any more.
                    arrived(i, range.clone(), unsafe {
                        std::slice::from_raw_parts(flow.start.add(range.start), range.len())
                    });
                    moved = true;
                }
            }
            if sending.iter().chain(&coming).all(|f| f.done == f.len) {
                return Ok(());
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(stopped("stream"));
            }
            if moved {
                pause = Backoff::default();
            }
            pause.step();
        }
    }
}

impl Flow {
    fn new(peer: usize, start: *mut u8, len: usize) -> Flow {
        Flow { peer, start, len, asked: 0, done: 0, under_way: VecDeque::new() }
    }

    /// Starts messages up to the window and returns the bytes of one that has ended.
    ///
    /// # Safety
    /// The memory is valid, for receiving nobody else's, until all messages have ended.
    unsafe fn step(&mut self, world: &World, send: bool) -> Result<Option<Range<usize>>> {
        while self.asked < self.len && self.under_way.len() < WINDOW {
            let n = CHUNK.min(self.len - self.asked);
            let mut request = Requests::default();
            let at = self.start.add(self.asked);
            match send {
                true => request.send(&world.comm, at, n, self.peer, TAG)?,
                false => request.recv(&world.comm, at, n, self.peer, TAG)?,
            }
            self.under_way.push_back(request);
            self.asked += n;
        }
        let Some(first) = self.under_way.front_mut() else { return Ok(None) };
        if !first.done()? {
            return Ok(None);
        }
        self.under_way.pop_front();
        let n = CHUNK.min(self.len - self.done);
        self.done += n;
        Ok(Some(self.done - n..self.done))
    }
}

//! Asking another rank for bytes that only its node has. Answered by a thread of that rank.

use crate::error::{Error, Exit, Result};
use crate::world::comm::Comm;
use crate::world::ffi::{check, stopped, Backoff};
use crate::world::in_flight::{or_leak, InFlight};
use crate::world::World;
use mpi::ffi;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

const ASK: i32 = 8;
const ANSWER: i32 = 9;

/// What is asked for: `len` bytes from `at` of the answering rank's item `item`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its number at the answering rank; `u64::MAX` is taken.
    pub item: u64,
    /// Byte of the item, from 0.
    pub at: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Items a client may not have: it says that nobody will ask any more.
const END: u64 = u64::MAX;

/// A message of exactly `N` bytes from whoever sends one, and who did.
fn recv_any<const N: usize>(comm: &Comm, tag: c_int, stop: &AtomicBool) -> Result<(usize, [u8; N])> {
    let mut who = 0;
    let data = or_leak(Box::new([0u8; N]), |data| {
        let mut pause = Backoff::default();
        // SAFETY: the buffer outlives the wait, or is leaked; a status is plain data and an out parameter.
        unsafe {
            let mut request = comm.irecv_any(data.as_mut_ptr(), N, tag)?;
            loop {
                let (mut done, mut status): (c_int, ffi::MPI_Status) = (0, std::mem::zeroed());
                check(ffi::MPI_Test(&mut request, &mut done, &mut status), "MPI_Test")?;
                if done != 0 {
                    who = status.MPI_SOURCE as usize;
                    return Ok(());
                }
                if stop.load(Ordering::Relaxed) {
                    return Err(stopped("request"));
                }
                pause.step();
            }
        }
    })?;
    Ok((who, *data))
}

impl World {
    /// Answers requests until [`World::end_serving`] on this rank. `read` fills the answer. Runs in a thread of its own,
    /// on a `World` of its own ([`World::duplicate`]) that it shares with the rank's own questions.
    pub fn serve_reads(&self, read: &mut dyn FnMut(Request, &mut [u8]) -> std::io::Result<()>) -> Result<()> {
        loop {
            let (who, bytes) = recv_any::<24>(&self.comm, ASK, &self.stop)?;
            let field = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap_or_default());
            let request = Request { item: field(0), at: field(1), len: field(2) };
            if request.item == END {
                return Ok(());
            }
            // One byte more: whether it could be read.
            let mut answer = vec![0; request.len as usize + 1];
            let (body, status) = answer.split_at_mut(request.len as usize);
            status[0] = read(request, body).is_ok() as u8;
            let sent = InFlight::start(answer, |answer, req| {
                // SAFETY: the answer is in flight until the wait has ended, or for ever.
                unsafe { req.send(&self.comm, answer.as_ptr(), answer.len(), who, ANSWER) }
            });
            sent?.wait(&self.stop, "answer")?;
        }
    }

    /// Ends this rank's [`World::serve_reads`]. Call it when no rank has questions left, after a barrier.
    pub fn end_serving(&self) -> Result<()> {
        self.question(Request { item: END, at: 0, len: 0 }, self.rank())
    }

    /// Bytes of `rank`, which serves. Errors: [`Exit::Peer`]; [`Exit::Checkpoint`] when that rank cannot read them.
    pub fn remote_read(&self, request: Request, rank: usize) -> Result<Vec<u8>> {
        let coming = InFlight::start(vec![0u8; request.len as usize + 1], |answer, req| {
            // SAFETY: the buffer is in flight until the wait has ended, or for ever.
            unsafe { req.recv(&self.comm, answer.as_mut_ptr(), answer.len(), rank, ANSWER) }
        })?;
        self.question(request, rank)?;
        let mut answer = coming.wait(&self.stop, "answer")?;
        match answer.pop() {
            Some(1) => Ok(answer),
            _ => Err(Error::new(Exit::Checkpoint, format!("rank {rank} cannot read its node's snapshot"))),
        }
    }

    fn question(&self, r: Request, rank: usize) -> Result<()> {
        let bytes: Vec<u8> = [r.item, r.at, r.len].iter().flat_map(|f| f.to_le_bytes()).collect();
        let sent = InFlight::start(bytes, |bytes, req| {
            // SAFETY: the bytes are in flight until the wait has ended, or for ever.
            unsafe { req.send(&self.comm, bytes.as_ptr(), bytes.len(), rank, ASK) }
        });
        sent?.wait(&self.stop, "question").map(drop)
    }
}

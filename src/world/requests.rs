//! Operations under way: several waited for together, and one message with a peer; both in pieces that MPI can count.

use super::comm::Comm;
use super::ffi::{check, stopped, Backoff};
use crate::error::{Error, Exit, Result};
use mpi::ffi;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

/// Largest piece of one message in bytes; MPI counts are `c_int`.
const PIECE: usize = 1 << 30;

/// Started non-blocking operations.
#[derive(Default)]
pub(crate) struct Requests(Vec<ffi::MPI_Request>);

// SAFETY: a request is a handle, which any thread may test under MPI_THREAD_MULTIPLE (MPI 4.1 §11.6.1), one at a time.
unsafe impl Send for Requests {}

impl Requests {
    /// # Safety
    /// `data` is readable for `len` bytes until [`Requests::wait`] has returned `Ok`.
    pub(crate) unsafe fn send(
        &mut self, comm: &Comm, data: *const u8, len: usize, to: usize, tag: c_int,
    ) -> Result<()> {
        for (at, n) in pieces(len).filter(|_| len > 0) {
            self.0.push(comm.isend(data.add(at), n, to, tag)?);
        }
        Ok(())
    }

    /// # Safety
    /// `data` is writable for `len` bytes, and nobody else's, until [`Requests::wait`] has returned `Ok`.
    pub(crate) unsafe fn recv(
        &mut self, comm: &Comm, data: *mut u8, len: usize, from: usize, tag: c_int,
    ) -> Result<()> {
        for (at, n) in pieces(len).filter(|_| len > 0) {
            self.0.push(comm.irecv(data.add(at), n, from, tag)?);
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Requests::send`] on the root and [`Requests::recv`] elsewhere.
    pub(crate) unsafe fn broadcast(&mut self, comm: &Comm, data: *mut u8, len: usize, root: usize) -> Result<()> {
        for (at, n) in pieces(len).filter(|_| len > 0) {
            self.0.push(comm.ibcast(data.add(at), n, root)?);
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every operation is complete. Until then their buffers must not be touched or freed.
    pub(crate) fn done(&mut self) -> Result<bool> {
        let mut done: c_int = 0;
        // SAFETY: `self.0` holds the requests; completed ones become null.
        let code = unsafe {
            ffi::MPI_Testall(self.0.len() as c_int, self.0.as_mut_ptr(), &mut done, ffi::RSMPI_STATUSES_IGNORE)
        };
        check(code, "MPI_Testall")?;
        if done != 0 {
            self.0.clear();
        }
        Ok(done != 0)
    }

    /// Until every operation is complete. On an error, or when `stop` is set, operations may still be under way:
    /// their buffers must then never be freed.
    pub(crate) fn wait(&mut self, stop: &AtomicBool, what: &str) -> Result<()> {
        let mut pause = Backoff::default();
        loop {
            if self.done().map_err(|e| e.context(what))? {
                return Ok(());
            }
            if stop.load(Ordering::Relaxed) {
                return Err(stopped(what));
            }
            pause.step();
        }
    }
}

/// One message to or from another rank under way, in pieces that MPI can count.
pub(crate) struct MpiMessage {
    /// Each with the bytes that must have arrived.
    pieces: Vec<(ffi::MPI_Request, Option<usize>)>,
    peer: usize,
}

// SAFETY: a request is a handle, which any thread may test under MPI_THREAD_MULTIPLE (MPI 4.1 §11.6.1), one at a time.
unsafe impl Send for MpiMessage {}

impl MpiMessage {
    /// # Safety
    /// `data` is readable for `len` bytes until [`MpiMessage::test`] has returned `Ok(true)`.
    pub(crate) unsafe fn send(comm: &Comm, data: *const u8, len: usize, to: usize, tag: c_int) -> Result<MpiMessage> {
        let mut m = MpiMessage { pieces: Vec::new(), peer: to };
        for (at, n) in pieces(len) {
            m.pieces.push((comm.isend(data.wrapping_add(at), n, to, tag)?, None));
        }
        Ok(m)
    }

    /// # Safety
    /// `data` is writable for `len` bytes, and nobody else's, until [`MpiMessage::test`] has returned `Ok(true)`.
    pub(crate) unsafe fn recv(comm: &Comm, data: *mut u8, len: usize, from: usize, tag: c_int) -> Result<MpiMessage> {
        let mut m = MpiMessage { pieces: Vec::new(), peer: from };
        for (at, n) in pieces(len) {
            m.pieces.push((comm.irecv(data.wrapping_add(at), n, from, tag)?, Some(n)));
        }
        Ok(m)
    }

    /// Whether all of it has been sent or received. [`Exit::Internal`] when what came has another length.
    pub(crate) fn test(&mut self) -> Result<bool> {
        while let Some((request, expected)) = self.pieces.last_mut() {
            let (mut done, mut got): (c_int, c_int) = (0, 0);
            // SAFETY: a status is plain data and an out parameter; the request is this message's.
            let code = unsafe {
                let mut status: ffi::MPI_Status = std::mem::zeroed();
                let code = ffi::MPI_Test(request, &mut done, &mut status);
                if done != 0 {
                    ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut got);
                }
                code
            };
            let (expected, peer) = (*expected, self.peer);
            let odd = |came: String| {
                let want = expected.unwrap_or(0);
                let fact = format!("rank {peer} sent {came} where a piece of {want} bytes was to be received");
                Err(Error::new(Exit::Internal, fact))
            };
            match expected {
                Some(n) if code == ffi::MPI_ERR_TRUNCATE as c_int => return odd(format!("more than {n} bytes")),
                _ => check(code, "MPI_Test (message)")?,
            }
            match expected {
                _ if done == 0 => return Ok(false),
                Some(n) if n != got as usize => return odd(format!("{got} bytes")),
                _ => self.pieces.pop(),
            };
        }
        Ok(true)
    }
}

/// Offset and length of the pieces of a message; an empty message is one empty piece.
fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len.max(1)).step_by(PIECE).map(move |at| (at, PIECE.min(len - at)))
}

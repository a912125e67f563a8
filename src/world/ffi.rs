//! The MPI calls herd makes, each return code turned into an [`Error`].
//!
//! rsmpi's safe layer ignores return codes, panics on counts beyond `c_int` and finalizes on drop, so herd calls the
//! C functions. All waiting is a test loop that watches a stop flag: nothing here blocks inside MPI for ever.

use crate::error::{Error, Exit, Result};
use mpi::ffi;
use std::os::raw::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Largest piece of one message in bytes; MPI counts are `c_int`.
const PIECE: usize = 1 << 30;

/// `Ok` for MPI_SUCCESS, else MPI's own words for the code (MPI 4.1 §9.3).
pub(crate) fn check(code: c_int, call: &str) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut len: c_int = 0;
    // SAFETY: the buffer holds MPI_MAX_ERROR_STRING characters.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut len) };
    let text = String::from_utf8_lossy(&text[..len.clamp(0, 256) as usize]).into_owned();
    Err(Error::new(Exit::Peer, format!("{call} failed with MPI code {code}: {text}")))
}

/// A communicator whose errors are returned, never fatal.
pub(crate) struct Comm(pub(super) ffi::MPI_Comm);

// SAFETY: a communicator is a handle, and World::init refuses an MPI without MPI_THREAD_MULTIPLE.
unsafe impl Send for Comm {}
unsafe impl Sync for Comm {}

impl Comm {
    pub(crate) fn world() -> Result<Comm> {
        // SAFETY: MPI is initialised (World::init is the only caller).
        unsafe { Comm(ffi::RSMPI_COMM_WORLD).returning_errors() }
    }

    fn returning_errors(self) -> Result<Comm> {
        // SAFETY: a valid communicator and a predefined handler.
        check(unsafe { ffi::MPI_Comm_set_errhandler(self.0, ffi::RSMPI_ERRORS_RETURN) }, "MPI_Comm_set_errhandler")?;
        Ok(self)
    }

    /// The same ranks with a message space of their own. Collective.
    pub(crate) fn duplicate(&self) -> Result<Comm> {
        let mut out = self.0;
        // SAFETY: `out` receives the new handle.
        check(unsafe { ffi::MPI_Comm_dup(self.0, &mut out) }, "MPI_Comm_dup")?;
        Comm(out).returning_errors()
    }

    /// The ranks that give the same `color`, ordered by `key`. Collective (MPI 4.1 §7.4.2).
    pub(crate) fn split(&self, color: usize, key: usize) -> Result<Comm> {
        let mut out = self.0;
        // SAFETY: as above; colour and key are ranks, which fit a c_int.
        check(unsafe { ffi::MPI_Comm_split(self.0, color as c_int, key as c_int, &mut out) }, "MPI_Comm_split")?;
        Comm(out).returning_errors()
    }

    /// The ranks that can share memory with this one: its node. Collective (MPI 4.1 §7.4.2).
    pub(crate) fn split_node(&self) -> Result<Comm> {
        let mut out = self.0;
        // SAFETY: as above; key 0 keeps the order of ranks.
        check(
            unsafe { ffi::MPI_Comm_split_type(self.0, ffi::RSMPI_COMM_TYPE_SHARED, 0, ffi::RSMPI_INFO_NULL, &mut out) },
            "MPI_Comm_split_type",
        )?;
        Comm(out).returning_errors()
    }

    pub(crate) fn rank(&self) -> Result<usize> {
        let mut n: c_int = 0;
        // SAFETY: out parameter.
        check(unsafe { ffi::MPI_Comm_rank(self.0, &mut n) }, "MPI_Comm_rank")?;
        Ok(n as usize)
    }

    pub(crate) fn size(&self) -> Result<usize> {
        let mut n: c_int = 0;
        // SAFETY: out parameter.
        check(unsafe { ffi::MPI_Comm_size(self.0, &mut n) }, "MPI_Comm_size")?;
        Ok(n as usize)
    }
}

impl Comm {
    /// Sender and length of a message with `tag` that has come and is not being received yet.
    pub(crate) fn waiting(&self, tag: c_int) -> Result<Option<(usize, usize)>> {
        let (mut there, mut len): (c_int, c_int) = (0, 0);
        // SAFETY: a status is plain data; all three are out parameters.
        unsafe {
            let mut status: ffi::MPI_Status = std::mem::zeroed();
            let any = ffi::RSMPI_ANY_SOURCE;
            check(ffi::MPI_Iprobe(any, tag, self.0, &mut there, &mut status), "MPI_Iprobe")?;
            if there == 0 {
                return Ok(None);
            }
            check(ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut len), "MPI_Get_count")?;
            Ok(Some((status.MPI_SOURCE.max(0) as usize, len.max(0) as usize)))
        }
    }
}

/// Started non-blocking operations.
#[derive(Default)]
pub(crate) struct Requests(Vec<ffi::MPI_Request>);

// SAFETY: a request is a handle, which any thread may test under MPI_THREAD_MULTIPLE (MPI 4.1 §11.6.1), one at a time.
unsafe impl Send for Requests {}

impl Requests {
    pub(super) fn next(&mut self) -> *mut ffi::MPI_Request {
        // SAFETY: reading a constant that MPI defines.
        self.0.push(unsafe { ffi::RSMPI_REQUEST_NULL });
        self.0.last_mut().expect("just pushed")
    }

    pub(crate) fn barrier(&mut self, comm: &Comm) -> Result<()> {
        // SAFETY: no buffers.
        check(unsafe { ffi::MPI_Ibarrier(comm.0, self.next()) }, "MPI_Ibarrier")
    }

    /// # Safety
    /// `data` is readable for `len` bytes until [`Requests::wait`] has returned `Ok`.
    pub(crate) unsafe fn send(
        &mut self, comm: &Comm, data: *const u8, len: usize, to: usize, tag: c_int,
    ) -> Result<()> {
        for at in (0..len).step_by(PIECE) {
            let n = PIECE.min(len - at) as c_int;
            let code = ffi::MPI_Isend(
                data.add(at) as *const c_void,
                n,
                ffi::RSMPI_UINT8_T,
                to as c_int,
                tag,
                comm.0,
                self.next(),
            );
            check(code, "MPI_Isend")?;
        }
        Ok(())
    }

    /// # Safety
    /// `data` is writable for `len` bytes, and nobody else's, until [`Requests::wait`] has returned `Ok`.
    pub(crate) unsafe fn recv(
        &mut self, comm: &Comm, data: *mut u8, len: usize, from: usize, tag: c_int,
    ) -> Result<()> {
        for at in (0..len).step_by(PIECE) {
            let n = PIECE.min(len - at) as c_int;
            let code = ffi::MPI_Irecv(
                data.add(at) as *mut c_void,
                n,
                ffi::RSMPI_UINT8_T,
                from as c_int,
                tag,
                comm.0,
                self.next(),
            );
            check(code, "MPI_Irecv")?;
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Requests::send`] on the root and [`Requests::recv`] elsewhere.
    pub(crate) unsafe fn broadcast(&mut self, comm: &Comm, data: *mut u8, len: usize, root: usize) -> Result<()> {
        for at in (0..len).step_by(PIECE) {
            let n = PIECE.min(len - at) as c_int;
            let code =
                ffi::MPI_Ibcast(data.add(at) as *mut c_void, n, ffi::RSMPI_UINT8_T, root as c_int, comm.0, self.next());
            check(code, "MPI_Ibcast")?;
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
            let mut r = ffi::RSMPI_REQUEST_NULL;
            let (data, bytes) = (data.wrapping_add(at).cast::<c_void>(), ffi::RSMPI_UINT8_T);
            check(ffi::MPI_Isend(data, n as c_int, bytes, to as c_int, tag, comm.0, &mut r), "MPI_Isend")?;
            m.pieces.push((r, None));
        }
        Ok(m)
    }

    /// # Safety
    /// `data` is writable for `len` bytes, and nobody else's, until [`MpiMessage::test`] has returned `Ok(true)`.
    pub(crate) unsafe fn recv(comm: &Comm, data: *mut u8, len: usize, from: usize, tag: c_int) -> Result<MpiMessage> {
        let mut m = MpiMessage { pieces: Vec::new(), peer: from };
        for (at, n) in pieces(len) {
            let mut r = ffi::RSMPI_REQUEST_NULL;
            let (data, bytes) = (data.wrapping_add(at).cast::<c_void>(), ffi::RSMPI_UINT8_T);
            check(ffi::MPI_Irecv(data, n as c_int, bytes, from as c_int, tag, comm.0, &mut r), "MPI_Irecv")?;
            m.pieces.push((r, Some(n)));
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

/// The error of a wait that the stop flag ended.
pub(crate) fn stopped(what: &str) -> Error {
    Error::new(Exit::Peer, format!("told to stop while waiting for other ranks ({what})"))
}

/// Waiting that gives the core away soon: ranks share cores with threads that compute.
#[derive(Default)]
pub(crate) struct Backoff(u32);

impl Backoff {
    pub(crate) fn step(&mut self) {
        self.0 += 1;
        match self.0 {
            0..=64 => std::hint::spin_loop(),
            65..=1000 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(30)),
        }
    }
}

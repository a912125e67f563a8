//! A communicator, and the one door through which herd's messages go to MPI: each is counted here.

use super::ffi::check;
use super::traffic::{sent, Purpose};
use crate::error::Result;
use mpi::ffi;
use std::ffi::c_int;
use std::sync::Arc;

/// A communicator whose errors are returned, never fatal.
pub(crate) struct Comm {
    handle: ffi::MPI_Comm,
    /// World rank of each of its ranks.
    world_ranks: Arc<[c_int]>,
    /// Ranks of the world.
    world: usize,
    purpose: Purpose,
}

// SAFETY: a communicator is a handle, and World::init refuses an MPI without MPI_THREAD_MULTIPLE.
unsafe impl Send for Comm {}
unsafe impl Sync for Comm {}

impl Comm {
    pub(crate) fn world() -> Result<Comm> {
        // SAFETY: MPI is initialised (World::init is the only caller).
        let handle = unsafe { ffi::RSMPI_COMM_WORLD };
        let size = size(handle)?;
        let world_ranks = (0..size as c_int).collect();
        Comm { handle, world_ranks, world: size, purpose: Purpose::Control }.returning_errors()
    }

    fn returning_errors(self) -> Result<Comm> {
        // SAFETY: a valid communicator and a predefined handler.
        let code = unsafe { ffi::MPI_Comm_set_errhandler(self.handle, ffi::RSMPI_ERRORS_RETURN) };
        check(code, "MPI_Comm_set_errhandler").map(|()| self)
    }

    /// The same ranks with a message space of their own. Collective.
    pub(crate) fn duplicate(&self) -> Result<Comm> {
        let mut handle = self.handle;
        // SAFETY: `handle` receives the new one.
        check(unsafe { ffi::MPI_Comm_dup(self.handle, &mut handle) }, "MPI_Comm_dup")?;
        Comm { handle, world_ranks: self.world_ranks.clone(), ..*self }.returning_errors()
    }

    /// The given ranks of this communicator, numbered in that order. Collective over them alone (MPI 4.1 §7.4.2).
    pub(crate) fn of(&self, ranks: &[usize]) -> Result<Comm> {
        let list: Vec<c_int> = ranks.iter().map(|&r| r as c_int).collect();
        let mut handle = self.handle;
        // SAFETY: groups and the handle are out parameters; the list has that many ranks of this communicator.
        unsafe {
            let (mut all, mut some) = (ffi::RSMPI_GROUP_NULL, ffi::RSMPI_GROUP_NULL);
            check(ffi::MPI_Comm_group(self.handle, &mut all), "MPI_Comm_group")?;
            check(ffi::MPI_Group_incl(all, list.len() as c_int, list.as_ptr(), &mut some), "MPI_Group_incl")?;
            check(ffi::MPI_Comm_create_group(self.handle, some, MAKING, &mut handle), "MPI_Comm_create_group")?;
            ffi::MPI_Group_free(&mut some);
            ffi::MPI_Group_free(&mut all);
        }
        let world_ranks = ranks.iter().map(|&r| self.world_ranks[r]).collect();
        Comm { handle, world_ranks, ..*self }.returning_errors()
    }

    /// The ranks that can share memory with this one: its node. Collective (MPI 4.1 §7.4.2).
    pub(crate) fn split_node(&self) -> Result<Comm> {
        let mut handle = self.handle;
        // SAFETY: as for `duplicate`; key 0 keeps the order of ranks.
        let code = unsafe {
            let (kind, info) = (ffi::RSMPI_COMM_TYPE_SHARED, ffi::RSMPI_INFO_NULL);
            ffi::MPI_Comm_split_type(self.handle, kind, 0, info, &mut handle)
        };
        check(code, "MPI_Comm_split_type")?;
        let here = self.numbers_here(handle)?;
        let world_ranks = here.iter().map(|&r| self.world_ranks[r as usize]).collect();
        Comm { handle, world_ranks, ..*self }.returning_errors()
    }

    /// Which ranks of this communicator those of `part` are.
    fn numbers_here(&self, part: ffi::MPI_Comm) -> Result<Vec<c_int>> {
        let own: Vec<c_int> = (0..size(part)? as c_int).collect();
        let mut here = vec![0; own.len()];
        // SAFETY: groups are out parameters; both lists have as many ranks as are asked for.
        unsafe {
            let (mut of, mut to) = (ffi::RSMPI_GROUP_NULL, ffi::RSMPI_GROUP_NULL);
            check(ffi::MPI_Comm_group(part, &mut of), "MPI_Comm_group")?;
            check(ffi::MPI_Comm_group(self.handle, &mut to), "MPI_Comm_group")?;
            let code = ffi::MPI_Group_translate_ranks(of, own.len() as c_int, own.as_ptr(), to, here.as_mut_ptr());
            check(code, "MPI_Group_translate_ranks")?;
            ffi::MPI_Group_free(&mut of);
            ffi::MPI_Group_free(&mut to);
        }
        Ok(here)
    }

    /// What is sent from now on is for that.
    pub(crate) fn for_use(self, purpose: Purpose) -> Comm {
        Comm { purpose, ..self }
    }

    pub(crate) fn rank(&self) -> Result<usize> {
        let mut n: c_int = 0;
        // SAFETY: out parameter.
        check(unsafe { ffi::MPI_Comm_rank(self.handle, &mut n) }, "MPI_Comm_rank")?;
        Ok(n as usize)
    }

    pub(crate) fn size(&self) -> usize {
        self.world_ranks.len()
    }
}

/// Tag of the messages that make a communicator; those are MPI's own.
const MAKING: c_int = 1;

fn size(comm: ffi::MPI_Comm) -> Result<usize> {
    let mut n: c_int = 0;
    // SAFETY: out parameter.
    check(unsafe { ffi::MPI_Comm_size(comm, &mut n) }, "MPI_Comm_size")?;
    Ok(n as usize)
}

/// Single operations; a count is below 2^31.
impl Comm {
    /// # Safety
    /// `data` is readable for `len` bytes until the request is complete.
    pub(super) unsafe fn isend(&self, data: *const u8, len: usize, to: usize, tag: c_int) -> Result<ffi::MPI_Request> {
        let mut r = ffi::RSMPI_REQUEST_NULL;
        let code = ffi::MPI_Isend(data.cast(), len as c_int, ffi::RSMPI_UINT8_T, to as c_int, tag, self.handle, &mut r);
        check(code, "MPI_Isend")?;
        sent(self.purpose, self.world_ranks[to] as usize, self.world, len);
        Ok(r)
    }

    /// # Safety
    /// `data` is writable for `len` bytes, and nobody else's, until the request is complete.
    pub(super) unsafe fn irecv(&self, data: *mut u8, len: usize, from: usize, tag: c_int) -> Result<ffi::MPI_Request> {
        let mut r = ffi::RSMPI_REQUEST_NULL;
        let code =
            ffi::MPI_Irecv(data.cast(), len as c_int, ffi::RSMPI_UINT8_T, from as c_int, tag, self.handle, &mut r);
        check(code, "MPI_Irecv").map(|()| r)
    }

    /// [`Comm::irecv`] from whoever sends.
    ///
    /// # Safety
    /// As for `irecv`.
    pub(super) unsafe fn irecv_any(&self, data: *mut u8, len: usize, tag: c_int) -> Result<ffi::MPI_Request> {
        let mut r = ffi::RSMPI_REQUEST_NULL;
        let (any, bytes) = (ffi::RSMPI_ANY_SOURCE, ffi::RSMPI_UINT8_T);
        check(ffi::MPI_Irecv(data.cast(), len as c_int, bytes, any, tag, self.handle, &mut r), "MPI_Irecv").map(|()| r)
    }

    /// # Safety
    /// As for `isend` on the root, and for `irecv` elsewhere.
    pub(super) unsafe fn ibcast(&self, data: *mut u8, len: usize, root: usize) -> Result<ffi::MPI_Request> {
        let mut r = ffi::RSMPI_REQUEST_NULL;
        let code = ffi::MPI_Ibcast(data.cast(), len as c_int, ffi::RSMPI_UINT8_T, root as c_int, self.handle, &mut r);
        check(code, "MPI_Ibcast").map(|()| r)
    }

    /// Sender and length of a message with `tag` that has come and is not being received yet.
    pub(crate) fn waiting(&self, tag: c_int) -> Result<Option<(usize, usize)>> {
        let (mut there, mut len): (c_int, c_int) = (0, 0);
        // SAFETY: a status is plain data; all three are out parameters.
        unsafe {
            let mut status: ffi::MPI_Status = std::mem::zeroed();
            let any = ffi::RSMPI_ANY_SOURCE;
            check(ffi::MPI_Iprobe(any, tag, self.handle, &mut there, &mut status), "MPI_Iprobe")?;
            if there == 0 {
                return Ok(None);
            }
            check(ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut len), "MPI_Get_count")?;
            Ok(Some((status.MPI_SOURCE.max(0) as usize, len.max(0) as usize)))
        }
    }
}

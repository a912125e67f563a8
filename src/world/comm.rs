//! What a communicator does with a buffer of its own, waited for.

use super::ffi::{check, stopped, Backoff, Comm};
use super::in_flight::{or_leak, InFlight};
use crate::error::Result;
use mpi::ffi;
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

impl Comm {
    /// A message of exactly `N` bytes from whoever sends one, and who did.
    pub(crate) fn recv_any<const N: usize>(&self, tag: c_int, stop: &AtomicBool) -> Result<(usize, [u8; N])> {
        let mut who = 0;
        let data = or_leak(Box::new([0u8; N]), |data| {
            let mut pause = Backoff::default();
            // SAFETY: the buffer outlives the wait, or is leaked; a status is plain data and an out parameter.
            unsafe {
                let mut request = ffi::RSMPI_REQUEST_NULL;
                let (any, bytes) = (ffi::RSMPI_ANY_SOURCE, ffi::RSMPI_UINT8_T);
                let to = data.as_mut_ptr().cast();
                check(ffi::MPI_Irecv(to, N as c_int, bytes, any, tag, self.0, &mut request), "MPI_Irecv")?;
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

    /// Every rank's `mine`, in rank order. `T` is plain data of the same size everywhere.
    pub(crate) fn all_gather<T: bytemuck::Pod>(&self, mine: &[T], stop: &AtomicBool) -> Result<Vec<T>> {
        let buffers = (mine.to_vec(), vec![T::zeroed(); mine.len() * self.size()?]);
        let bytes = std::mem::size_of_val(mine) as c_int;
        let under_way = InFlight::start(buffers, |(mine, all), req| {
            // SAFETY: both buffers are in flight until the wait has ended, or for ever.
            let code = unsafe {
                ffi::MPI_Iallgather(
                    mine.as_ptr().cast(),
                    bytes,
                    ffi::RSMPI_UINT8_T,
                    all.as_mut_ptr().cast(),
                    bytes,
                    ffi::RSMPI_UINT8_T,
                    self.0,
                    req.next(),
                )
            };
            check(code, "MPI_Iallgather")
        });
        Ok(under_way?.wait(stop, "all-gather")?.1)
    }
}

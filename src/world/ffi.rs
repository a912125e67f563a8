//! The MPI calls herd makes have their return codes turned into an [`Error`], and nothing waits inside MPI for ever.
//!
//! rsmpi's safe layer ignores return codes, panics on counts beyond `c_int` and finalizes on drop, so herd calls the
//! C functions. All waiting is a test loop that watches a stop flag.

use crate::error::{Error, Exit, Result};
use mpi::ffi;
use std::os::raw::c_int;
use std::time::Duration;

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

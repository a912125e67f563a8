//! Threads beside the training loop: how one is started, and a lock that outlives a panic.

use crate::error::{Error, Exit, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

/// Starts a thread called `name`; `what` it is, for the error. The handle may be dropped: the thread goes on.
///
/// # Errors
/// [`Exit::Internal`]: the host has no room for another thread.
pub fn start<T: Send + 'static>(
    name: &str, what: &str, body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    let thread = Builder::new().name(name.into()).spawn(body);
    thread.map_err(|e| Error::new(Exit::Internal, format!("cannot start {what}: {e}")))
}

/// The lock, also where another thread has panicked under it: what it protects is whole between any two of its lines, or the process
/// is ending.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The leak rule in one place: after an error MPI may still read and write the memory of operations that were under way, and nothing
//! can call them back (MPI_Cancel is no promise, MPI 4.1 §3.8.4). So what they work on is never freed then.

use super::requests::Requests;
use crate::error::Result;
use std::mem::ManuallyDrop;
use std::sync::atomic::AtomicBool;

/// Memory and the operations under way on it. The memory comes back when all of them have ended; dropped before, or after an error,
/// it is leaked.
///
/// The memory must stay where it is when `T` is moved: a `Vec`, a `Box`, an `Arc`, a mapping, or several of these.
pub(crate) struct InFlight<T> {
    memory: ManuallyDrop<T>,
    requests: Requests,
}

impl<T> InFlight<T> {
    /// Starts operations on `memory`; where one cannot be started, those before it may be under way, and the memory is leaked.
    pub(crate) fn start(memory: T, begin: impl FnOnce(&mut T, &mut Requests) -> Result<()>) -> Result<InFlight<T>> {
        let mut f = InFlight { memory: ManuallyDrop::new(memory), requests: Requests::default() };
        begin(&mut f.memory, &mut f.requests)?;
        Ok(f)
    }

    /// Whether all of it has ended.
    pub(crate) fn done(&mut self) -> Result<bool> {
        self.requests.done()
    }

    /// The memory, once all has ended. After an error it is leaked, and so it is when `stop` is set first.
    pub(crate) fn wait(mut self, stop: &AtomicBool, what: &str) -> Result<T> {
        self.requests.wait(stop, what)?;
        Ok(ManuallyDrop::into_inner(self.memory))
    }

    /// The memory, where [`InFlight::done`] has said so.
    pub(crate) fn take(self) -> Option<T> {
        self.requests.is_empty().then(|| ManuallyDrop::into_inner(self.memory))
    }
}

/// Runs operations on `memory` that have ended when they return well, and gives it back; after an error it is leaked.
pub fn or_leak<T>(memory: T, run: impl FnOnce(&mut T) -> Result<()>) -> Result<T> {
    let mut memory = ManuallyDrop::new(memory);
    run(&mut memory)?;
    Ok(ManuallyDrop::into_inner(memory))
}

/// Gives up memory that operations which failed may still be under way on.
pub fn leak<T>(memory: T) {
    std::mem::forget(memory);
}

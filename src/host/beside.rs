//! Work beside the calling thread, on its host.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Work that is under way, and what comes of it.
pub enum SideWork<T> {
    /// A real thread.
    Thread(JoinHandle<T>),
    /// On a simulated host: where the value is put when the work is done.
    Simulated(Arc<Mutex<Option<T>>>),
}

/// Runs `work` in a thread called `name`.
///
/// # Errors
/// There is no thread to be had.
pub fn beside<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<SideWork<T>> {
    let Some(host) = super::given() else {
        return std::thread::Builder::new().name(name.into()).spawn(work).map(SideWork::Thread);
    };
    let result = Arc::new(Mutex::new(None));
    let place = result.clone();
    host.beside(Box::new(move || {
        let value = work();
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }))?;
    Ok(SideWork::Simulated(result))
}

impl<T> SideWork<T> {
    /// Whether it is over. Work that panicked is over too, except in a simulation.
    pub fn is_finished(&self) -> bool {
        match self {
            SideWork::Thread(thread) => thread.is_finished(),
            SideWork::Simulated(result) => result.lock().unwrap_or_else(PoisonError::into_inner).is_some(),
        }
    }

    /// What came of it; `None` where it panicked, or is not finished in a simulation. A real thread is waited for.
    pub fn join(self) -> Option<T> {
        match self {
            SideWork::Thread(thread) => thread.join().ok(),
            SideWork::Simulated(result) => result.lock().unwrap_or_else(PoisonError::into_inner).take(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_s_value_comes_back() {
        let work = beside("herd-test", || 7).unwrap();
        assert_eq!(work.join(), Some(7));
        let lost: SideWork<u32> = beside("herd-test", || panic!("on purpose")).unwrap();
        assert_eq!(lost.join(), None);
    }
}

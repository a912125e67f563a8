//! The host that a supervisor runs on: its clock, its processes, its files. Everything that the supervisor asks of the operating
//! system and that takes time or may fail comes through here.
//!
//! Outside a simulation these are the standard library's own calls. A thread that was given a [`Host`] by [`with`] asks that instead:
//! the simulator runs the very supervisor, its roll calls and its standby against a cluster that is simulated (`crate::simulate`).
//! The host belongs to a thread and is no argument, as the clock and the file system of a real process are none; so nothing between
//! the supervisor's loop and a `sleep` far below knows which it is.

mod beside;
mod process;

pub use beside::{beside, SideWork};
pub use process::{drain, set_nonblocking, spawn, HostProcess, Pipe, SimulatedProcess, Spawned, StdStream};

use jiff::Timestamp;
use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileAccess {
    /// It is read.
    Read,
    /// It is made, written or appended to.
    Write,
}

/// A host in place of the real one.
pub trait Host: Send + Sync {
    /// The monotonic clock.
    fn now(&self) -> Instant;
    /// The clock on the wall.
    fn wall(&self) -> Timestamp;
    /// Blocks the calling thread for so long.
    fn sleep(&self, length: Duration);
    /// Like `sleep`, and over as soon as something has happened that the thread may want to see.
    fn wait(&self, most: Duration);
    /// Starts a program. What its standard streams are connected to is not asked: what it says is kept for whoever reads.
    fn spawn(&self, command: &Command) -> io::Result<Arc<dyn SimulatedProcess>>;
    /// Runs `work` as a thread of the calling process.
    fn beside(&self, work: Box<dyn FnOnce() + Send>) -> io::Result<()>;
    /// Before a file is read or written: waits where the filesystem blocks, and the error where it refuses.
    fn at_file(&self, path: &Path, access: FileAccess) -> io::Result<()>;
    /// An environment variable of the process; `None` where it is not set.
    fn variable(&self, name: &str) -> Option<String>;
}

thread_local! {
    static HOST: RefCell<Option<Arc<dyn Host>>> = const { RefCell::new(None) };
    static ATTEMPT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs `work` on `host`, in this thread.
pub fn with<T>(host: Arc<dyn Host>, work: impl FnOnce() -> T) -> T {
    struct Before(Option<Arc<dyn Host>>, Option<u64>);
    impl Drop for Before {
        fn drop(&mut self) {
            HOST.with(|h| *h.borrow_mut() = self.0.take());
            ATTEMPT.set(self.1);
        }
    }
    let _before = Before(HOST.with(|h| h.borrow_mut().replace(host)), ATTEMPT.replace(None));
    work()
}

/// This thread's host, where it is not the real one.
fn given() -> Option<Arc<dyn Host>> {
    HOST.with(|h| h.borrow().clone())
}

/// Whether this thread is on a host of its own, and so what is said of a process is said of the thread.
pub fn is_given() -> bool {
    HOST.with(|h| h.borrow().is_some())
}

/// What [`crate::attempt`] keeps for a thread that is a process of its own.
pub fn attempt() -> &'static std::thread::LocalKey<Cell<Option<u64>>> {
    &ATTEMPT
}

/// The monotonic clock.
pub fn now() -> Instant {
    given().map_or_else(Instant::now, |h| h.now())
}

/// [`Instant::elapsed`] by [`now`].
pub fn since(at: Instant) -> Duration {
    now().saturating_duration_since(at)
}

/// The clock on the wall.
pub fn wall() -> Timestamp {
    given().map_or_else(Timestamp::now, |h| h.wall())
}

/// Blocks this thread for so long by its host's clock.
pub fn sleep(length: Duration) {
    match given() {
        Some(host) => host.sleep(length),
        None => std::thread::sleep(length),
    }
}

/// [`sleep`] that may be over sooner, as soon as something has happened.
pub fn wait(most: Duration) {
    match given() {
        Some(host) => host.wait(most),
        None => std::thread::sleep(most),
    }
}

/// An environment variable.
pub fn variable(name: &str) -> Option<String> {
    match given() {
        Some(host) => host.variable(name),
        None => std::env::var(name).ok(),
    }
}

/// The name that Slurm has for this node, which is the one that can be excluded; else the host's.
pub fn node() -> String {
    variable("SLURMD_NODENAME").unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// Called before each file that a run's books and events depend on is touched.
///
/// # Errors
/// Those that the simulation has for this file; none on a real host, where the access itself tells.
pub fn at_file(path: &Path, access: FileAccess) -> io::Result<()> {
    match given() {
        Some(host) => host.at_file(path, access),
        None => Ok(()),
    }
}

/// Where a supervisor passes on what others say.
pub fn stderr() -> Box<dyn io::Write> {
    match is_given() {
        true => Box::new(io::sink()),
        false => Box::new(io::stderr()),
    }
}

/// A mistake that a test puts into shipped code, to see whether the simulator finds it.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// An attempt that was overtaken may write.
    Unfenced,
    /// Restore takes an older step than the newest whole one.
    OlderCopy,
    /// The ledger counts a failure against a node that had none.
    HealthyBlamed,
    /// A node that did not answer is taken all the same.
    DeadSpare,
    /// One start more than `launch.max_attempts`.
    OneMoreStart,
}

#[cfg(test)]
thread_local! {
    static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
}

/// Plants a mistake in this thread's simulations; each of their threads calls it anew.
#[cfg(test)]
pub fn plant(mistake: Option<Planted>) {
    PLANTED.set(mistake);
}

/// The mistake that is planted in this thread.
#[cfg(test)]
pub fn planted() -> Option<Planted> {
    PLANTED.get()
}

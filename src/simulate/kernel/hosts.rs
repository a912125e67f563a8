//! The host that a task runs on: the clock, programs and files of the simulated cluster.

use super::world::FileAnswer;
use super::{Kernel, Micros, SimTask};
use crate::host::{FileAccess, Host, SimulatedProcess, StdStream};
use jiff::{SignedDuration, Timestamp};
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The clock of one moment: what handles an event takes no time.
pub(super) struct Moment {
    pub origin: Instant,
    pub now: Micros,
}

/// When simulated time begins.
fn wall(now: Micros) -> Timestamp {
    let began = Timestamp::from_second(1_893_456_000).unwrap_or_default();
    began.checked_add(SignedDuration::from_micros(now as i64)).unwrap_or(began)
}

impl Host for Moment {
    fn now(&self) -> Instant {
        self.origin + Duration::from_micros(self.now)
    }
    fn wall(&self) -> Timestamp {
        wall(self.now)
    }
    fn sleep(&self, _: Duration) {}
    fn wait(&self, _: Duration) {}
    fn spawn(&self, _: &Command) -> io::Result<Arc<dyn SimulatedProcess>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn beside(&self, _: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn at_file(&self, _: &Path, _: FileAccess) -> io::Result<()> {
        Ok(())
    }
    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

/// The host of one task.
pub(super) struct SimulatedHost {
    pub kernel: Arc<Kernel>,
    pub task: SimTask,
}

impl Host for SimulatedHost {
    fn now(&self) -> Instant {
        self.kernel.origin + Duration::from_micros(self.kernel.now.load(SeqCst))
    }

    fn wall(&self) -> Timestamp {
        wall(self.kernel.now.load(SeqCst))
    }

    fn sleep(&self, length: Duration) {
        self.kernel.sleep(self.task, length, false);
    }

    fn wait(&self, most: Duration) {
        self.kernel.sleep(self.task, most, true);
    }

    fn spawn(&self, command: &Command) -> io::Result<Arc<dyn SimulatedProcess>> {
        if std::thread::panicking() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let id = self.kernel.ask(self.task, |world, agenda, task| world.spawn(agenda, task, command));
        Ok(Arc::new(Spawned { kernel: self.kernel.clone(), id, task: self.task }))
    }

    fn beside(&self, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        self.kernel.ask(self.task, |world, agenda, task| {
            let thread = agenda.begin(work);
            world.is_thread_of(thread, task);
        });
        Ok(())
    }

    fn at_file(&self, path: &Path, access: FileAccess) -> io::Result<()> {
        loop {
            match self.kernel.ask(self.task, |world, agenda, _| world.at_file(agenda, path, access)) {
                FileAnswer::Well => return Ok(()),
                FileAnswer::Refused(e) => return Err(e.into()),
                FileAnswer::Later(wait) => self.kernel.sleep(self.task, Duration::from_micros(wait), false),
            }
            if std::thread::panicking() {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.kernel.ask(self.task, |world, _, task| (name == "SLURMD_NODENAME").then(|| world.node_of(task)))
    }
}

/// A program that a task has started.
struct Spawned {
    kernel: Arc<Kernel>,
    id: usize,
    task: SimTask,
}

impl SimulatedProcess for Spawned {
    fn id(&self) -> u32 {
        self.id as u32 + 1000
    }

    fn ended(&self) -> Option<i32> {
        match std::thread::panicking() {
            true => Some(128 + libc::SIGKILL),
            false => self.kernel.ask(self.task, |world, _, _| world.program_ended(self.id)),
        }
    }

    fn signal(&self, signal: i32) {
        if !std::thread::panicking() {
            self.kernel.ask(self.task, |world, agenda, _| world.signal(agenda, self.id, signal));
        }
    }

    fn read(&self, stream: StdStream, into: &mut [u8]) -> io::Result<usize> {
        self.kernel.ask(self.task, |world, _, _| world.read_from(self.id, stream, into))
    }
}

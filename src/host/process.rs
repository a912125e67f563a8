//! Programs that are started on this thread's host, and what they say.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::{Child, ChildStdin, Command};
use std::sync::Arc;
use std::time::Duration;

/// A stream of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StdStream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A process of a simulated host.
pub trait SimulatedProcess: Send + Sync {
    /// Process id on its host.
    fn id(&self) -> u32;
    /// Exit code, 128 + signal where one ended it; `None` while it runs.
    fn ended(&self) -> Option<i32>;
    /// Sends a signal, by its number; does nothing to one that has ended.
    fn signal(&self, signal: i32);
    /// As [`Read::read`] of a pipe that does not block.
    fn read(&self, stream: StdStream, into: &mut [u8]) -> io::Result<usize>;
}

/// A process that this one has started.
pub enum HostProcess {
    /// A child of this process.
    Real(Child),
    /// One on a simulated host.
    Simulated(Arc<dyn SimulatedProcess>),
}

/// The reading end of what a process says.
pub enum Pipe {
    /// The descriptor of a real pipe.
    Real(File),
    /// A simulated process, and which of its streams is read.
    Simulated(Arc<dyn SimulatedProcess>, StdStream),
}

/// A process, and those of its streams that are pipes.
pub struct Spawned {
    /// The process itself.
    pub process: HostProcess,
    /// Its standard input; `None` where that is no pipe, and in a simulation.
    pub input: Option<ChildStdin>,
    /// Its standard output; `None` where that is no pipe.
    pub out: Option<Pipe>,
    /// Its standard error; `None` where that is no pipe.
    pub err: Option<Pipe>,
}

/// [`Command::spawn`].
pub fn spawn(command: &mut Command) -> io::Result<Spawned> {
    if let Some(host) = super::given() {
        let process = host.spawn(command)?;
        let pipe = |stream| Some(Pipe::Simulated(process.clone(), stream));
        let (out, err) = (pipe(StdStream::Out), pipe(StdStream::Err));
        return Ok(Spawned { process: HostProcess::Simulated(process), input: None, out, err });
    }
    let mut child = command.spawn()?;
    let out = child.stdout.take().map(|p| Pipe::Real(File::from(OwnedFd::from(p))));
    let err = child.stderr.take().map(|p| Pipe::Real(File::from(OwnedFd::from(p))));
    Ok(Spawned { input: child.stdin.take(), process: HostProcess::Real(child), out, err })
}

impl HostProcess {
    /// Process id on this host.
    pub fn id(&self) -> u32 {
        match self {
            HostProcess::Real(child) => child.id(),
            HostProcess::Simulated(process) => process.id(),
        }
    }

    /// Its exit code, 128 + signal where one ended it; `None` while it runs.
    pub fn ended(&mut self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        match self {
            HostProcess::Real(child) => {
                let status = child.try_wait().ok()??;
                Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
            }
            HostProcess::Simulated(process) => process.ended(),
        }
    }

    /// Ends it at once and takes it off the process table.
    pub fn end(&mut self) {
        match self {
            HostProcess::Real(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            HostProcess::Simulated(process) => process.signal(libc::SIGKILL),
        }
    }

    /// Sends a signal to one that has not ended.
    pub fn signal(&self, signal: i32) {
        match self {
            // SAFETY: a signal to a process that nobody has waited for yet.
            HostProcess::Real(child) => _ = unsafe { libc::kill(child.id() as i32, signal) },
            HostProcess::Simulated(process) => process.signal(signal),
        }
    }
}

impl Pipe {
    /// Reads return at once from now on.
    pub fn do_not_block(&self) {
        if let Pipe::Real(file) = self {
            set_nonblocking(file.as_raw_fd());
        }
    }

    /// Waits until there is something to read, or `most`.
    pub fn wait(&self, most: Duration) {
        match (self, super::given()) {
            (Pipe::Real(file), _) => {
                let mut fds = [libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
                // SAFETY: one descriptor that is open while we wait; a signal ends the wait early.
                unsafe { libc::poll(fds.as_mut_ptr(), 1, most.as_millis() as i32) };
            }
            (_, Some(host)) => host.wait(most),
            _ => {}
        }
    }
}

impl From<File> for Pipe {
    fn from(file: File) -> Pipe {
        Pipe::Real(file)
    }
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Pipe::Real(file) => file.read(into),
            Pipe::Simulated(process, stream) => process.read(*stream, into),
        }
    }
}

/// Reads what there is in a pipe that does not block, a pipe full at most (1 MiB, pipe(7)): who writes without end is not to hold up
/// the reader. False at the end of the stream.
pub fn drain(from: &mut impl Read, into: &mut Vec<u8>) -> bool {
    let (mut buffer, enough) = ([0u8; 16 << 10], into.len() + (1 << 20));
    while into.len() < enough {
        match from.read(&mut buffer) {
            Ok(0) => return false,
            Ok(n) => into.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

/// Makes reads of a pipe return at once.
pub fn set_nonblocking(fd: RawFd) {
    // SAFETY: flags of an open descriptor of ours.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK);
    }
}

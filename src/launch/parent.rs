//! The parent that starts a supervisor again when a signal ends it, seen from the supervisor: the ranks train on meanwhile, and the next
//! supervisor takes over their srun ([`Parent::holds`], [`Srun::Adopted`]). The parent itself is `parent/program.rs`.

use crate::host::{drain, set_nonblocking, HostProcess};
use crate::text::whole_lines;
use crate::threads::lock;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// The parent's program, from build.rs.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/herd-parent"));
/// Descriptors of the pipes of standard error and of ends, reading and writing end of each, and of this program.
const PLACES: &str = "HERD_PARENT";
/// How often the supervisor was started again, and by which signal the last one was ended.
const STARTS: &str = "HERD_PARENT_STARTS";
/// What srun may write while no supervisor reads.
const ROOM: i32 = 1 << 20;

/// The parent's end of a supervisor.
pub struct Parent {
    said: File,
    say: OwnedFd,
    ends: Arc<Mutex<Ends>>,
    /// How often it has started a supervisor again.
    pub starts: u32,
    /// The signal that ended the last one.
    pub ended_by: i32,
}

/// Processes of earlier supervisors that have ended, by pid.
pub struct Ends {
    pipe: File,
    part: Vec<u8>,
    codes: HashMap<u32, i32>,
}

impl Ends {
    /// The exit code of process `pid`, 128 + signal where one ended it; `None` while it runs.
    fn of(&mut self, pid: u32) -> Option<i32> {
        drain(&mut self.pipe, &mut self.part);
        let pair = |line: &str| -> Option<(u32, i32)> {
            let (pid, code) = line.split_once(' ')?;
            Some((pid.parse().ok()?, code.parse().ok()?))
        };
        self.codes.extend(String::from_utf8_lossy(&whole_lines(&mut self.part)).lines().filter_map(pair));
        self.codes.get(&pid).copied()
    }
}

impl Parent {
    /// The parent of this supervisor. A process without one becomes the parent, and starts this command anew under it.
    ///
    /// # Errors
    /// Why there is none, in words: a host may forbid to run programs from memory. A supervisor does without.
    pub fn of_this() -> std::result::Result<Parent, String> {
        match std::env::var(PLACES) {
            Ok(places) => Parent::from(&places),
            Err(_) => Err(become_one().to_string()),
        }
    }

    fn from(places: &str) -> std::result::Result<Parent, String> {
        let numbers: Vec<RawFd> = places.split(',').filter_map(|n| n.parse().ok()).collect();
        let told = std::env::var(STARTS).unwrap_or_default();
        let (starts, ended_by) = told.split_once(',').unwrap_or_default();
        // SAFETY: no other thread has been started yet. What this process starts is not to think that it has a parent.
        unsafe {
            std::env::remove_var(PLACES);
            std::env::remove_var(STARTS);
        }
        let [said, say, ends, tell, program] = numbers[..] else { return Err(format!("{PLACES} is {places:?}")) };
        for fd in [said, say, ends, tell, program] {
            // SAFETY: a flag of a descriptor.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
                return Err(format!("{PLACES} is {places:?}, and {fd} is no open file"));
            }
        }
        // SAFETY: the parent left these open for this process, and nobody else here knows them.
        let (said, say, ends) =
            unsafe { (File::from_raw_fd(said), OwnedFd::from_raw_fd(say), File::from_raw_fd(ends)) };
        Ok(Parent {
            said,
            say,
            ends: Arc::new(Mutex::new(Ends { pipe: ends, part: Vec::new(), codes: HashMap::new() })),
            starts: starts.parse().unwrap_or(0),
            ended_by: ended_by.parse().unwrap_or(0),
        })
    }

    /// From here on the signals of the parent come through: it starts a supervisor with them held back.
    pub fn may_signal(&self) {
        // SAFETY: a set of this function; the only thread there is.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGINT, libc::SIGUSR1, libc::SIGTERM] {
                libc::sigaddset(&mut set, signal);
            }
            libc::sigprocmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
    }

    /// What a step's srun is to have as standard error, and where it is read. What is left of an earlier one goes to the log.
    pub fn stderr(&self) -> std::io::Result<(Stdio, File)> {
        let (mut reader, mut left) = (self.reader()?, Vec::new());
        drain(&mut reader, &mut left);
        let _ = std::io::stderr().write_all(&left);
        Ok((self.say.try_clone()?.into(), reader))
    }

    /// Where standard error of the step that runs is read.
    pub fn reader(&self) -> std::io::Result<File> {
        self.said.try_clone()
    }

    /// The srun that an earlier supervisor has started as process `pid`, running or ended; `None` where the parent knows no such
    /// process.
    pub fn holds(&self, pid: u32) -> Option<Srun> {
        let ended = lock(&self.ends).of(pid).is_some();
        (ended || children().contains(&pid)).then(|| Srun::Adopted { pid, ends: self.ends.clone() })
    }

    /// Ends what earlier supervisors have left, but `kept`: the srun of a standby, of a roll call, of a step that nobody wrote down.
    pub fn end_others(&self, kept: Option<u32>) {
        let others = children().into_iter().filter(|pid| Some(*pid) != kept && *pid != std::process::id());
        for pid in others.filter(|pid| name(*pid).is_some_and(|n| n == "srun")) {
            // SAFETY: a signal to a child of the parent, which alone could take it off the process table.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        }
    }
}

/// A step's srun.
pub enum Srun {
    /// Started by this process.
    Child(HostProcess),
    /// Started by an earlier supervisor, now a child of the parent.
    Adopted { pid: u32, ends: Arc<Mutex<Ends>> },
}

impl Srun {
    pub fn pid(&self) -> u32 {
        match self {
            Srun::Child(child) => child.id(),
            Srun::Adopted { pid, .. } => *pid,
        }
    }

    /// Its exit code, 128 + signal where one ended it; `None` while it runs.
    pub fn ended(&mut self) -> Option<i32> {
        match self {
            Srun::Child(child) => child.ended(),
            Srun::Adopted { pid, ends } => lock(ends).of(*pid),
        }
    }

    /// Ends it at once, where it has not ended.
    pub fn end(&mut self) {
        if self.ended().is_some() {
            return;
        }
        match self {
            Srun::Child(child) => child.end(),
            Srun::Adopted { .. } => self.signal(libc::SIGKILL),
        }
    }

    /// Sends a signal to one that has not ended.
    pub fn signal(&self, signal: i32) {
        match self {
            Srun::Child(child) => child.signal(signal),
            // SAFETY: a signal to a process that nobody has waited for yet.
            Srun::Adopted { pid, .. } => _ = unsafe { libc::kill(*pid as i32, signal) },
        }
    }
}

/// Becomes the parent; comes back only where that is not possible.
fn become_one() -> std::io::Error {
    match prepared() {
        Ok((program, mut command)) => {
            let e = command.exec();
            drop(program);
            e
        }
        Err(e) => e,
    }
}

fn prepared() -> std::io::Result<(File, Command)> {
    let herd = std::env::current_exe()?;
    let fd = rustix::fs::memfd_create("herd-parent", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut program = File::from(fd);
    program.write_all(PROGRAM)?;
    let ((said, say), (ends, tell)) = (std::io::pipe()?, std::io::pipe()?);
    for fd in [said.as_raw_fd(), ends.as_raw_fd(), tell.as_raw_fd()] {
        set_nonblocking(fd);
    }
    // SAFETY: the size of a pipe of ours; a smaller one does too.
    unsafe { libc::fcntl(say.as_raw_fd(), libc::F_SETPIPE_SZ, ROOM) };
    // the file at that path may be replaced: the next supervisor is to be this very program
    let own = File::open("/proc/self/exe")?;
    let handed_on: [OwnedFd; 5] = [said.into(), say.into(), ends.into(), tell.into(), own.into()];
    for fd in &handed_on {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    }
    let places = handed_on.map(|fd| fd.into_raw_fd().to_string());
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_fd().as_raw_fd()));
    command.arg0("herd-parent").arg(herd).args(std::env::args_os().skip(1)).env(PLACES, places.join(","));
    Ok((program, command))
}

/// Processes whose parent is this process's, this one among them.
fn children() -> Vec<u32> {
    let parent = std::os::unix::process::parent_id();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(_, state, p)| p == parent && state != "Z")).collect()
}

fn name(pid: u32) -> Option<String> {
    stat(pid).map(|(name, _, _)| name)
}

/// Name, state and parent of a process (proc_pid_stat(5)).
fn stat(pid: u32) -> Option<(String, String, u32)> {
    let mut text = String::new();
    File::open(format!("/proc/{pid}/stat")).ok()?.read_to_string(&mut text).ok()?;
    let (head, rest) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = rest.split_whitespace();
    Some((name.to_string(), fields.next()?.to_string(), fields.next()?.parse().ok()?))
}

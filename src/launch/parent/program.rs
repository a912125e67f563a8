//! The parent of a supervisor: a program of its own, without libraries beyond the C library, that stays small and does next to nothing, so
//! that nothing ends it. `herd launch` becomes this program, which starts the supervisor, hands signals on to it, and starts it
//! again when a signal has ended it: out of memory, SIGKILL, a crash. Meanwhile it holds both ends of two pipes, so that the
//! ranks' srun neither loses what it writes nor dies of it, and takes in the processes that the supervisor leaves behind
//! (prctl(2), PR_SET_CHILD_SUBREAPER), whose ends it reports.
//!
//! Built by build.rs, carried inside the herd binary, run from memory. Arguments: the supervisor's command line.
//! HERD_PARENT: the descriptors, as `READ,WRITE,READ,WRITE,PROGRAM`. The supervisor is told by HERD_PARENT_STARTS how often it was started
//! again, and what signal the last one was ended by.

use std::ffi::c_int;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// The few calls that std does not have. Signal sets are 1,024 bits in glibc and musl (signal(7)).
mod c {
    use std::ffi::{c_int, c_long, c_ulong, c_void};
    pub type SigSet = [c_ulong; 1024 / (8 * size_of::<c_ulong>())];
    extern "C" {
        pub fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int;
        pub fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
        pub fn kill(pid: c_int, signal: c_int) -> c_int;
        pub fn signal(signal: c_int, handler: *const c_void) -> *const c_void;
        pub fn sigemptyset(set: *mut SigSet) -> c_int;
        pub fn sigaddset(set: *mut SigSet, signal: c_int) -> c_int;
        pub fn sigprocmask(how: c_int, set: *const SigSet, old: *mut SigSet) -> c_int;
        pub fn write(fd: c_int, bytes: *const c_void, count: usize) -> c_long;
    }
    pub const PR_SET_NAME: c_int = 15;
    pub const PR_SET_CHILD_SUBREAPER: c_int = 36;
    pub const SIG_BLOCK: c_int = 0;
    pub const EINTR: i32 = 4;
}

/// Signals that mean something to a supervisor: SIGINT, SIGUSR1, SIGTERM.
const HANDED_ON: [c_int; 3] = [2, 10, 15];
/// A supervisor that lives for less counts as one that cannot live.
const SHORT: Duration = Duration::from_secs(20);
/// How many of those in a row are the end.
const TRIES: u32 = 3;

static CHILD: AtomicI32 = AtomicI32::new(0);
static WAITING: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

fn main() {
    let line: Vec<_> = std::env::args_os().skip(1).collect();
    let places: Vec<c_int> = std::env::var("HERD_PARENT").unwrap_or_default().split(',').flat_map(str::parse).collect();
    let (Some(path), &[_, _, _, ends, program]) = (line.first(), &places[..]) else {
        eprintln!("herd: the parent of a supervisor is started by `herd launch`");
        std::process::exit(2);
    };
    // SAFETY: two settings of this process by number, with a name that ends in a zero byte; handlers of two system calls at most.
    unsafe {
        c::prctl(c::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        c::prctl(c::PR_SET_NAME, c"herd-parent".as_ptr() as _, 0, 0, 0);
        for signal in HANDED_ON {
            c::signal(signal, hand_on as *const _);
        }
    }
    let (mut starts, mut ended_by, mut short) = (0, 0, 0);
    loop {
        let mut command = Command::new(format!("/proc/self/fd/{program}"));
        command.arg0(path).args(&line[1..]).env("HERD_PARENT_STARTS", format!("{starts},{ended_by}"));
        // what comes before the supervisor has its handlers waits for them; std clears the mask before this runs
        // SAFETY: system calls on memory of this function.
        unsafe { command.pre_exec(|| block(&HANDED_ON)) };
        let began = Instant::now();
        let child = match command.spawn() {
            Ok(child) => child.id() as c_int,
            Err(e) => {
                eprintln!("herd: error: the supervisor {} cannot be started: {e}", path.display());
                std::process::exit(1);
            }
        };
        CHILD.store(child, SeqCst);
        HANDED_ON
            .iter()
            .zip(&WAITING)
            .filter(|(_, w)| w.swap(false, SeqCst))
            .for_each(|(signal, _)| send(child, *signal));
        let status = wait_for(child, ends);
        CHILD.store(0, SeqCst);
        let signal = status & 0x7f;
        if signal == 0 {
            std::process::exit(status >> 8 & 0xff);
        }
        short = if began.elapsed() < SHORT { short + 1 } else { 0 };
        if short == TRIES {
            eprintln!(
                "herd: error: the supervisor was ended by signal {signal}, as were the {} before it, each within {} s",
                TRIES - 1,
                SHORT.as_secs()
            );
            std::process::exit(128 + signal);
        }
        eprintln!("herd: the supervisor was ended by signal {signal}; it is started again, and the ranks train on");
        (starts, ended_by) = (starts + 1, signal);
    }
}

extern "C" fn hand_on(signal: c_int) {
    match CHILD.load(SeqCst) {
        0 => HANDED_ON.iter().zip(&WAITING).filter(|(s, _)| **s == signal).for_each(|(_, w)| w.store(true, SeqCst)),
        child => send(child, signal),
    }
}

fn send(child: c_int, signal: c_int) {
    // SAFETY: a signal to a child that nobody has waited for, or that has just ended.
    unsafe { c::kill(child, signal) };
}

fn block(signals: &[c_int]) -> std::io::Result<()> {
    let mut set: c::SigSet = [0; _];
    // SAFETY: system calls on a set of this function.
    unsafe {
        c::sigemptyset(&mut set);
        for signal in signals {
            c::sigaddset(&mut set, *signal);
        }
        c::sigprocmask(c::SIG_BLOCK, &set, std::ptr::null_mut());
    }
    Ok(())
}

/// The wait status of `child` (wait(2)). Ends of others, which were its children, go into the pipe `ends`: `PID CODE`.
fn wait_for(child: c_int, ends: c_int) -> c_int {
    loop {
        let mut status = 0;
        // SAFETY: the status is this function's.
        match unsafe { c::waitpid(-1, &mut status, 0) } {
            pid if pid == child => return status,
            pid if pid > 0 => {
                let code = if status & 0x7f == 0 { status >> 8 & 0xff } else { 128 + (status & 0x7f) };
                let line = format!("{pid} {code}\n");
                // SAFETY: the bytes of a string that lives; the pipe does not block, and what does not fit is lost.
                unsafe { c::write(ends, line.as_ptr().cast(), line.len()) };
            }
            _ if std::io::Error::last_os_error().raw_os_error() == Some(c::EINTR) => {}
            _ => std::process::exit(1),
        }
    }
}

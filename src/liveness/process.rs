//! Processes of this node that a rank watches through the kernel: their end is seen at once, not after missed probes.

use super::message::Message;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{pidfd_open, Pid, PidfdFlags};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Descriptors of the ranks that report to this one or that it reports to, where they are in its pid namespace.
pub(super) struct Processes {
    space: u64,
    seen: BTreeMap<usize, Option<OwnedFd>>,
}

impl Processes {
    pub(super) fn new() -> Processes {
        Processes { space: space().unwrap_or(0), seen: BTreeMap::new() }
    }

    /// The namespace in which this process's id means something, 0 if unknown.
    pub(super) fn space(&self) -> u64 {
        self.space
    }

    /// Takes a process id from a message of its owner.
    pub(super) fn learn(&mut self, from: usize, message: &Message) {
        let (pid, space) = match message {
            Message::Probe(p) if p.rank as usize == from => (p.pid, p.pid_space),
            Message::Pong { pid, pid_space } => (*pid, *pid_space),
            _ => return,
        };
        if space == 0 || space != self.space || pid == 0 || self.seen.contains_key(&from) {
            return;
        }
        let fd = Pid::from_raw(pid as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        self.seen.insert(from, fd);
    }

    /// Ranks whose process has ended since the last call.
    pub(super) fn ended(&mut self) -> Vec<usize> {
        let ranks: Vec<usize> = self.seen.iter().filter(|(_, fd)| fd.is_some()).map(|(r, _)| *r).collect();
        if ranks.is_empty() {
            return ranks;
        }
        let mut fds: Vec<PollFd> = self.seen.values().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_err() {
            return Vec::new();
        }
        let over: Vec<bool> = fds.iter().map(|fd| fd.revents().contains(PollFlags::IN)).collect();
        let out: Vec<usize> = ranks.into_iter().zip(over).filter(|(_, over)| *over).map(|(r, _)| r).collect();
        out.iter().for_each(|r| _ = self.seen.insert(*r, None));
        out
    }
}

/// Tells pid namespaces apart, also those of different hosts: the first one of a host has the same inode everywhere
/// (PROC_PID_INIT_INO in include/linux/proc_ns.h), so the number of this boot (proc(5), random/boot_id) is in it. `None` where either
/// is not known: then no process is watched through the kernel.
fn space() -> Option<u64> {
    let inode = std::fs::metadata("/proc/self/ns/pid").ok()?.ino();
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").ok().filter(|id| !id.is_empty())?;
    Some(xxh3_64_with_seed(&boot, inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_end_of_a_process_is_seen_once() {
        let mut all = Processes::new();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pong = |pid, pid_space| Message::Pong { pid, pid_space };
        all.learn(3, &pong(child.id(), all.space() ^ 1));
        assert!(all.seen.is_empty(), "another namespace");
        // the inode alone, which the first namespace of every host has, is none
        let inode = std::fs::metadata("/proc/self/ns/pid").unwrap().ino();
        all.learn(3, &pong(child.id(), inode));
        assert!(all.seen.is_empty() && all.space() != 0, "another host");
        all.learn(3, &pong(child.id(), all.space()));
        all.learn(4, &pong(std::process::id(), all.space()));
        assert!(all.ended().is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(all.ended(), [3]);
        assert!(all.ended().is_empty());
    }
}

//! Who ended first. Where Slurm and PMIx end a step for the death of one rank, all others are killed 10 ms to 0.3 s later, and srun may
//! tell of them in any order. So the leaders of neighbouring nodes hold a connection, which the kernel closes with the process at
//! its end; the neighbour writes down whose it was, before it is killed itself. Of a node's other ranks its leader sees the end.
//!
//! One connection to the next node and one from the node before, in a ring: two descriptors and three threads on each node's leader. Files are
//! made in the folder that the supervisor has named for this start, [`SLOTS`] at most whatever the number of nodes: who makes the
//! first was first. Without that folder, or where a connection does not come about, nobody is a witness, and nothing else changes.

use super::roster::RosterNode;
use crate::exit_record::{self, Lost, SLOTS};
use crate::host;
use crate::threads;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::time::Duration;

/// To resolve a name, to connect, to hear the first word.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one who complains looks round first: far more than the kernel takes to close a dead process's connections and a clock of
/// the cluster is off, far less than a probe's interval.
const LOOK: Duration = Duration::from_millis(50);
/// The last word of a process that ends in order, or says itself why it does not.
static GOODBYE: u8 = b'.';

/// For the error of a thread that cannot be started.
const WHAT: &str = "a witness of neighbours' ends";

/// This process is leaving by its own word.
static LEAVING: AtomicBool = AtomicBool::new(false);
/// Descriptors of the connections, -1 where there is none; they live as long as the process.
static LINES: [AtomicI32; 2] = [AtomicI32::new(-1), AtomicI32::new(-1)];

/// What the leader of the next node needs to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invitation {
    pub port: u16,
    /// What it says first, so that nobody else is taken for it.
    pub word: u64,
}

/// A node's leader as a witness.
pub(super) struct Witness {
    folder: PathBuf,
    node: String,
    /// Ranks of this node.
    ranks: Vec<usize>,
}

impl Witness {
    /// With whom to invite. `None` on ranks that lead no node, on a single node, and where nobody reads what it would write.
    pub(super) fn start(all: &[RosterNode], rank: usize) -> Option<(Witness, usize, Invitation)> {
        let folder = PathBuf::from(std::env::var_os(exit_record::FOLDER)?);
        let mine = all.iter().position(|n| n.ranks[0] == rank).filter(|_| all.len() > 1)?;
        let next = &all[(mine + 1) % all.len()];
        let witness = Witness { folder, node: host::node(), ranks: all[mine].ranks.clone() };
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        let (port, word) = (listener.local_addr().ok()?.port(), RandomState::new().build_hasher().finish());
        let line = witness.line(0, &next.name);
        threads::start("herd-witness-in", WHAT, move || {
            if let Some(stream) = accept(&listener, word) {
                drop(listener);
                line.watch(stream);
            }
        })
        .ok()?;
        Some((witness, next.ranks[0], Invitation { port, word }))
    }

    /// Takes the invitation of the node before.
    pub(super) fn accept(&self, host: &str, invitation: Invitation) {
        let (line, host) = (self.line(1, host), host.to_string());
        let _ = threads::start("herd-witness-out", WHAT, move || {
            if let Some(stream) = connect(&host, invitation) {
                line.watch(stream);
            }
        });
    }

    /// The process of this rank has ended: of one on this node that is written down, beside, since storage may block.
    pub(super) fn ended(&self, rank: usize) {
        if self.ranks.contains(&rank) && !LEAVING.load(SeqCst) {
            let (folder, node) = (self.folder.clone(), self.node.clone());
            let _ = threads::start("herd-witness", WHAT, move || {
                Lost { node: node.clone(), by: node, time: jiff::Timestamp::now() }.write(&folder)
            });
        }
    }

    fn line(&self, number: usize, neighbour: &str) -> Line {
        Line { folder: self.folder.clone(), node: self.node.clone(), neighbour: neighbour.into(), number }
    }
}

/// Before a complaint of a peer: time in which the witnesses, this process among them, write down whose end they have seen.
/// Slurm ends the others only once who complains has left, so what was seen before the complaint is its cause, and what comes
/// later follows from it.
pub(super) fn look_round() {
    if std::env::var_os(exit_record::FOLDER).is_some() && !LEAVING.load(SeqCst) {
        std::thread::sleep(LOOK);
    }
}

/// Tells the neighbours that this process leaves by its own word: its end is no death. Waits for nothing.
pub(super) fn goodbye() {
    if LEAVING.swap(true, SeqCst) {
        return;
    }
    for fd in LINES.iter().map(|fd| fd.load(SeqCst)).filter(|fd| *fd >= 0) {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: one byte that lives; the descriptor stays open to the end of the process.
        unsafe { libc::send(fd, (&raw const GOODBYE).cast(), 1, flags) };
    }
}

/// A connection to a neighbour.
struct Line {
    folder: PathBuf,
    node: String,
    neighbour: String,
    number: usize,
}

impl Line {
    /// Until the other end is gone, or says goodbye.
    fn watch(self, mut stream: TcpStream) {
        let _ = stream.set_read_timeout(None);
        LINES[self.number].store(stream.as_raw_fd(), SeqCst);
        let mut byte = [0];
        let ended = loop {
            match stream.read(&mut byte) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(n) => break n == 0,
                Err(_) => break true,
            }
        };
        if ended && !LEAVING.load(SeqCst) {
            let lost = Lost { node: self.neighbour, by: self.node, time: jiff::Timestamp::now() };
            lost.write(&self.folder);
        }
        // the descriptor may be used by `goodbye` at any time
        std::mem::forget(stream);
    }
}

fn accept(listener: &TcpListener, word: u64) -> Option<TcpStream> {
    // strangers may knock; the neighbour comes once
    for _ in 0..SLOTS * 8 {
        let (mut stream, _) = listener.accept().ok()?;
        let mut said = [0; 8];
        let heard = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.read_exact(&mut said));
        if heard.is_ok() && u64::from_le_bytes(said) == word {
            return Some(stream);
        }
    }
    None
}

fn connect(host: &str, invitation: Invitation) -> Option<TcpStream> {
    let found = (host, invitation.port).to_socket_addrs().ok()?;
    let mut stream = found.filter(|a| a.is_ipv4()).find_map(|a| TcpStream::connect_timeout(&a, PATIENCE).ok())?;
    stream.set_nodelay(true).ok()?;
    stream.write_all(&invitation.word.to_le_bytes()).ok()?;
    Some(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let invitation = Invitation { port: listener.local_addr().unwrap().port(), word: 7 };
        let other = std::thread::spawn(move || {
            // a stranger first
            let mut stranger = TcpStream::connect((Ipv4Addr::LOCALHOST, invitation.port)).unwrap();
            stranger.write_all(&[0; 8]).unwrap();
            connect("localhost", invitation).unwrap()
        });
        let accepted = accept(&listener, 7).unwrap();
        (accepted, other.join().unwrap())
    }

    fn watch(number: usize, stream: TcpStream) -> (tempfile::TempDir, std::thread::JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let line = Line { folder: dir.path().into(), node: "me".into(), neighbour: "n1".into(), number };
        (dir, std::thread::spawn(move || line.watch(stream)))
    }

    /// One test, since a process leaves once.
    #[test]
    fn an_end_is_written_down_unless_it_was_said_before() {
        let (ours, theirs) = pair();
        let (dir, watching) = watch(0, ours);
        drop(theirs);
        watching.join().unwrap();
        let lost = Lost::all(dir.path());
        assert_eq!((lost.len(), &lost[0].node[..], &lost[0].by[..]), (1, "n1", "me"));

        let (ours, mut theirs) = pair();
        let (dir, watching) = watch(0, ours);
        theirs.write_all(&[GOODBYE]).unwrap();
        drop(theirs);
        watching.join().unwrap();
        assert!(Lost::all(dir.path()).is_empty());

        let (ours, mut theirs) = pair();
        let (dir, watching) = watch(1, ours);
        while LINES[1].load(SeqCst) < 0 {
            std::thread::yield_now();
        }
        goodbye();
        let mut byte = [0];
        assert_eq!((theirs.read(&mut byte).unwrap(), byte), (1, [GOODBYE]));
        drop(theirs);
        watching.join().unwrap();
        assert!(Lost::all(dir.path()).is_empty(), "who leaves is no witness");
    }
}

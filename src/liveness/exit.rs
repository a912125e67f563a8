//! How a rank leaves: hard, by a thread that waits for nothing that may hang.

use super::folder::VerdictFolder;
use super::verdict::{Evidence, Reason, Verdict};
use super::{witness, Phase, Progress};
use crate::attempt;
use crate::error::{Error, Exit};
use crate::events::{Events, RunEvent};
use crate::text::word;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a confession may take on a slow filesystem before the process leaves without it.
const CONFESSION: Duration = Duration::from_secs(2);

/// Ends the process: no destructor, no exit handler, no lock, no word to MPI.
///
/// The neighbours are told only where another's verdict is why: an end that nobody has spoken of is one that they are to see.
pub fn hard(code: i32) -> ! {
    if MYSELF.get().is_some_and(|me| me.condemned.load(SeqCst) != 0) {
        witness::goodbye();
    }
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(code) }
}

/// Counts down to a hard exit, in a thread that calls nothing but sleep and the clock.
pub(super) struct Reaper {
    origin: Instant,
    /// Milliseconds since `origin` at which the process ends, and with what.
    deadline: AtomicU64,
    code: AtomicI32,
    /// Last sign of life of the liveness thread, which may hang in MPI; 0 while nobody counts on it.
    beat: AtomicU64,
    patience: u64,
}

impl Reaper {
    /// `patience`: how long the liveness thread may be stuck.
    pub(super) fn start(patience: Duration) -> std::io::Result<Arc<Reaper>> {
        let reaper = Arc::new(Reaper {
            origin: Instant::now(),
            deadline: AtomicU64::new(u64::MAX),
            code: AtomicI32::new(Exit::Peer.code()),
            beat: AtomicU64::new(0),
            patience: patience.as_millis() as u64,
        });
        let own = reaper.clone();
        std::thread::Builder::new().name("herd-reaper".into()).spawn(move || own.run())?;
        Ok(reaper)
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_millis() as u64 + 1
    }

    fn run(&self) {
        // What this thread has seen itself of the liveness thread standing still: it may have been stopped too.
        let (mut last, mut still) = (0, 0);
        loop {
            std::thread::sleep(Duration::from_millis(50));
            if self.now() >= self.deadline.load(SeqCst) {
                hard(self.code.load(SeqCst));
            }
            let beat = self.beat.load(SeqCst);
            still = if beat != 0 && beat == last { still + 50 } else { 0 };
            last = beat;
            if still > self.patience {
                hard(Exit::Peer.code());
            }
        }
    }

    /// The process ends in `grace` at the latest. A second call changes nothing.
    pub(super) fn leave_in(&self, grace: Duration, code: i32) {
        self.code.store(code, SeqCst);
        let at = self.now() + grace.as_millis() as u64;
        let _ = self.deadline.compare_exchange(u64::MAX, at, SeqCst, SeqCst);
    }

    pub(super) fn beat(&self) {
        self.beat.store(self.now(), SeqCst);
    }

    /// Nobody counts on the liveness thread any more.
    pub(super) fn rest(&self) {
        self.beat.store(0, SeqCst);
    }
}

/// What a process needs to speak about its own end, from anywhere in it.
pub(super) struct Myself {
    pub run_dir: PathBuf,
    pub rank: usize,
    pub node: String,
    pub progress: Arc<Progress>,
    /// Node of each rank, where the ranks are watched.
    pub nodes: Vec<String>,
    /// Exit code of a verdict that has been reached here or heard of, 0 before: what follows is its consequence.
    pub condemned: AtomicI32,
}

pub(super) static MYSELF: OnceLock<Myself> = OnceLock::new();

/// Writes this process's own failure down as a verdict, waiting for a slow filesystem only so long. Does nothing before
/// the run directory is known, or when another rank's verdict is why the process ends.
pub fn confess(reason: Reason, fact: &str, exit: Exit) {
    take_leave(reason);
    let Some(me) = MYSELF.get() else { return };
    if me.condemned.load(SeqCst) != 0 || exit == Exit::Fenced {
        return;
    }
    let (step, phase) = me.progress.place();
    let ranks = if reason == Reason::PeerLost { Vec::new() } else { vec![me.rank] };
    let verdict = own(me, reason, ranks, fact, exit, step, phase);
    let _ = within(CONFESSION, me.run_dir.clone(), verdict, false);
}

/// [`confess`] for an error that ends this rank's run. One that all ranks share is written down by the first of them.
pub fn confess_error(e: &Error) {
    let reason = Reason::of(e.exit);
    take_leave(reason);
    let Some(me) = MYSELF.get() else { return };
    if e.exit == Exit::Fenced || me.condemned.load(SeqCst) != 0 || (e.agreed && me.rank != 0) {
        return;
    }
    // Ranks that see one of them in another collective than the rest accuse it; agreed errors come with their rank.
    let (reason, ranks) = match (e.agreed, e.rank) {
        (false, None) => return confess(reason, &e.to_string(), e.exit),
        (false, Some(rank)) => (Reason::SkippedCollective, vec![rank]),
        (true, rank) => (reason, rank.into_iter().collect::<Vec<_>>()),
    };
    let node = |r: &usize| e.host.clone().or_else(|| me.nodes.get(*r).cloned());
    let nodes = ranks.iter().filter_map(node).collect();
    let (step, phase) = me.progress.place();
    let verdict = own(me, reason, ranks, &e.to_string(), e.exit, step, phase);
    let _ = within(CONFESSION, me.run_dir.clone(), Verdict { nodes, ..verdict }, false);
}

/// The last word to the neighbours before this process says why it leaves.
fn take_leave(reason: Reason) {
    if reason == Reason::PeerLost {
        witness::look_round();
    }
    witness::goodbye();
}

fn own(me: &Myself, reason: Reason, ranks: Vec<usize>, fact: &str, exit: Exit, step: u64, phase: Phase) -> Verdict {
    Verdict {
        attempt: attempt::current(),
        accuser: me.rank,
        accuser_node: me.node.clone(),
        reason,
        nodes: ranks.iter().map(|_| me.node.clone()).collect(),
        ranks,
        whole_node: false,
        step,
        phase,
        exit: exit.code(),
        time: jiff::Timestamp::now(),
        fact: fact.split_whitespace().collect::<Vec<_>>().join(" "),
        evidence: Evidence { nodes_heard: 1, ..Default::default() },
    }
}

/// Writes a verdict in a thread that may hang on a dead filesystem; whether it was done within `limit`. `judged`: it is one of
/// the watch's, and no rank's word about itself.
pub(super) fn within(limit: Duration, run_dir: PathBuf, verdict: Verdict, judged: bool) -> bool {
    let (done, wait) = channel();
    let write = move || {
        let written = verdict.write(&run_dir);
        let _ = done.send(written.is_ok());
        // The event and the log repeat it for people; the file is what counts.
        let _ = writeln!(std::io::stderr(), "herd: verdict: {}", verdict.fact);
        // all ranks may complain at once, and all nodes would wait for one file
        let names_one = written.unwrap_or(false) && !verdict.ranks.is_empty();
        if judged || verdict.accuser == 0 || names_one {
            let _ = Events::open(&run_dir).and_then(|mut events| events.write(&event(&verdict)));
        }
    };
    match std::thread::Builder::new().name("herd-verdict".into()).spawn(write) {
        Ok(_) => wait.recv_timeout(limit).unwrap_or(false),
        Err(_) => false,
    }
}

fn event(v: &Verdict) -> RunEvent {
    RunEvent::Verdict {
        reason: word(&v.reason),
        ranks: v.ranks.clone(),
        nodes: v.nodes.clone(),
        step: v.step,
        phase: word(&v.phase),
        by: v.accuser,
        fact: v.fact.clone(),
    }
}

/// Whether this process must not go on: a newer attempt was started, or a verdict of its own attempt names it. `None`:
/// the filesystem did not say within `limit`.
pub(super) fn is_fenced(limit: Duration, run_dir: &Path, rank: usize) -> Option<bool> {
    let (done, wait) = channel();
    let dir = run_dir.to_path_buf();
    let look = move || {
        let newer = attempt::check(&dir).is_err_and(|e| e.exit == Exit::Fenced);
        let mut folder = VerdictFolder::new(&dir, attempt::current());
        let named = |v: &Verdict| v.accuser != rank && v.ranks.contains(&rank);
        let _ = done.send(newer || folder.all().is_ok_and(|all| all.iter().any(named)));
    };
    std::thread::Builder::new().name("herd-fence".into()).spawn(look).ok()?;
    wait.recv_timeout(limit).ok()
}

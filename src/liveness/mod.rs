//! Who is alive, who is stuck, and how a rank leaves when one of them is not.
//!
//! Pure parts: `roster` (who speaks to whom), `watch` (one rank's part, as a function of time and messages), `monitor` (the
//! judges), `stuck` and `slow` (what they judge; `groups`: who shares a wire), `verdict` (what comes of it), `tree` (how all hear
//! of it). `folder` has verdicts on disk, `progress` is what the training loop says, `thread` carries the messages, `process`
//! sees local processes end, `witness` a neighbour's, `exit` ends this one. `inject` has faults on order.

mod exit;
mod folder;
mod groups;
pub mod inject;
mod message;
mod monitor;
pub mod phase;
mod process;
mod progress;
mod roster;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod size_tests;
mod slow;
mod stuck;
mod thread;
mod tree;
pub mod verdict;
mod view;
mod watch;
mod witness;

pub use exit::{confess, confess_error, hard};
pub use folder::VerdictFolder;
pub use message::{Message, Probe};
pub use phase::Phase;
pub use progress::Progress;
pub use roster::Roster;
pub use verdict::{choose, Reason, Verdict};
pub use view::{ProbeTiming, WatchAction};
pub use watch::Watch;

use crate::attempt;
use crate::config::LivenessSection;
use crate::error::{Error, Exit, Result};
use crate::world::{Mailbox, World};
use exit::{Myself, Reaper, MYSELF};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// This rank's part in the watch over all ranks, from before the first step to after the last.
pub struct Liveness {
    turn: (usize, usize),
    progress: Arc<Progress>,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<Mailbox>>,
    stop: Arc<AtomicBool>,
}

impl Liveness {
    /// Agrees on the number of this attempt and starts the watch. Collective over `world`, whose run directory exists.
    /// `sizes`: of the axes.
    ///
    /// # Errors
    /// [`Exit::Fenced`] when a newer attempt has been started; [`Exit::Storage`]; [`Exit::Peer`].
    pub fn start(config: &LivenessSection, run_dir: &Path, sizes: [usize; 4], world: &World) -> Result<Liveness> {
        let claimed = world.agree(if world.rank() == 0 { attempt::claim(run_dir) } else { Ok(0) })?;
        let number = world.broadcast_bytes(claimed.to_le_bytes().to_vec(), 0)?;
        let number = u64::from_le_bytes(number.try_into().unwrap_or_default());
        attempt::adopt(number);
        let progress = Arc::new(Progress::new(world.meters()));
        let closing = Arc::new(AtomicBool::new(false));
        let places = if config.enabled { world.node_of_each()? } else { Vec::new() };
        let _ = MYSELF.set(Myself {
            run_dir: run_dir.to_path_buf(),
            rank: world.rank(),
            node: world.host().to_string(),
            progress: progress.clone(),
            nodes: places.iter().map(|(_, name)| name.clone()).collect(),
            condemned: AtomicI32::new(0),
        });
        if !config.enabled {
            return Ok(Liveness { turn: (0, 1), progress, closing, thread: None, stop: world.stop_flag() });
        }
        let roster = roster::Roster::new(number, world.rank(), sizes, &places);
        let own = &roster.node(world.rank()).ranks;
        let turn = (own.iter().position(|&r| r == world.rank()).unwrap_or(0), own.len());
        let timing = view::ProbeTiming::new(config);
        let failed = |e: std::io::Error| Error::new(Exit::Internal, format!("cannot start the liveness threads: {e}"));
        // A liveness thread that hangs in MPI is deaf to verdicts; the others hear nothing of it and have long decided.
        let patience = timing.limit() * 2 + Duration::from_secs(30);
        let reaper = world.agree(Reaper::start(patience).map_err(failed))?;
        let thread = thread::Thread {
            config: config.clone(),
            run_dir: run_dir.to_path_buf(),
            attempt: number,
            rank: world.rank(),
            deputy: roster.deputy() == Some(world.rank()),
            nodes: roster.nodes.clone(),
            witness: None,
            watch: watch::Watch::new(roster, timing, Duration::ZERO),
            post: Mailbox::open(world)?,
            processes: process::Processes::new(),
            progress: progress.clone(),
            meters: world.meters(),
            reaper,
            stop: world.stop_flag(),
            closing: closing.clone(),
        };
        let thread = std::thread::Builder::new().name("herd-liveness".into()).spawn(move || thread.run());
        let thread = Some(world.agree(thread.map_err(failed))?);
        Ok(Liveness { turn, progress, closing, thread, stop: world.stop_flag() })
    }

    /// This rank's number on its node, and how many ranks are there; 0 of 1 where nobody watches.
    pub fn turn(&self) -> (usize, usize) {
        self.turn
    }

    /// Where the training loop says what it does.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Ends the watch after the last step. Collective, and does not wait for an interval.
    pub fn finish(mut self, world: &World) -> Result<()> {
        world.barrier()?;
        let post = self.close();
        world.barrier()?;
        // Nobody sends any more: what has come is taken in, so that MPI ends in order.
        if let Some(mut post) = post {
            while post.receive()?.is_some() {}
        }
        Ok(())
    }

    /// If a verdict has been reached, the process ends here: no word to MPI, which would take down ranks that have not heard
    /// it yet.
    pub fn leave_if_condemned(&self) {
        let code = MYSELF.get().map_or(0, |me| me.condemned.load(SeqCst));
        if code == 0 || self.thread.is_none() {
            return;
        }
        // The flag is set when the word has been passed on; the reaper is behind us.
        while !self.stop.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        hard(code);
    }

    /// Ends the thread, unless it hangs in MPI.
    fn close(&mut self) -> Option<Mailbox> {
        witness::goodbye();
        self.closing.store(true, SeqCst);
        let thread = self.thread.take()?;
        thread.thread().unpark();
        let began = Instant::now();
        while !thread.is_finished() && began.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(Duration::from_millis(1));
        }
        match thread.is_finished() {
            true => thread.join().ok(),
            false => None,
        }
    }
}

impl Drop for Liveness {
    fn drop(&mut self) {
        self.close();
    }
}

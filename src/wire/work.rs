//! A collective or message under way.

use crate::error::{Error, Exit, Result};
use crate::world::meters::WireMeter;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a collective or message took and how much of that the caller had to wait for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Time the wire was busy with it. For a message: the copy, where a lane carries it (see docs/wires.md), else the
    /// time since it was started. NCCL: zero, see [`crate::wire::Wire::measured`].
    pub busy: Duration,
    /// Time [`Work::wait`] blocked: the exposed part.
    pub exposed: Duration,
}

/// Handle of something started on a wire. Dropping it without waiting leaves the tensors in use.
#[must_use = "the tensors are in use until the work is waited for"]
pub struct Work {
    state: State,
    /// Who is told that the caller blocks, and on whose message.
    meter: Option<(WireMeter, Option<usize>)>,
}

/// A caller helps itself for this long before it sleeps: most messages that are waited for are about to come.
const HELP: Duration = Duration::from_micros(50);

/// The other side of a message that somebody waits for.
pub(super) trait Urgency: Send + Sync {
    /// Moves what can be moved, in the caller's thread.
    fn help(&self);
    /// Somebody goes to sleep until the thread has done it, or wakes.
    fn waiting(&self, more: bool);
}

/// Something under way whose end is more than a word from a thread. [`Later::wait`] returns the time it was busy.
pub(super) trait Later: Send {
    fn is_done(&mut self) -> bool;
    fn wait(self: Box<Self>) -> Result<Duration>;
}

enum State {
    Done(Result<Duration>),
    Pending(Receiver<Result<Duration>>, Option<Arc<dyn Urgency>>),
    Later(Box<dyn Later>),
}

impl Work {
    /// Already finished (an axis of one rank).
    pub fn ready() -> Self {
        Work { state: State::Done(Ok(Duration::ZERO)), meter: None }
    }

    /// Finished when the wire's thread sends the time it was busy.
    pub(super) fn pending(rx: Receiver<Result<Duration>>) -> Self {
        Work { state: State::Pending(rx, None), meter: None }
    }

    /// [`Work::pending`] on a thread that wants to know when somebody waits.
    pub(super) fn urgent(rx: Receiver<Result<Duration>>, who: Arc<dyn Urgency>) -> Self {
        Work { state: State::Pending(rx, Some(who)), meter: None }
    }

    pub(super) fn metered(mut self, meter: Option<WireMeter>, peer: Option<usize>) -> Self {
        self.meter = meter.map(|m| (m, peer));
        self
    }

    pub(super) fn later(what: Box<dyn Later>) -> Self {
        Work { state: State::Later(what), meter: None }
    }

    /// Whether [`Work::wait`] would return at once, with an error too, and the tensors are as the operation leaves them.
    pub fn is_done(&mut self) -> bool {
        let result = match &mut self.state {
            State::Done(_) => return true,
            State::Later(what) => return what.is_done(),
            State::Pending(rx, _) => rx.try_recv(),
        };
        self.state = State::Done(match result {
            Ok(result) => result,
            Err(TryRecvError::Disconnected) => Err(orphaned()),
            Err(TryRecvError::Empty) => return false,
        });
        true
    }

    /// Blocks until the tensors may be used again; on device memory carried by NCCL, until what is given to libtorch
    /// from here on is ordered behind the operation.
    pub fn wait(mut self) -> Result<Timing> {
        if let State::Done(result) = self.state {
            return Ok(Timing { busy: result?, exposed: Duration::ZERO });
        }
        let start = Instant::now();
        if let State::Pending(_, Some(who)) = &self.state {
            let who = who.clone();
            while start.elapsed() < HELP && !self.is_done() {
                who.help();
            }
        }
        let blocks = || match self.state {
            State::Done(result) => result,
            State::Later(what) => what.wait(),
            State::Pending(rx, None) => rx.recv().unwrap_or_else(|_| Err(orphaned())),
            State::Pending(rx, Some(who)) => {
                who.waiting(true);
                let result = rx.recv().unwrap_or_else(|_| Err(orphaned()));
                who.waiting(false);
                result
            }
        };
        let busy = match self.meter {
            Some((meter, peer)) => meter.blocked(peer, blocks),
            None => blocks(),
        }?;
        Ok(Timing { busy, exposed: start.elapsed() })
    }
}

pub(super) fn orphaned() -> Error {
    Error::new(Exit::Peer, "the communication thread ended before what was started on it did")
}

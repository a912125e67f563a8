//! A collective or message under way.

use super::meters::Meter;
use crate::error::{Error, Exit, Result};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

/// How long a collective or message took and how much of that the caller had to wait for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Time the wire was busy with it. For a message: the copy, where a lane carries it (see docs/wires.md), else the
    /// time since it was started.
    pub busy: Duration,
    /// Time [`Work::wait`] blocked: the exposed part.
    pub exposed: Duration,
}

/// Handle of something started on a wire. Dropping it without waiting leaves the tensors in use.
#[must_use = "the tensors are in use until the work is waited for"]
pub struct Work {
    state: State,
    /// Who is told that the caller blocks, and on whose message.
    meter: Option<(Meter, Option<usize>)>,
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

enum State {
    Done(Result<Duration>),
    Pending(Receiver<Result<Duration>>, Option<std::sync::Arc<dyn Urgency>>),
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
    pub(super) fn urgent(rx: Receiver<Result<Duration>>, who: std::sync::Arc<dyn Urgency>) -> Self {
        Work { state: State::Pending(rx, Some(who)), meter: None }
    }

    pub(super) fn metered(mut self, meter: Option<Meter>, peer: Option<usize>) -> Self {
        self.meter = meter.map(|m| (m, peer));
        self
    }

    /// Whether [`Work::wait`] would return at once, with an error too.
    pub fn is_done(&mut self) -> bool {
        if let State::Pending(rx, _) = &self.state {
            match rx.try_recv() {
                Ok(result) => self.state = State::Done(result),
                Err(TryRecvError::Disconnected) => self.state = State::Done(Err(orphaned())),
                Err(TryRecvError::Empty) => return false,
            }
        }
        true
    }

    /// Blocks until the tensors may be used again.
    pub fn wait(mut self) -> Result<Timing> {
        let start = Instant::now();
        if self.is_done() {
            if let State::Done(result) = self.state {
                return Ok(Timing { busy: result?, exposed: Duration::ZERO });
            }
        }
        if let State::Pending(_, Some(who)) = &self.state {
            let who = who.clone();
            while start.elapsed() < HELP && !self.is_done() {
                who.help();
            }
        }
        match self.state {
            State::Done(result) => Ok(Timing { busy: result?, exposed: start.elapsed() }),
            State::Pending(rx, who) => {
                if let Some(w) = &who {
                    w.waiting(true);
                }
                let receive = || rx.recv().unwrap_or_else(|_| Err(orphaned()));
                let result = match &self.meter {
                    Some((meter, peer)) => meter.blocked(*peer, receive),
                    None => receive(),
                };
                if let Some(w) = &who {
                    w.waiting(false);
                }
                Ok(Timing { busy: result?, exposed: start.elapsed() })
            }
        }
    }
}

fn orphaned() -> Error {
    Error::new(Exit::Peer, "the communication thread ended before what was started on it did")
}

//! A collective under way.

use crate::error::{Error, Exit, Result};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// How long a collective took and how much of that the caller had to wait for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Time the wire was busy with it.
    pub busy: Duration,
    /// Time [`Work::wait`] blocked: the exposed part.
    pub exposed: Duration,
}

/// Handle of a started collective. Dropping it without waiting leaves the tensors in use.
#[must_use = "the tensors are in use until the work is waited for"]
pub struct Work {
    done: State,
}

enum State {
    Ready,
    Pending(Receiver<Result<Duration>>),
}

impl Work {
    /// Already finished (an axis of one rank).
    pub fn ready() -> Self {
        Work { done: State::Ready }
    }

    /// Finished when the wire's thread sends the time it was busy.
    pub(super) fn pending(rx: Receiver<Result<Duration>>) -> Self {
        Work { done: State::Pending(rx) }
    }

    /// Blocks until the tensors may be used again.
    pub fn wait(self) -> Result<Timing> {
        match self.done {
            State::Ready => Ok(Timing::default()),
            State::Pending(rx) => {
                let start = Instant::now();
                let busy = rx.recv().map_err(|_| {
                    Error::new(Exit::Peer, "the communication thread ended before the collective did")
                })??;
                Ok(Timing { busy, exposed: start.elapsed() })
            }
        }
    }
}

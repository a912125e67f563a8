//! How far a long piece of work is: the work counts bytes, or pieces with a name, whoever shows them to a person reads the count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts the bytes of a work that goes through one or more phases. Clones share the count; a default one is read by nobody.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    phase: Mutex<Phase>,
    done: Arc<AtomicU64>,
    tokens: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct Phase {
    number: u64,
    what: String,
    pieces: Option<&'static str>,
    total: Option<u64>,
}

/// A meter read at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Phases begun so far; at 0 there is nothing to show.
    pub phase: u64,
    /// What is done, as the command that does it is called: `verify`.
    pub what: String,
    /// What is counted, in the plural: `requests`. `None`: bytes.
    pub pieces: Option<&'static str>,
    /// Bytes (or pieces) of this phase.
    pub done: u64,
    /// Of this phase in all; `None` where nobody knows.
    pub total: Option<u64>,
    /// Tokens made of them, where tokens are made.
    pub tokens: u64,
}

impl Meter {
    /// A new phase of `total` bytes begins, or one of an unknown number.
    pub fn begin(&self, what: impl Into<String>, total: impl Into<Option<u64>>) {
        self.start(what.into(), None, total.into());
    }

    /// A new phase of `total` pieces begins, which are called so.
    pub fn begin_pieces(&self, what: impl Into<String>, pieces: &'static str, total: u64) {
        self.start(what.into(), Some(pieces), Some(total));
    }

    fn start(&self, what: String, pieces: Option<&'static str>, total: Option<u64>) {
        let mut phase = self.lock();
        *phase = Phase { number: phase.number + 1, what, pieces, total };
        self.0.done.store(0, Ordering::Relaxed);
    }

    /// `bytes` more are done.
    pub fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// This phase has turned out to have `bytes` more.
    pub fn more(&self, bytes: u64) {
        let mut phase = self.lock();
        phase.total = phase.total.map(|t| t + bytes);
    }

    /// Bytes done in this phase.
    pub fn done(&self) -> u64 {
        self.0.done.load(Ordering::Relaxed)
    }

    /// The count itself, for what counts bytes as they pass.
    pub fn counter(&self) -> Arc<AtomicU64> {
        self.0.done.clone()
    }

    /// So many tokens have been made.
    pub fn tokens(&self, all: u64) {
        self.0.tokens.store(all, Ordering::Relaxed);
    }

    /// The phase and its counts at this moment.
    pub fn read(&self) -> Reading {
        let phase = self.lock();
        let (done, tokens) = (self.done(), self.0.tokens.load(Ordering::Relaxed));
        Reading {
            phase: phase.number,
            what: phase.what.clone(),
            pieces: phase.pieces,
            done,
            total: phase.total,
            tokens,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.0.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_starts_from_nothing_and_may_grow() {
        let meter = Meter::default();
        assert_eq!(meter.read(), Reading::default());
        let work = meter.clone();
        work.begin("verify", 10);
        work.add(4);
        work.more(5);
        let reading =
            |phase, what: &str, done, total| Reading { phase, what: what.into(), done, total, ..Reading::default() };
        assert_eq!(meter.read(), reading(1, "verify", 4, Some(15)));
        work.begin("tokenize", None);
        work.counter().fetch_add(7, Ordering::Relaxed);
        work.more(5);
        assert_eq!(meter.read(), reading(2, "tokenize", 7, None));
    }
}

//! How many texts are accepted at a time: what is beyond is turned away at once, with the time to come back, and nothing grows.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;

/// The bound, and whether anybody is let in at all.
pub struct Gate {
    most: usize,
    inside: AtomicUsize,
    closed: AtomicBool,
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shut {
    /// More texts than may be inside at all.
    TooMany,
    /// Not now.
    Full,
    /// The server is stopping.
    Closed,
}

/// So many texts are inside until it is dropped.
pub struct Pass {
    gate: Arc<Gate>,
    texts: usize,
}

impl Gate {
    /// `most` texts.
    pub fn new(most: usize) -> Arc<Gate> {
        Arc::new(Gate { most, inside: AtomicUsize::new(0), closed: AtomicBool::new(false) })
    }

    /// Lets in a request of so many texts, all or none of them; they are inside until the pass is dropped.
    pub fn enter(self: &Arc<Gate>, texts: usize) -> Result<Pass, Shut> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Shut::Closed);
        }
        if texts > self.most {
            return Err(Shut::TooMany);
        }
        let fits = |inside: usize| (inside + texts <= self.most).then_some(inside + texts);
        match self.inside.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits) {
            Ok(_) => Ok(Pass { gate: self.clone(), texts }),
            Err(_) => Err(Shut::Full),
        }
    }

    /// A request of an earlier server, which was let in there.
    pub fn let_in(self: &Arc<Gate>, texts: usize) -> Pass {
        self.inside.fetch_add(texts, Ordering::AcqRel);
        Pass { gate: self.clone(), texts }
    }

    /// From now on [`Gate::enter`] lets nobody in; those inside stay.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether [`Gate::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Texts that are inside; with those of an earlier server they can be above [`Gate::most`].
    pub fn inside(&self) -> usize {
        self.inside.load(Ordering::Acquire)
    }

    /// Texts that may be inside at a time.
    pub fn most(&self) -> usize {
        self.most
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.inside.fetch_sub(self.texts, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_bound_are_inside_and_none_once_it_is_closed() {
        let gate = Gate::new(5);
        let first = gate.enter(3).ok().unwrap();
        assert_eq!(gate.enter(3).err(), Some(Shut::Full));
        assert_eq!(gate.enter(6).err(), Some(Shut::TooMany));
        let second = gate.enter(2).ok();
        assert_eq!(gate.inside(), 5);
        drop((first, second));
        assert_eq!(gate.inside(), 0);
        gate.close();
        assert_eq!(gate.enter(1).err(), Some(Shut::Closed));
    }
}

//! Working memory of a thread, kept between calls so that its pages stay.

use super::dot::Line;
use std::cell::RefCell;

/// Calls `f` with this thread's `lines` lines of scratch, of any content. Not to be nested.
pub fn with<R>(lines: usize, f: impl FnOnce(&mut [Line]) -> R) -> R {
    thread_local!(static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) });
    SCRATCH.with_borrow_mut(|s| {
        if s.len() < lines {
            s.resize(lines, Line::ZERO);
        }
        f(&mut s[..lines])
    })
}

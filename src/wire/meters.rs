//! What others may know about the wires of a process while they run: how many collectives each has entered and left, and
//! whether somebody waits for it. Liveness reads it; drills act through it.

use crate::topology::Axis;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// Wires of a process: one per axis, and the control plane.
pub const WIRES: usize = Axis::ALL.len() + 1;
/// Index of the control plane.
pub const CONTROL: usize = Axis::ALL.len();

/// The wires of one process, in the order of [`Axis::ALL`], then the control plane.
#[derive(Debug, Default)]
pub struct Meters {
    entered: [AtomicU32; WIRES],
    left: [AtomicU32; WIRES],
    /// Wire that a caller waits for, from 1, and in the upper half the rank on it whose message it waits for, from 1.
    blocked: AtomicU64,
    /// The next collective is left out.
    skip: AtomicBool,
    /// The next collective is entered this many milliseconds late.
    stall_ms: AtomicU64,
}

/// What [`Meters`] said at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    pub entered: [u32; WIRES],
    pub left: [u32; WIRES],
    pub blocked_wire: u32,
    pub blocked_peer: u32,
}

impl Meters {
    pub fn read(&self) -> Reading {
        let blocked = self.blocked.load(Ordering::Relaxed);
        Reading {
            entered: std::array::from_fn(|i| self.entered[i].load(Ordering::Relaxed)),
            left: std::array::from_fn(|i| self.left[i].load(Ordering::Relaxed)),
            blocked_wire: blocked as u32,
            blocked_peer: (blocked >> 32) as u32,
        }
    }

    /// A drill: the next collective of this process is not made.
    pub fn skip_next(&self) {
        self.skip.store(true, Ordering::Relaxed);
    }

    /// A drill: the next collective of this process starts that much later.
    pub fn stall_next(&self, by: Duration) {
        self.stall_ms.store(by.as_millis() as u64, Ordering::Relaxed);
    }
}

/// One wire's part of the meters.
#[derive(Clone)]
pub(super) struct Meter {
    all: Arc<Meters>,
    wire: usize,
}

impl Meter {
    pub(super) fn new(all: Arc<Meters>, wire: usize) -> Meter {
        Meter { all, wire }
    }

    /// Runs a collective; a drill may have it delayed (until `stop`) or left out.
    pub(super) fn collective<T>(&self, stop: &AtomicBool, skipped: impl FnOnce() -> T, run: impl FnOnce() -> T) -> T {
        let all = &self.all;
        if all.skip.load(Ordering::Relaxed) && all.skip.swap(false, Ordering::Relaxed) {
            return skipped();
        }
        if all.stall_ms.load(Ordering::Relaxed) > 0 {
            let mut left = all.stall_ms.swap(0, Ordering::Relaxed);
            while left > 0 && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(left.min(10)));
                left = left.saturating_sub(10);
            }
        }
        all.entered[self.wire].fetch_add(1, Ordering::Relaxed);
        let out = run();
        all.left[self.wire].fetch_add(1, Ordering::Relaxed);
        out
    }

    /// A caller waits for this wire: for a collective, or for the message of the rank with this coordinate.
    pub(super) fn blocked<T>(&self, peer: Option<usize>, wait: impl FnOnce() -> T) -> T {
        let mark = (self.wire as u64 + 1) | peer.map_or(0, |p| p as u64 + 1) << 32;
        self.all.blocked.store(mark, Ordering::Relaxed);
        let out = wait();
        self.all.blocked.store(0, Ordering::Relaxed);
        out
    }
}

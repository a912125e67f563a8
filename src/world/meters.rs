//! What others may know about the wires of a process while they run: how many collectives each has entered and left, and
//! whether somebody waits for it. Liveness reads it; drills act through it.

use crate::threads::lock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Wires that are metered: the control plane, then the others in the order in which they are made, which is the same on
/// all ranks. Further ones work without a meter.
pub const WIRES: usize = 12;
/// Index of the control plane.
const CONTROL: usize = 0;

/// The wires of one process.
#[derive(Debug, Default)]
pub struct CollectiveCounters {
    entered: [AtomicU32; WIRES],
    left: [AtomicU32; WIRES],
    /// Wires whose collectives run on a device: who waits for one waits in a read of the device, which nobody tells.
    on_device: [AtomicBool; WIRES],
    /// Wire that a caller waits for, from 1, and in the upper half the rank on it whose message it waits for, from 1.
    blocked: AtomicU64,
    /// Nanoseconds that callers have waited.
    waited: AtomicU64,
    /// The next collective of tensors is left out.
    skip: AtomicBool,
    /// The next collective is entered this many milliseconds late.
    stall_ms: AtomicU64,
    tables: Mutex<Vec<WireMembers>>,
}

/// Which ranks share a wire.
#[derive(Clone, Debug, PartialEq)]
pub struct WireMembers {
    /// Axis of the wire, or `group`.
    pub name: String,
    /// By world rank: what tells its group from others, and its rank on the wire.
    pub places: Vec<(u64, usize)>,
}

/// What [`CollectiveCounters`] said at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MeterReading {
    /// Collectives entered so far, by wire; the control plane is wire 0.
    pub entered: [u32; WIRES],
    /// Collectives left so far, by wire.
    pub left: [u32; WIRES],
    /// Wire that a caller waits for, from 1; 0 when nobody waits, or for a wire without a meter.
    pub blocked_wire: u32,
    /// Rank on that wire whose message is waited for, from 1; 0 for a collective.
    pub blocked_peer: u32,
}

impl CollectiveCounters {
    /// For a world of `size` ranks.
    pub(crate) fn new(size: usize) -> CollectiveCounters {
        let control = WireMembers { name: "control".into(), places: (0..size).map(|r| (0, r)).collect() };
        CollectiveCounters { tables: Mutex::new(vec![control]), ..Default::default() }
    }

    /// The counters now. They are read one after another, while collectives go on.
    pub fn read(&self) -> MeterReading {
        let count =
            |all: &[AtomicU32; WIRES]| -> [u32; WIRES] { std::array::from_fn(|i| all[i].load(Ordering::Relaxed)) };
        let (entered, left) = (count(&self.entered), count(&self.left));
        let is_open = |&i: &usize| self.on_device[i].load(Ordering::Relaxed) && entered[i] != left[i];
        let blocked = match self.blocked.load(Ordering::Relaxed) {
            0 => (0..WIRES).find(is_open).map_or(0, |i| i as u64 + 1),
            told => told,
        };
        MeterReading { entered, left, blocked_wire: blocked as u32, blocked_peer: (blocked >> 32) as u32 }
    }

    /// Time that callers have spent waiting for wires.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Ordering::Relaxed))
    }

    /// The wires made since the first `known` of them.
    pub fn tables(&self, known: usize) -> Vec<WireMembers> {
        lock(&self.tables).get(known..).unwrap_or_default().to_vec()
    }

    /// A drill: the next collective of tensors in this process is not made.
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
pub(crate) struct WireMeter {
    all: Arc<CollectiveCounters>,
    wire: usize,
    /// World rank of this process.
    rank: usize,
}

impl WireMeter {
    pub(crate) fn control(all: &Arc<CollectiveCounters>, rank: usize) -> WireMeter {
        WireMeter { all: all.clone(), wire: CONTROL, rank }
    }

    /// The next wire, which all ranks make now.
    pub(crate) fn next(all: &Arc<CollectiveCounters>, rank: usize, table: WireMembers) -> WireMeter {
        let mut tables = lock(&all.tables);
        let wire = tables.len();
        if wire < WIRES {
            tables.push(table);
        }
        WireMeter { all: all.clone(), wire, rank }
    }

    /// World rank of a rank of this wire.
    pub(crate) fn world_rank(&self, place: usize) -> Option<usize> {
        let tables = lock(&self.all.tables);
        let places = &tables.get(self.wire)?.places;
        let group = places.get(self.rank)?.0;
        places.iter().position(|&p| p == (group, place))
    }

    /// Runs a collective of tensors, unless a drill has it left out.
    pub(crate) fn tensors<T>(&self, stop: &AtomicBool, skipped: impl FnOnce() -> T, run: impl FnOnce() -> T) -> T {
        let skip = &self.all.skip;
        match skip.load(Ordering::Relaxed) && skip.swap(false, Ordering::Relaxed) {
            true => skipped(),
            false => self.collective(stop, run),
        }
    }

    /// Runs a collective; a drill may have it delayed, until `stop` at the latest.
    pub(crate) fn collective<T>(&self, stop: &AtomicBool, run: impl FnOnce() -> T) -> T {
        let count = |all: &[AtomicU32; WIRES]| all.get(self.wire).map(|n| n.fetch_add(1, Ordering::Relaxed));
        let mut left = match self.all.stall_ms.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.all.stall_ms.swap(0, Ordering::Relaxed),
        };
        while left > 0 && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(left.min(10)));
            left = left.saturating_sub(10);
        }
        count(&self.all.entered);
        let out = run();
        count(&self.all.left);
        out
    }

    /// A collective begins on a device; [`WireMeter::ended`] when it is seen to have ended there.
    pub(crate) fn began(&self) {
        if let Some(n) = self.all.entered.get(self.wire) {
            self.all.on_device[self.wire].store(true, Ordering::Relaxed);
            n.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn ended(&self) {
        if let Some(n) = self.all.left.get(self.wire) {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A caller waits for this wire: for a collective, or for the message of the rank with this number on it.
    pub(crate) fn blocked<T>(&self, peer: Option<usize>, wait: impl FnOnce() -> T) -> T {
        let wire = if self.wire < WIRES { self.wire as u64 + 1 } else { 0 };
        self.all.blocked.store(wire | peer.map_or(0, |p| p as u64 + 1) << 32, Ordering::Relaxed);
        let began = Instant::now();
        let out = wait();
        self.all.waited.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.all.blocked.store(0, Ordering::Relaxed);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_skips_or_delays_one_collective() {
        let all = Arc::new(CollectiveCounters::new(2));
        let meter = WireMeter::next(&all, 1, WireMembers { name: "data".into(), places: vec![(0, 0), (0, 1)] });
        let stop = AtomicBool::new(false);
        let run = || meter.tensors(&stop, || 0, || meter.all.read().entered[1]);
        assert_eq!(run(), 1);
        all.skip_next();
        assert_eq!([run(), run()], [0, 2]);
        all.stall_next(Duration::from_millis(50));
        let began = std::time::Instant::now();
        assert_eq!([run(), run()], [3, 4]);
        assert!(began.elapsed() >= Duration::from_millis(50));
        all.stall_next(Duration::from_secs(60));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(run(), 5);
        let r = all.read();
        assert_eq!((r.entered[1], r.left[1], r.blocked_wire), (5, 5, 0));
        let inside = meter.blocked(Some(1), || all.read());
        assert_eq!((inside.blocked_wire, inside.blocked_peer), (2, 2));
        assert_eq!(all.tables(1)[0].name, "data");
        // a collective of a device that is under way is waited for, whatever call of the host waits
        meter.began();
        assert_eq!(all.read().blocked_wire, 2);
        meter.ended();
        assert_eq!(all.read().blocked_wire, 0);
        assert_eq!([meter.world_rank(0), meter.world_rank(2)], [Some(0), None]);
    }
}

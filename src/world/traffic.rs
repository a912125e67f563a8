//! What this process has sent through MPI by itself: messages, bytes and to how many ranks. What MPI does inside, when it starts,
//! makes communicators or ends, is not seen here.

pub use crate::events::Traffic;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::OnceLock;

/// What messages are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Small host messages between all ranks, and copies of snapshots.
    Control,
    /// Probes and verdicts.
    Liveness,
    /// Tensors, between the ranks of an axis.
    Tensors,
}

const PURPOSES: usize = 3;

#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    bytes: AtomicU64,
    /// A bit for each world rank.
    peers: OnceLock<Vec<AtomicU64>>,
}

static COUNTS: [Counts; PURPOSES] =
    [const { Counts { messages: AtomicU64::new(0), bytes: AtomicU64::new(0), peers: OnceLock::new() } }; PURPOSES];

/// `bytes` go to `peer` of a world of `size`.
pub(super) fn sent(purpose: Purpose, peer: usize, size: usize, bytes: usize) {
    let c = &COUNTS[purpose as usize];
    c.messages.fetch_add(1, Relaxed);
    c.bytes.fetch_add(bytes as u64, Relaxed);
    let peers = c.peers.get_or_init(|| (0..size.div_ceil(64)).map(|_| AtomicU64::new(0)).collect());
    if let Some(word) = peers.get(peer / 64) {
        word.fetch_or(1 << (peer % 64), Relaxed);
    }
}

impl Traffic {
    fn of(purpose: Purpose) -> Traffic {
        let c = &COUNTS[purpose as usize];
        let bits = |words: &Vec<AtomicU64>| words.iter().map(|w| w.load(Relaxed).count_ones() as u64).sum();
        Traffic {
            messages: c.messages.load(Relaxed),
            bytes: c.bytes.load(Relaxed),
            peers: c.peers.get().map_or(0, bits),
        }
    }

    /// Of the control plane, since the process began.
    pub fn control() -> Traffic {
        Traffic::of(Purpose::Control)
    }

    /// Of liveness, since the process began.
    pub fn liveness() -> Traffic {
        Traffic::of(Purpose::Liveness)
    }

    /// Of tensors over MPI, since the process began; what shared memory or NCCL carries is not in it.
    pub fn tensors() -> Traffic {
        Traffic::of(Purpose::Tensors)
    }
}

//! What communication costs, added up over many collectives.

use super::{Timing, Work};
use crate::error::Result;
use std::ops::AddAssign;
use std::time::Duration;
use tch::Tensor;

/// What communication of one step, or of a part of it, cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommTiming {
    /// Time the wires were busy, waiting for slower ranks included.
    pub busy: Duration,
    /// Part of it that the step waited for.
    pub exposed: Duration,
    /// Part of it that computation covered: `busy - exposed`.
    pub hidden: Duration,
    /// Bytes of the tensors that were reduced or gathered, on this rank.
    pub bytes: u64,
    /// Groups of collectives.
    pub buckets: usize,
}

impl CommTiming {
    /// Waits for `work` and counts its time.
    pub fn wait(&mut self, work: Work) -> Result<()> {
        self.took(work.wait()?);
        Ok(())
    }

    /// Counts the time of something that has been waited for.
    pub fn took(&mut self, t: Timing) {
        self.busy += t.busy;
        self.exposed += t.exposed;
        self.hidden = self.busy.saturating_sub(self.exposed);
    }

    /// Counts the bytes of a tensor that is reduced, or that is gathered whole.
    pub fn moved(&mut self, t: &Tensor) {
        self.bytes += (t.numel() * t.kind().elt_size_in_bytes()) as u64;
    }
}

impl AddAssign for CommTiming {
    fn add_assign(&mut self, o: CommTiming) {
        self.busy += o.busy;
        self.exposed += o.exposed;
        self.hidden += o.hidden;
        self.bytes += o.bytes;
        self.buckets += o.buckets;
    }
}

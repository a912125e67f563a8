//! The data axis: replicas that each see a part of the batch, and what their communication costs.
//!
//! Each replica's loss is scaled by 1 / tokens of the global batch, so sums of gradients are all there is to do. ZeroOptions much
//! of its state a replica keeps is the business of `zero`; what ranks of other axes owe each other is summed by `groups`.

use crate::error::Result;
use crate::model::axes::Spent;
use crate::wire::Work;
use std::ops::AddAssign;
use std::time::Duration;
use tch::Tensor;

/// What communication of one step cost.
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
    pub(super) fn wait(&mut self, work: Work) -> Result<()> {
        let t = work.wait()?;
        self.busy += t.busy;
        self.exposed += t.exposed;
        self.hidden = self.busy.saturating_sub(self.exposed);
        Ok(())
    }

    /// Counts the bytes of a tensor that is reduced, or that is gathered whole.
    pub(super) fn moved(&mut self, t: &Tensor) {
        self.bytes += (t.numel() * t.kind().elt_size_in_bytes()) as u64;
    }
}

/// What the layers' own collectives cost.
impl From<Spent> for CommTiming {
    fn from(s: Spent) -> CommTiming {
        let (busy, exposed) = (s.timing.busy, s.timing.exposed);
        let hidden = busy.saturating_sub(exposed);
        CommTiming { busy, exposed, hidden, bytes: s.bytes, buckets: s.collectives as usize }
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

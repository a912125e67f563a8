//! Frozen units: filled once, when a run starts, and only read from then on.

use super::Sharded;
use crate::error::Result;
use crate::layout::Param;
use crate::model::Owned;
use tch::{Kind, Tensor};

/// Elements that are read at a time: whole runs of a quantized unit.
const BATCH: usize = 16 << 20;

impl Sharded {
    /// The parts of frozen units that this rank keeps, in forward order; their gradients are empty. Quantized units are left out.
    pub fn frozen(&self) -> Vec<Owned> {
        let none = || Tensor::empty([0], (Kind::Float, self.how.device));
        let plain = |&i: &usize| self.layouts[i].frozen && self.weights.quantized(i).is_none();
        (0..self.layouts.len()).filter(plain).map(|i| self.part(i, none())).collect()
    }

    /// Fills what this rank keeps, over the replicas each element once: `read` gets local elements of a parameter from a position on.
    /// [`Sharded::share_frozen`] must follow, on every rank.
    pub fn fill_frozen(&mut self, mut read: impl FnMut(&Param, usize, &mut [f32]) -> Result<()>) -> Result<()> {
        let mut values = Vec::new();
        for i in 0..self.layouts.len() {
            let layout = self.layouts[i].clone();
            if !layout.frozen {
                continue;
            }
            let own = self.how.sharding.range(&layout).start;
            for (p, range) in layout.pieces(&self.how.sharding.counted(&layout)) {
                for start in range.clone().step_by(BATCH) {
                    values.resize(BATCH.min(range.end - start), 0f32);
                    read(p, start, &mut values)?;
                    self.weights.set(i, own, p, start, &values);
                }
            }
        }
        Ok(())
    }

    /// Lets every rank have what all have filled of frozen units; those that are trained are nobody's yet. Collective over the replicas.
    pub fn share_frozen(&mut self) -> Result<()> {
        let across = self.groups.across.clone();
        for o in self.frozen().iter().filter(|_| across.size() > 1) {
            across.all_gather(&o.part(&o.param, &o.counted), &o.param)?.wait()?;
        }
        for i in 0..self.layouts.len() {
            if let Some(unit) = self.weights.quantized(i) {
                unit.share(&self.groups, &self.how.sharding)?;
            }
        }
        self.publish_of(true)
    }
}

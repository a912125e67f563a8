//! What the replicas exchange, and how much of it the passes cover (`parallel::zero`).
//!
//! - stages 0 and 1: gradients once a step, in buckets that leave while the last backward pass goes on;
//! - stages 2 and 3: a unit's gradients each micro-batch, while the next unit is computed;
//! - stages 1 and 2: parameters of every unit after the update, while the next step's first forward pass goes on;
//! - stage 3: a unit's parameters before each pass, while the one before it is computed.

use super::collectives::{Fabric, RankGroup};
use super::hardware::{DeviceKind, Hardware};
use super::shape::StepShape;

/// Bytes of a summed gradient.
const FP32: f64 = 4.0;

/// The groups of one rank, and how it exchanges.
pub struct ReplicaTraffic<'a> {
    shape: &'a StepShape,
    fabric: &'a Fabric,
    shard: RankGroup,
    across: RankGroup,
    /// Under stage 3 the ranks of a copy map one window.
    window: bool,
}

/// One unit's way through a pass: how long it computes and what it exchanges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnitPass {
    pub computes: f64,
    pub parameters: f64,
}

impl<'a> ReplicaTraffic<'a> {
    pub fn new(shape: &'a StepShape, fabric: &'a Fabric, hardware: &Hardware) -> ReplicaTraffic<'a> {
        let shard = fabric.replicas(shape, shape.shard);
        ReplicaTraffic {
            shard,
            across: fabric.across(shape, shape.shard),
            window: hardware.device == DeviceKind::Cpu && shard.near == shard.size,
            shape,
            fabric,
        }
    }

    /// Sum of the gradients of so many parameters: inside a copy, then its part across copies.
    pub fn reduce(&self, parameters: f64) -> f64 {
        let bytes = parameters * FP32;
        self.fabric.gather(self.shard, bytes) + self.fabric.all_reduce(self.across, bytes / self.shape.shard as f64)
    }

    /// Parameters of a copy from their owners.
    pub fn fetch(&self, parameters: f64) -> f64 {
        self.fabric.gather(self.shard, parameters * self.shape.elem())
    }

    /// Before each pass of a unit.
    pub fn fetch_each_pass(&self, parameters: f64) -> f64 {
        if self.shape.zero == 3 && !self.window {
            self.fetch(parameters)
        } else {
            0.0
        }
    }

    /// After each micro-batch's backward pass of a unit.
    pub fn reduce_each_pass(&self, parameters: f64) -> f64 {
        if self.shape.zero >= 2 {
            self.reduce(parameters)
        } else {
            0.0
        }
    }

    /// What is left to wait for after the last backward pass over `units`, last unit first; (waited, hidden).
    pub fn tail(&self, units: &[UnitPass]) -> (f64, f64) {
        if self.shape.replicas() == 1 {
            return (0.0, 0.0);
        }
        let passes: f64 = units.iter().map(|u| u.computes).sum();
        let buckets = match self.shape.zero {
            // Under way since the pass of each unit; the last one's is left.
            2 | 3 => units.last().map(|u| vec![(passes, u.parameters)]).unwrap_or_default(),
            _ => self.buckets(units),
        };
        let took: f64 = buckets.iter().map(|&(_, parameters)| self.reduce(parameters)).sum();
        let start = |ready: f64| if self.shape.overlap { ready } else { passes };
        let end = buckets.iter().fold(0.0f64, |end, &(ready, p)| end.max(start(ready)) + self.reduce(p));
        let waited = (end - passes).max(0.0);
        (waited, (took - waited).max(0.0))
    }

    /// (when it is complete, parameters) of each bucket of the last backward pass.
    fn buckets(&self, units: &[UnitPass]) -> Vec<(f64, f64)> {
        let (mut out, mut now, mut held) = (Vec::new(), 0.0, 0.0);
        for u in units {
            now += u.computes;
            held += u.parameters;
            if held * FP32 >= self.shape.bucket_bytes {
                out.push((now, held));
                held = 0.0;
            }
        }
        if held > 0.0 {
            out.push((now, held));
        }
        out
    }

    /// The wait for parameters in the first forward pass over `units`, first unit first; (waited, hidden).
    pub fn publish(&self, units: &[UnitPass]) -> (f64, f64) {
        match self.shape.zero {
            0 => (0.0, 0.0),
            3 => (if self.window { self.fabric.all_reduce(self.shard, FP32) } else { 0.0 }, 0.0),
            _ => {
                let (mut wire, mut rank) = (0.0, 0.0f64);
                let all: f64 = units.iter().map(|u| self.fetch(u.parameters)).sum();
                for u in units {
                    wire += self.fetch(u.parameters);
                    rank = rank.max(if self.shape.overlap { wire } else { all }) + u.computes;
                }
                let waited = (rank - units.iter().map(|u| u.computes).sum::<f64>()).max(0.0);
                (waited, (all - waited).max(0.0))
            }
        }
    }
}

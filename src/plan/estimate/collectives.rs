//! Time of the collectives of each axis: rings, with a term for bytes and one for the hops (α–β; Thakur, Rabenseifner and
//! Gropp, IJHPCA 19:49, 2005).
//!
//! A ring over r ranks that collects or scatters V bytes in all moves V·(r−1)/r through every rank and makes r−1 hops. Of a
//! group that spans nodes with m ranks on each, all m adapters carry the ring between two nodes (NCCL's rails), so that
//! links between nodes bound it at m times one adapter.

use super::hardware::Hardware;
use super::shape::StepShape;
use crate::topology::Axis;

/// Ranks that exchange, as far as links matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankGroup {
    /// All ranks of the group.
    pub size: usize,
    /// Of them, those in one node or NVLink domain.
    pub near: usize,
}

/// Links of a machine, in bytes a second and seconds, as they are reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fabric {
    inside: f64,
    between: f64,
    hop_inside: f64,
    hop_between: f64,
    /// Devices that links inside reach.
    domain: usize,
}

impl Fabric {
    /// `local`: ranks on a node.
    pub fn new(h: &Hardware, local: usize) -> Fabric {
        Fabric {
            inside: h.inside.gb_s * 1e9 * h.efficiency.inside,
            between: h.between.gb_s * 1e9 * h.efficiency.between,
            hop_inside: h.inside.latency_us * 1e-6,
            hop_between: h.between.latency_us * 1e-6,
            domain: h.domain.unwrap_or(local).max(local).max(1),
        }
    }

    /// Of `size` ranks that lie `stride` ranks apart.
    fn group(&self, size: usize, stride: usize) -> RankGroup {
        RankGroup { size, near: (self.domain / stride).clamp(1, size.max(1)) }
    }

    /// Of an axis.
    pub fn axis(&self, shape: &StepShape, axis: Axis) -> RankGroup {
        let (t, c, p) = (shape.tensor, shape.context, shape.pipeline);
        match axis {
            Axis::Tensor => self.group(t, 1),
            Axis::Context => self.group(c, t),
            Axis::Pipeline => self.group(p, t * c),
            Axis::Data => self.group(shape.data, t * c * p),
        }
    }

    /// The first `size` replicas: context is their inner axis.
    pub fn replicas(&self, shape: &StepShape, size: usize) -> RankGroup {
        let context = self.axis(shape, Axis::Context);
        let inner = context.near.min(size);
        let outer = match inner == shape.context {
            true => self.group(size.div_ceil(shape.context), shape.tensor * shape.context * shape.pipeline).near,
            false => 1,
        };
        RankGroup { size, near: (inner * outer).min(size) }
    }

    /// The ranks that keep the same part of `copies` copies, each of `size` replicas.
    pub fn across(&self, shape: &StepShape, size: usize) -> RankGroup {
        if size == 1 {
            return self.replicas(shape, shape.replicas());
        }
        let copies = shape.replicas() / size;
        let stride = match size < shape.context {
            true => shape.tensor * size,
            false => shape.tensor * size * shape.pipeline,
        };
        self.group(copies, stride)
    }

    /// Seconds of an all-gather or a reduce-scatter; `bytes` of the whole tensor.
    pub fn gather(&self, g: RankGroup, bytes: f64) -> f64 {
        if g.size <= 1 {
            return 0.0;
        }
        let r = g.size as f64;
        bytes * (r - 1.0) / r / self.rate(g) + self.hops(g)
    }

    /// Seconds of an all-reduce: a ring there and back, or a tree where hops would take longer than bytes.
    pub fn all_reduce(&self, g: RankGroup, bytes: f64) -> f64 {
        if g.size <= 1 {
            return 0.0;
        }
        let tree = 2.0 * bytes / self.rate(g) + 2.0 * (g.size as f64).log2().ceil() * self.hop(g);
        tree.min(2.0 * self.gather(g, bytes))
    }

    /// Seconds of a message to the next of the group.
    pub fn send(&self, g: RankGroup, bytes: f64) -> f64 {
        match g.near < g.size {
            true => bytes / self.between + self.hop_between,
            false => bytes / self.inside + self.hop_inside,
        }
    }

    fn rate(&self, g: RankGroup) -> f64 {
        match g.near < g.size {
            true => self.inside.min(g.near as f64 * self.between),
            false => self.inside,
        }
    }

    fn hop(&self, g: RankGroup) -> f64 {
        if g.near < g.size {
            self.hop_between
        } else {
            self.hop_inside
        }
    }

    /// Of a whole ring.
    fn hops(&self, g: RankGroup) -> f64 {
        let nodes = g.size.div_ceil(g.near);
        match nodes {
            1 => (g.size - 1) as f64 * self.hop_inside,
            _ => (nodes - 1) as f64 * self.hop_between + (g.size - nodes) as f64 * self.hop_inside,
        }
    }
}

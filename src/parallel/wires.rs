//! Every communicator of one rank, made once, in one order.

use crate::error::Result;
use crate::model::Axes;
use crate::topology::{Axis, Topology};
use crate::wire::{Wire, World};
use std::sync::Arc;

/// The wires of one rank.
#[derive(Clone)]
pub struct Wires {
    /// Those that cut layers.
    pub axes: Axes,
    /// The stages: activations forward, their gradients back.
    pub pipeline: Arc<dyn Wire>,
}

impl Wires {
    /// Collective over the world.
    pub fn new(world: &World, topo: &Topology) -> Result<Wires> {
        let axis = |axis| -> Result<Arc<dyn Wire>> { Ok(world.wire(topo, axis)?.into()) };
        let axes = Axes::new(axis(Axis::Tensor)?, axis(Axis::Context)?);
        Ok(Wires { axes, pipeline: axis(Axis::Pipeline)? })
    }
}

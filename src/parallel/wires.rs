//! Every communicator of one rank, made once, in one order.

use super::Groups;
use crate::error::Result;
use crate::model::Axes;
use crate::plan::Plan;
use crate::topology::Axis;
use crate::wire::MakeWires;
use crate::wire::Wire;
use crate::world::World;
use std::sync::Arc;

/// The wires of one rank.
#[derive(Clone)]
pub struct Wires {
    /// Those that cut layers.
    pub axes: Axes,
    /// The stages: activations forward, their gradients back.
    pub pipeline: Arc<dyn Wire>,
    /// Gradients and parameters.
    pub groups: Groups,
}

impl Wires {
    /// Collective over the world.
    pub fn new(plan: &Plan, world: &World) -> Result<Wires> {
        let axis = |axis| -> Result<Arc<dyn Wire>> { Ok(world.wire(&plan.topology, axis)?.into()) };
        let axes = Axes::new(axis(Axis::Tensor)?, axis(Axis::Context)?);
        let pipeline = axis(Axis::Pipeline)?;
        Ok(Wires { groups: Groups::new(plan, world, &axes)?, axes, pipeline })
    }
}

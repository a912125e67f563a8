//! Two ranks on a wire: each has a tensor, both end with the sum.
//!
//!     mpirun -n 2 target/release/examples/1_wire
//!
//! Rooms: `world` (which ranks there are), `topology` (who shares an axis), `wire` (tensors between them).

use herd::topology::{Axis, Topology};
use herd::wire::MakeWires;
use herd::world::{Op, World};
use tch::Tensor;

fn main() -> herd::error::Result<()> {
    let world = World::init()?;
    let topology = Topology::data(world.rank(), world.size());
    let wire = world.wire(&topology, Axis::Data)?;

    // A collective starts at once and is waited for later; what lies between is computed while bytes move.
    let mine = Tensor::from_slice(&[1.0f32, 2.0, 3.0]) * (world.rank() as f64 + 1.0);
    let work = wire.all_reduce(&mine, Op::Sum)?;
    let timing = work.wait()?;

    // Small host messages go over the control plane instead: no rank speaks to more than O(log n) others.
    let losses = world.all_reduce_f64(&[0.5 * world.rank() as f64], Op::Sum)?;
    if world.rank() == 0 {
        println!(
            "{} ranks: sum {:?} after {:?}, losses {losses:?}",
            world.size(),
            Vec::<f32>::try_from(&mine)?,
            timing.busy
        );
    }
    drop(wire);
    world.finalize()
}

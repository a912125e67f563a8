//! Making wires: the ranks of an axis, or of any group, over the backend that the run uses.

use crate::error::{Error, Exit, Result};
use crate::topology::{Axis, Topology};
use crate::wire::backend::{chosen, Backend};
use crate::wire::mpi::MpiWire;
use crate::wire::nccl::NcclWire;
use crate::wire::route::Route;
use crate::wire::staged::StagedWire;
use crate::wire::Wire;
use crate::world::meters::{WireMembers, WireMeter};
use crate::world::traffic::Purpose;
use crate::world::World;
use std::collections::{HashMap, HashSet};

/// Wires of a world.
pub trait MakeWires {
    /// The wire of one axis. Collective over the world; every rank asks for the same axes in the same order.
    fn wire(&self, topo: &Topology, axis: Axis) -> Result<Box<dyn Wire>>;
    /// [`MakeWires::wire`] of host tensors with a say in how bytes move.
    fn wire_by(&self, topo: &Topology, axis: Axis, via: Route) -> Result<Box<dyn Wire>>;
    /// A wire among `ranks` of this world, one of which is this one; its ranks are numbered in that order. Collective
    /// over the world, whose ranks all call it with their own group: the groups share out the world. Every call makes a
    /// wire of its own, with its own thread and message space, also for ranks that have one already.
    ///
    /// Errors: [`Exit::Internal`], on every rank, when the groups do not share out the world.
    fn wire_group(&self, ranks: &[usize]) -> Result<Box<dyn Wire>>;
    /// [`MakeWires::wire_group`] over a given backend, the same kind on every rank.
    fn wire_group_on(&self, ranks: &[usize], backend: Backend) -> Result<Box<dyn Wire>>;
}

impl MakeWires for World {
    fn wire(&self, topo: &Topology, axis: Axis) -> Result<Box<dyn Wire>> {
        on_axis(self, topo, axis, chosen())
    }

    fn wire_by(&self, topo: &Topology, axis: Axis, via: Route) -> Result<Box<dyn Wire>> {
        on_axis(self, topo, axis, Backend::Host(via))
    }

    fn wire_group(&self, ranks: &[usize]) -> Result<Box<dyn Wire>> {
        named(self, ranks, chosen(), "group")
    }

    fn wire_group_on(&self, ranks: &[usize], backend: Backend) -> Result<Box<dyn Wire>> {
        named(self, ranks, backend, "group")
    }
}

fn on_axis(world: &World, topo: &Topology, axis: Axis, backend: Backend) -> Result<Box<dyn Wire>> {
    if topo.world() != world.size() || topo.rank != world.rank() {
        return Err(Error::new(
            Exit::Internal,
            format!(
                "the topology {:?} of rank {} does not fit rank {} of a world of {}",
                topo.sizes,
                topo.rank,
                world.rank(),
                world.size()
            ),
        ));
    }
    if topo.size(axis) == 1 {
        return Ok(Box::new(MpiWire::solo()));
    }
    named(world, &topo.group(axis), backend, &format!("{axis:?}").to_lowercase())
}

fn named(world: &World, ranks: &[usize], backend: Backend, name: &str) -> Result<Box<dyn Wire>> {
    world.control(|| {
        let places = places(world, ranks)?;
        let meter = WireMeter::next(&world.meters, world.rank(), WireMembers { name: name.into(), places });
        if ranks.len() == 1 {
            return Ok(Box::new(MpiWire::solo()) as Box<dyn Wire>);
        }
        let comm = world.comm.of(ranks)?.for_use(Purpose::Tensors);
        let host = |via| MpiWire::new(comm, world.stop.clone(), via, meter);
        Ok(match backend {
            Backend::Host(via) => Box::new(host(via)?),
            Backend::Staged(device, via) => Box::new(StagedWire::new(host(via)?, device)?),
            Backend::Nccl(device) => Box::new(NcclWire::new(host(Route::Fastest)?, device, world.stop.clone())?),
        })
    })
}

/// Every rank's group and place in it. Collective over the world.
fn places(world: &World, ranks: &[usize]) -> Result<Vec<(u64, usize)>> {
    let place = ranks.iter().position(|&r| r == world.rank()).unwrap_or(usize::MAX);
    let hash = xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(ranks));
    let all = world.comm.all_gather(&[hash, ranks.len() as u64, place as u64], &world.stop)?;
    // Every rank sees the same facts, so all refuse or none does.
    let mut seen = HashSet::new();
    let mut members = HashMap::new();
    all.chunks(3).for_each(|f| *members.entry((f[0], f[1])).or_insert(0) += 1);
    if !all.chunks(3).all(|f| f[2] < f[1] && seen.insert((f[0], f[2]))) || members.iter().any(|((_, n), m)| n != m) {
        let fact = format!(
            "rank {} asked for a wire among {ranks:?}, but the groups of all ranks do not share out the world of {}",
            world.rank(),
            world.size()
        );
        return Err(Error::new(Exit::Internal, fact));
    }
    Ok(all.chunks(3).map(|f| (f[0], f[2] as usize)).collect())
}

//! Making wires: the ranks of an axis, or of any group, over the carrier that the run uses.

use super::ffi::Comm;
use super::meters::{Meter, Table};
use super::mpi::MpiWire;
use super::nccl::NcclWire;
use super::staged::StagedWire;
use super::world::Via;
use super::{Carrier, Wire, World};
use crate::error::{Error, Exit, Result};
use crate::topology::{Axis, Topology};
use std::collections::{HashMap, HashSet};

impl World {
    /// The wire of one axis. Collective over the world; every rank asks for the same axes in the same order.
    pub fn wire(&self, topo: &Topology, axis: Axis) -> Result<Box<dyn Wire>> {
        self.axis(topo, axis, self.carrier())
    }

    /// [`World::wire`] of host tensors with a say in how bytes move.
    pub fn wire_via(&self, topo: &Topology, axis: Axis, via: Via) -> Result<Box<dyn Wire>> {
        self.axis(topo, axis, Carrier::Host(via))
    }

    fn axis(&self, topo: &Topology, axis: Axis, carrier: Carrier) -> Result<Box<dyn Wire>> {
        if topo.world() != self.size() || topo.rank != self.rank() {
            return Err(Error::new(
                Exit::Internal,
                format!(
                    "the topology {:?} of rank {} does not fit rank {} of a world of {}",
                    topo.sizes,
                    topo.rank,
                    self.rank(),
                    self.size()
                ),
            ));
        }
        if topo.size(axis) == 1 {
            return Ok(Box::new(MpiWire::solo()));
        }
        self.named_wire(&topo.group(axis), carrier, &format!("{axis:?}").to_lowercase())
    }

    /// A wire among `ranks` of this world, one of which is this one; its ranks are numbered in that order. Collective
    /// over the world, whose ranks all call it with their own group: the groups share out the world. Every call makes a
    /// wire of its own, with its own thread and message space, also for ranks that have one already.
    ///
    /// Errors: [`Exit::Internal`], on every rank, when the groups do not share out the world.
    pub fn wire_group(&self, ranks: &[usize]) -> Result<Box<dyn Wire>> {
        self.wire_group_on(ranks, self.carrier())
    }

    /// [`World::wire_group`] over a given carrier, the same kind on every rank.
    pub fn wire_group_on(&self, ranks: &[usize], carrier: Carrier) -> Result<Box<dyn Wire>> {
        self.named_wire(ranks, carrier, "group")
    }

    fn named_wire(&self, ranks: &[usize], carrier: Carrier, name: &str) -> Result<Box<dyn Wire>> {
        self.control(|| {
            let (comm, places) = self.group(ranks)?;
            let meter = Meter::next(&self.meters, self.rank(), Table { name: name.into(), places });
            if ranks.len() == 1 {
                return Ok(Box::new(MpiWire::solo()) as Box<dyn Wire>);
            }
            let host = |via| MpiWire::new(comm, self.stop.clone(), via, meter);
            Ok(match carrier {
                Carrier::Host(via) => Box::new(host(via)?),
                Carrier::Staged(device, via) => Box::new(StagedWire::new(host(via)?, device)?),
                Carrier::Nccl(device) => Box::new(NcclWire::new(host(Via::Fastest)?, device, self.stop.clone())?),
            })
        })
    }

    /// The communicator of a group, and every rank's group and place in it. Collective over the world.
    fn group(&self, ranks: &[usize]) -> Result<(Comm, Vec<(u64, usize)>)> {
        let place = ranks.iter().position(|&r| r == self.rank()).unwrap_or(usize::MAX);
        let hash = xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(ranks));
        let all = self.comm.all_gather(&[hash, ranks.len() as u64, place as u64], &self.stop)?;
        // Every rank sees the same facts, so all refuse or none does.
        let mut seen = HashSet::new();
        let mut members = HashMap::new();
        all.chunks(3).for_each(|f| *members.entry((f[0], f[1])).or_insert(0) += 1);
        if !all.chunks(3).all(|f| f[2] < f[1] && seen.insert((f[0], f[2]))) || members.iter().any(|((_, n), m)| n != m)
        {
            let fact = format!(
                "rank {} asked for a wire among {ranks:?}, but the groups of all ranks do not share out the world of {}",
                self.rank(),
                self.size()
            );
            return Err(Error::new(Exit::Internal, fact));
        }
        let groups = all.chunks(3).map(|f| (f[0], f[2] as usize)).collect();
        Ok((self.comm.split(ranks[0], place)?, groups))
    }
}

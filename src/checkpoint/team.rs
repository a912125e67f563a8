//! The ranks that work on a checkpoint together: an MPI world, or this process alone (commands on one host).

use crate::error::Result;
use crate::world::World;

/// The ranks of a save or a restore. Every method but `rank` and `size` is collective.
#[derive(Clone, Copy)]
pub struct Team<'a>(pub Option<&'a World>);

impl Team<'_> {
    pub fn rank(&self) -> usize {
        self.0.map_or(0, World::rank)
    }

    pub fn size(&self) -> usize {
        self.0.map_or(1, World::size)
    }

    /// Returns when every rank is here.
    pub fn barrier(&self) -> Result<()> {
        self.0.map_or(Ok(()), World::barrier)
    }

    /// Any rank's error becomes everybody's.
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        match self.0 {
            Some(world) => world.agree(mine),
            None => mine,
        }
    }

    /// Every rank's bytes, in rank order, on rank 0; `None` elsewhere.
    pub fn gather(&self, mine: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>> {
        match self.0 {
            Some(world) => world.gather_bytes(&mine, 0),
            None => Ok(Some(vec![mine])),
        }
    }

    /// Every rank's bytes, in rank order, on every rank.
    pub fn all_gather(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        match self.0 {
            Some(world) => world.all_gather_bytes(&mine),
            None => Ok(vec![mine]),
        }
    }

    /// Rank 0's bytes on every rank.
    pub fn broadcast(&self, mine: Vec<u8>) -> Result<Vec<u8>> {
        match self.0 {
            Some(world) => world.broadcast_bytes(mine, 0),
            None => Ok(mine),
        }
    }
}

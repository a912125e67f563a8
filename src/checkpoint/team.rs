//! The ranks that work on a checkpoint together: an MPI world, or this process alone (commands on one host).

use crate::error::{Error, Exit, Result};
use crate::world::World;
use serde::de::DeserializeOwned;
use serde::Serialize;

/// The ranks of a save or a restore. Every method but `rank` and `size` is collective.
#[derive(Clone, Copy)]
pub struct Team<'a>(pub Option<&'a World>);

impl Team<'_> {
    /// Rank in the world, from 0; 0 for a process alone.
    pub fn rank(&self) -> usize {
        self.0.map_or(0, World::rank)
    }

    /// Ranks of the world; 1 for a process alone.
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

    /// What rank 0 alone finds out, on every rank: thousands of ranks asking for one file is a storm. `find` is called on
    /// rank 0 only; its error is everybody's.
    pub fn by_first<T: Serialize + DeserializeOwned>(&self, find: impl FnOnce() -> Result<T>) -> Result<T> {
        let pack = |found: T| {
            serde_json::to_vec(&found)
                .map_err(|e| Error::new(Exit::Internal, format!("rank 0 cannot tell what it found: {e}")))
        };
        let mine = if self.rank() == 0 { find().and_then(pack) } else { Ok(Vec::new()) };
        let bytes = self.broadcast(self.agree(mine)?)?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::new(Exit::Internal, format!("what rank 0 found out cannot be read: {e}")))
    }

    /// Rank 0's bytes on every rank.
    pub fn broadcast(&self, mine: Vec<u8>) -> Result<Vec<u8>> {
        match self.0 {
            Some(world) => world.broadcast_bytes(mine, 0),
            None => Ok(mine),
        }
    }
}

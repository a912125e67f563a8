//! The ranks that work on a checkpoint together: an MPI world, or this process alone (commands on one host).

use crate::error::Result;
use crate::wire::World;

/// The ranks of a save or a restore. Every method is collective.
#[derive(Clone, Copy)]
pub struct Team<'a>(pub Option<&'a World>);

impl Team<'_> {
    pub fn rank(&self) -> usize {
        0
    }

    pub fn size(&self) -> usize {
        1
    }

    /// Any rank's error becomes everybody's.
    pub fn agree<T>(&self, mine: Result<T>) -> Result<T> {
        mine
    }

    /// Every rank's bytes, in rank order, on rank 0.
    pub fn gather(&self, mine: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>> {
        Ok(Some(vec![mine]))
    }

    /// Every rank's bytes, in rank order, on every rank.
    pub fn all_gather(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        Ok(vec![mine])
    }

    /// Rank 0's bytes on every rank.
    pub fn broadcast(&self, mine: Vec<u8>) -> Result<Vec<u8>> {
        Ok(mine)
    }
}

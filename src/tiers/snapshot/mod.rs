//! Snapshots: the state of the newest steps in memory of the nodes, where it outlives the processes.
//!
//! - [`table`]: which slices a rank keeps, in summed blocks
//! - [`slot`]: one snapshot, whole or visibly not
//! - [`place`]: where they lie on a node, and the identity of a run
//! - [`nodes`]: who shares a node, who keeps whose second copy
//! - [`inventory`], [`image`]: what there is on all nodes; reading one of them, here or there
//! - [`partner`]: sending the second copy behind the steps; `near`: to a rank of the same node
//! - [`SlotRing`]: the slots of a rank, and which may be written next

pub mod image;
pub mod inventory;
pub(super) mod near;
pub mod nodes;
pub mod partner;
pub mod place;
pub mod slot;
pub mod table;

use crate::checkpoint::meta::Meta;
use crate::error::{Error, Exit, Result};
use slot::{Give, Owner, Slot};
use std::sync::Arc;

/// A rank's slots. A slot in use elsewhere (a save, a copy to the partner) is shared, and never written.
pub struct SlotRing {
    slots: Vec<Arc<Slot>>,
    /// The newest that every rank has whole, and its partner too where there is one: it stays until another is.
    safe: Option<usize>,
    owner: Owner,
    /// Whether `safe` was written by this start.
    ours: bool,
}

impl SlotRing {
    /// `safe`: a slot with something from before in it that must stay for now.
    pub fn new(slots: Vec<Slot>, safe: Option<usize>, owner: Owner) -> SlotRing {
        SlotRing { slots: slots.into_iter().map(Arc::new).collect(), safe, owner, ours: false }
    }

    /// A slot that may be written. The same on every rank whose saves and copies are under way alike.
    pub fn free(&self) -> Option<usize> {
        (0..self.slots.len()).find(|&i| Some(i) != self.safe && Arc::strong_count(&self.slots[i]) == 1)
    }

    /// Writes a snapshot into a free slot.
    pub fn write(&mut self, i: usize, meta: &Meta, give: Give) -> Result<()> {
        match Arc::get_mut(&mut self.slots[i]) {
            Some(slot) => slot.write(&self.owner, meta, give),
            None => Err(Error::new(Exit::Internal, format!("snapshot slot {i} is written while it is read"))),
        }
    }

    /// Slot `i`, counted from 0; it is not written while what this returns is held.
    pub fn get(&self, i: usize) -> Arc<Slot> {
        self.slots[i].clone()
    }

    /// `i` is whole everywhere.
    pub fn set_safe(&mut self, i: usize) {
        (self.safe, self.ours) = (Some(i), true);
    }

    /// Whether some snapshot of this start was whole everywhere.
    pub fn is_ours(&self) -> bool {
        self.ours
    }
}

/// Plain values from bytes that another rank or a file gave; a rest that is no whole value is left out.
pub fn collect<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(std::mem::size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

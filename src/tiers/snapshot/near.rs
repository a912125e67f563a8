//! The second copy between two ranks of one node: straight from the sender's slot. Messages between them would be copied by
//! MPI, and looked at after; here the bytes move and are summed in one pass.

use crate::checkpoint::disk::refused;
use crate::error::Result;
use crate::kernels::sum;
use crate::tiers::snapshot::place::SnapshotDir;
use crate::tiers::snapshot::slot::{Header, PAGE};
use crate::tiers::snapshot::table::Table;
use memmap2::{Mmap, MmapOptions};
use std::fs::File;
use std::mem::size_of;

/// The slots of another rank of this node.
pub struct LocalPartner {
    slots: Vec<Mmap>,
}

impl LocalPartner {
    /// Maps the `count` slots of rank `from`, which has opened them.
    pub fn open(place: &SnapshotDir, from: usize, count: usize) -> Result<LocalPartner> {
        let open = |i| {
            let path = place.own(from, i);
            let file = File::open(&path).map_err(refused(&path, "open"))?;
            // SAFETY: the owner keeps the file at its length and writes to no slot of which a copy is under way; nothing
            // else is ever read.
            unsafe { MmapOptions::new().populate().map(&file) }.map_err(refused(&path, "map"))
        };
        Ok(LocalPartner { slots: (0..count).map(open).collect::<Result<_>>()? })
    }

    /// Copies all but the header page of the snapshot with this header (`size_of::<Header>()` bytes) into `to`, and says what
    /// is wrong with it.
    pub fn copy(&self, header: &[u8], to: &mut [u8]) -> Option<String> {
        let Some(h) = Header::parse(header, to.len() as u64) else { return Some("its header is damaged".into()) };
        let same = |s: &&Mmap| s.len() == to.len() && s[..size_of::<Header>()] == *header;
        let Some(from) = self.slots.iter().find(same) else { return Some("no slot of its rank has its header".into()) };
        let data = h.data.range();
        to[PAGE..data.start].copy_from_slice(&from[PAGE..data.start]);
        let (meta, table, sums) = (&to[h.meta.range()], &to[h.table.range()], &to[h.sums.range()]);
        if !h.fits(meta, table, sums) {
            return Some("meta, table or sums have another checksum than its header says".into());
        }
        let Ok(table) = Table::parse(table.to_vec()) else { return Some("its table cannot be read".into()) };
        if table.data != data.len() || 8 * table.blocks != sums.len() {
            return Some("its parts do not fit its table".into());
        }
        let (head, body) = to.split_at_mut(data.start);
        let sums = &head[h.sums.range()];
        let blocks = (0..table.specs.len()).flat_map(|i| table.blocks_of(i));
        for (block, range) in blocks {
            let sum = sum::copy_xxh3(&from[data.start..][range.clone()], &mut body[range]);
            if sums[8 * block..][..8] != sum.to_ne_bytes() {
                return Some(format!("block {block} has another checksum"));
            }
        }
        None
    }
}

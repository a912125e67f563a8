//! Reading one snapshot, on this node or on another, block by block with its checksum.

use crate::checkpoint::meta::Meta;
use crate::checkpoint::slice::{copy_runs, runs, Slice};
use crate::error::{Error, Exit, Result};
use crate::kernels::sum;
use crate::tiers::snapshot::collect;
use crate::tiers::snapshot::inventory::SnapshotEntry;
use crate::tiers::snapshot::slot::SlotPart;
use crate::tiers::snapshot::table::Table;
use crate::world::{Request, World};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An opened snapshot: its description is whole, its data is checked as it is read.
pub struct SnapshotReader<'a> {
    /// What is read, and where it lies.
    pub entry: SnapshotEntry,
    /// What the snapshot says about its run and step.
    pub meta: Meta,
    /// The writer's slices and their places in the data.
    pub table: Table,
    sums: Vec<u64>,
    bytes: Bytes<'a>,
    /// The block that was read last.
    block: Option<(usize, Vec<u8>)>,
}

/// Where bytes of a snapshot come from.
enum Bytes<'a> {
    Here(File),
    /// The node of another rank, which serves.
    There(&'a World),
}

impl<'a> SnapshotReader<'a> {
    /// `file`: its path where it lies on this node; else it is read through `world`, in which its node serves.
    ///
    /// Errors: [`Exit::Checkpoint`] when it is damaged or gone, [`Exit::Peer`].
    pub fn open(entry: SnapshotEntry, file: Option<&Path>, world: Option<&'a World>) -> Result<SnapshotReader<'a>> {
        let bytes = match (file, world) {
            (Some(path), _) => {
                Bytes::Here(File::open(path).map_err(|e| Error::io(path, "read", &e, Exit::Checkpoint))?)
            }
            (None, Some(world)) => Bytes::There(world),
            (None, None) => return Err(Error::new(Exit::Internal, "a snapshot that lies nowhere")),
        };
        let h = &entry.header;
        let part = |p: SlotPart| bytes.read(&entry, p.at, p.len);
        let (meta, table, sums) = (part(h.meta)?, part(h.table)?, part(h.sums)?);
        if !h.fits(&meta, &table, &sums) {
            return Err(damaged(&entry, "its description has another checksum than its header says".into()));
        }
        let table = Table::parse(table)?;
        let meta = serde_json::from_slice(&meta).map_err(|e| damaged(&entry, format!("its description: {e}")))?;
        if 8 * table.blocks != sums.len() || table.data as u64 != h.data.len {
            return Err(damaged(&entry, "its parts do not fit its table".into()));
        }
        Ok(SnapshotReader { meta, sums: collect(&sums), table, bytes, block: None, entry })
    }

    /// Whether the bytes come from another node.
    pub fn is_remote(&self) -> bool {
        matches!(self.bytes, Bytes::There(_))
    }

    /// Copies what slice `i` holds of `want` to `out`; returns the ranges of `out` that it filled.
    pub fn read(&mut self, i: usize, want: &Slice, out: &mut [f32]) -> Result<Vec<(usize, usize)>> {
        let found = runs(&self.table.specs[i].span, want);
        copy_runs(&found, out, |from, part| self.elements(i, from, part))?;
        Ok(found.iter().map(|r| (r.to, r.to + r.len)).collect())
    }

    /// Elements of slice `i` from `from` on.
    pub fn elements(&mut self, i: usize, mut from: usize, mut out: &mut [f32]) -> Result<()> {
        while !out.is_empty() {
            let (number, range) = self.table.block_at(i, from);
            if self.block.as_ref().is_none_or(|b| b.0 != number) {
                let at = self.entry.header.data.at + range.start as u64;
                let bytes = self.bytes.read(&self.entry, at, range.len() as u64)?;
                if sum::xxh3(&bytes) != self.sums[number] {
                    let spec = &self.table.specs[i];
                    let why = format!("{} {}: block {number} has another checksum", spec.group, spec.name);
                    return Err(damaged(&self.entry, why));
                }
                self.block = Some((number, bytes));
            }
            let Some((_, bytes)) = &self.block else { return Ok(()) };
            let skip = 4 * from - (range.start - self.table.at[i]);
            let n = out.len().min((bytes.len() - skip) / 4);
            let (now, later) = out.split_at_mut(n);
            bytemuck::cast_slice_mut::<f32, u8>(now).copy_from_slice(&bytes[skip..skip + 4 * n]);
            (out, from) = (later, from + n);
        }
        Ok(())
    }
}

impl Bytes<'_> {
    fn read(&self, entry: &SnapshotEntry, at: u64, len: u64) -> Result<Vec<u8>> {
        match self {
            Bytes::Here(file) => {
                let mut bytes = vec![0; len as usize];
                let read = file.read_exact_at(&mut bytes, at);
                read.map_err(|e| damaged(entry, e.to_string()))?;
                Ok(bytes)
            }
            Bytes::There(world) => world.remote_read(Request { item: entry.item, at, len }, entry.leader as usize),
        }
    }
}

fn damaged(entry: &SnapshotEntry, why: String) -> Error {
    let h = &entry.header;
    let what = if entry.partner == 1 { "second copy of the snapshot" } else { "snapshot" };
    Error::new(Exit::Checkpoint, format!("the {what} of rank {} at step {} is damaged: {why}", h.rank, h.step))
}

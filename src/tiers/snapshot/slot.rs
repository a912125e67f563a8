//! One snapshot in memory: a file on tmpfs that outlives the process, or private memory for a save under way.
//!
//! ```text
//! header (one page)   magic, who, which step, where the parts lie, checksums; written last, invalidated first
//! meta                JSON, with room to grow
//! table               JSON: the slices
//! sums                xxh3-64 of every block of data
//! data                fp32, the slices back to back
//! ```
//! A process that is killed loses none of its stores to a mapped file, so program order is all that the protocol needs:
//! whatever moment it dies at, the slot that it was writing has no valid header, and the other slot is whole.

use crate::checkpoint::disk::refused;
use crate::checkpoint::meta::Meta;
use crate::error::{Error, Exit, Result};
use crate::kernels::{parallel, sum};
use crate::tiers::snapshot::table::Table;
use bytemuck::{Pod, Zeroable};
use memmap2::{MmapMut, MmapOptions};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{fence, Ordering};
use std::sync::{Arc, Mutex};
use xxhash_rust::xxh3::xxh3_64;

/// Takes slices as (number in the table, elements).
pub type Take<'a> = &'a mut dyn FnMut(&[(usize, &[f32])]);
/// Hands slices over by calling its argument.
pub type Give<'a> = &'a mut dyn FnMut(Take) -> Result<()>;

/// Bytes that the header takes of the file; the data starts at a multiple of it.
pub const PAGE: usize = 4096;
/// The meta part has room to grow, in steps so large that starts of one run agree on it.
fn room(meta: usize) -> usize {
    (meta + 4096).next_multiple_of(32 << 10)
}

const MAGIC: u64 = u64::from_le_bytes(*b"HERDSNAP");
const VERSION: u64 = 1;

/// Whose snapshots these are: the same for all steps of one start of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The run ([`crate::tiers::snapshot::place::run_id`]).
    pub run: u64,
    /// This start of it, a random number: snapshots of two starts are never put together.
    pub session: u64,
    /// Number of the attempt that this start is.
    pub attempt: u64,
    /// World rank of the writer, of `world`.
    pub rank: u64,
    /// Ranks of the world.
    pub world: u64,
    /// Checksum over all ranks' tables.
    pub layout: u64,
}

/// The first page of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    magic: u64,
    version: u64,
    /// The run, as [`Owner::run`].
    pub run: u64,
    /// The start of the run that wrote it, as [`Owner::session`].
    pub session: u64,
    /// Number of the attempt that wrote it.
    pub attempt: u64,
    /// World rank of the writer.
    pub rank: u64,
    /// Ranks of the writer's world.
    pub world: u64,
    /// Checksum over all ranks' tables.
    pub layout: u64,
    /// Steps finished.
    pub step: u64,
    /// [`Table::hash`] of the writer's table.
    pub table_hash: u64,
    /// JSON of the [`Meta`]; its length is what was written, not the room.
    pub meta: SlotPart,
    /// JSON of the [`Table`]'s slices.
    pub table: SlotPart,
    /// xxh3-64 of every block, 8 bytes each.
    pub sums: SlotPart,
    /// The slices, fp32, padding between them included.
    pub data: SlotPart,
    /// xxh3-64 of meta, table and sums, one after the other.
    content: u64,
    /// xxh3-64 of all fields before this one.
    own: u64,
}

/// A range of bytes of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SlotPart {
    /// First byte, counted from the start of the file.
    pub at: u64,
    /// Length in bytes.
    pub len: u64,
}

impl SlotPart {
    /// The same as a range of indices into the file.
    pub fn range(self) -> std::ops::Range<usize> {
        self.at as usize..(self.at + self.len) as usize
    }
}

impl Header {
    /// The header at the start of `bytes`, if it is whole and the parts lie within `total` bytes of file.
    pub fn parse(bytes: &[u8], total: u64) -> Option<Header> {
        let h: Header = bytemuck::pod_read_unaligned(bytes.get(..std::mem::size_of::<Header>())?);
        let inside = |p: SlotPart| p.at >= PAGE as u64 && p.at.checked_add(p.len).is_some_and(|end| end <= total);
        let whole = h.magic == MAGIC && h.version == VERSION && h.own == h.sum();
        (whole && [h.meta, h.table, h.sums, h.data].into_iter().all(inside)).then_some(h)
    }

    /// Whose snapshot it is.
    pub fn owner(&self) -> Owner {
        let Header { run, session, attempt, rank, world, layout, .. } = *self;
        Owner { run, session, attempt, rank, world, layout }
    }

    /// Whether these are the meta, table and sums that it was written for.
    pub fn fits(&self, meta: &[u8], table: &[u8], sums: &[u8]) -> bool {
        content(meta, table, sums) == self.content
    }

    fn sum(&self) -> u64 {
        let bytes = bytemuck::bytes_of(self);
        xxh3_64(&bytes[..bytes.len() - 8])
    }
}

fn content(meta: &[u8], table: &[u8], sums: &[u8]) -> u64 {
    let mut sum = xxhash_rust::xxh3::Xxh3::new();
    [meta, table, sums].iter().for_each(|part| sum.update(part));
    sum.digest()
}

/// Memory for one snapshot. Written by [`Slot::write`] alone, which needs it exclusively; readers share it in an `Arc`.
pub struct Slot {
    map: MmapMut,
    /// Holds the lock that says somebody lives; none for private memory.
    _file: Option<File>,
    table: Arc<Table>,
    header: Header,
    meta_room: usize,
}

impl Slot {
    /// Bytes of a slot of `table`, whose meta takes `meta` bytes at first.
    pub fn size(table: &Table, meta: usize) -> usize {
        Slot::parts(table, meta).1
    }

    fn parts(table: &Table, meta: usize) -> (Header, usize) {
        let mut end = PAGE;
        let mut part = |len: usize, room: usize, align: usize| {
            let at = end.next_multiple_of(align);
            end = at + room;
            SlotPart { at: at as u64, len: len as u64 }
        };
        let header = Header {
            version: VERSION,
            table_hash: table.hash,
            meta: part(0, room(meta), 64),
            table: part(table.bytes.len(), table.bytes.len(), 64),
            sums: part(8 * table.blocks, 8 * table.blocks, 64),
            data: part(table.data, table.data, PAGE),
            ..Header::default()
        };
        (header, end)
    }

    /// Private memory, for a save under way where no snapshot is kept.
    pub fn private(table: Arc<Table>, meta: usize) -> Result<Slot> {
        let (header, size) = Slot::parts(&table, meta);
        let map = MmapOptions::new().len(size).populate().map_anon();
        let map = map.map_err(|e| no_memory(size, &e))?;
        Ok(Slot { map, _file: None, table, header, meta_room: room(meta) })
    }

    /// The slot at `path` on tmpfs, its pages allocated and touched. A file of the right size that nobody else holds is
    /// taken over with what is in it; any other is replaced.
    pub fn open(path: &Path, table: Arc<Table>, meta: usize) -> Result<Slot> {
        let (header, size) = Slot::parts(&table, meta);
        let (file, map) = take(path, size)?;
        Ok(Slot { map, _file: Some(file), table, header, meta_room: room(meta) })
    }

    /// The slices that it has room for.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The whole file, header included.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Writes a snapshot: `give` hands over slices as (number in the table, elements) by calling its argument, in any
    /// order, each once. Whatever was in the slot is gone from the start on.
    pub fn write(&mut self, owner: &Owner, meta: &Meta, give: Give) -> Result<()> {
        let meta_bytes = serde_json::to_vec(meta)
            .map_err(|e| Error::new(Exit::Internal, format!("a snapshot's description cannot be written: {e}")))?;
        if meta_bytes.len() > self.meta_room {
            let (n, room) = (meta_bytes.len(), self.meta_room);
            return Err(Error::new(Exit::Internal, format!("a snapshot's description has {n} bytes, its room {room}")));
        }
        self.map[..8].fill(0);
        fence(Ordering::SeqCst);
        let mut h = Header { step: meta.step, ..self.header };
        h.meta.len = meta_bytes.len() as u64;
        Owner { run: h.run, session: h.session, attempt: h.attempt, rank: h.rank, world: h.world, layout: h.layout } =
            *owner;
        h.magic = MAGIC;
        self.map[h.meta.range()].copy_from_slice(&meta_bytes);
        self.map[h.table.range()].copy_from_slice(&self.table.bytes);
        let (head, data) = self.map.split_at_mut(h.data.at as usize);
        let table = &*self.table;
        let sums: &mut [u64] = bytemuck::cast_slice_mut(&mut head[h.sums.range()]);
        let mut given = 0;
        give(&mut |parts| {
            given += parts.len();
            copy(table, parts, data, sums);
        })?;
        if given != table.specs.len() {
            let fact = format!("a snapshot got {given} of {} slices", table.specs.len());
            return Err(Error::new(Exit::Internal, fact));
        }
        h.content = content(&meta_bytes, &table.bytes, &head[h.sums.range()]);
        h.own = h.sum();
        let bytes = bytemuck::bytes_of(&h);
        self.map[8..bytes.len()].copy_from_slice(&bytes[8..]);
        fence(Ordering::SeqCst);
        self.map[..8].copy_from_slice(&bytes[..8]);
        Ok(())
    }

    /// The data of slice `i` as elements.
    pub fn slice(&self, i: usize) -> &[f32] {
        let at = self.header.data.at as usize + self.table.at[i];
        bytemuck::cast_slice(&self.map[at..at + 4 * self.table.specs[i].span.len])
    }
}

/// Copies slices into `data` and sums their blocks, on all threads of the rank.
fn copy(table: &Table, parts: &[(usize, &[f32])], data: &mut [u8], sums: &mut [u64]) {
    // Cut into one job per block; the blocks of a table are in order and apart, and so are the jobs' outputs.
    let mut jobs = Vec::new();
    let (mut rest_data, mut data_at) = (data, 0);
    let (mut rest_sums, mut sums_at) = (sums, 0);
    let mut order: Vec<&(usize, &[f32])> = parts.iter().collect();
    order.sort_unstable_by_key(|p| p.0);
    for &&(i, elements) in &order {
        let source: &[u8] = bytemuck::cast_slice(elements);
        debug_assert_eq!(source.len(), 4 * table.specs[i].span.len);
        for (block, range) in table.blocks_of(i) {
            let (out, rest) = std::mem::take(&mut rest_data)[range.start - data_at..].split_at_mut(range.len());
            let (sum, more) = std::mem::take(&mut rest_sums)[block - sums_at..].split_at_mut(1);
            let from = range.start - table.at[i];
            jobs.push(Mutex::new((&source[from..from + range.len()], out, &mut sum[0])));
            (rest_data, data_at, rest_sums, sums_at) = (rest, range.end, more, block + 1);
        }
    }
    parallel::tasks(jobs.len(), |n| {
        if let Ok(mut job) = jobs[n].lock() {
            let (source, out, total) = &mut *job;
            **total = sum::copy_xxh3(source, out);
        }
    });
}

/// Opens or makes a tmpfs file of `size` bytes that no other process holds, maps it and touches its pages.
pub fn take(path: &Path, size: usize) -> Result<(File, MmapMut)> {
    let failed = refused(path, "make a snapshot at");
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = open().map_err(&failed)?;
    let known = file.metadata().map_err(&failed)?.len();
    if (known > 0 && known != size as u64) || !lock(&file) {
        // A process that was stopped may wake and write on: it keeps its file, this one is another. What is in it may be
        // needed until there is something newer, so it stays under another name.
        let mut aside = path.as_os_str().to_os_string();
        aside.push("-old");
        std::fs::rename(path, aside).map_err(&failed)?;
        file = open().map_err(&failed)?;
        lock(&file);
    }
    // Allocates now: a full tmpfs is an answer here and a SIGBUS later.
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size as u64)
        .map_err(|e| refused(path, "allocate a snapshot at")(e.into()))?;
    // SAFETY: a file of that size, which no other process shortens: herd's own take the lock first, and it lies in a
    // directory of this user's.
    let map = unsafe { MmapOptions::new().len(size).populate().map_mut(&file) };
    Ok((file, map.map_err(|e| no_memory(size, &e))?))
}

/// Takes the lock of a slot for as long as the file is open; false where a living process has it.
pub fn lock(file: &File) -> bool {
    ofd_lock(file, libc::F_OFD_SETLK).is_some()
}

/// Whether a living process has the lock of a slot. Looks without taking it.
pub fn locked(file: &File) -> bool {
    ofd_lock(file, libc::F_OFD_GETLK) != Some(libc::F_UNLCK)
}

/// A lock of the open file as a whole, which its end releases, however that comes (fcntl(2), open file description locks).
/// `None` when the call fails, else the type of lock that it found in the way.
fn ofd_lock(file: &File, command: i32) -> Option<i32> {
    // SAFETY: `flock` is plain data that outlives the call; the descriptor is open.
    unsafe {
        let mut l: libc::flock = std::mem::zeroed();
        (l.l_type, l.l_whence) = (libc::F_WRLCK as libc::c_short, libc::SEEK_SET as libc::c_short);
        (libc::fcntl(file.as_raw_fd(), command, &mut l) == 0).then_some(l.l_type as i32)
    }
}

fn no_memory(size: usize, e: &std::io::Error) -> Error {
    Error::new(Exit::Storage, format!("cannot map {size} bytes of memory for a snapshot: {e}"))
        .hint("set checkpoint.snapshot_every=0, or checkpoint.background=false where no snapshots are kept")
}

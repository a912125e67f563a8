//! The state of one step, wherever its slices lie: in snapshots on this and other nodes, or on disk.

use crate::checkpoint::meta::{Group, Meta};
use crate::checkpoint::read::{Checkpoint, Compared};
use crate::checkpoint::slice::{cover, Slice};
use crate::error::{Error, Exit, Result};
pub use crate::events::Tally;
use crate::tiers::search::SearchOrder;
use crate::tiers::snapshot::image::SnapshotReader;
use crate::tiers::snapshot::inventory::{Inventory, Set, SnapshotEntry};
use crate::world::World;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::AddAssign;
use std::path::Path;

impl AddAssign for Tally {
    fn add_assign(&mut self, o: Tally) {
        self.node += o.node;
        self.node_partner += o.node_partner;
        self.remote += o.remote;
        self.remote_partner += o.remote_partner;
        self.disk += o.disk;
    }
}

/// What a run can go on from. Reading is by slice, whatever topology wrote it.
pub struct Source<'a> {
    memory: Option<RefCell<Memory<'a>>>,
    disk: Option<&'a Checkpoint>,
    meta: Meta,
    tally: RefCell<Tally>,
    compared: RefCell<Compared>,
}

/// A set of snapshots, opened one by one as they are needed.
struct Memory<'a> {
    /// For each writer its copies.
    copies: &'a [Vec<SnapshotEntry>],
    images: Vec<Option<SnapshotReader<'a>>>,
    /// Where slices of a tensor are, among the opened images: (image, slice).
    index: HashMap<(Group, String), Vec<(usize, usize)>>,
    order: SearchOrder,
    /// Snapshots that were opened, or tried.
    opened: u64,
    inventory: &'a Inventory,
    world: &'a World,
    leader: u64,
    damaged: Vec<(u64, u64)>,
}

/// Why nothing can be read, and the copies that were found damaged.
pub type Damaged = (Error, Vec<(u64, u64)>);

impl<'a> Source<'a> {
    /// The state in a checkpoint on disk alone.
    pub fn disk(checkpoint: &'a Checkpoint) -> Source<'a> {
        let (tally, compared) = (RefCell::default(), RefCell::default());
        Source { memory: None, meta: checkpoint.meta().clone(), disk: Some(checkpoint), tally, compared }
    }

    /// `disk`: the checkpoint of the same step and start, for what the set lacks. `served`: a world in which every node
    /// answers for its snapshots. `Err` holds what was found damaged.
    pub fn memory(
        set: &'a Set, inventory: &'a Inventory, served: &'a World, disk: Option<&'a Checkpoint>,
    ) -> std::result::Result<Source<'a>, Box<Damaged>> {
        let (rank, size, old) = (served.rank(), served.size(), set.copies.len());
        let leader = inventory.nodes.leader[rank] as u64;
        let mut memory = Memory {
            images: (0..old).map(|_| None).collect(),
            // Slices that this rank needs are most likely those of the writer with its place in the world.
            order: SearchOrder::new(rank * old / size, old),
            index: HashMap::new(),
            opened: 0,
            copies: &set.copies,
            inventory,
            world: served,
            leader,
            damaged: Vec::new(),
        };
        let meta = match memory.any_meta() {
            Ok(meta) => meta,
            Err(e) => return Err(Box::new((e, memory.damaged))),
        };
        let (tally, compared) = (RefCell::default(), RefCell::default());
        Ok(Source { memory: Some(RefCell::new(memory)), disk, meta, tally, compared })
    }

    /// What it says about its run and step.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// For messages.
    pub fn name(&self) -> String {
        match (&self.memory, self.disk) {
            (None, Some(c)) => c.path().display().to_string(),
            _ => format!("the snapshots of step {}", self.meta.step),
        }
    }

    /// The directory, where it is a checkpoint on disk alone.
    pub fn path(&self) -> Option<&Path> {
        self.disk.filter(|_| self.memory.is_none()).map(Checkpoint::path)
    }

    /// Bytes that this rank has read so far, by where they lay.
    pub fn tally(&self) -> Tally {
        *self.tally.borrow()
    }

    /// What reading from disk has found out about the files.
    pub(super) fn into_compared(self) -> Compared {
        self.compared.into_inner()
    }

    /// How many snapshots this rank has opened.
    pub fn opened(&self) -> u64 {
        self.memory.as_ref().map_or(0, |m| m.borrow().opened)
    }

    /// Snapshots in which this rank found damage.
    pub fn damaged(&self) -> Vec<(u64, u64)> {
        self.memory.as_ref().map(|m| m.borrow().damaged.clone()).unwrap_or_default()
    }

    /// As [`Checkpoint::read`]: elements `[start, start + out.len())` of the rectangle (`offset`, `extent`) of a tensor.
    ///
    /// Errors: [`Exit::Checkpoint`] when an element is nowhere, or a snapshot turns out damaged ([`Source::damaged`]).
    pub fn read(
        &self, group: Group, name: &str, offset: &[usize], extent: &[usize], start: usize, out: &mut [f32],
    ) -> Result<()> {
        let mut tally = self.tally.borrow_mut();
        if let Some(memory) = &self.memory {
            let len = out.len();
            let want =
                |s: &[usize]| Slice { offset: offset.into(), extent: extent.into(), start, len, ..Slice::whole(s) };
            if memory.borrow_mut().read(group, name, &want, out, &mut tally)? {
                return Ok(());
            }
        }
        match self.disk {
            Some(disk) => {
                tally.disk += 4 * out.len() as u64;
                disk.read_comparing(group, name, offset, extent, start, out, &mut self.compared.borrow_mut())
            }
            None => Err(Error::new(
                Exit::Checkpoint,
                format!("{}: not every element of {group} {name} is there", self.name()),
            )),
        }
    }
}

impl Memory<'_> {
    fn any_meta(&mut self) -> Result<Meta> {
        while let Some(writer) = self.order.next() {
            self.open(writer)?;
            if let Some(image) = &self.images[writer] {
                let meta = image.meta.clone();
                self.order.expect(&meta.topology);
                return Ok(meta);
            }
        }
        Err(Error::new(Exit::Checkpoint, "a set of snapshots without any"))
    }

    /// Opens a writer's snapshot, if there is one: the nearest copy.
    fn open(&mut self, writer: usize) -> Result<()> {
        let nearest = self.copies[writer].iter().min_by_key(|e| (e.leader != self.leader, e.partner));
        let Some(&entry) = nearest else { return Ok(()) };
        self.opened += 1;
        let here = (entry.leader == self.leader).then(|| &*self.inventory.files[entry.item as usize]);
        let image = SnapshotReader::open(entry, here, Some(self.world)).inspect_err(|e| {
            if e.exit == Exit::Checkpoint {
                self.damaged.push(entry.id());
            }
        })?;
        for (i, s) in image.table.specs.iter().enumerate() {
            self.index.entry((s.group, s.name.clone())).or_default().push((writer, i));
        }
        self.images[writer] = Some(image);
        Ok(())
    }

    /// Whether all of it was found.
    fn read(
        &mut self, group: Group, name: &str, want: &dyn Fn(&[usize]) -> Slice, out: &mut [f32], tally: &mut Tally,
    ) -> Result<bool> {
        let key = (group, name.to_string());
        let (mut looked, mut filled) = (0, Vec::new());
        loop {
            let slices = self.index.get(&key).map_or(&[][..], |s| s);
            for &(writer, i) in &slices[looked..] {
                let Some(image) = &mut self.images[writer] else { continue };
                let span = want(&image.table.specs[i].span.shape);
                if let Some(why) = span.fault() {
                    return Err(Error::new(Exit::Checkpoint, format!("snapshot: {group} {name}: {why}")));
                }
                let got = image.read(i, &span, out).inspect_err(|e| {
                    if e.exit == Exit::Checkpoint {
                        self.damaged.push(image.entry.id());
                    }
                })?;
                let bytes: usize = got.iter().map(|r| 4 * (r.1 - r.0)).sum();
                *match (image.is_remote(), image.entry.partner == 1) {
                    (false, false) => &mut tally.node,
                    (false, true) => &mut tally.node_partner,
                    (true, false) => &mut tally.remote,
                    (true, true) => &mut tally.remote_partner,
                } += bytes as u64;
                filled.extend(got);
            }
            looked = slices.len();
            if cover(filled.clone(), out.len()) {
                return Ok(true);
            }
            match self.order.next() {
                Some(writer) => self.open(writer)?,
                None => return Ok(false),
            }
        }
    }
}

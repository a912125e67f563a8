//! The beginning of a run's snapshots: room, slots, who keeps whose copy, and what a person should know about it.

use crate::config;
use crate::error::{Exit, Result};
use crate::tiers::keeper::{Happened, Setup, StateKeeper};
use crate::tiers::snapshot::nodes::{check_room, Nodes};
use crate::tiers::snapshot::partner::{Pairs, PartnerCopies, PartnerSlots};
use crate::tiers::snapshot::place::SnapshotDir;
use crate::tiers::snapshot::slot::{Header, Slot};
use crate::tiers::snapshot::table::Table;
use crate::tiers::snapshot::SlotRing;
use crate::world::{Op, World};
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl StateKeeper {
    /// The slots of this rank and of those that it keeps copies for. Collective.
    pub(super) fn open(&mut self, setup: &Setup, table: Arc<Table>, meta: usize, world: &World) -> Result<()> {
        let dir = &self.config.snapshot_dir;
        let nodes = Nodes::by_snapshot_dir(dir, world)?;
        let place = world.agree(SnapshotDir::of(dir, setup.run_dir, setup.run))?;
        world.agree(place.create())?;
        // Two that alternate; a save under way holds a third.
        let count = if self.writer.is_some() { 3 } else { 2 };
        let size = Slot::size(&table, meta);
        // Images are as long as their senders say: the descriptions may differ in length between ranks, not in time.
        let mut pairs = Pairs::find(self.config.partner, &nodes, size, world)?;
        let came_from = setup.from;
        let stays = move |h: &Header| came_from.is_some_and(|f| (f.session, f.step) == (h.session, h.step));
        match self.make_room(&place, &nodes, count, size, pairs.as_ref(), &stays, world) {
            // one copy is better than none, and either is better than no training
            Err(error) if error.exit == Exit::Storage && pairs.is_some() => {
                self.pending.push(Happened::NoSecondCopy { error });
                pairs = None;
                self.make_room(&place, &nodes, count, size, None, &stays, world)?;
            }
            other => other?,
        }

        let mut slots = Vec::new();
        let mut safe = None;
        for i in 0..count {
            let slot = world.agree(Slot::open(&place.own(world.rank(), i), table.clone(), meta))?;
            if Header::parse(slot.bytes(), slot.bytes().len() as u64).is_some_and(|h| stays(&h)) {
                safe = Some(i);
            }
            slots.push(slot);
        }
        // Another rank may hold its part of that snapshot in another slot, or nothing: one choice for all would not do.
        self.shelf = Some(SlotRing::new(slots, safe, self.owner));
        if let Some(Pairs { to, from }) = pairs {
            let near = |r: usize| (nodes.leader[r] == nodes.leader[world.rank()]).then_some(count);
            let open = |&(r, size): &(usize, usize)| PartnerSlots::open(&place, r, size, near(r), &stays);
            let kept = world.agree(from.iter().map(open).collect::<Result<Vec<PartnerSlots>>>())?;
            self.partner = Some(PartnerCopies::start(world.duplicate()?, to, kept)?);
        }
        self.place = Some(place);
        Ok(())
    }

    /// Frees what is not needed any more and checks that the slots fit.
    #[allow(clippy::too_many_arguments)]
    fn make_room(
        &mut self, place: &SnapshotDir, nodes: &Nodes, count: usize, size: usize, pairs: Option<&Pairs>,
        stays: &dyn Fn(&Header) -> bool, world: &World,
    ) -> Result<()> {
        let leader = nodes.leader[world.rank()] == world.rank();
        let found = world.agree(place.scan())?;
        let needed: Vec<PathBuf> = found.iter().filter(|f| stays(&f.header)).map(|f| f.path.clone()).collect();
        let mut mine: Vec<(PathBuf, u64)> = (0..count).map(|i| (place.own(world.rank(), i), size as u64)).collect();
        for &(r, size) in pairs.iter().flat_map(|p| &p.from) {
            mine.extend((0..2).map(|i| (place.partner_of(r, i), size as u64)));
        }
        let clean = |keep: &dyn Fn(&Path) -> bool| if leader { place.clean(keep) } else { Ok(()) };
        world.agree(clean(&|p| needed.iter().any(|n| n == p)))?;
        let need = || -> u64 {
            let there = |(p, n): &(PathBuf, u64)| p.metadata().is_ok_and(|m| m.len() == *n);
            mine.iter().filter(|f| !there(f)).map(|f| f.1).sum()
        };
        let free = world.agree(place.free())?;
        match check_room(nodes, need(), free, &self.config.snapshot_dir, world) {
            Err(e) if e.exit == Exit::Storage && !self.nothing_left(&needed, world)? => {
                // The state is in the processes again: better a while without its snapshot than no training.
                world.agree(clean(&|_| false))?;
                let free = world.agree(place.free())?;
                self.pending.push(Happened::OldSnapshotsRemoved { dir: place.dir.clone() });
                check_room(nodes, need(), free, &self.config.snapshot_dir, world)
            }
            other => other,
        }
    }

    /// What a person may want to know at the start: leftovers of other runs, a second copy that cannot be. Collective.
    pub fn notes(&self, world: &World) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        if let Some(place) = &self.place {
            let mine = if world.local_rank() == 0 { place.leftovers()? } else { Vec::new() };
            for l in mine {
                notes.push(format!(
                    "{}: {} holds {} of snapshots of another run that nobody uses (`rm -r` frees them)",
                    world.host(),
                    l.dir.display(),
                    crate::text::bytes(l.bytes)
                ));
            }
            if self.partner.is_none() && self.config.partner != config::Partner::Off {
                notes.push("snapshots have no second copy: all ranks are on one node".into());
            }
        }
        let all = world.all_gather_bytes(notes.join("\n").as_bytes())?;
        let mut lines: Vec<String> = all
            .iter()
            .flat_map(|b| String::from_utf8_lossy(b).lines().map(str::to_string).collect::<Vec<_>>())
            .collect();
        lines.dedup();
        Ok(lines)
    }

    fn nothing_left(&self, needed: &[PathBuf], world: &World) -> Result<bool> {
        Ok(world.all_reduce_f64(&[needed.len() as f64], Op::Max)?[0] == 0.0)
    }
}

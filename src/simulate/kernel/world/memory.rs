//! Snapshots in the memory of nodes and checkpoints on disk: what a restore finds, by the real inventory, and what it should find.
//! The ranks of a node share its fate, so a node writes one part.

use super::Cluster;
use crate::config::Partner;
use crate::tiers::choice::{NewestOnDisk, RestoreAction, RestoreView};
use crate::tiers::snapshot::inventory::{Inventory, Set, SnapshotEntry};
use crate::tiers::snapshot::nodes::Nodes;
use crate::tiers::snapshot::slot::Header;
use std::collections::{BTreeMap, BTreeSet};

/// One part of a step's state in the memory of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::simulate) struct MemoryPart {
    pub step: u64,
    pub attempt: u64,
    /// Slot that wrote it, of so many.
    pub writer: usize,
    pub world: usize,
    pub is_copy: bool,
}

/// Where a restore goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulate) enum RestoreChoice {
    Memory(u64),
    Disk(u64),
    Beginning,
}

impl RestoreChoice {
    pub fn step(self) -> u64 {
        match self {
            RestoreChoice::Memory(step) | RestoreChoice::Disk(step) => step,
            RestoreChoice::Beginning => 0,
        }
    }
}

impl Cluster {
    /// Who keeps the second copy of whose snapshot, by slots: the real ring over the switches of these nodes.
    fn holders(&self, slots: &[usize]) -> Option<Vec<usize>> {
        let switches = slots.iter().map(|&n| format!("s{}", self.nodes[n].switch)).collect();
        Nodes::single(switches).partners(match self.c.config.checkpoint.partner {
            Partner::Off => Partner::Off,
            _ => Partner::Node,
        })
    }

    /// What an attempt that stands after `finished` steps has left in memory; `whole`: the newest step whose second copies have
    /// all arrived, `newest`: the newest that every node has written.
    pub(in crate::simulate) fn leave_in_memory(
        &mut self, number: u64, slots: &[usize], newest: Option<u64>, whole: Option<u64>,
    ) {
        let Some(newest) = newest else { return };
        let holders = self.holders(slots);
        let world = slots.len();
        let part =
            |at: u64, writer: usize, is_copy: bool| MemoryPart { step: at, attempt: number, writer, world, is_copy };
        if whole.is_some() || holders.is_none() {
            // a snapshot of this start is whole everywhere: older ones go
            slots.iter().for_each(|&n| self.nodes[n].memory.clear());
        } else {
            slots.iter().for_each(|&n| self.nodes[n].memory.retain(|p| p.attempt != number));
        }
        for (writer, &node) in slots.iter().enumerate() {
            if !self.nodes[node].alive {
                continue;
            }
            let steps: BTreeSet<u64> = [Some(newest), whole].into_iter().flatten().collect();
            self.nodes[node].memory.extend(steps.into_iter().map(|at| part(at, writer, false)));
        }
        let (Some(holders), Some(whole)) = (holders, whole) else { return };
        for (writer, &holder) in holders.iter().enumerate() {
            let node = slots[holder];
            if self.nodes[node].alive {
                self.nodes[node].memory.push(part(whole, writer, true));
            }
        }
    }

    /// The sets that the real inventory makes of what these nodes hold.
    fn sets(&self, nodes: &[usize]) -> Vec<Set> {
        let mut entries = Vec::new();
        for (leader, &node) in nodes.iter().enumerate() {
            for (item, p) in self.nodes[node].memory.iter().enumerate() {
                let mut header = Header::default();
                (header.step, header.attempt, header.session) = (p.step, p.attempt, p.attempt);
                (header.rank, header.world, header.layout) = (p.writer as u64, p.world as u64, p.world as u64);
                let (leader, item, partner) = (leader as u64, item as u64, u64::from(p.is_copy));
                entries.push(SnapshotEntry { header, leader, item, partner });
            }
        }
        Inventory { nodes: Nodes::single(vec![String::new(); nodes.len()]), entries, files: Vec::new() }.sets()
    }

    /// What the ranks on `nodes` go on from: the real choice. What it asks for is well here: no byte is damaged, every checkpoint opens,
    /// and none is of a snapshot's own start.
    pub(in crate::simulate) fn choose(&self, nodes: &[usize]) -> RestoreChoice {
        let mut sets = self.sets(nodes);
        let directories: Vec<u64> = self.disk.iter().copied().collect();
        let newest = self.disk.last().copied();
        let mut disk = NewestOnDisk::Unopened;
        loop {
            match (RestoreView { sets: &sets, directories: &directories, disk, may_fetch: false }).next() {
                RestoreAction::Drop { set, .. } => drop(sets.remove(set)),
                RestoreAction::Memory { set, .. } => return RestoreChoice::Memory(sets[set].step),
                RestoreAction::Disk => return newest.map_or(RestoreChoice::Beginning, RestoreChoice::Disk),
                RestoreAction::Nothing => return RestoreChoice::Beginning,
                RestoreAction::Open | RestoreAction::Compare | RestoreAction::Fetch { .. } => {
                    let opened = |step| NewestOnDisk::Opened { step, session: u64::MAX, compared: true };
                    disk = newest.map_or(NewestOnDisk::Nothing, opened);
                }
            }
        }
    }

    /// `herd checkpoint flush` on these nodes: the newest whole step goes to disk where it is newer. None: no step is whole.
    pub(in crate::simulate) fn flush(&mut self, nodes: &[usize], remove: bool) -> Option<u64> {
        let sets = self.sets(nodes);
        let whole = match RestoreView::of_memory(&sets).next() {
            RestoreAction::Memory { set, .. } => Some(sets[set].step),
            _ => None,
        };
        let newer = whole.filter(|step| self.disk.last().is_none_or(|d| d < step));
        self.disk.extend(newer);
        if remove {
            nodes.iter().for_each(|&n| self.nodes[n].memory.clear());
        }
        whole
    }

    /// The newest step of which every part is somewhere that the job could reach ever since: on disk, or in the memory of a node of
    /// the allocation that lives. By counting, not by the code that is tested.
    ///
    /// A step whose second copies were on their way counts only where no node was replaced that a fault has touched since: of a
    /// single node that is given up the supervisor fetches nothing, as long as its partner has a copy.
    pub(in crate::simulate) fn newest_reachable(&self) -> u64 {
        let slots = self.steps.last().map_or(&[][..], |s| &s.slots[..]);
        let touched = |n: &usize| self.nodes[*n].touched.is_some_and(|at| at >= self.truth.stood_at);
        let replaced = self.truth.stood_slots.iter().any(|n| !slots.contains(n) && touched(n));
        let most = if replaced { self.truth.safe } else { u64::MAX };
        let mut parts: BTreeMap<(u64, u64, usize), BTreeSet<usize>> = BTreeMap::new();
        for &n in &self.job.nodes {
            let node = &self.nodes[n];
            let late = node.late_until > self.truth.stood_at;
            if node.alive && !late && node.reached_since <= self.truth.stood_at && !self.is_cut(n) && !node.slurm_down {
                for p in node.memory.iter().filter(|p| p.step <= most) {
                    parts.entry((p.step, p.attempt, p.world)).or_default().insert(p.writer);
                }
            }
        }
        let whole =
            parts.iter().filter(|((_, _, world), writers)| writers.len() == *world).map(|((step, ..), _)| *step);
        whole.chain(self.disk.last().copied()).max().unwrap_or(0)
    }
}

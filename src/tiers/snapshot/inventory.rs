//! What snapshots there are on all nodes, and which of them make a whole step.

use crate::error::{Error, Exit, Result};
use crate::tiers::snapshot::collect;
use crate::tiers::snapshot::nodes::Nodes;
use crate::tiers::snapshot::place::SnapshotDir;
use crate::tiers::snapshot::slot::Header;
use crate::world::World;
use bytemuck::{Pod, Zeroable};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::PathBuf;

/// One snapshot somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SnapshotEntry {
    /// Its first page: whose it is, and of which step.
    pub header: Header,
    /// The rank that speaks for the node where it lies.
    pub leader: u64,
    /// Its number on that node.
    pub item: u64,
    /// 1: the copy for another rank; 0: a rank's own.
    pub partner: u64,
}

impl SnapshotEntry {
    /// Names it among all entries.
    pub fn id(&self) -> (u64, u64) {
        (self.leader, self.item)
    }
}

/// All snapshots of the run, the same on every rank.
pub struct Inventory {
    /// Which ranks share a node.
    pub nodes: Nodes,
    /// Snapshots on all nodes whose header is whole, less those that turned out damaged.
    pub entries: Vec<SnapshotEntry>,
    /// This node's files, by number.
    pub files: Vec<PathBuf>,
}

/// The snapshots of all ranks at one step: by rank of the writer, copies of each.
#[derive(Clone, Debug)]
pub struct Set {
    /// Steps finished.
    pub step: u64,
    /// Number of the attempt that wrote them.
    pub attempt: u64,
    /// Start of the run that wrote them, a random number.
    pub session: u64,
    /// Checksum over the tables of all their ranks.
    pub layout: u64,
    /// Own ones first.
    pub copies: Vec<Vec<SnapshotEntry>>,
}

impl Set {
    /// Whether there is a copy of every rank's part.
    pub fn is_whole(&self) -> bool {
        self.copies.iter().all(|c| !c.is_empty())
    }
}

impl Inventory {
    /// Looks on every node. Collective.
    pub fn take(place: &SnapshotDir, nodes: Nodes, world: &World) -> Result<Inventory> {
        let leader = nodes.leader[world.rank()];
        let mut found = world.agree(place.scan())?;
        // Every rank of a node numbers its files alike; nobody writes here now.
        found.sort_by(|a, b| a.path.cmp(&b.path));
        let mine: Vec<SnapshotEntry> =
            found.iter().enumerate().filter(|_| leader == world.rank()).map(entry(leader)).collect();
        let all = world.all_gather_bytes(bytemuck::cast_slice(&mine))?;
        let entries = all.iter().flat_map(|b| collect::<SnapshotEntry>(b)).collect();
        Ok(Inventory { nodes, entries, files: found.into_iter().map(|f| f.path).collect() })
    }

    /// Marks entries as damaged, which some rank found them to be. Collective: every rank passes what it found.
    pub fn drop_damaged(&mut self, mine: &[(u64, u64)], world: &World) -> Result<usize> {
        let flat: Vec<u64> = mine.iter().flat_map(|&(a, b)| [a, b]).collect();
        let all = world.all_gather_bytes(bytemuck::cast_slice(&flat))?;
        let bad: Vec<[u64; 2]> = all.iter().flat_map(|b| collect::<[u64; 2]>(b)).collect();
        let before = self.entries.len();
        self.entries.retain(|e| !bad.contains(&[e.leader, e.item]));
        Ok(before - self.entries.len())
    }

    /// Drops a whole step of a session.
    pub fn drop_set(&mut self, set: &Set) {
        self.entries.retain(|e| (e.header.session, e.header.step) != (set.session, set.step));
    }

    /// Steps of which some snapshot is there, newest first; of one step the latest attempt first.
    pub fn sets(&self) -> Vec<Set> {
        let mut sets: HashMap<(u64, u64, u64, u64), Set> = HashMap::new();
        for e in &self.entries {
            let h = &e.header;
            // A header may be whole and say nonsense; such a rank is in no set.
            if h.rank >= h.world || h.world > 1 << 24 {
                continue;
            }
            let (step, session, attempt, layout) = (h.step, h.session, h.attempt, h.layout);
            let set = sets.entry((step, session, layout, h.world)).or_insert_with(|| Set {
                step,
                attempt,
                session,
                layout,
                copies: vec![Vec::new(); h.world as usize],
            });
            set.copies[h.rank as usize].push(*e);
        }
        let mut sets: Vec<Set> = sets.into_values().collect();
        sets.iter_mut().flat_map(|s| &mut s.copies).for_each(|c| c.sort_by_key(|e| (e.partner, e.leader, e.item)));
        sets.sort_by_key(|s| (Reverse(s.step), Reverse(s.attempt), s.session, s.layout));
        sets
    }
}

fn entry(leader: usize) -> impl Fn((usize, &crate::tiers::snapshot::place::FoundSnapshot)) -> SnapshotEntry {
    move |(item, f)| SnapshotEntry {
        header: f.header,
        leader: leader as u64,
        item: item as u64,
        partner: f.partner as u64,
    }
}

/// The place of a run's snapshots on this node, as all ranks agree on it. Collective.
pub fn agreed_place(
    snapshot_dir: &std::path::Path, run_dir: &std::path::Path, run: u64, world: &World,
) -> Result<SnapshotDir> {
    let place = world.agree(SnapshotDir::of(snapshot_dir, run_dir, run))?;
    let all = world.all_gather_bytes(place.dir.as_os_str().as_encoded_bytes())?;
    match all.iter().position(|d| *d != all[0]) {
        None => Ok(place),
        Some(rank) => Err(Error::new(
            Exit::Storage,
            format!(
                "rank 0 keeps snapshots at {}, rank {rank} at {}: the run directory has another name there",
                String::from_utf8_lossy(&all[0]),
                String::from_utf8_lossy(&all[rank])
            ),
        )
        .hint("mount the run directory at the same place on every node")),
    }
}

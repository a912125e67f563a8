//! Writing the newest whole snapshot to disk after the training processes have died.
//!
//! One process per surviving node; each writes what lies on its own node, so nothing crosses the network.

use crate::checkpoint::map::Spec;
use crate::checkpoint::meta::{Meta, Saved};
use crate::checkpoint::restore::list;
use crate::checkpoint::Team;
use crate::checkpoint::{directory, save_by, Checkpoint, Rules};
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use crate::tiers::choice::{RestoreAction, RestoreView};
use crate::tiers::snapshot::collect;
use crate::tiers::snapshot::image::SnapshotReader;
use crate::tiers::snapshot::inventory::{agreed_place, Inventory, SnapshotEntry};
use crate::tiers::snapshot::nodes::Nodes;
use crate::tiers::snapshot::place::known_run_id;
use crate::world::World;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Elements in memory at a time.
const BLOCK: usize = 1 << 20;

/// What a flush did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flushed {
    /// Step that the disk has now.
    pub step: u64,
    /// Directory of its checkpoint.
    pub path: PathBuf,
    /// False: the disk had this step, or a newer one, already.
    pub written: bool,
    /// Bytes in all files written, the manifest included; 0 when nothing was written.
    pub bytes: u64,
    /// Wall time of writing on rank 0; 0 when nothing was written.
    pub seconds: f64,
    /// Parts that came from second copies.
    pub from_partners: usize,
    /// Newer steps of which a part was missing or damaged.
    pub passed_over: Vec<u64>,
}

/// Writes `RUN/checkpoints/step-…` from the newest step whose every part lies on the nodes that take part. Collective.
///
/// Errors: [`Exit::NoSnapshot`] when no step is whole and the disk has nothing newer to offer; [`Exit::Storage`].
pub fn flush(run_dir: &Path, snapshot_dir: &Path, rules: &Rules, world: &World) -> Result<Flushed> {
    let none = |why: &str| {
        Error::new(Exit::NoSnapshot, format!("{}: {why}", run_dir.display()))
            .hint("the run goes on from its newest checkpoint on disk")
    };
    let run = world.agree(known_run_id(run_dir))?.ok_or_else(|| none("the run has kept no snapshots"))?;
    let nodes = Nodes::by_snapshot_dir(snapshot_dir, world)?;
    let place = agreed_place(snapshot_dir, run_dir, run, world)?;
    let mut inventory = Inventory::take(&place, nodes, world)?;
    let checkpoints = RunDir::new(run_dir).checkpoints();
    let on_disk = newest_on_disk(&checkpoints, world)?;
    let began_with = inventory.sets();
    loop {
        let sets = inventory.sets();
        let RestoreAction::Memory { set, .. } = RestoreView::of_memory(&sets).next() else {
            return Err(none(&format!(
                "of {} snapshots in memory of {} nodes no step is whole",
                inventory.entries.len(),
                inventory.nodes.leaders().len()
            )));
        };
        let set = &sets[set];
        let mut passed_over: Vec<u64> = began_with.iter().map(|s| s.step).filter(|&step| step > set.step).collect();
        passed_over.dedup();
        // a higher step of an earlier start was passed over by the start that is in memory
        if let Some([_, step]) = on_disk.filter(|&found| found >= [set.attempt, set.step]) {
            let path = checkpoints.join(directory(step));
            return Ok(Flushed { step, path, written: false, bytes: 0, seconds: 0.0, from_partners: 0, passed_over });
        }
        let chosen: Vec<SnapshotEntry> = set.copies.iter().filter_map(|c| c.first().copied()).collect();
        let mut damaged = Vec::new();
        match write(&checkpoints, &chosen, &inventory, rules, world, &mut damaged) {
            Ok(Saved { path, bytes, seconds }) => {
                let from_partners = chosen.iter().filter(|e| e.partner == 1).count();
                return Ok(Flushed { step: set.step, path, written: true, bytes, seconds, from_partners, passed_over });
            }
            Err(e) if e.exit == Exit::Checkpoint => {
                if inventory.drop_damaged(&damaged, world)? == 0 {
                    inventory.drop_set(set);
                }
            }
            Err(e) => return Err(e),
        }
    }
}

/// Each node's process writes the parts that were chosen from its node.
fn write(
    checkpoints: &Path, chosen: &[SnapshotEntry], inventory: &Inventory, rules: &Rules, world: &World,
    damaged: &mut Vec<(u64, u64)>,
) -> Result<Saved> {
    let me = world.rank() as u64;
    let mut images = Vec::new();
    let mut opened = Ok(());
    for &entry in chosen.iter().filter(|e| e.leader == me) {
        match SnapshotReader::open(entry, Some(&inventory.files[entry.item as usize]), None) {
            Ok(image) => images.push(image),
            Err(e) => {
                damaged.push(entry.id());
                opened = Err(e);
            }
        }
    }
    world.agree(opened)?;
    let meta = agreed_meta(&images, world)?;
    let specs: Vec<Spec> = images.iter().flat_map(|i| i.table.specs.iter().cloned()).collect();
    let what = if world.size() == 1 { "flush" } else { "flush of this node's part" };
    rules.meter.begin(what, specs.iter().map(|s| 4 * s.span.len as u64).sum::<u64>());
    save_by(rules, checkpoints, specs, &meta, Team(Some(world)), &mut |file| {
        let (mut n, mut buffer) = (0, Vec::new());
        for image in &mut images {
            for i in 0..image.table.specs.len() {
                let len = image.table.specs[i].span.len;
                for from in (0..len).step_by(BLOCK) {
                    buffer.resize(BLOCK.min(len - from), 0.0);
                    image.elements(i, from, &mut buffer).inspect_err(|_| damaged.push(image.entry.id()))?;
                    file.append(n, &buffer)?;
                    rules.meter.add(4 * buffer.len() as u64);
                }
                n += 1;
            }
        }
        Ok(())
    })
}

/// The description that all parts have, on every rank: rank 0 may hold none of them.
fn agreed_meta(images: &[SnapshotReader], world: &World) -> Result<Meta> {
    let mine = images.first().map(|i| serde_json::to_vec(&i.meta)).transpose();
    let mine = world.agree(mine.map_err(|e| Error::new(Exit::Internal, e.to_string())))?;
    let all = world.all_gather_bytes(&mine.unwrap_or_default())?;
    let some = all.iter().find(|b| !b.is_empty());
    let some = some.ok_or_else(|| Error::new(Exit::Internal, "a snapshot that no node holds"))?;
    serde_json::from_slice(some).map_err(|e| Error::new(Exit::Internal, format!("a snapshot's description: {e}")))
}

/// Attempt and step of the checkpoint, of those that open, that the newest attempt wrote last; collective, rank 0 looks.
fn newest_on_disk(checkpoints: &Path, world: &World) -> Result<Option<[u64; 2]>> {
    let newest = |all: Vec<(PathBuf, Result<Checkpoint>)>| {
        all.into_iter().filter_map(|(_, c)| c.ok()).map(|c| [c.meta().attempt, c.meta().step]).max()
    };
    let mine = match world.rank() {
        0 => list(checkpoints).map(newest),
        _ => Ok(None),
    };
    let bytes = world.agree(mine)?.map_or(Vec::new(), |found| bytemuck::cast_slice(&found).to_vec());
    Ok(collect(&world.broadcast_bytes(bytes, 0)?).pop())
}

/// Removes this run's snapshots from this node, unless living processes hold them.
pub fn remove(run_dir: &Path, snapshot_dir: &Path) -> Result<()> {
    let Some(run) = known_run_id(run_dir)? else { return Ok(()) };
    let place = crate::tiers::snapshot::place::SnapshotDir::of(snapshot_dir, run_dir, run)?;
    place.clean(&|_| false)?;
    place.remove_if_empty()
}

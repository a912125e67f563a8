//! Restore over all tiers: memory of this node, of the others, second copies, disk, object store.
//!
//! The newest step that is whole anywhere wins; at one step memory is nearer than disk. What turns out damaged on the way is
//! left out and the choice made again, so a restore falls back copy by copy, step by step and tier by tier.

use crate::checkpoint::read::{Checkpoint, Compared};
use crate::checkpoint::restore::{agree, candidates, check, newest_opened, Event};
use crate::checkpoint::Team;
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use crate::tiers::snapshot::collect;
use crate::tiers::snapshot::inventory::{agreed_place, Inventory, Set};
use crate::tiers::snapshot::nodes::Nodes;
use crate::tiers::source::{Source, Tally};
use crate::world::{Request, World};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// Brings the newest step of the object store that is newer than the given one into the `checkpoints` directory; whether
/// there was one. Collective: the same answer on every rank.
pub type Fetch<'a> = &'a mut dyn FnMut(Option<u64>, &World) -> Result<bool>;

/// Where to look.
pub struct Tiers<'a> {
    pub run_dir: &'a Path,
    pub snapshot_dir: &'a Path,
    /// The run's identity.
    pub run: u64,
    pub fetch: Option<Fetch<'a>>,
}

/// Where the state came from.
#[derive(Clone, Debug)]
pub struct Restored {
    pub step: u64,
    /// Start of the run that wrote it; 0 unknown.
    pub session: u64,
    pub attempt: u64,
    /// The checkpoint's directory, where it came from disk.
    pub path: Option<PathBuf>,
    /// Bytes over all ranks.
    pub tally: Tally,
    /// The most snapshots that one rank has opened.
    pub opened: u64,
    /// From the first look to the last byte, on this rank.
    pub seconds: f64,
}

/// Gives the newest whole state to `apply` and says which it was; `None` when there is none. Collective.
///
/// `apply` reads what this rank needs. It may be called again with another source when what it read was damaged: an error
/// with [`Exit::Checkpoint`] on any rank. Any other error ends the restore. `report` hears of what was passed over.
pub fn restore(
    tiers: &mut Tiers, world: &World, report: &mut dyn FnMut(&Event), apply: &mut dyn FnMut(&Source) -> Result<()>,
) -> Result<Option<Restored>> {
    let began = Instant::now();
    let checkpoints = RunDir::new(tiers.run_dir).checkpoints();
    let nodes = Nodes::find(tiers.snapshot_dir, world)?;
    let place = agreed_place(tiers.snapshot_dir, tiers.run_dir, tiers.run, world)?;
    let mut inventory = Inventory::take(&place, nodes, world)?;
    let mut on_disk = disk_steps(&checkpoints, world)?;
    // Memory is served while it may be of use; the ranks of a run without snapshots start nothing.
    let server = match inventory.entries.is_empty() {
        true => None,
        false => Some(Server::start(&inventory, world)?),
    };
    // The newest checkpoint on disk, once somebody has looked. Its bytes are compared as they are read, or before they fill in
    // for memory; what was damaged is passed over.
    let mut disk: Option<Option<Checkpoint>> = None;
    let (mut checked, mut passed, mut rejected) = (false, Vec::new(), Vec::new());
    let mut asked = tiers.fetch.is_none();
    let restored = loop {
        let sets = inventory.sets();
        let set = Inventory::first(&sets, &on_disk);
        let newer_on_disk = |s: &Set| !s.is_whole() || on_disk.iter().any(|&d| d > s.step);
        if disk.is_none() && set.is_none_or(newer_on_disk) {
            (disk, checked) = (Some(newest_opened(&checkpoints, &passed, Team(Some(world)), report)?), false);
        }
        let checkpoint = disk.iter().flatten().next();
        // Where it is of the very step and start, the disk fills in what a set lacks.
        let fills = |s: &Set| checkpoint.filter(|c| (c.meta().step, c.meta().session) == (s.step, s.session));
        if let Some(s) = set.filter(|s| !s.is_whole() && fills(s).is_none()).cloned() {
            if checkpoint.is_none_or(|c| c.meta().step < s.step) {
                report(&Event::SnapshotRejected { step: s.step, reason: "not every rank's part is there".into() });
            }
            inventory.drop_set(&s);
            continue;
        }
        let set = set.filter(|s| checkpoint.is_none_or(|c| c.meta().step <= s.step));
        if !asked {
            asked = true;
            let near = set.map(|s| s.step).max(checkpoint.map(|c| c.meta().step));
            let came = match &mut tiers.fetch {
                Some(fetch) => fetch(near, world)?,
                None => false,
            };
            if came {
                (disk, on_disk) = (None, disk_steps(&checkpoints, world)?);
                passed.clear();
                continue;
            }
        }
        let mut why = None;
        if let Some(c) = set.and_then(&fills).filter(|_| !checked) {
            why = damage(check(c, &Compared::default(), Team(Some(world))))?;
            checked = true;
        }
        if let (Some(set), Some(server), None) = (set, &server, &why) {
            match from_memory(set, &inventory, server, fills(set), world, apply)? {
                Attempt::Done(restored) => break Some(restored),
                Attempt::Damaged(ids, why) => {
                    report(&Event::SnapshotRejected { step: set.step, reason: why });
                    let set = set.clone();
                    if inventory.drop_damaged(&ids, world)? == 0 {
                        inventory.drop_set(&set);
                    }
                    asked = tiers.fetch.is_none();
                    continue;
                }
            }
        }
        let Some(c) = checkpoint else { break None };
        if why.is_none() {
            match from_disk(c, world, apply)? {
                Ok(restored) => {
                    report(&Event::chosen(c));
                    break Some(restored);
                }
                Err(found) => why = Some(found),
            }
        }
        // The store may have a whole one of this step; but what came from there and is damaged again is left.
        asked = tiers.fetch.is_none() || rejected.iter().any(|p| p == c.path());
        report(&Event::CheckpointRejected { path: c.path().into(), reason: why.unwrap_or_default() });
        passed.push(c.path().to_path_buf());
        rejected.push(c.path().to_path_buf());
        on_disk.retain(|&step| step != c.meta().step);
        disk = None;
    };
    if let Some(server) = server {
        server.end(world)?;
    }
    Ok(restored.map(|r| Restored { seconds: began.elapsed().as_secs_f64(), ..r }))
}

enum Attempt {
    Done(Restored),
    /// What this rank found damaged, and the first rank's words for it.
    Damaged(Vec<(u64, u64)>, String),
}

fn from_memory(
    set: &Set, inventory: &Inventory, server: &Server, disk: Option<&Checkpoint>, world: &World,
    apply: &mut dyn FnMut(&Source) -> Result<()>,
) -> Result<Attempt> {
    let source = Source::memory(set, inventory, &server.world, disk);
    let (mine, damaged) = match &source {
        Ok(source) => (apply(source), source.damaged()),
        Err(failed) => (Err(failed.0.clone()), failed.1.clone()),
    };
    match (world.agree(mine), source) {
        (Ok(()), Ok(source)) => {
            let (step, session, attempt) = (set.step, set.session, set.attempt);
            Ok(Attempt::Done(Restored {
                step,
                session,
                attempt,
                path: None,
                tally: sum(source.tally(), world)?,
                opened: world.all_reduce_f64(&[source.opened() as f64], crate::world::Op::Max)?[0] as u64,
                seconds: 0.0,
            }))
        }
        (Err(e), _) if e.exit == Exit::Checkpoint => Ok(Attempt::Damaged(damaged, e.fact)),
        (Err(e), _) => Err(e),
        (Ok(()), Err(failed)) => Err(failed.0),
    }
}

/// `Err` within says what is damaged: compared while it is read, and then what nobody has read.
fn from_disk(
    c: &Checkpoint, world: &World, apply: &mut dyn FnMut(&Source) -> Result<()>,
) -> Result<std::result::Result<Restored, String>> {
    let source = Source::disk(c);
    let applied = apply(&source);
    let tally = source.tally();
    let compared = source.into_compared();
    if let Some(why) = damage(agree(compared.problem.clone(), Team(Some(world))))? {
        return Ok(Err(why));
    }
    world.agree(applied)?;
    if let Some(why) = damage(check(c, &compared, Team(Some(world))))? {
        return Ok(Err(why));
    }
    let (step, session, attempt) = (c.meta().step, c.meta().session, c.meta().attempt);
    Ok(Ok(Restored {
        step,
        session,
        attempt,
        path: Some(c.path().into()),
        tally: sum(tally, world)?,
        opened: 0,
        seconds: 0.0,
    }))
}

/// What is damaged, if that is what went wrong.
fn damage(result: Result<()>) -> Result<Option<String>> {
    match result {
        Ok(()) => Ok(None),
        Err(e) if e.exit == Exit::Checkpoint => Ok(Some(e.fact)),
        Err(e) => Err(e),
    }
}

fn sum(t: Tally, world: &World) -> Result<Tally> {
    let mine = [t.node, t.node_partner, t.remote, t.remote_partner, t.disk].map(|n| n as f64);
    let all = world.all_reduce_f64(&mine, crate::world::Op::Sum)?;
    let n = |i: usize| all[i] as u64;
    Ok(Tally { node: n(0), node_partner: n(1), remote: n(2), remote_partner: n(3), disk: n(4) })
}

/// Steps that have a directory on disk, whole or not.
fn disk_steps(checkpoints: &Path, world: &World) -> Result<Vec<u64>> {
    let mine = match world.rank() {
        0 => candidates(checkpoints).map(|c| c.iter().map(|c| c.step).collect()),
        _ => Ok(Vec::new()),
    };
    let steps: Vec<u64> = world.agree(mine)?;
    let bytes = world.broadcast_bytes(bytemuck::cast_slice(&steps).to_vec(), 0)?;
    Ok(collect(&bytes))
}

/// A thread on every node that hands out bytes of its snapshots.
pub struct Server {
    pub world: Arc<World>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Collective.
    pub fn start(inventory: &Inventory, world: &World) -> Result<Server> {
        let own = Arc::new(world.duplicate()?);
        if inventory.nodes.leader[world.rank()] != world.rank() {
            return Ok(Server { world: own, thread: None });
        }
        let (files, served) = (inventory.files.clone(), own.clone());
        let mut read = move |r: Request, out: &mut [u8]| {
            let path = files.get(r.item as usize).ok_or(std::io::ErrorKind::NotFound)?;
            File::open(path)?.read_exact_at(out, r.at)
        };
        let thread = std::thread::Builder::new()
            .name("herd-serve".into())
            .spawn(move || served.serve(&mut read))
            .map_err(|e| Error::new(Exit::Internal, format!("cannot start a thread that serves snapshots: {e}")))?;
        Ok(Server { world: own, thread: Some(thread) })
    }

    /// Collective: nobody asks any more.
    pub fn end(self, world: &World) -> Result<()> {
        world.barrier()?;
        if let Some(thread) = self.thread {
            self.world.end_serving()?;
            thread.join().unwrap_or_else(|_| Err(Error::new(Exit::Internal, "the serving thread panicked")))?;
        }
        Ok(())
    }
}

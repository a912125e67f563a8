//! Restore over all tiers: memory of this node, of the others, second copies, disk, object store.
//!
//! What comes next is chosen in `choice`, from what is known. What turns out damaged on the way is left out and the choice made
//! again, so a restore falls back copy by copy, step by step and tier by tier.

use crate::checkpoint::read::{Checkpoint, Compared};
use crate::checkpoint::restore::{agree, candidates, check, newest_opened, Event};
use crate::checkpoint::Team;
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use crate::tiers::choice::{NewestOnDisk, RestoreAction, RestoreView};
use crate::tiers::server::Server;
use crate::tiers::snapshot::collect;
use crate::tiers::snapshot::inventory::{agreed_place, Inventory, Set};
use crate::tiers::snapshot::nodes::Nodes;
use crate::tiers::source::{Source, Tally};
use crate::world::World;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Brings the newest step of the object store that is newer than the given one into the `checkpoints` directory; whether
/// there was one. Collective: the same answer on every rank.
pub type Fetch<'a> = &'a mut dyn FnMut(Option<u64>, &World) -> Result<bool>;

/// Where to look.
pub struct Tiers<'a> {
    /// The run directory, in which the checkpoints lie.
    pub run_dir: &'a Path,
    /// Directory of snapshots in the memory of each node (`checkpoint.snapshot_dir`).
    pub snapshot_dir: &'a Path,
    /// The run's identity.
    pub run: u64,
    /// Asks the object store; `None` for a run without one.
    pub fetch: Option<Fetch<'a>>,
}

/// Where the state came from.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Steps finished.
    pub step: u64,
    /// Start of the run that wrote it; 0 unknown.
    pub session: u64,
    /// Number of the attempt that wrote it.
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
    let mut search = Search::begin(tiers, world)?;
    let restored = loop {
        let sets = search.inventory.sets();
        match search.view(&sets).next() {
            RestoreAction::Open => search.open(report)?,
            RestoreAction::Fetch { newer_than } => search.fetch(newer_than)?,
            RestoreAction::Compare => search.compare(report)?,
            RestoreAction::Drop { set, is_loss } => search.leave_out(&sets[set], is_loss, report),
            RestoreAction::Memory { set, with_disk } => {
                if let Some(restored) = search.read_memory(&sets[set], with_disk, report, apply)? {
                    break Some(restored);
                }
            }
            RestoreAction::Disk => {
                if let Some(restored) = search.read_disk(report, apply)? {
                    break Some(restored);
                }
            }
            RestoreAction::Nothing => break None,
        }
    };
    search.end()?;
    Ok(restored.map(|r| Restored { seconds: began.elapsed().as_secs_f64(), ..r }))
}

/// What is known so far, the same on every rank, and what it takes to know more.
struct Search<'a, 'b> {
    world: &'a World,
    fetch: &'a mut Option<Fetch<'b>>,
    checkpoints: PathBuf,
    inventory: Inventory,
    /// Memory is served while it may be of use; the ranks of a run without snapshots start nothing.
    server: Option<Server>,
    /// Steps that have a directory on disk, whole or not.
    directories: Vec<u64>,
    disk: NewestOnDisk,
    /// The one that `disk` says is opened.
    checkpoint: Option<Checkpoint>,
    /// Whether the object store may be of use.
    may_fetch: bool,
    /// Checkpoints that turned out damaged: since the last fetch, and ever.
    passed: Vec<PathBuf>,
    rejected: Vec<PathBuf>,
}

impl<'a, 'b> Search<'a, 'b> {
    fn begin(tiers: &'a mut Tiers<'b>, world: &'a World) -> Result<Search<'a, 'b>> {
        let checkpoints = RunDir::new(tiers.run_dir).checkpoints();
        let nodes = Nodes::by_snapshot_dir(tiers.snapshot_dir, world)?;
        let place = agreed_place(tiers.snapshot_dir, tiers.run_dir, tiers.run, world)?;
        let inventory = Inventory::take(&place, nodes, world)?;
        let directories = disk_steps(&checkpoints, world)?;
        let server = match inventory.entries.is_empty() {
            true => None,
            false => Some(Server::start(&inventory, world)?),
        };
        let may_fetch = tiers.fetch.is_some();
        Ok(Search {
            world,
            fetch: &mut tiers.fetch,
            checkpoints,
            inventory,
            server,
            directories,
            disk: NewestOnDisk::Unopened,
            checkpoint: None,
            may_fetch,
            passed: Vec::new(),
            rejected: Vec::new(),
        })
    }

    fn view<'s>(&'s self, sets: &'s [Set]) -> RestoreView<'s> {
        RestoreView { sets, directories: &self.directories, disk: self.disk, may_fetch: self.may_fetch }
    }

    fn open(&mut self, report: &mut dyn FnMut(&Event)) -> Result<()> {
        self.checkpoint = newest_opened(&self.checkpoints, &self.passed, Team(Some(self.world)), report)?;
        self.disk = NewestOnDisk::of(self.checkpoint.as_ref().map(Checkpoint::meta), false);
        Ok(())
    }

    fn fetch(&mut self, newer_than: Option<u64>) -> Result<()> {
        self.may_fetch = false;
        let came = match &mut self.fetch {
            Some(fetch) => fetch(newer_than, self.world)?,
            None => false,
        };
        if came {
            (self.disk, self.directories) = (NewestOnDisk::Unopened, disk_steps(&self.checkpoints, self.world)?);
            self.passed.clear();
        }
        Ok(())
    }

    fn compare(&mut self, report: &mut dyn FnMut(&Event)) -> Result<()> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        match damage(check(checkpoint, &Compared::default(), Team(Some(self.world))))? {
            None => self.disk = NewestOnDisk::of(Some(checkpoint.meta()), true),
            Some(why) => self.reject(why, report),
        }
        Ok(())
    }

    fn leave_out(&mut self, set: &Set, is_loss: bool, report: &mut dyn FnMut(&Event)) {
        if is_loss {
            report(&Event::SnapshotRejected { step: set.step, reason: "not every rank's part is there".into() });
        }
        self.inventory.drop_set(set);
    }

    /// `None`: a part is damaged, and is left out now.
    fn read_memory(
        &mut self, set: &Set, with_disk: bool, report: &mut dyn FnMut(&Event),
        apply: &mut dyn FnMut(&Source) -> Result<()>,
    ) -> Result<Option<Restored>> {
        let Some(server) = &self.server else {
            return Err(Error::new(Exit::Internal, "snapshots that nobody serves"));
        };
        let disk = self.checkpoint.as_ref().filter(|_| with_disk);
        match from_memory(set, &self.inventory, server, disk, self.world, apply)? {
            Attempt::Done(restored) => Ok(Some(restored)),
            Attempt::Damaged(ids, reason) => {
                report(&Event::SnapshotRejected { step: set.step, reason });
                if self.inventory.drop_damaged(&ids, self.world)? == 0 {
                    self.inventory.drop_set(set);
                }
                self.may_fetch = self.fetch.is_some();
                Ok(None)
            }
        }
    }

    /// `None`: it is damaged, and is left out now.
    fn read_disk(
        &mut self, report: &mut dyn FnMut(&Event), apply: &mut dyn FnMut(&Source) -> Result<()>,
    ) -> Result<Option<Restored>> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(None) };
        match from_disk(checkpoint, self.world, apply)? {
            Ok(restored) => {
                report(&Event::chosen(checkpoint));
                Ok(Some(restored))
            }
            Err(why) => {
                self.reject(why, report);
                Ok(None)
            }
        }
    }

    /// The checkpoint on disk is damaged: an older one is looked for, and a whole one of this step in the store. But what came from
    /// there and is damaged again is left.
    fn reject(&mut self, reason: String, report: &mut dyn FnMut(&Event)) {
        let Some(checkpoint) = self.checkpoint.take() else { return };
        self.disk = NewestOnDisk::Unopened;
        let path = checkpoint.path().to_path_buf();
        self.may_fetch = self.fetch.is_some() && !self.rejected.contains(&path);
        report(&Event::CheckpointRejected { path: path.clone(), reason });
        self.directories.retain(|&step| step != checkpoint.meta().step);
        self.passed.push(path.clone());
        self.rejected.push(path);
    }

    /// Collective.
    fn end(self) -> Result<()> {
        match self.server {
            Some(server) => server.end(self.world),
            None => Ok(()),
        }
    }
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

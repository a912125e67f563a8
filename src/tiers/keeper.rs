//! What happens to the state between two steps: snapshots, their second copies, and checkpoints on disk.
//!
//! All ranks decide alike, from the step's number and from one small exchange about what is still under way anywhere. So
//! the slots that may be overwritten are the same on every rank, and some step is always whole on all of them.

mod open;
mod setup;

use crate::checkpoint::meta::{Meta, Saved};
use crate::checkpoint::on_local_disk;
use crate::checkpoint::restore::candidates;
use crate::checkpoint::save::Rules;
use crate::checkpoint::Stripes;
use crate::checkpoint::{prune_after, Keep};
use crate::config::{due, CheckpointSection};
use crate::error::{Exit, Result};
use crate::run_dir::RunDir;
use crate::tiers::background::{BackgroundWriter, Ended};
use crate::tiers::snapshot::partner::PartnerCopies;
use crate::tiers::snapshot::place::SnapshotDir;
use crate::tiers::snapshot::slot::{Owner, Slot};
use crate::tiers::snapshot::table::Table;
use crate::tiers::snapshot::SlotRing;
use crate::world::{Op, World};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64;

pub use crate::tiers::snapshot::slot::Give;
pub use setup::{Happened, ResumePoint, Setup};

/// Everything that a run keeps of its state.
pub struct StateKeeper {
    config: CheckpointSection,
    checkpoints: PathBuf,
    world: World,
    owner: Owner,
    place: Option<SnapshotDir>,
    shelf: Option<SlotRing>,
    partner: Option<PartnerCopies>,
    writer: Option<BackgroundWriter>,
    rules: Rules,
    /// Slot of the snapshot whose copy is under way.
    sending: Option<usize>,
    skipped: u64,
    /// What the ranks found under way before the step's report.
    agreed: Option<Agreed>,
    last_save: Instant,
    last_due: Instant,
    /// What earlier starts left goes after the first snapshot that is whole everywhere.
    old: bool,
    /// Time of the last snapshot's copy to the partner.
    pub partner_time: Option<Duration>,
    pending: Vec<Happened>,
}

impl StateKeeper {
    /// Allocates the slots and starts the threads that are needed. Collective.
    ///
    /// Where snapshots do not fit the memory of some node, the run goes on with one copy of each, or with none, and says so.
    pub fn new(setup: &Setup, table: Table, world: &World) -> Result<StateKeeper> {
        let config = setup.config.clone();
        let checkpoints = RunDir::new(setup.run_dir).checkpoints();
        let table = Arc::new(table);
        let tables = world.all_gather_bytes(&table.hash.to_le_bytes())?;
        let owner = Owner {
            run: setup.run,
            session: setup.meta.session,
            attempt: setup.attempt,
            rank: world.rank() as u64,
            world: world.size() as u64,
            layout: xxh3_64(&tables.concat()),
        };
        let turns = match config.writers_per_node {
            0 => (0, 1),
            n => {
                let all = world.all_reduce_f64(&[world.local_size() as f64], Op::Max)?;
                (world.local_rank() / n, (all[0] as usize).div_ceil(n))
            }
        };
        let rules = Rules {
            stripes: Stripes { count: config.stripe_count, size_mib: config.stripe_size_mib },
            turn: turns.0,
            turns: turns.1,
            fence: setup.fence.clone(),
            direct: false,
            in_run: true,
            ..Rules::default()
        };
        let writer = match periodic(&config) && config.background {
            true => {
                Some(BackgroundWriter::start(world.duplicate()?, checkpoints.clone(), rules.clone(), setup.on_cores)?)
            }
            false => None,
        };
        let now = Instant::now();
        let mut keeper = StateKeeper {
            checkpoints,
            world: world.duplicate()?,
            owner,
            place: None,
            shelf: None,
            partner: None,
            rules,
            sending: None,
            skipped: 0,
            agreed: None,
            last_save: now,
            last_due: now,
            old: true,
            partner_time: None,
            pending: Vec::new(),
            writer,
            config,
        };
        let meta = serde_json::to_vec(setup.meta).map_or(0, |m| m.len());
        if keeper.config.snapshot_every > 0 {
            match keeper.open(setup, table.clone(), meta, world) {
                // every rank has this error: the memory of some node does not do
                Err(error) if error.exit == Exit::Storage => {
                    keeper.config.snapshot_every = 0;
                    keeper.pending.push(Happened::NoSnapshots { error });
                }
                other => other?,
            }
        }
        if keeper.config.snapshot_every == 0 && keeper.writer.is_some() {
            let slot = world.agree(Slot::private(table, meta))?;
            keeper.shelf = Some(SlotRing::new(vec![slot], None, owner));
        }
        Ok(keeper)
    }

    /// Before step `step` is called finished: the copy of the step before it has arrived, or is given a moment to. So a rank
    /// that is lost takes no step with it but the one that was not yet copied. Collective.
    pub fn before_report(&mut self, step: u64, ending: bool) -> Result<()> {
        if ending || !self.is_due(step) {
            return Ok(());
        }
        let late = self.timed() && self.last_save.elapsed().as_secs_f64() >= 60.0 * self.config.every_minutes;
        let mut out = std::mem::take(&mut self.pending);
        self.agreed = Some(self.agree(late, &mut out)?);
        self.pending = out;
        Ok(())
    }

    fn timed(&self) -> bool {
        self.config.every_minutes > 0.0
    }

    /// Whether anything may be kept of a step.
    fn is_due(&self, step: u64) -> bool {
        self.timed() || due(step, self.config.snapshot_every) || due(step, self.config.every)
    }

    /// After step `meta.step`, and after [`StateKeeper::before_report`]: snapshot, second copy and checkpoint as they are due.
    /// Collective.
    ///
    /// `ending`: the run ends with this step, so the checkpoint is written here and now, and its loss is an error.
    pub fn after_step(
        &mut self, meta: &Meta, ending: bool, give: Give, save_now: &mut dyn FnMut(&Rules) -> Result<Saved>,
    ) -> Result<Vec<Happened>> {
        let step = meta.step;
        let mut out = std::mem::take(&mut self.pending);
        if ending {
            self.settle(&mut out)?;
            let result = save_now(&self.rules);
            self.report(Ended { step, result }, true, &mut out)?;
            return Ok(out);
        }
        if let Some(ended) = self.writer.as_mut().and_then(BackgroundWriter::poll) {
            self.report(ended, false, &mut out)?;
        }
        let complaint = self.writer.as_ref().and_then(BackgroundWriter::prune_failed);
        out.extend(complaint.map(|error| Happened::PruneFailed { error }));
        let Some(Agreed { copying, saving, late }) = self.agreed.take() else { return Ok(out) };
        let snapshot = due(step, self.config.snapshot_every);
        let save = due(step, self.config.every) || late;
        if save {
            // From one that was due to the next, so that a slow disk is told once an interval.
            self.last_save = Instant::now();
        }
        match &mut self.writer {
            None if save => {
                let result = save_now(&self.rules);
                self.report(Ended { step, result }, false, &mut out)?;
            }
            _ => {}
        }
        let behind = save && self.writer.is_some();
        if behind && saving {
            let (running, took) = self.writer.as_ref().and_then(BackgroundWriter::running).unwrap_or_default();
            self.writer.iter().for_each(BackgroundWriter::hurry);
            out.push(Happened::SaveSlow { step, running, took, since_due: self.last_due.elapsed() });
        }
        if behind {
            self.last_due = Instant::now();
        }
        let behind = behind && !saving;
        if !(snapshot || behind) {
            return Ok(out);
        }
        self.snapshot(meta, snapshot, behind, copying, give, &mut out)?;
        Ok(out)
    }

    fn snapshot(
        &mut self, meta: &Meta, snapshot: bool, save: bool, copying: bool, give: Give, out: &mut Vec<Happened>,
    ) -> Result<()> {
        let Some(shelf) = &mut self.shelf else { return Ok(()) };
        let slot = shelf.free().filter(|_| save || !copying);
        let Some(slot) = slot else {
            self.skipped += 1;
            out.push(Happened::SnapshotSkipped { step: meta.step, skipped: self.skipped });
            return Ok(());
        };
        shelf.write(slot, meta, give)?;
        if snapshot && !copying {
            match &mut self.partner {
                Some(partner) => {
                    partner.send(shelf.get(slot));
                    self.sending = Some(slot);
                }
                None => shelf.set_safe(slot),
            }
        }
        if let (true, Some(writer)) = (save, &mut self.writer) {
            writer.save(shelf.get(slot), meta.clone());
        }
        Ok(())
    }

    /// What is under way on any rank. A copy that has arrived everywhere makes its snapshot the safe one.
    fn agree(&mut self, late: bool, out: &mut Vec<Happened>) -> Result<Agreed> {
        let (copying, copied) = self.partner.as_mut().map_or((false, None), PartnerCopies::poll);
        let failed = self.note_copy(copied, out)?;
        if let Some(ended) = self.writer.as_mut().and_then(BackgroundWriter::poll) {
            self.report(ended, false, out)?;
        }
        let saving = self.writer.as_ref().is_some_and(|w| w.running().is_some());
        let late = late && self.world.rank() == 0;
        let all = self.world.all_reduce_f64(&[copying, failed, saving, late].map(|b| b as u8 as f64), Op::Max)?;
        let [copying, failed, saving, late] = [0, 1, 2, 3].map(|i| all[i] > 0.0);
        if !copying {
            self.settle_copy(failed)?;
        }
        Ok(Agreed { copying, saving, late })
    }

    fn note_copy(&mut self, copied: Option<Result<Duration>>, out: &mut Vec<Happened>) -> Result<bool> {
        match copied {
            None => Ok(false),
            Some(Ok(time)) => {
                self.partner_time = Some(time);
                Ok(false)
            }
            Some(Err(error)) if error.exit == Exit::Peer => Err(error),
            Some(Err(error)) => {
                out.push(Happened::PartnerFailed { error });
                Ok(true)
            }
        }
    }

    /// No copy is under way anywhere.
    fn settle_copy(&mut self, failed: bool) -> Result<()> {
        if let (Some(slot), Some(shelf), false) = (self.sending.take(), &mut self.shelf, failed) {
            shelf.set_safe(slot);
        }
        // Every rank has come here after its first snapshot of this start, so that one is whole: older ones may go.
        let whole = self.shelf.as_ref().is_some_and(|s| s.is_ours());
        if let (true, true, Some(place)) = (self.old, whole, &self.place) {
            self.old = false;
            // What this start uses is held by living processes, and stays.
            if self.world.local_rank() == 0 {
                place.clean(&|_| false)?;
            }
        }
        Ok(())
    }

    /// Removes old checkpoints after the save of step `saved`, behind the steps that follow; `last`: no save comes after it. `may_remove`
    /// is asked for each step. What cannot be removed costs space, not the run.
    pub fn prune(&mut self, saved: u64, last: bool, may_remove: &dyn Fn(u64) -> bool, world: &World) {
        if world.rank() > 0 {
            return;
        }
        let keep = self.keep(last);
        let failed = match (&self.writer, candidates(&self.checkpoints)) {
            (Some(writer), Ok(all)) => {
                writer.prune(keep, saved, all.iter().map(|c| c.step).filter(|&s| !may_remove(s)).collect());
                None
            }
            (_, Err(e)) => Some(e),
            _ => prune_after(&self.checkpoints, keep, saved, may_remove).err(),
        };
        self.pending.extend(failed.map(|error| Happened::PruneFailed { error }));
    }

    fn keep(&self, last: bool) -> Keep {
        let CheckpointSection { keep: newest, keep_every: every, keep_best: best, recycle, .. } = self.config;
        Keep { newest, every, best, recycle: recycle && !last && on_local_disk(&self.checkpoints) }
    }

    /// Waits for what is under way.
    fn settle(&mut self, out: &mut Vec<Happened>) -> Result<()> {
        let copied = self.partner.as_mut().and_then(PartnerCopies::wait);
        self.note_copy(copied, out)?;
        if let Some(ended) = self.writer.as_mut().and_then(BackgroundWriter::wait) {
            self.report(ended, false, out)?;
        }
        Ok(())
    }

    fn report(&mut self, ended: Ended, last: bool, out: &mut Vec<Happened>) -> Result<()> {
        let Ended { step, result } = ended;
        match result {
            Ok(saved) => out.push(Happened::Saved(saved, step)),
            Err(e) if last => return Err(e.context(format!("the last checkpoint, of step {step}, is lost"))),
            Err(e) if e.exit == Exit::Peer => return Err(e),
            Err(error) => out.push(Happened::SaveFailed { step, error }),
        }
        Ok(())
    }

    /// What nobody has heard of when the last step is done: old checkpoints that could not be removed.
    pub fn last_words(&mut self) -> Vec<Happened> {
        let failed = self.writer.as_mut().map(BackgroundWriter::finish).unwrap_or_default();
        self.pending.extend(failed.into_iter().map(|error| Happened::PruneFailed { error }));
        std::mem::take(&mut self.pending)
    }

    /// The run is done: its snapshots are needed no more. Collective.
    pub fn finish(self) -> Result<()> {
        self.world.barrier()?;
        match &self.place {
            Some(place) if self.world.local_rank() == 0 => place.remove(),
            _ => Ok(()),
        }
    }
}

struct Agreed {
    /// A copy to a partner is under way on some rank.
    copying: bool,
    /// A save is under way on some rank.
    saving: bool,
    /// `every_minutes` have passed on rank 0.
    late: bool,
}

fn periodic(config: &CheckpointSection) -> bool {
    config.every > 0 || config.every_minutes > 0.0
}

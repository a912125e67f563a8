//! Where a run's state comes from: the newest step of its own, else the weights that it is given, else the seed.

use super::behind;
use super::first::{self, Given};
use super::heritage::Heritage;
use super::report::{say, Report};
use super::state::State;
use crate::checkpoint::{BaseNote, Event, Group, Meta, ReferenceNote, Team};
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::events::RunEvent;
use crate::layout;
use crate::liveness::Progress;
use crate::plan::{self, DataChanges, Plan};
use crate::tiers::keeper::ResumePoint;
use crate::tiers::{self, Restored, Source, Tiers};
use crate::world::World;

/// Bytes of state for an element of the model: fp32 weight and moments.
const ELEMENT: usize = Group::ALL.len() * size_of::<f32>();

/// Where the state came from, and what was found on the way.
pub struct Origin {
    /// The step that the run goes on from; `None`: it begins.
    restored: Option<Restored>,
    /// What it begins with, where that is on disk.
    given: Option<Given>,
    /// Of the checkpoint that it goes on from.
    heritage: Option<Heritage>,
    base: Option<BaseNote>,
    reference: Option<ReferenceNote>,
    changes: DataChanges,
    /// What the search came across, and what came from the object store.
    found: Vec<Event>,
    fetched: Vec<RunEvent>,
}

impl Origin {
    /// Fills `state`, published to whoever computes with it. `run`: its identity; `own`: what its checkpoints will say of it.
    /// Collective.
    pub fn find(
        plan: &Plan, world: &World, progress: &Progress, run: u64, own: &Meta, state: &mut State,
    ) -> Result<Origin> {
        progress.restoring(plan.config.launch.restore_time(state_bytes(state)));
        let mut origin = Origin::restore(plan, world, progress, run, own, state)?;
        match &origin.restored {
            Some(r) => {
                let from = r.path.as_ref().map_or("snapshots in memory".into(), |p| p.display().to_string());
                tracing::info!("resumed from {from}: step {}, {} tokens", state.step, state.tokens);
            }
            None => {
                // of what turned out damaged nothing may be left
                if origin.heritage.take().is_some() {
                    state.clear();
                }
                (origin.changes, origin.base, origin.reference) = (DataChanges::default(), None, None);
                origin.given = first::begin(plan, world, state)?;
            }
        }
        first::base(plan, world, state, origin.base.as_ref(), origin.given.as_ref())?;
        state.publish()?;
        Ok(origin)
    }

    /// The newest whole step over all tiers, where there is one.
    fn restore(
        plan: &Plan, world: &World, progress: &Progress, run: u64, own: &Meta, state: &mut State,
    ) -> Result<Origin> {
        let config = &plan.config;
        let (mut heritage, mut base, mut reference, mut changes) = (None, None, None, DataChanges::default());
        let (mut found, mut fetched) = (Vec::new(), Vec::new());
        let mut ask = |than, world: &World| match &config.checkpoint.store {
            Some(store) => {
                // the first rank takes all of it from the store
                let bytes = (layout::count(&plan.model) * ELEMENT) as u64;
                world.agree(say(plan, world, &RunEvent::Restoring { bytes }))?;
                behind::fetch(store, plan, world, progress, than, &mut fetched)
            }
            None => Ok(false),
        };
        let mut tiers = Tiers {
            run_dir: &config.run_dir,
            snapshot_dir: &config.checkpoint.snapshot_dir,
            run,
            fetch: config.checkpoint.store.is_some().then_some(&mut ask),
        };
        let mut hear = |event: &Event| {
            match event {
                Event::CheckpointChosen { .. } => tracing::info!("{event}"),
                _ => tracing::error!("{event}"),
            }
            found.push(event.clone());
        };
        let mut apply = |source: &Source| {
            heritage = Some(Heritage::of_meta(source.meta()));
            base = source.meta().base.clone();
            reference = source.meta().reference.clone();
            changes = resume(plan, own, source, state)?;
            Ok(())
        };
        let restored = tiers::restore(&mut tiers, world, &mut hear, &mut apply)?;
        Ok(Origin { restored, given: None, heritage, base, reference, changes, found, fetched })
    }

    pub fn is_new(&self) -> bool {
        self.restored.is_none()
    }

    /// What the pairs of the run are compared with, where a checkpoint says so.
    pub fn reference(&self) -> Option<ReferenceNote> {
        self.reference.clone()
    }

    /// The step that the run goes on from, for those who keep its state.
    pub fn from(&self) -> Option<ResumePoint> {
        self.restored.as_ref().map(|r| ResumePoint { session: r.session, step: r.step })
    }

    /// Special tokens and generation settings of the model that the run goes on from or begins with become those of `meta`. Tokens
    /// are compared by the rank that has the tokenizer. The weights on disk are let go. Collective.
    pub fn inherit(
        &mut self, plan: &Plan, world: &World, tokenizer: Option<&Tokenizer>, meta: &mut Meta,
    ) -> Result<()> {
        let given = self.given.take();
        let (is_new, heritage) = (self.is_new(), self.heritage.take());
        (meta.special_tokens, meta.generation) = Team(Some(world)).by_first(|| {
            let heritage = if is_new { first::inherited(plan, given.as_ref())? } else { heritage };
            if let (Some(heritage), Some(tokenizer)) = (heritage, tokenizer) {
                heritage.give(meta, tokenizer);
            }
            Ok((meta.special_tokens.clone(), meta.generation.clone()))
        })?;
        Ok(())
    }

    /// Into the run's report: what was fetched, what was passed over, in what the data is another, where the state came from.
    pub fn tell(&self, report: &mut Report) -> Result<()> {
        for event in &self.fetched {
            report.tell(event)?;
        }
        for event in &self.found {
            match event {
                Event::CheckpointRejected { path, reason } => {
                    report.event(&RunEvent::CheckpointRejected { path: path.clone(), reason: reason.clone() })?
                }
                Event::SnapshotRejected { step, reason } => {
                    report.event(&RunEvent::SnapshotRejected { step: *step, reason: reason.clone() })?
                }
                Event::CheckpointChosen { .. } => {}
            }
        }
        tell(&self.changes, report)?;
        let Some(r) = &self.restored else { return Ok(()) };
        report.event(&RunEvent::Resume {
            step: r.step,
            path: r.path.clone(),
            tiers: r.tally,
            snapshots_opened: r.opened,
            from_attempt: r.attempt,
            seconds: r.seconds,
        })
    }
}

/// Bytes of the state that this rank owns.
pub fn state_bytes(state: &State) -> u64 {
    let elements: usize = state.optimizer.slots.iter().map(|s| s.owned.range.len()).sum();
    (elements * ELEMENT) as u64
}

/// Goes on from a checkpoint, if it is one of this run. Returns in what its data was another.
fn resume(plan: &Plan, own: &Meta, found: &Source, state: &mut State) -> Result<DataChanges> {
    plan::check_resume(plan, found.meta())?;
    let (now, then) = (&own.tokenizer_fingerprint, &found.meta().tokenizer_fingerprint);
    if !then.is_empty() && now != then {
        return Err(Error::new(
            Exit::Config,
            format!(
                "{} was made with tokenizer {} ({then}), but data.tokenizer is {} ({now})",
                found.name(),
                found.meta().tokenizer,
                own.tokenizer
            ),
        )
        .hint("put the old tokenizer back, or start afresh with another run_dir"));
    }
    let now = own.data.clone().unwrap_or_default();
    let changes = plan::check_same_data(&plan.config, &now, found.meta())?;
    state.restore(found)?;
    Ok(changes)
}

/// Says in what the data differs from that of the run that wrote the checkpoint.
fn tell(changes: &DataChanges, report: &mut Report) -> Result<()> {
    changes.notes.iter().for_each(|note| report.note(note));
    if changes.accepted.is_empty() {
        return Ok(());
    }
    for line in &changes.accepted {
        report.note(&format!("WARNING: other samples than before, as data.on_change says: {line}"));
    }
    report.event(&RunEvent::DataChanged { changes: changes.accepted.clone() })
}

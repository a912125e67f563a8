//! Before the first step: data, model, and where the state comes from.

use super::behind;
use super::corpora::RunData;
use super::first;
use super::heritage::Heritage;
use super::report::{self, Report};
use super::state::State;
use super::validate::validate;
use crate::attempt;
use crate::checkpoint::{Event, Group, Meta, SpecialTokens, Team};
use crate::data::tokenizer::TokenizerFacts;
use crate::data::Mixture;
use crate::error::{Error, Exit, Result};
use crate::events::{Events, RunEvent};
use crate::layout;
use crate::liveness::{Phase, Progress};
use crate::model::{Llama, LoraNumbers};
use crate::parallel::{Pipeline, Wires};
use crate::plan::faults::FaultCost;
use crate::plan::{self, DataChanges, Plan};
use crate::slurm::{compress, Job};
use crate::tiers::keeper::{From, Setup, StateKeeper};
use crate::tiers::snapshot::place::{random, run_id};
use crate::tiers::snapshot::table::Table;
use crate::tiers::Source;
use crate::tiers::{self, Tiers};
use crate::topology::Topology;
use crate::world::World;
use std::sync::Arc;

/// Everything the loop needs.
pub struct Started {
    pub corpus: Mixture,
    pub held_out: Option<Mixture>,
    pub model: Llama,
    pub pipeline: Pipeline,
    pub state: State,
    pub report: Report,
    /// What a checkpoint says about the run, counters left at zero.
    pub meta: Meta,
    pub keeper: StateKeeper,
}

/// Opens the data, builds the model, and takes the state from the newest valid checkpoint of the run directory, else from
/// the given weights, else from the seed. Collective over all ranks.
pub fn start(plan: &Plan, world: &World, progress: &Progress) -> Result<Started> {
    let config = &plan.config;
    let told = Job::current();
    // the supervisor waits for this word no longer than ranks take to find each other
    world.agree(say(plan, world, &RunEvent::Met { world: world.size() }))?;
    crate::wire::use_device(world, plan.device)?;
    world.agree(report::open_run_directory(plan, world))?;
    let data = RunData::open(plan, world)?;

    let wires = Wires::new(plan, world)?;
    let mut model = Llama::new(&plan.model, config.data.sequence_length, plan.device, &wires.axes);
    model.recompute = (config.train.recompute, config.train.recompute_blocks);
    if let Some(lora) = &config.lora {
        model.block.set_lora(LoraNumbers { scale: lora.scale(), dropout: lora.dropout });
    }
    let pipeline = Pipeline::new(plan, wires.pipeline);
    let mut state = State::new(plan, wires.groups)?;
    let run = identity(plan, world)?;
    let bytes = state_bytes(&state);
    let restoring = say(plan, world, &RunEvent::Restoring { bytes });
    let session = world.broadcast_bytes(world.agree(restoring.and_then(|()| random()))?.to_le_bytes().to_vec(), 0)?;
    let session = u64::from_le_bytes(session.try_into().unwrap_or_default()) >> 11;
    let mut meta = Meta { session, data: Some(data.note()), ..meta(plan, &data.tokenizer)? };
    let mut changes = DataChanges::default();
    let (mut heritage, mut base) = (None, None);
    progress.restoring(config.launch.restore_time(bytes));
    let mut events = Vec::new();
    let mut from_store = Vec::new();
    let mut touched = false;
    let mut ask = |than, world: &World| match &config.checkpoint.store {
        Some(store) => {
            // the first rank takes all of it from the store
            let bytes = (layout::count(&plan.model) * ELEMENT) as u64;
            world.agree(say(plan, world, &RunEvent::Restoring { bytes }))?;
            behind::fetch(store, plan, world, progress, than, &mut from_store)
        }
        None => Ok(false),
    };
    let mut tiers = Tiers {
        run_dir: &config.run_dir,
        snapshot_dir: &config.checkpoint.snapshot_dir,
        run,
        fetch: config.checkpoint.store.is_some().then_some(&mut ask),
    };
    let restored = tiers::restore(
        &mut tiers,
        world,
        &mut |event| {
            match event {
                Event::CheckpointChosen { .. } => tracing::info!("{event}"),
                _ => tracing::error!("{event}"),
            }
            events.push(event.clone());
        },
        &mut |source| {
            touched = true;
            heritage = Some(Heritage::of_meta(source.meta()));
            base = source.meta().base.clone();
            changes = resume(plan, &meta, source, &mut state)?;
            Ok(())
        },
    )?;
    match &restored {
        Some(r) => {
            let from = r.path.as_ref().map_or("snapshots in memory".into(), |p| p.display().to_string());
            tracing::info!("resumed from {from}: step {}, {} tokens", state.step, state.tokens);
        }
        None if touched => state.clear(),
        None => {}
    }
    let mut given = None;
    if restored.is_none() {
        (changes, base) = (DataChanges::default(), None);
        given = first::begin(plan, world, &mut state)?;
    }
    first::base(plan, world, &mut state, base.as_ref(), given.as_ref())?;
    state.publish()?;
    // Tokens are compared by the rank that has the tokenizer.
    (meta.special_tokens, meta.generation) = Team(Some(world)).by_first(|| {
        let heritage = match &restored {
            Some(_) => heritage,
            None => first::inherited(plan, given.as_ref())?,
        };
        if let (Some(heritage), Some(tokenizer)) = (heritage, &data.opened) {
            heritage.give(&mut meta, tokenizer);
        }
        Ok((meta.special_tokens.clone(), meta.generation.clone()))
    })?;
    drop(given);
    progress.at(Phase::Start);
    progress.begin(state.step);
    let mut report = world.agree(Report::open(plan, world, state.step))?;
    told.notes.iter().for_each(|note| report.note(note));
    FaultCost::of(plan).warning().iter().for_each(|text| report.note(&format!("WARNING: {text}")));
    if let Some(job) = &told.job {
        let nodes = compress(&job.nodes);
        tracing::info!("Slurm job {} on {nodes}, requeued {} times before", job.id, job.restarts);
        report.event(&RunEvent::SlurmJob { job: job.id, restarts: job.restarts, nodes })?;
    }
    for event in &from_store {
        report.tell(event)?;
    }
    for event in events {
        match event {
            Event::CheckpointRejected { path, reason } => {
                report.event(&RunEvent::CheckpointRejected { path, reason })?
            }
            Event::SnapshotRejected { step, reason } => report.event(&RunEvent::SnapshotRejected { step, reason })?,
            Event::CheckpointChosen { .. } => {}
        }
    }
    tell(&changes, &mut report)?;
    if let Some(r) = &restored {
        report.event(&RunEvent::Resume {
            step: r.step,
            path: r.path.clone(),
            tiers: r.tally,
            snapshots_opened: r.opened,
            from_attempt: r.attempt,
            seconds: r.seconds,
        })?;
    }
    let run_dir = config.run_dir.clone();
    let setup = Setup {
        config: &config.checkpoint,
        run_dir: &config.run_dir,
        run,
        attempt: meta.attempt,
        meta: &state.describe(plan, &meta),
        from: restored.as_ref().map(|r| From { session: r.session, step: r.step }),
        fence: Arc::new(move || attempt::check(&run_dir)),
        on_cores: !plan.device.is_cuda(),
    };
    let keeper = StateKeeper::new(&setup, world.agree(Table::new(state.specs()))?, world)?;
    keeper.notes(world)?.iter().for_each(|text| report.note(text));
    if restored.is_none() {
        report.event(&RunEvent::Start { world: world.size(), weights: config.model.weights.clone() })?;
        if let Some(held_out) = data.held_out.as_ref().filter(|_| config.validation.every > 0) {
            let loss = validate(plan, world, &model, &pipeline, held_out, &mut state, progress)?;
            report.event(&RunEvent::Validation { step: 0, validation_loss: Some(loss) })?;
            report.note(&format!("validation loss before the first step: {loss:.4}"));
        }
    }
    let RunData { corpus, held_out, .. } = data;
    Ok(Started { corpus, held_out, model, pipeline, state, report, meta, keeper })
}

/// An event of rank 0 before the run's report is open.
fn say(plan: &Plan, world: &World, event: &RunEvent) -> Result<()> {
    match world.rank() {
        0 => Events::open(&plan.config.run_dir)?.write(event),
        _ => Ok(()),
    }
}

/// Bytes of state for an element of the model: fp32 weight and moments.
const ELEMENT: usize = Group::ALL.len() * size_of::<f32>();

/// Bytes of the state that this rank owns.
fn state_bytes(state: &State) -> u64 {
    let elements: usize = state.optimizer.slots.iter().map(|s| s.owned.range.len()).sum();
    (elements * ELEMENT) as u64
}

/// The run's identity, which rank 0 makes where there is none.
fn identity(plan: &Plan, world: &World) -> Result<u64> {
    let mine = if world.rank() == 0 { run_id(&plan.config.run_dir) } else { Ok(0) };
    let bytes = world.broadcast_bytes(world.agree(mine)?.to_le_bytes().to_vec(), 0)?;
    Ok(u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
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

/// What this run's checkpoints say about it.
fn meta(plan: &Plan, tokenizer: &TokenizerFacts) -> Result<Meta> {
    Ok(Meta {
        attempt: attempt::current(),
        seed: plan.config.seed,
        tokenizer: tokenizer.place.clone(),
        tokenizer_fingerprint: tokenizer.fingerprint.clone(),
        special_tokens: SpecialTokens { bos: tokenizer.bos, eos: tokenizer.eos.into_iter().collect(), pad: None },
        config: serde_json::to_value(&plan.config).map_err(|e| Error::new(Exit::Internal, e.to_string()))?,
        topology: Topology { rank: 0, ..plan.topology.clone() },
        ..Meta::new(plan.model.clone())
    })
}

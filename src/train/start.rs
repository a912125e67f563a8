//! Before the first step: data, model, state, report, keeper.

use super::corpora::RunData;
use super::first;
use super::measure::{weights_sum, Measurement};
use super::origin::{state_bytes, Origin};
use super::reference::{Reference, ReferencePlace};
use super::report::{self, say, Report};
use super::state::State;
use super::tasks::RunTasks;
use super::validate::{validate, HeldOut};
use crate::attempt;
use crate::checkpoint::{Meta, ReferenceNote, SpecialTokens};
use crate::data::tokenizer::TokenizerFacts;
use crate::data::Mixture;
use crate::error::{Error, Exit, Result};
use crate::events::RunEvent;
use crate::liveness::{Phase, Progress};
use crate::model::{Llama, LoraNumbers};
use crate::parallel::{Pipeline, Wires};
use crate::plan::faults::FaultCost;
use crate::plan::Plan;
use crate::slurm::{compress, Job};
use crate::tiers::keeper::{ResumePoint, Setup, StateKeeper};
use crate::tiers::snapshot::place::{random, run_id};
use crate::tiers::snapshot::table::Table;
use crate::topology::Topology;
use crate::world::World;
use std::sync::Arc;

/// Everything the loop needs.
pub struct Started {
    pub corpus: Mixture,
    pub held_out: Option<Mixture>,
    pub tasks: RunTasks,
    /// Of preference pairs: what they are compared with.
    pub reference: Option<Reference>,
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
    // the supervisor waits for this word no longer than ranks take to find each other
    world.agree(say(plan, world, &RunEvent::Met { world: world.size() }))?;
    crate::wire::use_device(world, plan.device)?;
    world.agree(report::open_run_directory(plan, world))?;
    let data = RunData::open(plan, world)?;
    let tasks = RunTasks::open(plan, world, data.opened.as_ref())?;
    let (model, pipeline, mut state) = build(plan, world)?;
    let run = identity(plan, world)?;
    let session = session(plan, world, &state)?;
    let mut meta = Meta { session, data: Some(data.note()), ..meta(plan, &data.tokenizer)? };
    let mut find = |state: &mut State| Origin::find(plan, world, progress, run, &meta, state);
    let mut origin = find(&mut state)?;
    let compared = match &plan.config.dpo {
        Some(_) => {
            let measurement = Measurement { plan, world, model: &model, pipeline: &pipeline, progress };
            Some(reference(&measurement, &data, &mut find, &mut origin, &mut state)?)
        }
        None => None,
    };
    let (reference, note) = compared.unzip();
    meta.reference = note;
    origin.inherit(plan, world, data.opened.as_ref(), &mut meta)?;
    progress.at(Phase::Start);
    progress.begin(state.step);
    let mut report = open_report(plan, world, state.step)?;
    origin.tell(&mut report)?;
    let keeper = open_keeper(plan, world, run, origin.from(), &meta, &state)?;
    keeper.notes(world)?.iter().for_each(|text| report.note(text));
    if origin.is_new() {
        report.event(&RunEvent::Start { world: world.size(), weights: plan.config.model.weights.clone() })?;
        if let Some(held_out) = data.held_out.as_ref().filter(|_| plan.config.validation.every > 0) {
            let corpus = held_out;
            let held_out = HeldOut { corpus, reference: reference.as_ref() };
            let found = validate(plan, world, &model, &pipeline, &held_out, &mut state, progress)?;
            report.event(&found.event(0, corpus))?;
            report.note(&format!("validation loss before the first step: {:.4}", found.loss));
        }
        let measurement = Measurement { plan, world, model: &model, pipeline: &pipeline, progress };
        report.scored(&tasks.score(&measurement, &mut state)?, 0)?;
    }
    let RunData { corpus, held_out, .. } = data;
    Ok(Started { corpus, held_out, tasks, reference, model, pipeline, state, report, meta, keeper })
}

/// What the preference pairs are compared with: from disk, else computed with the weights that the run began with. Those are in
/// `state` when it begins; when it goes on they are read once more, and `find` puts its state back. Collective.
fn reference(
    m: &Measurement, data: &RunData, find: &mut dyn FnMut(&mut State) -> Result<Origin>, origin: &mut Origin,
    state: &mut State,
) -> Result<(Reference, ReferenceNote)> {
    let Measurement { plan, world, .. } = *m;
    let note = data.note();
    let lists = [Some(&data.corpus), data.held_out.as_ref()];
    let then = origin.reference();
    if let Some(then) = &then {
        if let Some(found) = ReferencePlace::of(plan, &note, &then.sum).find(world)? {
            return Ok((found, then.clone()));
        }
        tracing::info!("the reference of this run is not where it was: it is computed again with model.weights");
        state.clear();
        let given = first::begin(plan, world, state)?;
        first::base(plan, world, state, None, given.as_ref())?;
        state.publish()?;
    }
    let sum = weights_sum(plan, world, state)?;
    if let Some(then) = then.as_ref().filter(|then| then.sum != sum) {
        let fact = format!("model.weights have the checksum {sum}, those that the run began with had {}", then.sum);
        let hint = "let model.weights name the weights that the run began with, or dpo.reference_dir its reference";
        return Err(Error { agreed: true, ..Error::new(Exit::Config, fact).hint(hint) });
    }
    let place = ReferencePlace::of(plan, &note, &sum);
    let found = match place.find(world)? {
        Some(found) => {
            tracing::info!("reference log-probabilities: those in {}", place.dir().display());
            found
        }
        None => m.make(&place, state, lists)?,
    };
    if then.is_some() {
        state.clear();
        *origin = find(state)?;
    }
    Ok((found, place.note()))
}

/// The model, its stages and the state without numbers. Collective: wires are made.
fn build(plan: &Plan, world: &World) -> Result<(Llama, Pipeline, State)> {
    let config = &plan.config;
    let wires = Wires::new(plan, world)?;
    let mut model = Llama::new(&plan.model, config.data.sequence_length, plan.device, &wires.axes);
    model.recompute = (config.train.recompute, config.train.recompute_blocks);
    if let Some(lora) = &config.lora {
        model.block.set_lora(LoraNumbers { scale: lora.scale(), dropout: lora.dropout });
    }
    let pipeline = Pipeline::new(plan, wires.pipeline);
    Ok((model, pipeline, State::new(plan, wires.groups)?))
}

/// The report, with what the job and the plan have to say first. Collective.
fn open_report(plan: &Plan, world: &World, step: u64) -> Result<Report> {
    let told = Job::current();
    let mut report = world.agree(Report::open(plan, world, step))?;
    told.notes.iter().for_each(|note| report.note(note));
    FaultCost::of(plan).warning().iter().for_each(|text| report.note(&format!("WARNING: {text}")));
    if let Some(job) = &told.job {
        let nodes = compress(&job.nodes);
        tracing::info!("Slurm job {} on {nodes}, requeued {} times before", job.id, job.restarts);
        report.event(&RunEvent::SlurmJob { job: job.id, restarts: job.restarts, nodes })?;
    }
    Ok(report)
}

/// Who keeps the state between two steps. Collective.
fn open_keeper(
    plan: &Plan, world: &World, run: u64, from: Option<ResumePoint>, meta: &Meta, state: &State,
) -> Result<StateKeeper> {
    let config = &plan.config;
    let run_dir = config.run_dir.clone();
    let setup = Setup {
        config: &config.checkpoint,
        run_dir: &config.run_dir,
        run,
        attempt: meta.attempt,
        meta: &state.describe(plan, meta),
        from,
        fence: Arc::new(move || attempt::check(&run_dir)),
        on_cores: !plan.device.is_cuda(),
    };
    StateKeeper::new(&setup, world.agree(Table::new(state.specs()))?, world)
}

/// A number for this start, which rank 0 makes, and says at once how much it is going to read.
fn session(plan: &Plan, world: &World, state: &State) -> Result<u64> {
    let restoring = say(plan, world, &RunEvent::Restoring { bytes: state_bytes(state) });
    let session = world.broadcast_bytes(world.agree(restoring.and_then(|()| random()))?.to_le_bytes().to_vec(), 0)?;
    Ok(u64::from_le_bytes(session.try_into().unwrap_or_default()) >> 11)
}

/// The run's identity, which rank 0 makes where there is none.
fn identity(plan: &Plan, world: &World) -> Result<u64> {
    let mine = if world.rank() == 0 { run_id(&plan.config.run_dir) } else { Ok(0) };
    let bytes = world.broadcast_bytes(world.agree(mine)?.to_le_bytes().to_vec(), 0)?;
    Ok(u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
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

//! Where a run that begins takes its weights from: a model on disk, or the seed. And what it takes over from that model. A run
//! that trains a part of a model reads the rest of it at every start.

use super::heritage::Heritage;
use super::state::State;
use crate::checkpoint::base::BaseSum;
use crate::checkpoint::{BaseNote, Event, Team};
use crate::convert::peft::AdapterFiles;
use crate::convert::weights::{self, Weights};
use crate::error::{Error, Exit, Result};
use crate::plan::{self, Plan};
use crate::world::{Op, World};
use std::path::{Path, PathBuf};

/// Weights on disk, and what this rank has added up of those that stay frozen.
pub struct Given {
    weights: Weights,
    sum: BaseSum,
}

/// Fills `state` with the first weights, frozen ones among them; returns those on disk, if they are. Each rank reads what it saves, and every byte
/// of a checkpoint is compared once. Collective; [`base`] and [`State::publish`] must follow.
pub fn begin(plan: &Plan, world: &World, state: &mut State) -> Result<Option<Given>> {
    let Some(path) = &plan.config.model.weights else {
        world.agree(state.initialise(plan))?;
        tracing::info!("starting from fresh weights, seed {}", plan.config.seed);
        return Ok(None);
    };
    let (mut again, mut sum) = (false, BaseSum::default());
    let weights = read(plan, world, path, &mut |weights| {
        if std::mem::replace(&mut again, true) {
            state.clear();
        }
        sum = state.fill_frozen(weights)?;
        match &plan.config.lora {
            Some(_) => Ok(()),
            None => state.start_from(weights),
        }
    })?;
    tracing::info!("starting from the weights in {}", path.display());
    if let Some(lora) = &plan.config.lora {
        match &lora.weights {
            Some(path) => {
                let files = Team(Some(world)).by_first(|| AdapterFiles::open(path)).map_err(shared)?;
                world.agree(files.fits(&plan.model, lora).and_then(|()| state.start_from_adapter(&files)))?;
                tracing::info!("the adapters start from those in {}", path.display());
            }
            None => {
                world.agree(state.initialise(plan))?;
                tracing::info!("the adapters start from the seed {}, their B from zero", plan.config.seed);
            }
        }
    }
    Ok(Some(Given { weights, sum }))
}

/// Lets every rank have the frozen weights of a run that trains a part of its model, if it is one: those that [`begin`] has
/// `given`, else they are read. `then`: those of the checkpoint that the run goes on from. Collective.
///
/// Errors: [`Exit::Config`] where the weights are others than then, besides those of reading.
pub fn base(
    plan: &Plan, world: &World, state: &mut State, then: Option<&BaseNote>, given: Option<&Given>,
) -> Result<()> {
    let Some(named) = plan.config.model.weights.as_ref().filter(|_| plan.partial()) else { return Ok(()) };
    // A run directory may have newer steps by now.
    let noted = then.map(|note| note.weights.clone()).filter(|p| p.starts_with(absolute(named)));
    let noted = Team(Some(world)).by_first(|| Ok(noted.filter(|p| p.exists())))?;
    let (place, sum) = match given {
        Some(given) => (place(&given.weights, named), given.sum),
        None => {
            let (path, mut sum) = (noted.as_ref().unwrap_or(named), BaseSum::default());
            let weights = read(plan, world, path, &mut |weights| state.fill_frozen(weights).map(|s| sum = s))?;
            (place(&weights, path), sum)
        }
    };
    let sum = BaseSum::of_words(&world.all_reduce_f64(&sum.words(), Op::Sum)?).text();
    if let Some(then) = then.filter(|then| then.sum != sum) {
        let fact = format!(
            "the frozen weights in {} have the checksum {sum}, those of the checkpoint's run, {}, had {}",
            place.display(),
            then.weights.display(),
            then.sum
        );
        let hint = "let model.weights name the weights that the run began with";
        return Err(Error { agreed: true, ..Error::new(Exit::Config, fact).hint(hint) });
    }
    tracing::info!(
        "the weights in {} are frozen (checksum {sum}); checkpoints of this run hold what is trained and need them",
        place.display()
    );
    if let Some(format) = plan.config.quantize() {
        tracing::info!(
            "the blocks' frozen matrices lie in {} (lora.quantize); what is trained fits these, not the weights as they are",
            format.name()
        );
    }
    let (lora, freeze) = (plan.config.lora.clone(), plan.frozen_layers());
    state.base = Some(BaseNote { weights: place, sum, lora, freeze });
    state.units.share_frozen()
}

/// Opens the weights in `path` and lets every rank take from them what it needs by `take`. A damaged step of a run is passed
/// over, and `take` called again.
fn read(plan: &Plan, world: &World, path: &Path, take: &mut dyn FnMut(&Weights) -> Result<()>) -> Result<Weights> {
    let team = Team(Some(world));
    let mut passed = Vec::new();
    loop {
        let weights = weights::open_together(path, &passed, team).map_err(shared)?;
        let notes = world.agree(plan::check_weights(plan, weights.model(), path))?;
        let filled = weights.confirm(take(&weights), team);
        match (filled, weights.replaceable()) {
            (Ok(()), _) => {
                notes.iter().for_each(|note| tracing::warn!("{note}"));
                return Ok(weights);
            }
            (Err(e), Some(step)) if e.exit == Exit::Checkpoint => {
                tracing::warn!("{}", Event::CheckpointRejected { path: step.into(), reason: e.fact });
                passed.push(step.to_path_buf());
            }
            (Err(e), _) => return Err(shared(e)),
        }
    }
}

/// What was read, absolute: of a run the very step.
fn place(weights: &Weights, path: &Path) -> PathBuf {
    absolute(weights.checkpoint().map_or(path, |c| c.path()))
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

/// What is wrong with weights every rank has found out together.
fn shared(e: Error) -> Error {
    let agreed = e.agreed || [Exit::Checkpoint, Exit::Model].contains(&e.exit);
    Error { agreed, ..e }
}

/// What a run that begins takes over from the model that its configuration names.
pub fn inherited(plan: &Plan, given: Option<&Given>) -> Result<Option<Heritage>> {
    let section = &plan.config.model;
    match (given, &section.weights, &section.config) {
        (Some(given), Some(path), _) => Ok(Some(Heritage::of_weights(&given.weights, path))),
        (_, _, Some(config)) => Heritage::of_shape(config),
        _ => Ok(None),
    }
}

//! Where a run that begins takes its weights from: a model on disk, or the seed. And what it takes over from that model.

use super::heritage::Heritage;
use super::state::State;
use crate::checkpoint::{Event, Team};
use crate::convert::weights::{self, Weights};
use crate::error::{Error, Exit, Result};
use crate::plan::{self, Plan};
use crate::world::World;

/// Fills `state` with the first weights; returns those on disk, if they are. Each rank reads what it saves, and every byte
/// of a checkpoint is compared once. Collective; [`State::publish`] must follow.
pub fn begin(plan: &Plan, world: &World, state: &mut State) -> Result<Option<Weights>> {
    let Some(path) = &plan.config.model.weights else {
        world.agree(state.initialise(plan))?;
        tracing::info!("starting from fresh weights, seed {}", plan.config.seed);
        return Ok(None);
    };
    let team = Team(Some(world));
    let mut passed = Vec::new();
    loop {
        let weights = weights::open_together(path, &passed, team).map_err(shared)?;
        let notes = world.agree(plan::check_weights(plan, weights.model(), path))?;
        let filled = weights.confirm(state.start_from(&weights), team);
        match (filled, weights.replaceable()) {
            (Ok(()), _) => {
                notes.iter().for_each(|note| tracing::warn!("{note}"));
                tracing::info!("starting from the weights in {}", path.display());
                return Ok(Some(weights));
            }
            (Err(e), Some(step)) if e.exit == Exit::Checkpoint => {
                tracing::warn!("{}", Event::CheckpointRejected { path: step.into(), reason: e.fact });
                passed.push(step.to_path_buf());
                state.clear();
            }
            (Err(e), _) => return Err(shared(e)),
        }
    }
}

/// What is wrong with weights every rank has found out together.
fn shared(e: Error) -> Error {
    let agreed = e.agreed || [Exit::Checkpoint, Exit::Model].contains(&e.exit);
    Error { agreed, ..e }
}

/// What a run that begins takes over from the model that its configuration names.
pub fn inherited(plan: &Plan, given: Option<&Weights>) -> Result<Option<Heritage>> {
    let section = &plan.config.model;
    match (given, &section.weights, &section.config) {
        (Some(weights), Some(path), _) => Ok(Some(Heritage::of_weights(weights, path))),
        (_, _, Some(config)) => Heritage::of_shape(config),
        _ => Ok(None),
    }
}

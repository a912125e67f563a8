//! A run's state written again on another topology, without a step in between: what shows that a restore put every element
//! where it belongs.

use super::start::{self, Started};
use crate::checkpoint::{Rules, Saved};
use crate::error::Result;
use crate::liveness::Progress;
use crate::plan::Plan;
use crate::world::World;
use std::path::Path;

/// Takes the state as a start of the run would and saves it under `checkpoints`, in the plan's own slices. Collective.
///
/// Errors: as of a start and of a save.
pub fn resave(plan: &Plan, world: &World, checkpoints: &Path) -> Result<Saved> {
    let Started { state, meta, .. } = start::start(plan, world, &Progress::default())?;
    state.save(checkpoints, world, &state.describe(plan, &meta), &Rules::default())
}

//! The training loop: step, validate, report, save, stop.

use super::behind::Behind;
use super::device_failure;
use super::measure::Measurement;
use super::rescue;
use super::signals::StopFlag;
use super::start::{self, Started};
use super::step::{self, Outcome, Stage};
use super::validate::{validate, HeldOut};
use crate::config::due;
use crate::error::{Error, Exit, Result};
use crate::events::RunEvent;
use crate::kernels::{device, memory};
use crate::liveness::inject::Inject;
use crate::liveness::{self, Liveness, Phase};
use crate::parallel::sync;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::tiers::keeper::Happened;
use crate::world::World;
use std::time::Instant;

/// How a run ended.
pub enum End {
    /// All steps are done.
    Finished,
    /// Stopped at a step boundary after saving; start again to continue.
    Stopped,
}

/// Trains until the last step, `train.stop_at`, a signal, or an error. Collective over all ranks. While a verdict of the
/// watch over the ranks is carried out it does not return.
pub fn run(plan: &Plan, world: &World) -> Result<End> {
    run_until(plan, world, &StopFlag::of_a_run()?)
}

/// [`run`], with handlers that were installed before: a signal that came since then counts.
pub fn run_until(plan: &Plan, world: &World, stop: &StopFlag) -> Result<End> {
    let config = &plan.config;
    device_failure::promise(plan);
    let liveness = Liveness::start(&config.liveness, &config.run_dir, plan.topology.sizes, world)?;
    match train(plan, world, &liveness, stop) {
        Ok(end) => liveness.finish(world).map(|()| end),
        Err(e) => {
            let e = device_failure::explained(e);
            liveness.leave_if_condemned();
            liveness::confess_error(&e);
            Err(e)
        }
    }
}

fn train(plan: &Plan, world: &World, liveness: &Liveness, stop: &StopFlag) -> Result<End> {
    let progress = liveness.progress();
    let config = &plan.config;
    let Started { corpus, held_out, tasks, reference, model, pipeline, mut state, mut report, meta, mut keeper } =
        start::start(plan, world, progress)?;
    if let Some(what) = sync::not_compared(&state.units).filter(|_| config.log.sync_check_every > 0) {
        report.note(what);
    }
    let inject = Inject::new(&config.run_dir, world.rank(), world.meters()).in_turn(liveness.turn());
    let reference = reference.as_ref();
    let stage = Stage {
        plan,
        world,
        model: &model,
        pipeline: &pipeline,
        corpus: &corpus,
        reference,
        progress,
        inject: &inject,
    };
    let last = config.train.stop_at.unwrap_or(config.train.steps).min(config.train.steps);
    let behind = world.agree(Behind::start(plan, world))?;
    let checkpoints = RunDir::new(&config.run_dir).checkpoints();
    let mut skipped_in_a_row = 0;
    let mut asked = false;
    if state.step >= last {
        report.note(&format!("nothing to do: the run stands at step {} of {last}", state.step));
    }

    while state.step < last {
        progress.at(Phase::Boundary);
        inject.boundary(state.step)?;
        if config.train.skip_steps.contains(&(state.step + 1)) && state.step + 1 < last {
            (state.step, state.skipped) = (state.step + 1, state.skipped + 1);
            let why = Some("train.skip_steps".into());
            report.event(&RunEvent::SkippedStep { step: state.step, loss: None, grad_norm: None, why })?;
            continue;
        }
        let began = Instant::now();
        memory::reset_peak();
        device::reset_peak(plan.device);
        let mut found = step::step(&stage, &mut state, stop.raised() || report.is_gone())?;
        let took = began.elapsed();
        progress.step_done(state.step, took);
        device_failure::step_done();

        let finished = state.step == config.train.steps;
        state.validation = None;
        if due(state.step, config.validation.every) || (finished && config.validation.every > 0) {
            progress.at(Phase::Validate);
            if let Some(corpus) = &held_out {
                let held_out = HeldOut { corpus, reference };
                let validated = validate(plan, world, &model, &pipeline, &held_out, &mut state, progress)?;
                let loss = validated.loss;
                state.best_validation = Some(state.best_validation.map_or(loss, |best| best.min(loss)));
                state.validation = Some(loss);
                report.event(&validated.event(state.step, corpus))?;
                found.validation = Some(validated);
            }
            let measurement = Measurement { plan, world, model: &model, pipeline: &pipeline, progress };
            found.tasks = tasks.score(&measurement, &mut state)?;
            report.scored(&found.tasks, state.step)?;
        }
        let ending = state.step == last || found.stop;
        keeper.before_report(state.step, ending)?;
        progress.at(Phase::Report);
        inject.storage();
        report.step(plan, &state, &found, took)?;

        skipped_in_a_row = if found.skipped { skipped_in_a_row + 1 } else { 0 };
        if found.skipped {
            let (loss, grad_norm) = (Some(found.loss.to_string()), Some(found.grad_norm.to_string()));
            report.event(&RunEvent::SkippedStep { step: state.step, loss, grad_norm, why: None })?;
            stop_if_hopeless(plan, &found, skipped_in_a_row, state.step)?;
        }
        if due(state.step, config.log.sync_check_every) {
            sync::sync_check(&mut state.units, world)?;
        }

        progress.at(Phase::Save);
        let meta = state.describe(plan, &meta);
        let rescue = if ending { rescue::place(config, report.is_gone(), world)? } else { None };
        let to = rescue.as_ref().unwrap_or(&checkpoints);
        let happened = keeper.after_step(&meta, ending, &mut |take| state.give(take), &mut |rules| {
            state.save(to, world, &meta, rules)
        })?;
        if let Some(place) = rescue {
            // what is in memory belongs to a directory that is no more
            let _ = keeper.finish();
            return Err(rescue::saved(config, &place, state.step));
        }
        for what in happened {
            if let Happened::Saved(saved, step) = &what {
                behind.committed(*step, &saved.path, ending && *step == state.step);
                keeper.prune(*step, ending, &|step| behind.may_remove(step), world);
            }
            report.kept(what)?;
        }
        behind.report(&mut report)?;
        asked = found.stop;
        if asked {
            break;
        }
    }
    state.units.settle()?;
    progress.at(Phase::End);
    keeper.last_words().into_iter().try_for_each(|what| report.kept(what))?;
    let end = if state.step == config.train.steps { End::Finished } else { End::Stopped };
    behind.finish(matches!(end, End::Finished), &mut report, world, progress)?;
    // of one rank: what grows with the world
    let (step, control_plane) = (state.step, world.most_sent()?);
    report.event(&match end {
        End::Finished => RunEvent::Finished { step, control_plane },
        End::Stopped => RunEvent::Stopped { step, control_plane },
    })?;
    report.finish();
    // a job that is being cancelled has no later moment to free memory in, and the state is on disk
    if matches!(end, End::Finished) || asked {
        keeper.finish()?;
    }
    Ok(end)
}

fn stop_if_hopeless(plan: &Plan, found: &Outcome, in_a_row: u64, step: u64) -> Result<()> {
    let limit = plan.config.train.max_skipped_steps;
    if in_a_row < limit {
        return Ok(());
    }
    let fact = format!(
        "{in_a_row} steps in a row were not finite (train.max_skipped_steps is {limit}): at step {step} the loss was {} and \
         the gradient norm {}",
        found.loss, found.grad_norm
    );
    let hint = "lower optim.lr, lengthen optim.warmup_steps, or look at the data of that step; the newest checkpoint is intact";
    Err(Error { agreed: true, ..Error::new(Exit::NonFinite, fact).hint(hint) })
}

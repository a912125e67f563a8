//! The training loop: start or resume, step, report, validate, save, stop.

use super::metrics::{Journal, StepRecord};
use super::progress::Progress;
use super::signals::StopFlag;
use super::state::State;
use super::step::{self, Outcome, Stage};
use super::validate::validate;
use crate::checkpoint::{self, weights, Checkpoint, Meta, SpecialTokens};
use crate::data::{Mixture, Tokenizer};
use crate::error::{Error, Exit, Result};
use crate::kernels::memory;
use crate::model::Llama;
use crate::parallel::data::{sync_check, Reducer};
use crate::plan::{self, Plan};
use crate::topology::{Axis, Topology};
use crate::wire::{Wire, World};
use serde_json::{json, Value};
use std::sync::Arc;
use std::time::Instant;

/// How a run ended.
pub enum End {
    /// All steps are done.
    Finished,
    /// Stopped at a step boundary after saving; start again to continue.
    Stopped,
}

/// Trains until the last step, `train.stop_at`, a signal, or an error. Collective over all ranks.
pub fn run(plan: &Plan, world: &World) -> Result<End> {
    let config = &plan.config;
    let stop = StopFlag::install().map_err(|e| Error::new(Exit::Internal, format!("cannot install signal handlers: {e}")))?;
    let tokenizer = Tokenizer::open(&config.data.tokenizer)?;
    plan::check_vocabulary(&plan.model, &config.data.tokenizer, tokenizer.vocab_size())?;
    let open = |corpora: &[_]| {
        let fingerprint = tokenizer.fingerprint();
        Mixture::open(corpora, config.data.sequence_length, config.seed, plan.model.vocab_size, Some(&fingerprint))
    };
    let corpus = world.agree(open(&config.data.train))?;
    let held_out = match config.data.validation.len() {
        0 => None,
        _ => Some(world.agree(open(&config.data.validation))?),
    };

    let model = Llama::new(&plan.model, config.data.sequence_length, plan.device);
    let mut journal = Journal::open(plan, world)?;
    let wire: Arc<dyn Wire> = world.wire(&plan.topology, Axis::Data)?.into();
    let mut state = State::new(plan, wire.as_ref())?;
    let meta = meta(plan, &tokenizer)?;
    start(plan, world, &meta, &mut state, &mut journal)?;

    let mut reducer =
        Reducer::new(&state.params, wire.clone(), config.parallel.bucket_mib, config.parallel.overlap);
    let stage = Stage { plan, world, model: &model, corpus: &corpus };
    let mut progress = Progress::new(plan, world, state.step);
    let last = config.train.stop_at.unwrap_or(config.train.steps).min(config.train.steps);
    let mut skipped_in_a_row = 0;
    let mut saved = (state.step > 0).then_some(state.step);

    if state.step == 0 && config.validation.every > 0 {
        if let Some(held_out) = &held_out {
            let loss = validate(plan, world, &model, held_out, &state)?;
            journal.validation(0, loss)?;
            progress.validation(0, loss);
        }
    }

    while state.step < last {
        let began = Instant::now();
        memory::reset_peak();
        let outcome = step::step(&stage, &mut state, &mut reducer, stop.raised())?;
        let record = StepRecord::new(plan, &state, &outcome, began.elapsed());
        journal.step(&record)?;
        progress.step(&record);

        skipped_in_a_row = if outcome.skipped { skipped_in_a_row + 1 } else { 0 };
        if outcome.skipped {
            journal.event("skipped_step", json!({ "step": state.step, "loss": outcome.loss, "grad_norm": outcome.grad_norm }))?;
            stop_if_hopeless(plan, &outcome, skipped_in_a_row, state.step)?;
        }

        let ending = state.step == last || outcome.stop;
        if due(state.step, config.validation.every) || (state.step == config.train.steps && config.validation.every > 0) {
            if let Some(held_out) = &held_out {
                let loss = validate(plan, world, &model, held_out, &state)?;
                state.best_validation = Some(state.best_validation.map_or(loss, |best| best.min(loss)));
                journal.validation(state.step, loss)?;
                progress.validation(state.step, loss);
            }
        }
        if due(state.step, config.log.sync_check_every) {
            sync_check(&state.params, wire.as_ref())?;
        }
        if due(state.step, config.checkpoint.every) || ending {
            match state.save(plan, world, meta.clone()) {
                Ok(done) => {
                    saved = Some(state.step);
                    journal.event("checkpoint", json!({ "step": state.step, "bytes": done.bytes, "seconds": done.seconds, "path": done.path }))?;
                    progress.saved(state.step, &done);
                    if world.rank() == 0 {
                        checkpoint::prune(&config.run_dir.join("checkpoints"), config.checkpoint.keep)?;
                    }
                }
                // an intermediate save may fail: training goes on, loudly; the last one may not
                Err(e) if !ending => {
                    journal.event("checkpoint_failed", json!({ "step": state.step, "error": e.to_string() }))?;
                    tracing::error!("checkpoint of step {} failed, training goes on: {e}", state.step);
                }
                Err(e) => return Err(e),
            }
        }
        if outcome.stop {
            break;
        }
    }
    progress.finish(&state, saved);
    Ok(if state.step == config.train.steps { End::Finished } else { End::Stopped })
}

/// Resumes from the newest valid checkpoint of the run directory, else starts from given weights, else from the seed.
fn start(plan: &Plan, world: &World, meta: &Meta, state: &mut State, journal: &mut Journal) -> Result<()> {
    let config = &plan.config;
    let mut events = Vec::new();
    let found = checkpoint::newest_valid(&config.run_dir.join("checkpoints"), world, &mut |event| {
        match event {
            checkpoint::Event::CheckpointRejected { .. } => tracing::error!("{event}"),
            checkpoint::Event::CheckpointChosen { .. } => tracing::info!("{event}"),
        }
        events.push(event.clone());
    })?;
    for event in events {
        journal.checkpoint_search(&event)?;
    }
    if let Some(found) = found {
        check_resume(meta, &found)?;
        world.agree(state.restore(&found))?;
        journal.resumed(state.step)?;
        tracing::info!("resumed from {} (step {}, {} tokens)", found.path().display(), state.step, state.tokens);
        return Ok(());
    }
    match &config.model.weights {
        Some(path) => {
            world.agree(weights::open(path).and_then(|w| state.start_from(&w)))?;
            tracing::info!("starting from the weights in {}", path.display());
        }
        None => {
            state.initialise(plan)?;
            tracing::info!("starting from fresh weights, seed {}", config.seed);
        }
    }
    Ok(())
}

/// What this run's checkpoints say about it, counters left at zero.
fn meta(plan: &Plan, tokenizer: &Tokenizer) -> Result<Meta> {
    Ok(Meta {
        seed: plan.config.seed,
        tokenizer: plan.config.data.tokenizer.clone(),
        tokenizer_fingerprint: tokenizer.fingerprint(),
        special_tokens: SpecialTokens { bos: tokenizer.bos(), eos: tokenizer.eos().into_iter().collect(), pad: None },
        config: serde_json::to_value(&plan.config).map_err(|e| Error::new(Exit::Internal, e.to_string()))?,
        topology: Topology { rank: 0, ..plan.topology.clone() },
        ..Meta::new(plan.model.clone())
    })
}

/// A checkpoint continues a run only with the model and the tokenizer that it was made with.
fn check_resume(own: &Meta, found: &Checkpoint) -> Result<()> {
    let then = found.meta();
    let differs = |what: &str, now: String, then: String| {
        Error::new(
            Exit::Config,
            format!("{} was made with {what} {then}, but the configuration says {now}", found.path().display()),
        )
        .hint("use another run_dir for another run, or put the old value back")
    };
    if then.model != own.model {
        let (now, then) = (json!(own.model), json!(then.model));
        let keys = now.as_object().into_iter().flatten().filter(|(k, v)| then.get(k) != Some(v)).map(|(k, _)| k.clone());
        let changed: Vec<String> = keys.collect();
        let pick = |v: &Value| changed.iter().map(|k| format!("{k}={}", v[k.as_str()])).collect::<Vec<_>>().join(" ");
        return Err(differs("model", pick(&now), pick(&then)));
    }
    if then.tokenizer_fingerprint != own.tokenizer_fingerprint {
        return Err(differs("tokenizer", own.tokenizer.clone(), then.tokenizer.clone()));
    }
    Ok(())
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step % every == 0
}

fn stop_if_hopeless(plan: &Plan, outcome: &Outcome, in_a_row: u64, step: u64) -> Result<()> {
    let limit = plan.config.train.max_skipped_steps;
    if in_a_row < limit {
        return Ok(());
    }
    Err(Error::new(
        Exit::NonFinite,
        format!(
            "{in_a_row} steps in a row were not finite (train.max_skipped_steps is {limit}): at step {step} loss was {} and gradient norm {}",
            outcome.loss, outcome.grad_norm
        ),
    )
    .hint("lower optim.lr, lengthen optim.warmup_steps, or look at the data of that step; the newest checkpoint is intact"))
}

//! Which nodes the next attempt runs on: those that answer, in their slots, or fewer where the run may shrink.

use super::context::{JobContext, LaunchState, ROLL_CALL};
use super::history::NO_ANSWER;
use super::ledger::Standing;
use super::place::{fewer_replicas, place, Found};
use super::records::Records;
use super::run_log;
use crate::config::AlertKind;
use crate::error::Result;
use crate::events::RunEvent;
use crate::host;
use crate::slurm::control;
use serde_json::Value;
use std::collections::HashSet;
use std::time::Duration;

/// How often a controller that does not answer is asked again, and for how long.
const CONTROLLER_AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// Nodes that answer, for as many slots as the plan needs.
pub(super) fn find_nodes(context: &JobContext, records: &mut Records, state: &mut LaunchState) -> Result<Found> {
    let need = context.launch.nodes_for(state.shrunk_to);
    let mut away: Vec<String> = Vec::new();
    let allocation = context.switches.in_order(&context.job.nodes);
    let began = host::now();
    loop {
        let now = host::wall();
        let ledger = &records.book.ledger;
        let standing = |n: &str| match away.iter().any(|a| a == n) {
            true => Standing::GivenUp,
            false => ledger.standing(n, now),
        };
        let Some(mut placement) =
            place(&allocation, &state.slots, need, standing, |a, b| context.switches.shared(a, b))
        else {
            let alive = context.job.nodes.iter().filter(|n| standing(n) < Standing::GivenUp).cloned().collect();
            return Ok(Found::TooFew { alive });
        };
        placement.spares.truncate(context.launch.spares.unwrap_or(usize::MAX));
        let just_now = state.answered.take().filter(|(when, _)| host::since(*when) < ROLL_CALL);
        let just_now: Option<HashSet<String>> = just_now.map(|(_, nodes)| nodes.into_iter().collect());
        if just_now.is_some_and(|nodes| placement.active.iter().all(|n| nodes.contains(n))) {
            return Ok(Found::Nodes(placement));
        }
        let absent = context.roll_call(&placement.active);
        #[cfg(test)]
        let absent = if host::planted() == Some(host::Planted::DeadSpare) { Vec::new() } else { absent };
        if absent.is_empty() {
            return Ok(Found::Nodes(placement));
        }
        // one node alone may be dead; then the controller answers
        let is_away = || need > 1 || control::job_state(&context.job.address()).is_err();
        if absent.len() == need && host::since(began) < CONTROLLER_AWAY.1 && is_away() {
            // nobody at all: the controller is away, or this node is cut off and Slurm has begun anew elsewhere
            if run_log::overtaken(&context.run_dir, state.number) {
                return Ok(Found::Overtaken);
            }
            tracing::warn!("no node answers: is the controller away, or this node cut off?");
            if !context.pause(CONTROLLER_AWAY.0) {
                return Ok(Found::Asked);
            }
            continue;
        }
        tracing::warn!("no answer from {}", absent.join(", "));
        records.say(RunEvent::NoAnswer { nodes: absent.clone(), attempt: state.number + 1 })?;
        let (down, late): (Vec<_>, Vec<_>) = {
            let down = control::nodes_down(&absent);
            // a death counts once: one that is paused has failed before, and is silent since; one whose pause is over and that was not used
            // since its failure has not come back yet
            let good = |n: &&String| records.book.ledger.standing(n, now) == Standing::Good;
            absent.iter().filter(good).cloned().partition(|n| down.contains(n) && !records.unused_since_failure(n))
        };
        records.blame(state.number, &down, "node_lost", true)?;
        records.blame(state.number, &late, NO_ANSWER, true)?;
        away.extend(absent);
    }
}

/// Those of an attempt's nodes that do not answer after ranks have died on others; none where nobody answers, since then
/// the controller is away. Who answers need not be asked again at once.
pub(super) fn who_is_silent(context: &JobContext, state: &mut LaunchState, nodes: &[String]) -> Vec<String> {
    let silent = context.roll_call(nodes);
    if silent.len() == nodes.len() {
        return Vec::new();
    }
    let here = nodes.iter().filter(|n| !silent.contains(n)).cloned().collect();
    state.answered = Some((host::now(), here));
    silent
}

/// Goes on with fewer replicas on the nodes that live, where the configuration allows it.
pub(super) fn shrink(context: &JobContext, records: &mut Records, state: &mut LaunchState, alive: &[String]) -> bool {
    let config = &context.launch.config;
    let now = state.shrunk_to.unwrap_or(context.launch.replicas);
    let ranks = alive.len() * context.launch.ranks_per_node;
    let others = context.launch.ranks_per_replica;
    let whole_nodes = |d: &usize| (d * others).is_multiple_of(context.launch.ranks_per_node);
    let fewer = fewer_replicas(ranks, others, now, config.batch.global, config.batch.micro).filter(whole_nodes);
    let Some(replicas) = fewer.filter(|_| config.launch.shrink) else { return false };
    let text = format!("{} nodes are left: going on with {replicas} of {now} replicas", alive.len());
    tracing::warn!("{text}");
    state.shrunk_to = Some(replicas);
    let _ = records.say(RunEvent::Shrunk { replicas, before: now, nodes: alive.to_vec() });
    records.alerts.tell(AlertKind::Shrunk, &replicas.to_string(), &text, Value::Null);
    true
}

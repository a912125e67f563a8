//! Which nodes the next attempt runs on: those that answer, in their slots, or fewer where the run may shrink.

use super::history::NO_ANSWER;
use super::ledger::Standing;
use super::place::{fewer_replicas, place, Found};
use super::rollcall::StartCalls;
use super::supervise::Supervisor;
use super::{rollcall, watch};
use crate::config::AlertKind;
use crate::error::Result;
use crate::events::RunEvent;
use crate::host;
use crate::run_dir::RunDir;
use crate::slurm::control;
use serde_json::Value;
use std::collections::HashSet;
use std::time::Duration;

/// How long all nodes may take to answer a roll call, and what each of them adds.
const ROLL_CALL: Duration = Duration::from_secs(3);
const ROLL_CALL_NODE: Duration = Duration::from_millis(10);
/// How often a controller that does not answer is asked again, and for how long.
const CONTROLLER_AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// How often nodes are asked while the ranks start, and each of them adds [`ROLL_CALL_NODE`].
const START_CALL: Duration = Duration::from_secs(4);

fn limit(nodes: &[String]) -> Duration {
    ROLL_CALL + ROLL_CALL_NODE * nodes.len() as u32
}

impl Supervisor {
    /// Nodes that answer, for as many slots as the plan needs.
    pub(super) fn find_nodes(&mut self) -> Result<Found> {
        let need = self.launch.nodes_for(self.shrunk_to);
        let mut away: Vec<String> = Vec::new();
        let allocation = self.switches.in_order(&self.job.nodes);
        let began = host::now();
        loop {
            let now = host::wall();
            let ledger = &self.book.ledger;
            let standing = |n: &str| match away.iter().any(|a| a == n) {
                true => Standing::GivenUp,
                false => ledger.standing(n, now),
            };
            let Some(mut placement) =
                place(&allocation, &self.slots, need, standing, |a, b| self.switches.shared(a, b))
            else {
                let alive = self.job.nodes.iter().filter(|n| standing(n) < Standing::GivenUp).cloned().collect();
                return Ok(Found::TooFew { alive });
            };
            placement.spares.truncate(self.launch.spares.unwrap_or(usize::MAX));
            let just_now = self.answered.take().filter(|(when, _)| host::since(*when) < ROLL_CALL);
            let just_now: Option<HashSet<String>> = just_now.map(|(_, nodes)| nodes.into_iter().collect());
            if just_now.is_some_and(|nodes| placement.active.iter().all(|n| nodes.contains(n))) {
                return Ok(Found::Nodes(placement));
            }
            let absent = self.roll_call(&placement.active);
            #[cfg(test)]
            let absent = if host::planted() == Some(host::Planted::DeadSpare) { Vec::new() } else { absent };
            if absent.is_empty() {
                return Ok(Found::Nodes(placement));
            }
            if absent.len() == need && need > 1 && host::since(began) < CONTROLLER_AWAY.1 {
                // nobody at all: the controller is away, or this node is cut off and Slurm has begun anew elsewhere
                if watch::overtaken(&self.run_dir, self.number) {
                    return Ok(Found::Overtaken);
                }
                tracing::warn!("no node answers: is the controller away, or this node cut off?");
                if !self.pause(CONTROLLER_AWAY.0) {
                    return Ok(Found::Asked);
                }
                continue;
            }
            tracing::warn!("no answer from {}", absent.join(", "));
            self.say(RunEvent::NoAnswer { nodes: absent.clone(), attempt: self.number + 1 })?;
            let (down, late): (Vec<_>, Vec<_>) = {
                let down = control::nodes_down(&absent);
                // one that is paused has failed before, and is silent since: a death counts once
                let good = |n: &&String| self.book.ledger.standing(n, now) == Standing::Good;
                absent.iter().filter(good).cloned().partition(|n| down.contains(n))
            };
            self.blame(&down, "node_lost", true)?;
            self.blame(&late, NO_ANSWER, true)?;
            away.extend(absent);
        }
    }

    /// Those of `nodes` that do not answer.
    pub(super) fn roll_call(&self, nodes: &[String]) -> Vec<String> {
        rollcall::absent(&self.job, nodes, &RunDir::new(&self.run_dir).roll_call_hosts(), limit(nodes))
    }

    /// Roll calls of an attempt's nodes until its ranks have met: before, nobody else watches them.
    pub(super) fn start_calls(&self, nodes: &[String]) -> StartCalls {
        StartCalls {
            job: self.job.clone(),
            nodes: nodes.to_vec(),
            hosts_file: RunDir::new(&self.run_dir).roll_call_hosts(),
            limit: limit(nodes),
            every: START_CALL + ROLL_CALL_NODE * nodes.len() as u32,
            last: host::now(),
            under_way: None,
        }
    }

    /// Those of an attempt's nodes that do not answer after ranks have died on others; none where nobody answers, since then
    /// the controller is away. Who answers need not be asked again at once.
    pub(super) fn who_is_silent(&mut self, nodes: &[String]) -> Vec<String> {
        let silent = self.roll_call(nodes);
        if silent.len() == nodes.len() {
            return Vec::new();
        }
        let here = nodes.iter().filter(|n| !silent.contains(n)).cloned().collect();
        self.answered = Some((host::now(), here));
        silent
    }

    /// Goes on with fewer replicas on the nodes that live, where the configuration allows it.
    pub(super) fn shrink(&mut self, alive: &[String]) -> bool {
        let config = &self.launch.config;
        let now = self.shrunk_to.unwrap_or(self.launch.replicas);
        let ranks = alive.len() * self.launch.ranks_per_node;
        let others = self.launch.ranks_per_replica;
        let whole_nodes = |d: &usize| (d * others).is_multiple_of(self.launch.ranks_per_node);
        let fewer = fewer_replicas(ranks, others, now, config.batch.global, config.batch.micro).filter(whole_nodes);
        let Some(replicas) = fewer.filter(|_| config.launch.shrink) else { return false };
        let text = format!("{} nodes are left: going on with {replicas} of {now} replicas", alive.len());
        tracing::warn!("{text}");
        self.shrunk_to = Some(replicas);
        let _ = self.say(RunEvent::Shrunk { replicas, before: now, nodes: alive.to_vec() });
        self.alerts.tell(AlertKind::Shrunk, &replicas.to_string(), &text, Value::Null);
        true
    }
}

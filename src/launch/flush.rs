//! Snapshots in the memory of the job's nodes, on their way to disk: when the job ends, and when nodes leave the run alive.

use super::context::JobContext;
use super::history::{Class, History};
use super::program::Program;
use super::records::Records;
use super::rollcall;
use super::seen::Finding;
use crate::config::Partner;
use crate::error::Exit;
use crate::events::RunEvent;
use crate::run_dir::RunDir;
use crate::slurm::messages::{self, SlurmMessage};
use crate::slurm::process::{self, CommandEnd};
use std::time::Duration;

/// How long snapshots may take from memory to disk.
const FLUSH: Duration = Duration::from_secs(300);
/// After the first rank of a flush has ended, how long the others may take.
const FLUSH_TOGETHER_S: u64 = 15;
/// The same, where a node is among them that could not run the ranks.
const DOUBTFUL_TOGETHER_S: u64 = 3;
/// How long a node that was given up may take to answer: less than other roll calls, since the run waits for it.
const SIGN_OF_LIFE: Duration = Duration::from_millis(1500);

/// Snapshots in the memory of the nodes that live go to disk, where they are newer than what is there, and out of memory:
/// the next start may be on other nodes. A spare needs none of this; it is for the end of the job.
pub(super) fn empty_memory(context: &JobContext, records: &mut Records, program: &mut Program, absent: &[String]) {
    if context.launch.config.checkpoint.snapshot_every > 0 {
        flush(context, records, program, absent, true);
    }
}

/// Of nodes that fell silent some may live: their ranks hang, or MPI on them does since another node died. Spares take
/// their places all the same, for nobody else can tell why they were silent, and both copies of a slice may be in memory
/// that is left behind. So it goes to disk before the next attempt.
///
/// One silent node needs none of this, as long as its partner holds a second copy of what was in its memory.
pub(super) fn rescue(
    context: &JobContext, records: &mut Records, program: &mut Program, slots: &[String], found: &Finding,
) {
    let config = &context.launch.config.checkpoint;
    let second_copy = config.partner == Partner::Node && slots.len() > 1;
    let away = failed_since_training(context, records, &found.nodes);
    if config.snapshot_every == 0 || found.class != Class::Node || away.len() < 1 + usize::from(second_copy) {
        return;
    }
    let hosts_file = RunDir::new(&context.run_dir).roll_call_hosts();
    let silent = rollcall::silent(&context.job, &away, &hosts_file, SIGN_OF_LIFE);
    if silent.len() == away.len() {
        return;
    }
    let lives: Vec<&str> = away.iter().filter(|n| !silent.contains(n)).map(String::as_str).collect();
    tracing::warn!("{} was given up and answers: memory goes to disk before the next attempt", lives.join(", "));
    let others: Vec<String> = context.job.nodes.iter().filter(|n| !away.contains(n)).cloned().collect();
    let absent = [silent, context.roll_call(&others)].concat();
    flush(context, records, program, &absent, false);
}

/// `found`, and nodes that held slots when the run last came on and have failed since: the newest step is in the memory of those,
/// however many starts there have been.
fn failed_since_training(context: &JobContext, records: &Records, found: &[String]) -> Vec<String> {
    let mut away = found.to_vec();
    let all = &records.history.attempts;
    let came_on = |i: &usize| all[*i].last_step > History::high_water(&all[..*i]);
    let Some(trained) = (0..all.len()).rev().find(came_on).map(|i| &all[i]) else { return away };
    let failed = |n: &String| {
        let last = records.book.ledger.nodes.get(n).and_then(|n| n.failures.last());
        last.is_some_and(|f| f.attempt >= trained.attempt)
    };
    away.extend(
        trained.nodes.iter().filter(|n| context.job.nodes.contains(n) && !found.contains(n) && failed(n)).cloned(),
    );
    away
}

/// `herd checkpoint flush` on all nodes of the job but `absent`; what it said becomes an event.
fn flush(context: &JobContext, records: &mut Records, program: &mut Program, absent: &[String], remove: bool) {
    let hosts_file = RunDir::new(&context.run_dir).flush_hosts();
    let nodes: Vec<String> = context.job.nodes.iter().filter(|n| !absent.contains(n)).cloned().collect();
    if nodes.is_empty() {
        return;
    }
    let program = match program.current() {
        Ok(program) => program,
        Err(e) => return tracing::error!("snapshots stay in memory: {e}"),
    };
    // where ranks did not start, this may not start either, and the others would wait for it; but its memory may be needed
    let is_doubtful = |n: &String| records.book.ledger.is_unfit(n);
    let flush = |nodes: &[String]| {
        let together_s = if nodes.iter().any(is_doubtful) { DOUBTFUL_TOGETHER_S } else { FLUSH_TOGETHER_S };
        let line = context.step_line("herd-flush", nodes, 1, &hosts_file);
        let mut command = line.command();
        // nothing watches over these ranks: when one dies, the others would wait for it
        command.arg(format!("--wait={together_s}"));
        let run_dir = context.run_dir.display().to_string();
        command.args([program.clone(), "checkpoint".into(), "flush".into(), run_dir]);
        command.args(remove.then_some("--remove"));
        process::run(command, FLUSH)
    };
    let is_none = |ended: &CommandEnd| ended.code == Exit::NoSnapshot.code();
    let mut result = flush(&nodes);
    if !result.as_ref().is_ok_and(|ended| ended.code == 0 || is_none(ended)) {
        // a node on which herd does not start would end this too
        let said = result.as_ref().map_or_else(|e| e.to_string(), |ended| ended.err.clone());
        let named: Vec<String> = said.lines().filter_map(unfit).collect();
        let fits = |n: &&String| !is_doubtful(n) && !named.contains(n);
        let fit: Vec<String> = nodes.iter().filter(fits).cloned().collect();
        let without: Vec<&str> = nodes.iter().filter(|n| !fit.contains(n)).map(String::as_str).collect();
        let without = if without.is_empty() { String::new() } else { format!(", without {}", without.join(", ")) };
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        tracing::warn!("snapshots: {said}; once more{without}");
        result = flush(&fit);
    }
    let said = match result {
        Ok(ended) if is_none(&ended) => "no whole step in memory; what is on disk counts".into(),
        Ok(ended) => ended.well().map_or_else(|e| e.to_string(), |ended| ended.out),
        Err(e) => e.to_string(),
    };
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    tracing::info!("snapshots: {said}");
    let _ = records.say(RunEvent::Flush { nodes, without: absent.to_vec(), result: said });
}

/// The node on which a program cannot be started, where a line of Slurm's says so.
fn unfit(line: &str) -> Option<String> {
    match messages::parse(line.trim()) {
        Some(SlurmMessage::CannotRun { node, .. }) => node,
        _ => None,
    }
}

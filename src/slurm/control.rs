//! What a job may ask of the controller: its state, a requeue, the end of a step, a successor.

use super::process::{command, output, unhurt};
use super::Job;
use crate::error::{Error, Exit, Result};
use crate::host::{self, SideWork};
use std::path::Path;
use std::time::Duration;

/// How long the controller may take to answer. It answers in milliseconds, or it is away.
const LIMIT: Duration = Duration::from_secs(5);

/// The state of a job as `scontrol show job` names it: RUNNING, CANCELLED, PENDING, … `None` for a job that Slurm has
/// forgotten.
///
/// Errors ([`Exit::World`]): no answer.
pub fn job_state(address: &str) -> Result<Option<String>> {
    match output(command("scontrol", &["show", "job", "-o", address]), LIMIT) {
        Ok(shown) => Ok(field(&shown, "JobState").map(str::to_string)),
        Err(e) if e.fact.contains("Invalid job id") => Ok(None),
        Err(e) => Err(e),
    }
}

/// The value of `KEY=value` in a line of scontrol's, which quotes nothing: up to the next word that looks like `Key=`.
fn field<'a>(shown: &'a str, key: &str) -> Option<&'a str> {
    let starts = |(at, _): &(usize, &str)| *at == 0 || shown[..*at].ends_with(char::is_whitespace);
    let (at, found) = shown.match_indices(&format!("{key}=")).find(starts)?;
    let value = &shown[at + found.len()..];
    let mut end = value.len();
    for (i, _) in value.match_indices(char::is_whitespace) {
        let word = value[i..].trim_start().split(char::is_whitespace).next().unwrap_or_default();
        if word.is_empty() || is_key(word) {
            end = i;
            break;
        }
    }
    Some(value[..end].trim_end())
}

/// Whether a word begins a field of scontrol's: `NumNodes=2`, `Socks/Node=*`, `NtasksPerN:B:S:C=0:0:*:*`.
fn is_key(word: &str) -> bool {
    let Some((key, _)) = word.split_once('=') else { return false };
    key.starts_with(|c: char| c.is_ascii_uppercase())
        && key.chars().all(|c| c.is_ascii_alphabetic() || "/:_".contains(c))
}

/// What the batch script of a job asks for by `#SBATCH --NAME=value` or `#SBATCH --NAME value`: scontrol shows not all of it.
fn directive(script: &str, name: &str) -> Option<String> {
    let lines = script.lines().filter_map(|l| l.strip_prefix("#SBATCH"));
    let mut found = lines.filter_map(|l| {
        let rest = l.trim().strip_prefix("--")?.strip_prefix(name)?;
        let value = rest.strip_prefix('=').or_else(|| rest.strip_prefix(char::is_whitespace))?;
        value.split_whitespace().next().map(str::to_string)
    });
    found.next_back()
}

/// Those of `nodes` that Slurm has marked down; none where it does not answer.
pub fn nodes_down(nodes: &[String]) -> Vec<String> {
    let list = super::compress(nodes);
    let shown = output(command("sinfo", &["-h", "-N", "-o", "%N %t", "-n", &list]), LIMIT).unwrap_or_default();
    let down = shown.lines().filter_map(|l| l.trim().split_once(' ')).filter(|(_, state)| state.starts_with("down"));
    let mut down: Vec<String> = down.map(|(node, _)| node.to_string()).collect();
    down.dedup();
    down
}

/// Puts the running job back into the queue: Slurm ends it with SIGTERM and starts it again when the credentials of this
/// run have expired, 120 s on most sites (scontrol(1), requeue).
///
/// That SIGTERM reaches this call too, so it must not end what waits for the answer. An answer that is lost all the same
/// is no failure where the job says that it was requeued.
///
/// Errors ([`Exit::World`]): what scontrol says.
pub fn requeue(job: &Job) -> Result<()> {
    let asked = output(unhurt(command("scontrol", &["requeue", &job.address()])), LIMIT);
    let Err(e) = asked else { return Ok(()) };
    let shown = output(unhurt(command("scontrol", &["show", "job", "-o", &job.address()])), LIMIT).unwrap_or_default();
    match requeued(&shown, job.restarts) {
        true => Ok(()),
        false => Err(e),
    }
}

/// Whether a job is being preempted in a way that puts it back into the queue: by the priorities of partitions, and its
/// partition says so. By QOS the way may be another one for each, which nobody here can ask; then the answer is no.
pub fn is_preempted_for_requeue(job: &Job) -> bool {
    let ask = |args: &[&str]| output(command("scontrol", args), LIMIT).unwrap_or_default();
    let shown = ask(&["show", "job", "-o", &job.address()]);
    if !is_preempted(&shown) {
        return false;
    }
    let partition = field(&shown, "Partition").map(|p| ask(&["show", "partition", "-o", p])).unwrap_or_default();
    let config = ask(&["show", "config"]);
    let by_partition = config.lines().any(|l| l.starts_with("PreemptType ") && l.ends_with("preempt/partition_prio"));
    by_partition && field(&partition, "PreemptMode") == Some("REQUEUE")
}

/// Whether the line of a job has the moment of a preemption.
fn is_preempted(shown: &str) -> bool {
    field(shown, "PreemptTime").is_some_and(|t| t.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether a job that had been started again `restarts` times has gone back into the queue since.
fn requeued(shown: &str, restarts: u32) -> bool {
    let counted = field(shown, "Restarts").and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n > restarts);
    counted || matches!(field(shown, "JobState"), Some("PENDING" | "REQUEUED" | "REQUEUE_HOLD"))
}

/// Makes the running job smaller: it keeps `nodes`, its first among them, and Slurm ends what of it is on the others
/// (scontrol(1), "Job Resizing"). scontrol leaves two scripts for shells that read the job's size, here in `folder`, and
/// nobody needs them.
pub fn shrink(job: &Job, nodes: &[String], folder: &Path) -> Result<()> {
    let update =
        ["update".to_string(), format!("JobId={}", job.address()), format!("NodeList={}", super::compress(nodes))];
    let mut scontrol = command("scontrol", &update);
    scontrol.current_dir(folder);
    let result = output(scontrol, LIMIT).map(|_| ());
    for kind in ["sh", "csh"] {
        let _ = std::fs::remove_file(folder.join(format!("slurm_job_{}_resize.{kind}", job.id)));
    }
    result
}

/// Ends the job.
pub fn cancel(address: &str) -> Result<()> {
    output(command("scancel", &[address]), LIMIT).map(|_| ())
}

/// Kills every task of the job's step called `name`, from a thread of its own: towards a dead node `scancel` takes as long
/// as Slurm's message timeout, and the nodes that live are done long before.
pub fn kill_step_beside(job: &Job, name: &str) -> Option<SideWork<()>> {
    let (address, wanted) = (job.address(), name.to_string());
    let kill = move || {
        let listed = output(command("squeue", &["-h", "-s", "-j", &address, "-o", "%i %j"]), LIMIT).unwrap_or_default();
        let ours = listed.lines().filter_map(|l| l.trim().split_once(' ')).filter(|(_, step)| step.trim() == wanted);
        for (id, _) in ours {
            let _ = output(command("scancel", &["--signal=KILL", id]), Duration::from_secs(60));
        }
    };
    let failed = |e: &std::io::Error| tracing::warn!("step {name} is not killed: {e}");
    host::beside("herd-kill", kill).inspect_err(failed).ok()
}

/// Submits a job that takes this one's place without the nodes in `exclude`, and starts after it has ended. It runs
/// `line` through a shell; account, partition, size and limit are this job's.
///
/// Returns the new job's id. Errors ([`Exit::World`]): what sbatch says.
pub fn submit_successor(job: &Job, exclude: &[String], line: &str) -> Result<String> {
    let shown = output(command("scontrol", &["show", "job", "-o", &job.address()]), LIMIT)?;
    let mut args = vec![
        "--parsable".to_string(),
        "--no-kill".into(),
        "--requeue".into(),
        "--open-mode=append".into(),
        format!("--dependency=afterany:{}", job.address()),
    ];
    if !exclude.is_empty() {
        args.push(format!("--exclude={}", super::compress(exclude)));
    }
    for (key, option) in [
        ("Account", "account"),
        ("Partition", "partition"),
        ("QOS", "qos"),
        ("JobName", "job-name"),
        ("NumNodes", "nodes"),
        ("TimeLimit", "time"),
        ("WorkDir", "chdir"),
        ("StdOut", "output"),
        ("Reservation", "reservation"),
        ("Comment", "comment"),
    ] {
        match field(&shown, key) {
            None | Some("(null)" | "N/A" | "") => {}
            Some(value) => args.push(format!("--{option}={value}")),
        }
    }
    if let Some(n) = job.tasks_per_node {
        args.push(format!("--ntasks-per-node={n}"));
    }
    for (var, option) in [("SLURM_GPUS_PER_NODE", "gpus-per-node"), ("SLURM_CPUS_PER_TASK", "cpus-per-task")] {
        if let Ok(value) = std::env::var(var) {
            args.push(format!("--{option}={value}"));
        }
    }
    // not in what scontrol shows: as the batch script has it; one from sbatch's command line is lost
    let script = output(command("scontrol", &["write", "batch_script", &job.address(), "-"]), LIMIT);
    match script.as_ref().ok().and_then(|s| directive(s, "signal")) {
        Some(signal) => args.push(format!("--signal={signal}")),
        None => tracing::warn!(
            "the batch script says nothing of --signal, so the next job gets no warning before its time limit"
        ),
    }
    if field(&shown, "OverSubscribe") == Some("NO") {
        args.push("--exclusive".into());
    }
    args.push(format!("--wrap=exec {line}"));
    let mut sbatch = command("sbatch", &args);
    // what this job's environment says of its size would win over the options
    for (name, _) in std::env::vars_os().filter(|(k, _)| k.to_string_lossy().starts_with("SLURM_")) {
        if name != "SLURM_CONF" {
            sbatch.env_remove(name);
        }
    }
    let id = output(sbatch, LIMIT)?;
    match id.trim().split(';').next() {
        Some(id) if !id.is_empty() => Ok(id.to_string()),
        _ => Err(Error::new(Exit::World, format!("sbatch names no job: {id:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_scontrol() {
        let shown = "JobId=7 JobName=a JobState=CANCELLED Reason=None Account=(null) NumNodes=2 JobStateX=no";
        assert_eq!(field(shown, "JobState"), Some("CANCELLED"));
        assert_eq!(field(shown, "NumNodes"), Some("2"));
        assert_eq!(field(shown, "Partition"), None);
        let spaces =
            "JobId=4711 JobName=llama 3 base UserId=me(1000) Comment=lr=3e-4, second try WorkDir=/project/my team/x \
                      StdOut=/project/my team/run 1.log Power=\n";
        for (key, value) in [
            ("JobName", "llama 3 base"),
            ("Comment", "lr=3e-4, second try"),
            ("WorkDir", "/project/my team/x"),
            ("StdOut", "/project/my team/run 1.log"),
            ("Power", ""),
        ] {
            assert_eq!(field(spaces, key), Some(value));
        }
    }

    #[test]
    fn the_moment_of_a_preemption() {
        assert!(is_preempted(
            "JobState=RUNNING PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=2026-01-01T00:00:30"
        ));
        assert!(!is_preempted("JobState=RUNNING PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None"));
        assert!(!is_preempted("JobState=RUNNING PreemptEligibleTime=2026-01-01T00:00:00"));
    }

    #[test]
    fn directives_of_a_batch_script() {
        let script = "#!/bin/bash\n#SBATCH --signal=B:USR1@600\n#SBATCH --nodes 4  # all\nexec herd launch\n";
        assert_eq!(directive(script, "signal").as_deref(), Some("B:USR1@600"));
        assert_eq!(directive(script, "nodes").as_deref(), Some("4"));
        assert_eq!(directive(script, "time"), None);
    }

    #[test]
    fn a_requeued_job_has_started_once_more_or_waits() {
        for (shown, expected) in [
            ("JobState=RUNNING Requeue=1 Restarts=2", false),
            ("JobState=COMPLETING Requeue=1 Restarts=2", false),
            ("JobState=CANCELLED Requeue=1 Restarts=2", false),
            ("JobState=COMPLETING Requeue=1 Restarts=3", true),
            ("JobState=PENDING Requeue=1 Restarts=2", true),
            ("", false),
        ] {
            assert_eq!(requeued(shown, 2), expected, "{shown}");
        }
    }
}

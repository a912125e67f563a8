//! The supervisor's standby. With `--no-kill` Slurm leaves a job running when the node of its batch script is lost, and nobody
//! would start the ranks again. So the supervisor starts one process more on another node of the job, and writes a byte to
//! it four times a second, through srun's own connection. When the bytes stop, and the supervisor's node twice does not answer a
//! roll call that this node answers, that process becomes the supervisor: in the same allocation, without a turn in the queue.

use crate::error::Result;
use crate::host::{self, HostProcess};
use crate::slurm::{compress, expand, Job, StepLine};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How often the supervisor writes a byte.
pub const BEAT: Duration = Duration::from_millis(250);
/// A standby that ended is replaced this long after it was started, not sooner.
const AGAIN: Duration = Duration::from_secs(20);

/// What a step's environment does not say of the job.
const NODES: &str = "HERD_JOB_NODES";
const TASKS_PER_NODE: &str = "HERD_JOB_TASKS_PER_NODE";
const TASKS: &str = "HERD_JOB_TASKS";

/// The job as its batch script sees it, in a standby's step.
pub fn whole(job: Job) -> Result<Job> {
    whole_from(job, |name| std::env::var(name).ok())
}

fn whole_from(job: Job, var: impl Fn(&str) -> Option<String>) -> Result<Job> {
    let Some(list) = var(NODES) else { return Ok(job) };
    let number = |name| var(name).and_then(|n| n.parse().ok());
    // what Slurm says of tasks here is the standby's own step
    Ok(Job { nodes: expand(&list)?, tasks_per_node: number(TASKS_PER_NODE), tasks: number(TASKS), step: None, ..job })
}

/// The name of this node in the job.
pub fn here(job: &Job) -> String {
    let name = host::variable("SLURMD_NODENAME").filter(|n| job.nodes.contains(n));
    name.or_else(|| job.nodes.first().cloned()).unwrap_or_default()
}

/// The supervisor's end of it.
pub struct Standby {
    node: String,
    child: HostProcess,
    started: Instant,
}

impl Standby {
    /// Keeps a standby on one of `nodes`, the last first, and not on this one. Without one the run is as good as before, so
    /// nothing here is an error.
    pub fn keep(
        standby: &mut Option<Standby>, job: &Job, program: &str, nodes: &[String], extra: &[String], hosts_file: &Path,
    ) {
        let own = here(job);
        if let Some(s) = standby {
            let lives = s.child.ended().is_none();
            if lives && nodes.contains(&s.node) || !lives && host::since(s.started) < AGAIN {
                return;
            }
        }
        *standby = None;
        let Some(node) = nodes.iter().rev().find(|n| **n != own) else { return };
        match Standby::start(job, program, node, &own, extra, hosts_file) {
            Ok(s) => {
                tracing::info!("a standby of the supervisor waits on {node}");
                *standby = Some(s);
            }
            Err(e) => tracing::warn!("no standby of the supervisor on {node}: {e}"),
        }
    }

    fn start(
        job: &Job, program: &str, node: &str, own: &str, extra: &[String], hosts_file: &Path,
    ) -> std::io::Result<Standby> {
        let nodes = [node.to_string()];
        let line = StepLine {
            job,
            name: "herd-standby",
            nodes: &nodes,
            ranks_per_node: 1,
            mpi: "none",
            extra,
            hosts_file,
            tree_width: None,
        };
        let mut command = line.command();
        command.args(["--quiet", program]);
        command.env(NODES, compress(&job.nodes));
        for (name, value) in [(TASKS_PER_NODE, job.tasks_per_node), (TASKS, job.tasks)] {
            match value {
                Some(n) => command.env(name, n.to_string()),
                None => command.env_remove(name),
            };
        }
        command.args(with_option(std::env::args().skip(1), own));
        let spawned = host::spawn(command.stdin(Stdio::piped()).stdout(Stdio::null()))?;
        // a thread, so that a filesystem that blocks this supervisor does not make it look dead; its end is this process's,
        // or the child's
        if let Some(mut pipe) = spawned.input {
            std::thread::Builder::new().name("herd-beat".into()).spawn(move || {
                while pipe.write_all(b".").is_ok() {
                    std::thread::sleep(BEAT);
                }
            })?;
        }
        Ok(Standby { node: node.to_string(), child: spawned.process, started: host::now() })
    }
}

/// A standby that is no longer wanted goes with its srun.
impl Drop for Standby {
    fn drop(&mut self) {
        if self.child.ended().is_none() {
            self.child.end();
        }
    }
}

/// This command's arguments with `--standby` behind `launch`, in place of one that was there.
fn with_option(arguments: impl Iterator<Item = String>, own: &str) -> Vec<String> {
    let mut out = Vec::new();
    for a in arguments.filter(|a| !a.starts_with("--standby=")) {
        let is_command = a == "launch" && !out.contains(&a);
        out.push(a);
        if is_command {
            out.push(format!("--standby={own}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the standby's step of Slurm 26.05, SLURM_NTASKS is 1 and SLURM_NTASKS_PER_NODE the job's.
    #[test]
    fn the_standby_s_own_step_says_nothing_of_the_job_s_tasks() {
        let step = |k: &str| match k {
            "SLURM_JOB_ID" => Some("7".to_string()),
            "SLURM_JOB_NODELIST" => Some("n[1-3]".into()),
            "SLURM_NTASKS" => Some("1".into()),
            "SLURM_NTASKS_PER_NODE" => Some("2".into()),
            _ => None,
        };
        let job = || Job::read(step).job.unwrap();
        let handed = |k: &str| match k {
            NODES => Some("n[1-4]".to_string()),
            TASKS => Some("8".into()),
            _ => None,
        };
        let whole = whole_from(job(), handed).unwrap();
        assert_eq!((whole.nodes.len(), whole.tasks, whole.tasks_per_node), (4, Some(8), None));
        assert_eq!(whole_from(job(), |_| None).unwrap(), job(), "a job that nothing was handed to");
    }

    #[test]
    fn the_standby_gets_the_same_command() {
        let of = |line: &str| with_option(line.split(' ').map(str::to_string), "n1").join(" ");
        assert_eq!(
            of("launch c.yaml --set a=launch -- --quiet"),
            "launch --standby=n1 c.yaml --set a=launch -- --quiet"
        );
        assert_eq!(of("launch --standby=n0 c.yaml"), "launch --standby=n1 c.yaml");
    }
}

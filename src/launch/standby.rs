//! The supervisor's deputy. With `--no-kill` Slurm leaves a job running when the node of its batch script is lost, and nobody
//! would start the ranks again. So the supervisor starts one process more on another node of the job, and writes a byte to
//! it four times a second, through srun's own connection. When the bytes stop, and the supervisor's node twice does not answer a
//! roll call that this node answers, that process becomes the supervisor: in the same allocation, without a turn in the queue.

use super::rollcall::{self, Patience};
use super::supervise::Supervisor;
use super::Launch;
use crate::error::{Error, Exit, Result};
use crate::slurm::{compress, control, expand, process, Job, StepLine};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BEAT: Duration = Duration::from_millis(250);
/// A deputy that ended is replaced this long after it was started, not sooner.
const AGAIN: Duration = Duration::from_secs(20);
/// After so long without a byte the supervisor's node is asked; it is given up only after `liveness.misses` intervals of silence.
const SUSPICION: Duration = Duration::from_millis(1250);
/// How long two nodes may take to answer: this one, which may be busy, and then the other.
const ROLL_CALL: Patience = Patience { first: Duration::from_secs(5), others: Duration::from_secs(1) };

/// What a step's environment does not say of the job.
const NODES: &str = "HERD_JOB_NODES";
const TASKS_PER_NODE: &str = "HERD_JOB_TASKS_PER_NODE";
const TASKS: &str = "HERD_JOB_TASKS";

/// The job as its batch script sees it, in a deputy's step.
pub fn whole(job: Job) -> Result<Job> {
    whole_from(job, |name| std::env::var(name).ok())
}

fn whole_from(job: Job, var: impl Fn(&str) -> Option<String>) -> Result<Job> {
    let Some(list) = var(NODES) else { return Ok(job) };
    let number = |name| var(name).and_then(|n| n.parse().ok());
    // what Slurm says of tasks here is the deputy's own step
    Ok(Job { nodes: expand(&list)?, tasks_per_node: number(TASKS_PER_NODE), tasks: number(TASKS), step: None, ..job })
}

/// The name of this node in the job.
pub fn here(job: &Job) -> String {
    let name = std::env::var("SLURMD_NODENAME").ok().filter(|n| job.nodes.contains(n));
    name.or_else(|| job.nodes.first().cloned()).unwrap_or_default()
}

/// The supervisor's end of it.
pub struct Standby {
    node: String,
    child: Child,
    started: Instant,
}

impl Standby {
    /// Keeps a deputy on one of `nodes`, the last first, and not on this one. Without one the run is as good as before, so
    /// nothing here is an error.
    pub fn keep(
        standby: &mut Option<Standby>, job: &Job, program: &str, nodes: &[String], extra: &[String], hosts_file: &Path,
    ) {
        let own = here(job);
        if let Some(s) = standby {
            let lives = process::ended(&mut s.child).is_none();
            if lives && nodes.contains(&s.node) || !lives && s.started.elapsed() < AGAIN {
                return;
            }
        }
        *standby = None;
        let Some(node) = nodes.iter().rev().find(|n| **n != own) else { return };
        match Standby::start(job, program, node, &own, extra, hosts_file) {
            Ok(s) => {
                tracing::info!("a deputy of the supervisor waits on {node}");
                *standby = Some(s);
            }
            Err(e) => tracing::warn!("no deputy of the supervisor on {node}: {e}"),
        }
    }

    fn start(
        job: &Job, program: &str, node: &str, own: &str, extra: &[String], hosts_file: &Path,
    ) -> std::io::Result<Standby> {
        let nodes = [node.to_string()];
        let line =
            StepLine { job, name: "herd-standby", nodes: &nodes, ranks_per_node: 1, mpi: "none", extra, hosts_file };
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
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        // a thread, so that a filesystem that blocks this supervisor does not make it look dead; its end is this process's,
        // or the child's
        if let Some(mut pipe) = child.stdin.take() {
            std::thread::Builder::new().name("herd-beat".into()).spawn(move || {
                while pipe.write_all(b".").is_ok() {
                    std::thread::sleep(BEAT);
                }
            })?;
        }
        Ok(Standby { node: node.to_string(), child, started: Instant::now() })
    }
}

/// A deputy that is no longer wanted goes with its srun.
impl Drop for Standby {
    fn drop(&mut self) {
        if process::ended(&mut self.child).is_none() {
            process::end(&mut self.child);
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

/// Waits beside the supervisor on node `supervisor`; becomes it when that node is lost. Comes back when the supervisor has
/// left, or when the run has ended under this one.
pub fn wait(launch: Launch, job: Job, asked: Arc<AtomicBool>, supervisor: &str) -> Result<Exit> {
    let own = here(&job);
    let live = &launch.config.liveness;
    let limit = Duration::from_secs_f64(live.interval_s * f64::from(live.misses)).max(Duration::from_secs(3));
    let beats = listen()?;
    let hosts_file = launch.config.run_dir.join("launch/hosts-standby");
    let mut heard = Instant::now();
    let mut silent = 0;
    while silent < 2 || heard.elapsed() < limit {
        match beats.recv_timeout(BEAT / 5) {
            Ok(()) => (heard, silent) = (Instant::now(), 0),
            Err(RecvTimeoutError::Disconnected) => return Ok(Exit::Ok),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if asked.load(Ordering::Relaxed) {
            return Ok(Exit::Ok);
        }
        if heard.elapsed() < SUSPICION || silent >= 2 {
            continue;
        }
        let asked_both = [own.clone(), supervisor.to_string()];
        let absent = rollcall::absent(&job, &asked_both, &hosts_file, ROLL_CALL);
        match (absent.contains(&own), absent.iter().any(|n| n == supervisor)) {
            // this node is cut off, or the controller is away
            (true, _) => silent = 0,
            (false, true) => silent += 1,
            (false, false) => (heard, silent) = (Instant::now(), 0),
        }
    }
    take_over(launch, job, asked, supervisor)
}

fn take_over(launch: Launch, job: Job, asked: Arc<AtomicBool>, lost: &str) -> Result<Exit> {
    speak_into(&launch.config.run_dir.join("launch/deputy.log"))?;
    // srun reads how this step was bound and sized from the environment
    let of_this_step =
        ["SLURM_STEP_", "SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_SRUN_", "SLURM_LAUNCH_", "SLURM_TASK_"];
    let names: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    for name in names.iter().filter(|n| of_this_step.iter().any(|p| n.to_string_lossy().starts_with(p))) {
        // SAFETY: the thread that reads standard input reads no variables, and there is no other.
        unsafe { std::env::remove_var(name) };
    }
    tracing::warn!("the supervisor's node {lost} is lost: going on in its place");
    let address = job.address();
    let exit = Supervisor::open(launch, job, asked, None)?.after(lost).run()?;
    // with its batch script lost, nothing but this ends the job
    if matches!(control::job_state(&address), Ok(Some(state)) if state == "RUNNING") && exit != Exit::Fenced {
        tracing::info!(
            "the run has ended with code {}; the job is cancelled, since its batch script is lost",
            exit.code()
        );
        control::cancel(&address)?;
    }
    Ok(exit)
}

/// One message for each byte of the supervisor's; disconnected when its srun has closed.
fn listen() -> Result<Receiver<()>> {
    let (send, receive) = channel();
    let read = move || {
        let mut bytes = [0u8; 64];
        let mut input = std::io::stdin().lock();
        while matches!(input.read(&mut bytes), Ok(1..)) {
            if send.send(()).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("herd-listen".into()).spawn(read);
    thread.map_err(|e| Error::new(Exit::Internal, format!("cannot start a thread: {e}")))?;
    Ok(receive)
}

/// What is said from now on goes to a file: the srun that carried it is on the lost node.
fn speak_into(path: &Path) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.map_err(|e| Error::io(path, "open", &e, Exit::Storage))?;
    for target in [1, 2] {
        // SAFETY: two open descriptors; the second becomes another name of the first's file.
        unsafe { libc::dup2(file.as_raw_fd(), target) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the deputy's step of Slurm 26.05, SLURM_NTASKS is 1 and SLURM_NTASKS_PER_NODE the job's.
    #[test]
    fn the_deputy_s_own_step_says_nothing_of_the_job_s_tasks() {
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
    fn the_deputy_gets_the_same_command() {
        let of = |line: &str| with_option(line.split(' ').map(str::to_string), "n1").join(" ");
        assert_eq!(
            of("launch c.yaml --set a=launch -- --quiet"),
            "launch --standby=n1 c.yaml --set a=launch -- --quiet"
        );
        assert_eq!(of("launch --standby=n0 c.yaml"), "launch --standby=n1 c.yaml");
    }
}

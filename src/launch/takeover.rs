//! The standby's own side: it listens beside the supervisor, and takes its place when the supervisor's node is lost.

use super::ending;
use super::rollcall::{self, Patience};
use super::standby::{here, BEAT};
use super::supervise::Supervisor;
use super::Launch;
use crate::error::{Error, Exit, Result};
use crate::host;
use crate::run_dir::RunDir;
use crate::slurm::{control, Job};
use crate::threads;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::Duration;

/// After so long without a byte the supervisor's node is asked; it is given up only after `liveness.misses` intervals of silence.
const SUSPICION: Duration = Duration::from_millis(1250);
/// How long two nodes may take to answer: this one, which may be busy, and then the other.
const ROLL_CALL: Patience = Patience { first: Duration::from_secs(5), others: Duration::from_secs(1) };

/// Waits beside the supervisor on node `supervisor`; becomes it when that node is lost. Comes back when the supervisor has
/// left, or when the run has ended under this one.
pub fn wait(launch: Launch, job: Job, asked: Arc<AtomicBool>, supervisor: &str) -> Result<Exit> {
    let beats = listen()?;
    let hear = |most| beats.recv_timeout(most);
    match outlive(&launch, &job, &asked, supervisor, hear) {
        Outlived::Left => Ok(Exit::Ok),
        Outlived::Lost => {
            if let Err(e) = speak_into(&RunDir::new(&launch.config.run_dir).standby_log()) {
                tracing::warn!("{e}: what is said from now on goes nowhere, the run goes on");
            }
            forget_this_step();
            go_on(launch, job, asked, supervisor)
        }
    }
}

/// What became of a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlived {
    /// It has left by itself, or this standby is to.
    Left,
    /// Its node is lost.
    Lost,
}

/// Listens until the supervisor on node `supervisor` leaves or is lost. `hear` waits so long for one of its beats.
pub fn outlive(
    launch: &Launch, job: &Job, asked: &AtomicBool, supervisor: &str,
    mut hear: impl FnMut(Duration) -> std::result::Result<(), RecvTimeoutError>,
) -> Outlived {
    let own = here(job);
    let live = &launch.config.liveness;
    let limit = Duration::from_secs_f64(live.interval_s * f64::from(live.misses)).max(Duration::from_secs(3));
    let hosts_file = RunDir::new(&launch.config.run_dir).standby_hosts();
    let mut heard = host::now();
    let mut silent = 0;
    while silent < 2 || host::since(heard) < limit {
        match hear(BEAT / 5) {
            Ok(()) => (heard, silent) = (host::now(), 0),
            Err(RecvTimeoutError::Disconnected) => return Outlived::Left,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if asked.load(Ordering::Relaxed) {
            return Outlived::Left;
        }
        if host::since(heard) < SUSPICION || silent >= 2 {
            continue;
        }
        let asked_both = [own.clone(), supervisor.to_string()];
        let absent = rollcall::absent(job, &asked_both, &hosts_file, ROLL_CALL);
        match (absent.contains(&own), absent.iter().any(|n| n == supervisor)) {
            // this node is cut off, or the controller is away
            (true, _) => silent = 0,
            (false, true) => silent += 1,
            (false, false) => (heard, silent) = (host::now(), 0),
        }
    }
    Outlived::Lost
}

fn forget_this_step() {
    // srun reads how this step was bound and sized from the environment
    let of_this_step =
        ["SLURM_STEP_", "SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_SRUN_", "SLURM_LAUNCH_", "SLURM_TASK_"];
    let names: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    for name in names.iter().filter(|n| of_this_step.iter().any(|p| n.to_string_lossy().starts_with(p))) {
        // SAFETY: the thread that reads standard input reads no variables, and there is no other.
        unsafe { std::env::remove_var(name) };
    }
}

/// Goes on in the place of the supervisor on node `lost`.
pub fn go_on(launch: Launch, job: Job, asked: Arc<AtomicBool>, lost: &str) -> Result<Exit> {
    tracing::warn!("the supervisor's node {lost} is lost: going on in its place");
    let (of, hosts) = (job.clone(), RunDir::new(&launch.config.run_dir).standby_hosts());
    let ended = Supervisor::open(launch, job, asked, None).and_then(|s| s.after(lost).run());
    let exit = ended.as_ref().map_or_else(|e| e.exit, |exit| *exit);
    let runs = || ending::job_state(&of).is_ok_and(|state| ending::is_running(&state));
    // after an error the node may be there again, and its supervisor go on
    let is_back = || ended.is_err() && rollcall::absent(&of, &[lost.to_string()], &hosts, ROLL_CALL).is_empty();
    // with its batch script lost, nothing but this ends the job, however the run has ended
    if exit != Exit::Fenced && runs() && !is_back() {
        tracing::info!(
            "the run has ended with code {}; the job is cancelled, since its batch script is lost",
            exit.code()
        );
        if let Err(e) = control::cancel(&of.address()) {
            tracing::error!("{e}: job {} has no batch script, and goes on until somebody cancels it", of.address());
        }
    }
    ended
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
    threads::start("herd-listen", "a thread", read)?;
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

//! Faults on order, done to a live run, and what came of them: how soon noticed, how soon training again, what was lost.
//!
//! Orders to ranks go through the run directory (`liveness::inject`), the rest through Slurm's commands or the filesystem.
//! All times are by this process's monotonic clock, from the moment at which the fault was seen to happen.

use super::history::History;
use super::run_log::{last_step, Tail};
use crate::checkpoint;
use crate::durable::write_atomic;
use crate::error::{Error, Exit, Result};
use crate::events::{LoggedEvent, RunEvent};
use crate::liveness::inject::{InjectedFault, Order};
use crate::run_dir::RunDir;
use crate::slurm::{control, process};
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What can be drilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DrillKind {
    /// SIGKILL of a rank
    KillRank,
    /// SIGSTOP of a rank
    StopRank,
    /// SIGSTOP of a rank, SIGCONT after --seconds: shorter than the misses, nobody may be given up
    PauseRank,
    /// SIGKILL of every rank of one node at once
    KillNode,
    /// SIGSTOP of every rank of one node: silence
    StopNode,
    /// SIGKILL of rank 0, which watches the others
    Monitor,
    /// A rank leaves out a collective
    SkipCollective,
    /// A rank enters a collective --seconds late
    StallCollective,
    /// A rank is slow for 20 steps, by --seconds each
    Slow,
    /// A NaN in a gradient: the step must be skipped
    NanGradient,
    /// Writing metrics blocks for --seconds
    BlockIo,
    /// A byte of the newest checkpoint on disk is changed, and a rank killed
    CorruptCheckpoint,
    /// The filesystem of the run directory is filled up for --seconds
    FillDisk,
    /// What Slurm does ahead of the time limit
    TimeLimit,
    /// `scontrol requeue` by hand
    Requeue,
}

impl DrillKind {
    /// Whether the ranks must be started again.
    fn restarts(self) -> bool {
        use DrillKind::*;
        !matches!(self, PauseRank | StallCollective | Slow | NanGradient | BlockIo | FillDisk)
    }
}

/// Which run is hit, where, and how long a fault lasts and is waited for.
pub struct Drill {
    /// Run directory of the run that is hit.
    pub run_dir: PathBuf,
    /// Rank to hit, or the rank whose node is hit.
    pub rank: Option<usize>,
    /// Length of faults that have one, seconds; of a slow rank, for each step.
    pub seconds: f64,
    /// How long to wait for the fault to be noticed, and for training to go on.
    pub patience: Duration,
    /// Largest free space that may be filled up.
    pub fill_limit: u64,
}

/// What came of one fault.
#[derive(Clone, Debug, Serialize)]
pub struct DrillOutcome {
    /// The fault that was done.
    pub kind: DrillKind,
    /// Rank that was hit, from 0, or whose node was; without a meaning where the fault hits none.
    pub rank: usize,
    /// Seconds from the fault until a fault, or a request to stop, was in the events; `None` where none was.
    pub detected_s: Option<f64>,
    /// Seconds from the fault until training went on; `None` where it did not, or never stopped.
    pub restarted_s: Option<f64>,
    /// Steps that had to be done again; `None` where training did not go on.
    pub steps_lost: Option<u64>,
    /// Losses of the steps that were done twice, compared bit for bit: how many, and how many differ.
    pub compared: usize,
    /// How many of them differ.
    pub different: usize,
    /// What was said of it, one line for people; begins with `FAILED` where no rank took the order or training did not go on.
    pub fact: String,
    /// Training went on, after a restart where the fault calls for one, and no loss differs.
    pub as_expected: bool,
}

impl Drill {
    /// Does one fault to the run and waits for what comes of it.
    ///
    /// Errors ([`Exit::Usage`]): the run does not train; the filesystem is too large to fill.
    pub fn perform(&self, kind: DrillKind) -> Result<DrillOutcome> {
        let history = History::read(&self.run_dir)?;
        let live = history.attempts.last().filter(|a| a.ended.is_none()).ok_or_else(|| {
            Error::new(Exit::Usage, format!("no attempt is under way in {}", self.run_dir.display()))
                .hint("drill a run that `herd launch` supervises and that trains now")
        })?;
        let world = self.world(live.attempt)?;
        let per_node = (world / live.nodes.len().max(1)).max(1);
        let rank = if kind == DrillKind::Monitor { 0 } else { self.rank.unwrap_or(world - 1) };
        if rank >= world {
            return Err(Error::new(Exit::Usage, format!("--rank {rank}: the run has ranks 0 to {}", world - 1)));
        }
        let mut before = last_step(&self.run_dir);
        let mut events = Tail::from_end(RunDir::new(&self.run_dir).events());
        let node = rank / per_node * per_node..(rank / per_node + 1) * per_node;
        let order = |fault: InjectedFault| self.order(rank, &fault);
        let all = |fault: InjectedFault| node.clone().try_for_each(|r| self.order(r, &fault));
        let seconds = self.seconds;
        match kind {
            DrillKind::KillRank | DrillKind::Monitor => order(InjectedFault::Kill)?,
            DrillKind::StopRank => order(InjectedFault::Stop { seconds: None })?,
            DrillKind::PauseRank => order(InjectedFault::Stop { seconds: Some(seconds) })?,
            DrillKind::KillNode => all(InjectedFault::Kill)?,
            DrillKind::StopNode => all(InjectedFault::Stop { seconds: None })?,
            DrillKind::SkipCollective => order(InjectedFault::SkipCollective)?,
            DrillKind::StallCollective => order(InjectedFault::StallCollective { seconds })?,
            DrillKind::Slow => order(InjectedFault::Slow { seconds, steps: 20 })?,
            DrillKind::NanGradient => order(InjectedFault::NanGradient)?,
            DrillKind::BlockIo => order(InjectedFault::SleepIo { seconds })?,
            DrillKind::CorruptCheckpoint => {
                corrupt_newest(&RunDir::new(&self.run_dir).checkpoints())?;
                order(InjectedFault::Kill)?
            }
            DrillKind::FillDisk => {
                let ballast = fill(&self.run_dir, self.fill_limit)?;
                std::thread::sleep(Duration::from_secs_f64(seconds));
                drop(ballast);
                before = last_step(&self.run_dir);
            }
            DrillKind::TimeLimit => {
                let line = ["--batch", "--signal=USR1", &live.job.to_string()];
                process::output(process::command("scancel", &line), Duration::from_secs(10))?;
            }
            DrillKind::Requeue => {
                let line = ["requeue", &live.job.to_string()];
                process::output(process::command("scontrol", &line), Duration::from_secs(10))?;
            }
        }
        let ordered = !matches!(kind, DrillKind::FillDisk | DrillKind::TimeLimit | DrillKind::Requeue);
        let seen = self.follow(kind, ordered, before, &mut events);
        let (compared, different) = self.redone()?;
        let (detected, restarted, lost, fact) = seen;
        let as_expected = different == 0 && (restarted.is_some() || !kind.restarts()) && !fact.starts_with("FAILED");
        Ok(DrillOutcome {
            kind,
            rank,
            detected_s: detected,
            restarted_s: restarted,
            steps_lost: lost,
            compared,
            different,
            fact,
            as_expected,
        })
    }

    /// Watches the run from the fault to the steps after it.
    fn follow(
        &self, kind: DrillKind, ordered: bool, before: u64, events: &mut Tail,
    ) -> (Option<f64>, Option<f64>, Option<u64>, String) {
        let mut began = (!ordered).then(Instant::now);
        let (mut detected, mut fact) = (None, String::new());
        let end = Instant::now() + self.patience;
        let calm = Duration::from_secs_f64(self.seconds) + Duration::from_secs(2);
        while Instant::now() < end {
            for event in events.news().into_iter().filter_map(|logged| logged.event) {
                let since = |began: Option<Instant>| began.map_or(0.0, |b| b.elapsed().as_secs_f64());
                match event {
                    RunEvent::Drill { .. } => began = began.or(Some(Instant::now())),
                    RunEvent::Fault { fact: why, .. } if detected.is_none() => {
                        (detected, fact) = (Some(since(began)), why)
                    }
                    RunEvent::AskedToStop { .. } if detected.is_none() => {
                        (detected, fact) = (Some(since(began)), "asked to save and stop".into());
                    }
                    RunEvent::SkippedStep { step, .. } if fact.is_empty() => {
                        fact = format!("skipped_step at step {step}")
                    }
                    RunEvent::CheckpointFailed { step, .. } if fact.is_empty() => {
                        fact = format!("checkpoint_failed at step {step}");
                    }
                    RunEvent::SlowRank { rank, .. } if fact.is_empty() => fact = format!("slow_rank: rank {rank}"),
                    RunEvent::Recovered { steps_lost, .. } => {
                        return (detected, Some(since(began)), Some(steps_lost), fact)
                    }
                    RunEvent::Resume { .. }
                        if matches!(kind, DrillKind::TimeLimit | DrillKind::Requeue) && detected.is_some() =>
                    {
                        return (detected, Some(since(began)), Some(0), fact)
                    }
                    RunEvent::LaunchEnded { why, .. } => return (detected, None, None, format!("FAILED: {why:?}")),
                    _ => {}
                }
            }
            // faults that nobody has to be given up for: training goes on, and on
            let over = began.is_some_and(|b| b.elapsed() > calm);
            if !kind.restarts() && detected.is_none() && over && last_step(&self.run_dir) > before + 2 {
                let fact = if fact.is_empty() { "no verdict, training went on".to_string() } else { fact };
                return (None, None, Some(0), fact);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let what = if began.is_none() { "no rank took the order" } else { "training did not go on" };
        (detected, None, None, format!("FAILED: {what} within {} s {fact}", self.patience.as_secs_f64()))
    }

    fn order(&self, rank: usize, fault: &InjectedFault) -> Result<()> {
        let path = RunDir::new(&self.run_dir).drill_order(rank);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", &e, Exit::Storage))?;
        }
        let order = Order { fault: fault.clone(), at_step: None };
        let text = serde_json::to_string(&order).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
        write_atomic(&path, text.as_bytes())
    }

    /// Ranks of an attempt, as its start says.
    fn world(&self, attempt: u64) -> Result<usize> {
        let started = |e: LoggedEvent| match e.event {
            Some(RunEvent::AttemptStarted { attempt: started, world, .. }) if started == attempt => Some(world),
            _ => None,
        };
        let lines = json_lines(&RunDir::new(&self.run_dir).events())?;
        match lines.into_iter().rev().filter_map(LoggedEvent::read).find_map(started) {
            Some(n) if n > 0 => Ok(n),
            _ => {
                Err(Error::new(Exit::Usage, format!("events.jsonl does not say how many ranks attempt {attempt} has")))
            }
        }
    }

    /// Steps that were done twice: (how many, how many whose losses differ).
    fn redone(&self) -> Result<(usize, usize)> {
        let bits = |v: &Value| Some((v["step"].as_u64()?, v["loss"].as_f64()?.to_bits()));
        let now: HashMap<u64, u64> =
            json_lines(&RunDir::new(&self.run_dir).metrics())?.iter().filter_map(bits).collect();
        let then = json_lines(&RunDir::new(&self.run_dir).superseded_metrics())?;
        let pairs: Vec<(u64, u64)> =
            then.iter().filter_map(bits).filter_map(|(s, l)| Some((l, *now.get(&s)?))).collect();
        Ok((pairs.len(), pairs.iter().filter(|(a, b)| a != b).count()))
    }

    /// The job that runs the run now, as `squeue` names its state; for messages.
    pub fn job_state(&self) -> Option<String> {
        let job = History::read(&self.run_dir).ok()?.attempts.last()?.job;
        control::job_state(&job.to_string()).ok().flatten()
    }
}

fn json_lines(path: &Path) -> Result<Vec<Value>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(bytes.split(|&b| b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io(path, "read", &e, Exit::Storage)),
    }
}

/// Changes one byte in the middle of the largest file of the newest checkpoint.
fn corrupt_newest(dir: &Path) -> Result<()> {
    let newest = checkpoint::list(dir)?.into_iter().next().map(|(path, _)| path).ok_or_else(|| {
        Error::new(Exit::Usage, format!("{} holds no checkpoint yet", dir.display()))
            .hint("set checkpoint.every, or wait")
    })?;
    let read = std::fs::read_dir(&newest).map_err(|e| Error::io(&newest, "read", &e, Exit::Storage))?;
    let files = read.flatten().filter_map(|e| Some((e.metadata().ok()?.len(), e.path())));
    let Some((size, path)) = files.max() else {
        return Err(Error::new(Exit::Storage, format!("{} is empty", newest.display())));
    };
    let change = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&path)?;
        let mut byte = [0];
        file.seek(SeekFrom::Start(size / 2))?;
        file.read_exact(&mut byte)?;
        file.seek(SeekFrom::Start(size / 2))?;
        file.write_all(&[!byte[0]])?;
        file.sync_all()
    };
    change().map_err(|e| Error::io(&path, "change", &e, Exit::Storage))
}

/// A file that takes all free space until it is dropped.
struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn fill(run_dir: &Path, limit: u64) -> Result<Ballast> {
    let stat = rustix::fs::statvfs(run_dir).map_err(|e| Error::io(run_dir, "look at", &e.into(), Exit::Storage))?;
    let free = stat.f_bavail * stat.f_frsize;
    if free > limit {
        return Err(Error::new(
            Exit::Usage,
            format!(
                "the filesystem of {} has {:.1} GiB free, more than --fill-limit {:.1} GiB",
                run_dir.display(),
                free as f64 / (1u64 << 30) as f64,
                limit as f64 / (1u64 << 30) as f64
            ),
        )
        .hint("other people may use it: drill a run on a small filesystem of your own"));
    }
    let ballast = Ballast(RunDir::new(run_dir).drill_ballast());
    let mut file = std::fs::File::create(&ballast.0).map_err(|e| Error::io(&ballast.0, "create", &e, Exit::Storage))?;
    let block = vec![1u8; 1 << 20];
    // the error at the end is what we are here for
    while file.write_all(&block).is_ok() {}
    while file.write_all(&block[..512]).is_ok() {}
    Ok(ballast)
}

//! One start of the ranks: the `srun` child, what comes out of it, and how it is ended without waiting for anybody.

use super::parent::{Parent, Srun};
use super::relay::Relay;
use super::run_log::{Signs, Tail};
use super::seen::Seen;
use crate::appended::{gone, is_gone};
use crate::config::LaunchSection;
use crate::error::{Error, Exit, Result};
use crate::exit_record;
use crate::host::{self, Pipe, SideWork};
use crate::liveness::VerdictFolder;
use crate::run_dir::RunDir;
use crate::slurm::messages;
use crate::slurm::{control, Job, StepLine};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often files are looked at. Slurm's word about a dead task comes through the pipe and wakes at once.
pub const TICK: Duration = Duration::from_millis(50);
/// After the first sign of a fault: how long to wait for others that explain it better.
const SETTLE: Duration = Duration::from_millis(200);
/// After srun has ended: how long the ranks' last event may take to be seen.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How many lines of srun's own are kept.
const SRUN_LINES: usize = 4;

/// One start of the ranks.
pub struct RankStart<'a> {
    pub number: u64,
    /// Name of its step.
    pub name: &'a str,
    /// How many nodes it is on.
    pub nodes: usize,
    pub run_dir: &'a Path,
    /// How long the ranks may take, and how long they may read.
    pub limits: &'a LaunchSection,
    /// As in [`Seen`].
    pub leaves_steps: bool,
}

impl RankStart<'_> {
    /// Where its ranks write down why they leave, as a path for processes with other working directories.
    fn records(&self) -> PathBuf {
        let path = RunDir::new(self.run_dir).exits(self.number);
        std::path::absolute(&path).unwrap_or(path)
    }
}

/// A running step.
pub struct RunningRanks {
    number: u64,
    step: String,
    srun: Srun,
    stderr: Option<Pipe>,
    relay: Relay,
    verdicts: VerdictFolder,
    /// Where ranks write down why they leave.
    records: PathBuf,
    events: Tail,
    signs: Signs,
    began: Instant,
    /// When the ranks were first seen to have met.
    met: Option<Instant>,
    limits: LaunchSection,
    seen: Seen,
}

impl RunningRanks {
    /// Starts `program` as the ranks of an attempt. `parent`: where there is one, what srun says goes by way of it.
    pub fn start(
        what: &RankStart, line: &StepLine, program: &[String], parent: Option<&Parent>,
    ) -> Result<RunningRanks> {
        if !line.in_order() {
            crate::durable::write_atomic(line.hosts_file, line.hosts().as_bytes())?;
        }
        let events = Tail::from_end(RunDir::new(what.run_dir).events());
        let records = what.records();
        if is_gone(what.run_dir) {
            return Err(gone(what.run_dir));
        }
        std::fs::create_dir_all(&records).map_err(|e| Error::io(&records, "create", &e, Exit::Storage))?;
        let mut command: Command = line.command();
        command.args(program).env("HERD_ATTEMPT", what.number.to_string()).env(exit_record::FOLDER, &records);
        let failed = |e: std::io::Error| {
            Error::new(Exit::World, format!("srun cannot be started: {e}")).hint("is Slurm's client in PATH?")
        };
        let (stdio, ours) = match parent {
            Some(parent) => parent.stderr().map(|(stdio, reader)| (stdio, Some(Pipe::from(reader)))).map_err(failed)?,
            None => (Stdio::piped(), None),
        };
        let spawned = host::spawn(command.stdin(Stdio::null()).stderr(stdio)).map_err(failed)?;
        let stderr = ours.or(spawned.err);
        stderr.iter().for_each(Pipe::do_not_block);
        Ok(RunningRanks::new(what, Srun::Child(spawned.process), stderr, events))
    }

    /// The ranks that an earlier supervisor has started by `srun`. What they have said so far is read again.
    pub fn adopt(what: &RankStart, srun: Srun, stderr: File) -> RunningRanks {
        let mut ranks = RunningRanks::new(
            what,
            srun,
            Some(Pipe::from(stderr)),
            Tail::from_start(RunDir::new(what.run_dir).events()),
        );
        ranks.look();
        ranks.seen.asked = ranks.signs.asked;
        ranks
    }

    fn new(what: &RankStart, srun: Srun, stderr: Option<Pipe>, events: Tail) -> RunningRanks {
        RunningRanks {
            number: what.number,
            step: what.name.to_string(),
            srun,
            stderr,
            relay: Relay::default(),
            verdicts: VerdictFolder::new(what.run_dir, what.number),
            records: what.records(),
            events,
            signs: Signs::default(),
            began: host::now(),
            met: None,
            limits: what.limits.clone(),
            seen: Seen { nodes: what.nodes, leaves_steps: what.leaves_steps, ..Default::default() },
        }
    }

    /// Hands the wish to save and stop on to the ranks. srun passes SIGUSR1 on; SIGTERM would make it kill them.
    pub fn ask_to_stop(&mut self) {
        self.seen.asked = true;
        if self.srun.ended().is_none() {
            self.srun.signal(libc::SIGUSR1);
        }
    }

    /// The step that the ranks go on after, once they have met.
    pub fn resumed_at(&self) -> Option<u64> {
        self.signs.from
    }

    /// Waits at most one tick for news; what was seen when the attempt is over.
    pub fn poll(&mut self) -> Option<Seen> {
        self.wait_for_output();
        self.listen();
        self.look();
        if let Some(code) = self.srun.ended() {
            self.listen();
            let end = host::now() + LAST_WORDS;
            self.seen.code = Some(code);
            // after a good end the events tell, and a network filesystem may show them late
            let good = [0, Exit::Requeue.code()].contains(&code) || (code > 128 && code != 128 + libc::SIGKILL);
            while good && !self.seen.finished && !self.seen.stopped && !self.seen.is_fault() && host::now() < end {
                host::sleep(TICK);
                self.look();
            }
            self.settle();
            return Some(self.seen.clone());
        }
        self.look_at_the_clock();
        if self.seen.is_fault() {
            self.settle();
            return Some(self.seen.clone());
        }
        None
    }

    /// Whether the ranks take too long to find each other, or then a state to go on from.
    fn look_at_the_clock(&mut self) {
        let limit = Duration::from_secs_f64(self.limits.start_timeout_s);
        match self.met {
            None if self.signs.met => self.met = Some(host::now()),
            None if host::since(self.began) > limit => self.seen.no_start_s = Some(limit.as_secs_f64()),
            Some(met) if !self.signs.started => {
                let bytes = self.signs.restoring.unwrap_or(0);
                let limit = limit.saturating_add(self.limits.restore_time(bytes));
                if host::since(met) > limit {
                    self.seen.no_state = Some((limit.as_secs_f64(), bytes));
                }
            }
            _ => {}
        }
    }

    /// The process of srun.
    pub fn pid(&self) -> u32 {
        self.srun.pid()
    }

    /// Whether they have been asked to save and stop.
    pub fn were_asked(&self) -> bool {
        self.seen.asked
    }

    /// Whether the ranks have found each other, and so watch each other's nodes.
    pub fn have_met(&self) -> bool {
        self.signs.met
    }

    /// Nodes that did not answer while the ranks were starting.
    pub fn late(&mut self, nodes: Vec<String>) {
        self.seen.late = nodes;
    }

    /// Kills the tasks on the nodes that live, through the controller, in a thread that the caller may wait for or not.
    pub fn begin_to_end(&self, job: &Job) -> Option<SideWork<()>> {
        control::kill_step_beside(job, &self.step)
    }

    /// Ends the srun client. It stays a moment to say what it knows, then goes: it may wait for a dead node for minutes.
    pub fn end(mut self) {
        let limit = host::now() + Duration::from_millis(200);
        while self.srun.ended().is_none() && host::now() < limit {
            host::sleep(Duration::from_millis(5));
        }
        self.srun.end();
        self.listen();
        self.relay.finish(&mut host::stderr());
        // the folder stays where it tells something
        let _ = std::fs::remove_dir(&self.records);
    }

    /// Gathers further evidence for a moment.
    fn settle(&mut self) {
        let end = host::now() + SETTLE;
        while host::now() < end && !self.seen.finished {
            host::sleep(Duration::from_millis(20));
            self.listen();
            self.look();
        }
        self.seen.records = exit_record::read_all(&self.records).unwrap_or_default();
        self.seen.lost = exit_record::Lost::all(&self.records);
        if let Ok(all) = self.verdicts.all() {
            self.seen.verdicts = all.to_vec();
        }
    }

    fn look(&mut self) {
        self.signs.read(&mut self.events, self.number);
        (self.seen.finished, self.seen.stopped) = (self.signs.finished, self.signs.stopped);
        self.seen.met = self.signs.started;
        if let Ok(found) = self.verdicts.look() {
            if found.len() > self.seen.verdicts.len() {
                self.seen.verdicts = found.to_vec();
            }
        }
    }

    /// Sleeps until srun says something, or a tick.
    fn wait_for_output(&self) {
        let Some(pipe) = &self.stderr else { return host::sleep(TICK) };
        pipe.wait(TICK);
    }

    /// Passes srun's and the ranks' stderr on, and reads what it says about tasks.
    fn listen(&mut self) {
        let Some(pipe) = &mut self.stderr else { return };
        let mut news = Vec::new();
        let open = host::drain(pipe, &mut news);
        let mut log = host::stderr();
        let lines = self.relay.pass(&news, &mut log);
        if self.signs.started {
            self.relay.met(&mut log);
        }
        if !open {
            self.stderr = None;
            self.relay.finish(&mut log);
        }
        lines.iter().for_each(|line| self.hear(line));
    }

    /// Takes in one line of the step's stderr.
    fn hear(&mut self, line: &str) {
        if let Some(message) = messages::parse(line) {
            self.seen.said.push(message);
        } else if let Some(said) = line.trim().strip_prefix("srun: ").filter(|_| self.seen.srun.len() < SRUN_LINES) {
            self.seen.srun.push(said.trim_start_matches("error: ").trim_start_matches("fatal: ").to_string());
        } else if let Some((_, error)) = line.split_once("herd: error: ").filter(|_| self.seen.error.is_none()) {
            self.seen.error = Some(error.trim().to_string());
        }
    }
}

/// A supervisor that leaves by an error takes its srun along; the ranks end with it.
impl Drop for RunningRanks {
    fn drop(&mut self) {
        self.srun.end();
    }
}

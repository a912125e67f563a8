//! The supervisor: one loop on the job's first node that starts the ranks, watches, and starts them again.
//!
//! It trusts nothing but the run directory, so the next supervisor (after a requeue, or after the loss of this one's node)
//! goes on where this one stood. It never waits for a dead node: not for its srun, not for scancel, not for Slurm to notice.

use super::alert::Alerts;
use super::classify::classify;
use super::history::{History, Record};
use super::ledger::Book;
use super::overtaken::overtaken;
use super::parent::Parent;
use super::place::{Found, Placement};
use super::policy::{decide, Decision};
use super::program::Program;
use super::ranks::{RankStart, RunningRanks, TICK};
use super::seen::{Finding, Seen};
use super::standby::Standby;
use super::{watch, Launch};
use crate::appended;
use crate::attempt;
use crate::error::{Error, Exit, Result};
use crate::events::{Events, RunEvent};
use crate::host::{self, FileAccess};
use crate::run_dir::RunDir;
use crate::slurm::{compress, control, site, Job, Site, StepLine, Switches};
use crate::world::library;
use serde_json::json;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long after a filesystem has refused to write it is asked again.
const STORAGE_AGAIN: Duration = Duration::from_secs(1);
/// How often the run directory is asked whether another supervisor has taken over.
const FENCE: Duration = Duration::from_secs(1);

pub struct Supervisor {
    pub(super) launch: Launch,
    pub(super) job: Job,
    pub(super) run_dir: PathBuf,
    pub(super) book: Book,
    pub(super) history: History,
    pub(super) events: Events,
    pub(super) alerts: Alerts,
    pub(super) number: u64,
    pub(super) asked: Arc<AtomicBool>,
    /// Replicas, where they are fewer than configured.
    pub(super) shrunk_to: Option<usize>,
    /// Slots of the last attempt of this job.
    pub(super) slots: Vec<String>,
    pub(super) fault: Option<Fault>,
    /// The node of the supervisor whose place this one takes within the job.
    pub(super) lost: Option<String>,
    pub(super) site: Site,
    pub(super) switches: Switches,
    /// What `srun --mpi` is told, for ranks.
    pub(super) mpi: String,
    /// Nodes that have just answered a roll call, and when.
    pub(super) answered: Option<(Instant, Vec<String>)>,
    pub(super) program: Program,
    pub(super) parent: Option<Parent>,
    standby: Option<Standby>,
}

/// `--job-name` of an attempt's step.
pub(super) fn step_name(attempt: u64) -> String {
    format!("herd-{attempt:04}")
}

/// A fault that is being mended.
pub(super) struct Fault {
    pub(super) noticed: Instant,
    pub(super) step: u64,
}

impl Supervisor {
    /// Reads the run directory. `asked` is raised by a signal; `parent` starts this supervisor again when it is killed.
    pub fn open(launch: Launch, job: Job, asked: Arc<AtomicBool>, parent: Option<Parent>) -> Result<Supervisor> {
        let config = &launch.config;
        let run_dir = config.run_dir.clone();
        let here = RunDir::new(&run_dir).launch();
        std::fs::create_dir_all(&here).map_err(|e| Error::io(&here, "create", &e, Exit::Storage))?;
        let program = Program::settle(&run_dir, &job)?;
        let history = History::read(&run_dir)?;
        let about = [
            ("run".to_string(), json!(config.name)),
            ("run_dir".into(), json!(run_dir)),
            ("job".into(), json!(job.address())),
        ];
        let site = Site::ask();
        let library = library();
        let mpi = site.plugin(&config.launch.mpi, &library)?;
        tracing::info!("Slurm {}, {}; ranks find each other by --mpi={mpi}", site.version, site::short(&library));
        let same_job = |r: &&Record| r.job == job.id && r.restarts == job.restarts;
        let before = history.attempts.last().filter(same_job);
        let s = Supervisor {
            book: Book::open(&run_dir, config.launch.ledger.as_deref())?,
            events: Events::open(&run_dir)?,
            alerts: Alerts::new(&config.alerts, about.into_iter().collect()),
            number: attempt::newest(&run_dir)?.map_or(0, |a| a.attempt),
            shrunk_to: before.and_then(|r| r.shrunk_to),
            slots: before.map_or_else(Vec::new, |r| r.nodes.clone()),
            fault: None,
            lost: None,
            site,
            switches: Switches::ask(),
            mpi,
            answered: None,
            program,
            parent,
            standby: None,
            history,
            launch,
            job,
            run_dir,
            asked,
        };
        attempt::adopt(s.number);
        if s.switches.in_order(&s.job.nodes) != s.job.nodes {
            tracing::info!("slots are filled in the order of Slurm's switches (scontrol show topology)");
        }
        s.refuse_a_second_job()?;
        Ok(s)
    }

    /// In the place of the supervisor on node `lost`.
    pub fn after(self, lost: &str) -> Supervisor {
        Supervisor { lost: Some(lost.to_string()), ..self }
    }

    /// Runs the ranks until the run is done, stops, or the job goes back into the queue.
    pub fn run(mut self) -> Result<Exit> {
        match self.work() {
            // whichever write met the newer attempt first: this one is overtaken. It keeps its standby, which may be the one.
            Err(e) if e.exit == Exit::Fenced => overtaken(&self.run_dir, &self.job, &self.asked),
            ended => ended,
        }
    }

    fn work(&mut self) -> Result<Exit> {
        let nodes = compress(&self.job.nodes);
        let mut decision = match self.adopted()? {
            Some((ranks, placement)) => match self.follow(ranks, &placement)? {
                Some(found) => self.consider(found.exit),
                None => return overtaken(&self.run_dir, &self.job, &self.asked),
            },
            None => {
                self.say(RunEvent::Launch { job: self.job.id, restarts: self.job.restarts, nodes })?;
                self.after_the_last_supervisor()?
            }
        };
        loop {
            match decision {
                Decision::Again { wait, skip } => {
                    if let Some(step) = skip.filter(|s| !self.history.skip_steps.contains(s)) {
                        self.history.skip_steps.push(step);
                        self.say(RunEvent::SkipBatch { step })?;
                    }
                    if !self.pause(wait) {
                        return self.requeue("a signal came between two attempts", false);
                    }
                }
                Decision::Done => return self.leave(Exit::Ok, "the last step is done"),
                Decision::Stop { exit, why } => return self.leave(exit, &why),
                Decision::Requeue { why } => return self.requeue(&why, false),
            }
            let placement = match self.find_nodes()? {
                Found::Nodes(placement) => placement,
                Found::TooFew { alive } if self.shrink(&alive) => {
                    decision = Decision::Again { wait: Duration::ZERO, skip: None };
                    continue;
                }
                Found::TooFew { alive } => return self.too_few(&alive),
                Found::Overtaken => return overtaken(&self.run_dir, &self.job, &self.asked),
                Found::Asked => return self.requeue("a signal came between two attempts", false),
            };
            self.keep_standby(&placement);
            let Some(found) = self.attempt(&placement)? else {
                return overtaken(&self.run_dir, &self.job, &self.asked);
            };
            decision = self.consider(found.exit);
        }
    }

    /// One attempt from its number to what its end means; `None` when another supervisor has taken the run over.
    fn attempt(&mut self, placement: &Placement) -> Result<Option<Finding>> {
        if !self.patiently(Supervisor::claim_number)? {
            return Ok(None);
        }
        let program = self.patiently(|s| s.program.current())?;
        let nodes = &placement.active;
        let hosts_file = RunDir::new(&self.run_dir).attempt_hosts(self.number);
        let name = step_name(self.number);
        let line = StepLine {
            job: &self.job,
            name: &name,
            nodes,
            ranks_per_node: self.launch.ranks_per_node,
            mpi: &self.mpi,
            extra: &self.launch.config.launch.srun,
            hosts_file: &hosts_file,
            tree_width: self.site.tree_width,
        };
        line.note().iter().for_each(|note| tracing::info!("{note}"));
        let program = self.launch.rank_command(program, self.shrunk_to, &self.history.skip_steps);
        let ranks = RunningRanks::start(&self.the_attempt(&name, nodes), &line, &program, self.parent.as_ref())?;
        self.begin_record(placement, ranks.pid())?;
        self.follow(ranks, placement)
    }

    /// The newest attempt, whose step is called `name`, on `nodes`.
    pub(super) fn the_attempt<'a>(&'a self, name: &'a str, nodes: &[String]) -> RankStart<'a> {
        RankStart {
            number: self.number,
            name,
            nodes: nodes.len(),
            run_dir: &self.run_dir,
            limits: &self.launch.config.launch,
            leaves_steps: self.site.leaves_steps(),
        }
    }

    /// Watches the ranks until the attempt is over.
    fn follow(&mut self, mut ranks: RunningRanks, placement: &Placement) -> Result<Option<Finding>> {
        let nodes = &placement.active;
        let mut asked_them = ranks.were_asked();
        let mut gone: Option<Instant> = None;
        let mut looked = host::now();
        let mut calls = self.start_calls(nodes);
        let seen = loop {
            if let Some(seen) = ranks.poll() {
                break seen;
            }
            if !asked_them && self.asked.load(Ordering::Relaxed) {
                asked_them = true;
                ranks.ask_to_stop();
                self.say(RunEvent::AskedToStop { attempt: self.number })?;
            }
            // nothing can be written; the ranks save what they have elsewhere, and leave
            if appended::is_gone(&self.run_dir) {
                gone.get_or_insert_with(host::now);
                continue;
            }
            gone = None;
            self.note_recovery(&ranks)?;
            if host::since(looked) > FENCE {
                looked = host::now();
                if watch::overtaken(&self.run_dir, self.number) {
                    return Ok(None);
                }
                self.note_alerts();
                self.keep_standby(placement);
            }
            if !ranks.have_met() {
                ranks.late(calls.news());
            }
        };
        let patience = appended::PATIENCE.saturating_sub(gone.map_or(Duration::ZERO, host::since));
        appended::wait_for(&self.run_dir, patience).map_err(|e| self.without_run_dir(e))?;
        self.note_recovery(&ranks)?;
        let at_stop = self.launch.config.train.stop_at.is_some_and(|s| watch::last_step(&self.run_dir) >= s);
        let silent = if seen.may_follow_from_a_lost_node() { self.who_is_silent(nodes) } else { Vec::new() };
        let found = classify(&Seen { at_stop, silent, ..seen });
        // the ranks are ended while the books are kept
        let killer = ranks.begin_to_end(&self.job);
        self.close(&found)?;
        ranks.end();
        if found.class.is_fault() {
            // ranks on nodes that live are gone within this moment, and their memory with them
            let end = host::now() + Duration::from_millis(500);
            while killer.as_ref().is_some_and(|k| !k.is_finished()) && host::now() < end {
                host::sleep(Duration::from_millis(10));
            }
            self.rescue(&found);
        }
        Ok(Some(found))
    }

    /// Takes the next number for this supervisor alone: of two that try, the filesystem lets one create the file.
    fn claim_number(&mut self) -> Result<bool> {
        if watch::overtaken(&self.run_dir, self.number) {
            return Ok(false);
        }
        let number = self.number + 1;
        let path = RunDir::new(&self.run_dir).attempt_claim(number);
        let create = || std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
        match host::at_file(&path, FileAccess::Write).and_then(|()| create()) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                // ours from a life before this, if nobody has announced it
                host::sleep(Duration::from_secs(1));
                if attempt::newest(&self.run_dir)?.is_some_and(|a| a.attempt >= number) {
                    return Ok(false);
                }
            }
            Err(e) => return Err(Error::io(&path, "create", &e, Exit::Storage)),
        }
        match attempt::announce(&self.run_dir, number, true) {
            Err(e) if e.exit == Exit::Fenced => return Ok(false),
            other => other?,
        }
        self.number = number;
        attempt::adopt(number);
        Ok(true)
    }

    fn keep_standby(&mut self, placement: &Placement) {
        // looked at each time: where the file is replaced, the copy is made while this process still has the program
        let program = match self.program.current() {
            Ok(program) => program,
            Err(e) => return tracing::warn!("{e}"),
        };
        if self.launch.config.launch.standby {
            let nodes = [&placement.active[..], &placement.spares].concat();
            let extra = &self.launch.config.launch.srun;
            let hosts_file = RunDir::new(&self.run_dir).standby_hosts();
            Standby::keep(&mut self.standby, &self.job, &program, &nodes, extra, &hosts_file);
        }
    }

    /// What the policy says about the attempts that count.
    pub(super) fn consider(&self, exit: Exit) -> Decision {
        let counted = self.history.counted_from.min(self.history.attempts.len());
        decide(&self.launch.config.launch, &self.history.attempts[counted..], exit, host::wall())
    }

    /// A run directory belongs to one job at a time.
    fn refuse_a_second_job(&self) -> Result<()> {
        let other = self.history.attempts.last().filter(|r| r.ended.is_none() && r.job != self.job.id);
        let Some(other) = other else { return Ok(()) };
        match control::job_state(&other.job.to_string()) {
            Ok(Some(state)) if state == "RUNNING" || state == "COMPLETING" => Err(Error::new(
                Exit::World,
                format!("{} is in use by job {}, which is {state}", self.run_dir.display(), other.job),
            )
            .hint("cancel that job, or give this one another run_dir")),
            _ => Ok(()),
        }
    }

    /// Waits; false when a signal came meanwhile.
    pub(super) fn pause(&self, wait: Duration) -> bool {
        let end = host::now() + wait;
        loop {
            if self.asked.load(Ordering::Relaxed) {
                return false;
            }
            if host::now() >= end {
                return true;
            }
            host::sleep(TICK.min(wait));
        }
    }

    /// One line in `events.jsonl`.
    pub(super) fn say(&mut self, event: RunEvent) -> Result<()> {
        self.patiently(|s| s.events.write(&event))
    }

    /// Writes `attempts.json`.
    pub(super) fn write_history(&mut self) -> Result<()> {
        self.patiently(|s| s.history.write(&s.run_dir))
    }

    /// Does again what the filesystem refuses, each second for `liveness.storage_s`: a disk that is full may be freed, and
    /// the allocation with all that it holds in memory is worth the wait.
    pub(super) fn patiently<T>(&mut self, mut work: impl FnMut(&mut Supervisor) -> Result<T>) -> Result<T> {
        let limit = Duration::from_secs_f64(self.launch.config.liveness.storage_s);
        let began = host::now();
        loop {
            match work(self) {
                Err(e)
                    if e.exit == Exit::Storage && host::since(began) < limit && !self.asked.load(Ordering::Relaxed) =>
                {
                    if host::since(began) < STORAGE_AGAIN {
                        tracing::warn!("{e}; trying again for {} s", limit.as_secs_f64());
                    }
                    host::sleep(STORAGE_AGAIN);
                    appended::wait_for(&self.run_dir, appended::PATIENCE).map_err(|e| self.without_run_dir(e))?;
                }
                done => return done,
            }
        }
    }
}

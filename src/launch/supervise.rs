//! The supervisor: one loop on the job's first node that starts the ranks, watches, and starts them again.
//!
//! It trusts nothing but the run directory, so the next supervisor (after a requeue, or after the loss of this one's node)
//! goes on where this one stood. It never waits for a dead node: not for its srun, not for scancel, not for Slurm to notice.

use super::classify::classify;
use super::context::{step_name, JobContext, LaunchState};
use super::history::History;
use super::nodes::{find_nodes, shrink, who_is_silent};
use super::overtaken::overtaken;
use super::parent::Parent;
use super::place::{Found, Placement};
use super::policy::{decide, Decision};
use super::program::Program;
use super::ranks::RunningRanks;
use super::records::Records;
use super::seen::{Finding, Seen};
use super::standby::Standby;
use super::{flush, run_log, Launch};
use crate::appended;
use crate::attempt;
use crate::error::{Error, Exit, Result};
use crate::events::RunEvent;
use crate::host::{self, FileAccess};
use crate::run_dir::RunDir;
use crate::slurm::{compress, control, Job};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the run directory is asked whether another supervisor has taken over.
const FENCE: Duration = Duration::from_secs(1);

/// The supervisor of one job.
pub struct Supervisor {
    pub(super) context: JobContext,
    pub(super) records: Records,
    pub(super) state: LaunchState,
    pub(super) program: Program,
    pub(super) parent: Option<Parent>,
    standby: Option<Standby>,
}

impl Supervisor {
    /// Reads the run directory. `asked` is raised by a signal; `parent` starts this supervisor again when it is killed.
    pub fn open(launch: Launch, job: Job, asked: Arc<AtomicBool>, parent: Option<Parent>) -> Result<Supervisor> {
        let run_dir = launch.config.run_dir.clone();
        let here = RunDir::new(&run_dir).launch();
        std::fs::create_dir_all(&here).map_err(|e| Error::io(&here, "create", &e, Exit::Storage))?;
        let program = Program::settle(&run_dir, &job)?;
        let history = History::read(&run_dir)?;
        let context = JobContext::new(launch, job, asked)?;
        let number = attempt::newest(&run_dir)?.map_or(0, |a| a.attempt);
        let state = LaunchState::after(number, history.attempts.last().filter(|r| r.is_of(&context.job)));
        let records = Records::open(&context, history)?;
        attempt::adopt(state.number);
        let s = Supervisor { context, records, state, program, parent, standby: None };
        s.refuse_a_second_job()?;
        Ok(s)
    }

    /// In the place of the supervisor on node `lost`.
    pub fn after(mut self, lost: &str) -> Supervisor {
        self.context.lost = Some(lost.to_string());
        self
    }

    /// Runs the ranks until the run is done, stops, or the job goes back into the queue.
    pub fn run(mut self) -> Result<Exit> {
        match self.work() {
            // whichever write met the newer attempt first: this one is overtaken. It keeps its standby, which may be the one.
            Err(e) if e.exit == Exit::Fenced => self.overtaken(),
            ended => ended,
        }
    }

    fn work(&mut self) -> Result<Exit> {
        let job = &self.context.job;
        let (id, restarts, nodes) = (job.id, job.restarts, compress(&job.nodes));
        let mut decision = match self.adopted()? {
            Some((ranks, placement)) => match self.follow(ranks, &placement)? {
                Some(found) => self.consider(found.exit),
                None => return self.overtaken(),
            },
            None => {
                self.say(RunEvent::Launch { job: id, restarts, nodes })?;
                self.after_the_last_supervisor()?
            }
        };
        loop {
            match decision {
                Decision::Again { wait, skip } => {
                    if let Some(step) = skip.filter(|s| !self.records.history.skip_steps.contains(s)) {
                        self.records.history.skip_steps.push(step);
                        self.say(RunEvent::SkipBatch { step })?;
                    }
                    if !self.context.pause(wait) {
                        return self.requeue("a signal came between two attempts", false);
                    }
                }
                Decision::Done => return self.leave(Exit::Ok, "the last step is done"),
                Decision::Stop { exit, why } => return self.leave(exit, &why),
                Decision::Requeue { why } => return self.requeue(&why, false),
            }
            let Supervisor { context, records, state, .. } = self;
            let placement = match find_nodes(context, records, state)? {
                Found::Nodes(placement) => placement,
                Found::TooFew { alive } if shrink(context, records, state, &alive) => {
                    decision = Decision::Again { wait: Duration::ZERO, skip: None };
                    continue;
                }
                Found::TooFew { alive } => return self.too_few(&alive),
                Found::Overtaken => return self.overtaken(),
                Found::Asked => return self.requeue("a signal came between two attempts", false),
            };
            self.keep_standby(&placement);
            let Some(found) = self.attempt(&placement)? else {
                return self.overtaken();
            };
            decision = self.consider(found.exit);
        }
    }

    /// One attempt from its number to what its end means; `None` when another supervisor has taken the run over.
    fn attempt(&mut self, placement: &Placement) -> Result<Option<Finding>> {
        let Supervisor { context, records, state, program, .. } = self;
        let Some(number) = records.patiently(|_| claim_number(&context.run_dir, state.number))? else {
            return Ok(None);
        };
        state.number = number;
        let program = records.patiently(|_| program.current())?;
        let nodes = &placement.active;
        let hosts_file = RunDir::new(&context.run_dir).attempt_hosts(number);
        let name = step_name(number);
        let line = context.step_line(&name, nodes, context.launch.ranks_per_node, &hosts_file);
        line.note().iter().for_each(|note| tracing::info!("{note}"));
        let program = context.launch.rank_command(program, state.shrunk_to, &records.history.skip_steps);
        let what = context.rank_start(number, &name, nodes);
        let ranks = RunningRanks::start(&what, &line, &program, self.parent.as_ref())?;
        records.begin(context, state, placement, ranks.pid())?;
        self.follow(ranks, placement)
    }

    /// Watches the ranks until the attempt is over.
    fn follow(&mut self, mut ranks: RunningRanks, placement: &Placement) -> Result<Option<Finding>> {
        let nodes = &placement.active;
        let Some(Watched { seen, gone }) = self.watch(&mut ranks, placement)? else { return Ok(None) };
        let Supervisor { context, records, state, program, .. } = self;
        let patience = appended::PATIENCE.saturating_sub(gone.map_or(Duration::ZERO, host::since));
        appended::wait_for(&context.run_dir, patience).map_err(|e| records.without_run_dir(e))?;
        records.note_recovery(state, ranks.resumed_at())?;
        let at_stop = context.launch.config.train.stop_at.is_some_and(|s| run_log::last_step(&context.run_dir) >= s);
        let silent = if seen.may_follow_from_a_lost_node() { who_is_silent(context, state, nodes) } else { Vec::new() };
        let found = classify(&Seen { at_stop, silent, ..seen });
        // the ranks are ended while the books are kept
        let killer = ranks.begin_to_end(&context.job);
        records.close(state, &found)?;
        ranks.end();
        if found.class.is_fault() {
            // ranks on nodes that live are gone within this moment, and their memory with them
            let end = host::now() + Duration::from_millis(500);
            while killer.as_ref().is_some_and(|k| !k.is_finished()) && host::now() < end {
                host::sleep(Duration::from_millis(10));
            }
            flush::rescue(context, records, program, &state.slots, &found);
        }
        Ok(Some(found))
    }

    /// Until the ranks have ended or something ends them; `None` when another supervisor has taken the run over.
    fn watch(&mut self, ranks: &mut RunningRanks, placement: &Placement) -> Result<Option<Watched>> {
        let mut asked_them = ranks.were_asked();
        let mut gone: Option<Instant> = None;
        let mut looked = host::now();
        let mut calls = self.context.start_calls(&placement.active);
        loop {
            if let Some(seen) = ranks.poll() {
                return Ok(Some(Watched { seen, gone }));
            }
            if !asked_them && self.context.is_asked() {
                asked_them = true;
                ranks.ask_to_stop();
                self.say(RunEvent::AskedToStop { attempt: self.state.number })?;
            }
            // nothing can be written; the ranks save what they have elsewhere, and leave
            if appended::is_gone(&self.context.run_dir) {
                gone.get_or_insert_with(host::now);
                continue;
            }
            gone = None;
            self.records.note_recovery(&mut self.state, ranks.resumed_at())?;
            if host::since(looked) > FENCE {
                looked = host::now();
                if run_log::overtaken(&self.context.run_dir, self.state.number) {
                    return Ok(None);
                }
                self.records.note_alerts();
                self.keep_standby(placement);
            }
            if !ranks.have_met() {
                ranks.late(calls.news());
            }
        }
    }

    fn keep_standby(&mut self, placement: &Placement) {
        // looked at each time: where the file is replaced, the copy is made while this process still has the program
        let program = match self.program.current() {
            Ok(program) => program,
            Err(e) => return tracing::warn!("{e}"),
        };
        let JobContext { launch, job, run_dir, .. } = &self.context;
        if launch.config.launch.standby {
            let nodes = [&placement.active[..], &placement.spares].concat();
            let extra = &launch.config.launch.srun;
            let hosts_file = RunDir::new(run_dir).standby_hosts();
            Standby::keep(&mut self.standby, job, &program, &nodes, extra, &hosts_file);
        }
    }

    /// What the policy says about the attempts that count.
    pub(super) fn consider(&self, exit: Exit) -> Decision {
        let history = &self.records.history;
        let counted = history.counted_from.min(history.attempts.len());
        decide(&self.context.launch.config.launch, &history.attempts[counted..], exit, host::wall())
    }

    /// A run directory belongs to one job at a time.
    fn refuse_a_second_job(&self) -> Result<()> {
        let JobContext { job, run_dir, .. } = &self.context;
        let other = self.records.history.attempts.last().filter(|r| r.ended.is_none() && r.job != job.id);
        let Some(other) = other else { return Ok(()) };
        match control::job_state(&other.job.to_string()) {
            Ok(Some(state)) if state == "RUNNING" || state == "COMPLETING" => Err(Error::new(
                Exit::World,
                format!("{} is in use by job {}, which is {state}", run_dir.display(), other.job),
            )
            .hint("cancel that job, or give this one another run_dir")),
            _ => Ok(()),
        }
    }

    fn overtaken(&self) -> Result<Exit> {
        overtaken(&self.context.run_dir, &self.context.job, &self.context.asked)
    }

    /// One line in `events.jsonl`.
    pub(super) fn say(&mut self, event: RunEvent) -> Result<()> {
        self.records.say(event)
    }
}

/// What was seen of the ranks.
struct Watched {
    seen: Seen,
    /// Since when the run directory is gone.
    gone: Option<Instant>,
}

/// Takes the next number after `last` for this supervisor alone: of two that try, the filesystem lets one create the file. `None`:
/// another has it.
fn claim_number(run_dir: &Path, last: u64) -> Result<Option<u64>> {
    if run_log::overtaken(run_dir, last) {
        return Ok(None);
    }
    let number = last + 1;
    let path = RunDir::new(run_dir).attempt_claim(number);
    let create = || std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
    match host::at_file(&path, FileAccess::Write).and_then(|()| create()) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            // ours from a life before this, if nobody has announced it
            host::sleep(Duration::from_secs(1));
            if attempt::newest(run_dir)?.is_some_and(|a| a.attempt >= number) {
                return Ok(None);
            }
        }
        Err(e) => return Err(Error::io(&path, "create", &e, Exit::Storage)),
    }
    match attempt::announce(run_dir, number, true) {
        Err(e) if e.exit == Exit::Fenced => return Ok(None),
        other => other?,
    }
    attempt::adopt(number);
    Ok(Some(number))
}

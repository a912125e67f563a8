//! Slurm's commands, as the supervisor calls them: their command lines are read here, and what they print is what the supervisor
//! parses.

use super::super::truth::Cause;
use super::super::{micros, Agenda, Kernel, Micros, SimTask};
use super::ranks::{RankStep, StepPhase};
use super::{Cluster, Happening, JobState};
use crate::error::Exit;
use crate::host::StdStream;
use crate::slurm::expand;
use std::collections::BTreeMap;
use std::io;
use std::process::Command;
use std::sync::Arc;

/// How long a step's launch waits for a node that does not answer (`MessageTimeout`, and Slurm's own slack).
const LAUNCH_TIMEOUT: f64 = 12.0;
/// Steps of more nodes are launched through a tree: behind a node that does not answer others wait.
const TREE: usize = 50;

/// A program that a task has started.
pub(in crate::simulate) struct SimProgram {
    pub owner: SimTask,
    /// Where it runs.
    pub node: usize,
    out: Said,
    err: Said,
    pub ended: Option<i32>,
    /// The step of ranks that it started.
    pub step: Option<usize>,
    /// The standby that it started.
    pub task: Option<SimTask>,
    kind: Kind,
}

#[derive(Default)]
struct Said {
    text: Vec<u8>,
    read: usize,
}

/// What a program does once the controller has answered.
#[derive(Clone)]
enum Kind {
    Answer { code: i32, out: String },
    RollCall { nodes: Vec<usize> },
    Ranks { nodes: Vec<usize>, attempt: u64 },
    Flush { nodes: Vec<usize>, remove: bool },
    Standby { node: usize },
}

/// What happens to a program.
#[derive(Clone)]
pub(in crate::simulate) enum ProgramNews {
    /// The controller is asked.
    Asks,
    End(i32),
    Prints(Vec<usize>),
    Flushed,
    Standby,
    LaunchFailed(Vec<usize>),
}

impl Cluster {
    pub fn spawn(&mut self, agenda: &mut Agenda, owner: SimTask, command: &Command) -> usize {
        let text = |a: &std::ffi::OsStr| a.to_string_lossy().into_owned();
        let args: Vec<String> = command.get_args().map(text).collect();
        let env: BTreeMap<String, String> = command.get_envs().filter_map(|(k, v)| Some((text(k), text(v?)))).collect();
        let node = self.tasks.get(&owner).map_or(0, |p| p.node);
        let owner = self.tasks.get(&owner).map_or(owner, |p| p.root);
        let kind = self.read(agenda, &text(command.get_program()), &args, &env);
        let id = self.programs.len();
        self.programs.push(SimProgram {
            owner,
            node,
            out: Said::default(),
            err: Said::default(),
            ended: None,
            step: None,
            task: None,
            kind,
        });
        let soon = self.random.between(0.01, 0.04);
        agenda.after(soon, Happening::Program { id, next: ProgramNews::Asks });
        id
    }

    /// What a command line asks for.
    fn read(&mut self, agenda: &mut Agenda, program: &str, args: &[String], env: &BTreeMap<String, String>) -> Kind {
        let answer = |code: i32, out: String| Kind::Answer { code, out };
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let step = |prefix: &str| args.iter().find_map(|a| a.strip_prefix(prefix).map(str::to_string));
        match (program, &words[..]) {
            ("srun", ["--version"]) => answer(0, "slurm 23.02.7\n".into()),
            ("srun", ["--mpi=list"]) => answer(0, "MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\n".into()),
            ("srun", _) => {
                let name = step("--job-name=").unwrap_or_default();
                let nodes = self.nodes_of_step(args, env);
                match name.as_str() {
                    "herd-rollcall" => Kind::RollCall { nodes },
                    "herd-standby" => Kind::Standby { node: nodes.first().copied().unwrap_or(0) },
                    "herd-flush" => Kind::Flush { nodes, remove: words.contains(&"--remove") },
                    _ => {
                        let attempt = env.get("HERD_ATTEMPT").and_then(|a| a.parse().ok()).unwrap_or(0);
                        Kind::Ranks { nodes, attempt }
                    }
                }
            }
            ("scontrol", ["show", "config"]) => answer(0, format!("TreeWidth = {TREE}\n")),
            ("scontrol", ["show", "topology"]) => answer(0, self.topology()),
            ("scontrol", ["show", "job", ..]) => answer(0, String::new()),
            ("scontrol", ["requeue", ..]) => answer(0, "requeue".into()),
            ("scontrol", ["update", _, list]) => answer(0, list.to_string()),
            ("sinfo", [.., list]) => answer(0, list.to_string()),
            ("squeue", _) => {
                if self.truth.cause() == Some(Cause::Notice) {
                    self.truth.mark(agenda.now, Cause::Place);
                }
                answer(0, "squeue".into())
            }
            ("scancel", [signal, step]) if signal.starts_with("--signal") => answer(0, format!("kill {step}")),
            ("scancel", _) => answer(0, "cancel".into()),
            _ => answer(1, String::new()),
        }
    }

    fn nodes_of_step(&self, args: &[String], env: &BTreeMap<String, String>) -> Vec<usize> {
        let names = match args.iter().find_map(|a| a.strip_prefix("-w")) {
            Some(list) => expand(list).unwrap_or_default(),
            None => {
                let file = env.get("SLURM_HOSTFILE").and_then(|p| std::fs::read_to_string(p).ok()).unwrap_or_default();
                let mut names: Vec<String> = file.lines().map(str::to_string).collect();
                names.dedup();
                names
            }
        };
        names.iter().filter_map(|n| self.by_name.get(n).copied()).collect()
    }

    fn topology(&self) -> String {
        let mut lines = BTreeMap::<usize, Vec<&str>>::new();
        self.nodes.iter().for_each(|n| lines.entry(n.switch).or_default().push(&n.name));
        lines.iter().map(|(s, n)| format!("SwitchName=s{s} Level=0 Nodes={}\n", crate::slurm::compress(n))).collect()
    }

    pub fn program_news(&mut self, agenda: &mut Agenda, id: usize, next: ProgramNews, kernel: &Arc<Kernel>) {
        if self.programs[id].ended.is_some() {
            return;
        }
        match next {
            ProgramNews::Asks => self.asks(agenda, id),
            ProgramNews::End(code) => self.end_program(agenda, id, code),
            ProgramNews::Prints(nodes) => self.prints(agenda, id, nodes),
            ProgramNews::Flushed => self.flushed(agenda, id),
            ProgramNews::Standby => {
                let Kind::Standby { node } = self.programs[id].kind else { return };
                let owner = self.programs[id].owner;
                let reached = self.reaches(self.programs[id].node, node) && !self.nodes[node].slurm_down;
                if !agenda.lives(owner) || !reached {
                    return self.end_program(agenda, id, 1);
                }
                self.programs[id].task = Some(self.start_standby(agenda, kernel, node, owner));
            }
            ProgramNews::LaunchFailed(nodes) => {
                for n in nodes {
                    let line = format!(
                        "srun: error: SimTask launch for StepId={}.{id} failed on node {}: Communication connection failure\n",
                        self.job.id, self.nodes[n].name
                    );
                    self.say(agenda, id, &line);
                }
            }
        }
    }

    /// The controller answers, or is away, or cannot be reached from here.
    fn asks(&mut self, agenda: &mut Agenda, id: usize) {
        let away = self.away_until.max(self.nodes[self.programs[id].node].cut_until);
        let local = matches!(&self.programs[id].kind, Kind::Answer { out, .. } if out.starts_with("slurm ") || out.starts_with("MPI"));
        if away > agenda.now && !local {
            return agenda.at(away + 100_000, Happening::Program { id, next: ProgramNews::Asks });
        }
        let kind = self.programs[id].kind.clone();
        let nodes = match &kind {
            Kind::Answer { code, out } => return self.answer(agenda, id, *code, out),
            Kind::RollCall { nodes } | Kind::Ranks { nodes, .. } | Kind::Flush { nodes, .. } => nodes.clone(),
            Kind::Standby { node } => vec![*node],
        };
        let outside = nodes.iter().any(|n| !self.job.nodes.contains(n));
        if self.job.state != JobState::Running || outside || nodes.iter().any(|&n| self.nodes[n].slurm_down) {
            let line = format!(
                "srun: error: Unable to create step for job {}: Requested node configuration is not available\n",
                self.job.id
            );
            self.say(agenda, id, &line);
            return self.end_program(agenda, id, 1);
        }
        let home = self.programs[id].node;
        let missing: Vec<usize> = nodes.iter().copied().filter(|&n| !self.reaches(home, n)).collect();
        match kind {
            Kind::RollCall { .. } => self.roll_call(agenda, id, &nodes, &missing),
            Kind::Standby { .. } => agenda.after(1.0, Happening::Program { id, next: ProgramNews::Standby }),
            Kind::Flush { .. } if missing.is_empty() => {
                let seconds = self.c.flush_s;
                agenda.after(seconds, Happening::Program { id, next: ProgramNews::Flushed });
            }
            Kind::Flush { .. } => {
                agenda.after(LAUNCH_TIMEOUT, Happening::Program { id, next: ProgramNews::LaunchFailed(missing) });
                agenda.after(LAUNCH_TIMEOUT + 15.0, Happening::Program { id, next: ProgramNews::End(1) });
            }
            Kind::Ranks { attempt, .. } => self.start_ranks(agenda, id, nodes, missing, attempt),
            Kind::Answer { .. } => {}
        }
    }

    fn answer(&mut self, agenda: &mut Agenda, id: usize, code: i32, out: &str) {
        let text = match out {
            "requeue" => {
                self.requeue(agenda);
                String::new()
            }
            "squeue" => {
                let name = |s: &RankStep| format!("{}.{} herd-{:04}\n", self.job.id, s.id, s.number);
                self.steps.iter().filter(|s| s.phase != StepPhase::Ended).map(name).collect()
            }
            "cancel" => {
                self.truth.tell(agenda.now, "the job is cancelled".into());
                self.give_up_the_job(agenda);
                String::new()
            }
            "" if code == 0 => {
                let state = match self.job.state {
                    JobState::Pending => "PENDING",
                    JobState::Running => "RUNNING",
                    JobState::Ended => "CANCELLED",
                };
                format!("JobId={} JobState={state} Restarts={} PreemptTime=None\n", self.job.id, self.job.restarts)
            }
            kill if kill.starts_with("kill ") => {
                let step = kill.rsplit('.').next().and_then(|s| s.parse::<usize>().ok());
                if let Some(step) = step.filter(|&s| s < self.steps.len()) {
                    self.kill_step(agenda, step);
                }
                String::new()
            }
            list if list.starts_with("NodeList=") => {
                let kept = expand(&list["NodeList=".len()..]).unwrap_or_default();
                self.job.nodes = kept.iter().filter_map(|n| self.by_name.get(n).copied()).collect();
                String::new()
            }
            list if !list.starts_with("slurm ") && !list.contains('\n') => {
                let names = expand(list).unwrap_or_default();
                let state = |n: &String| {
                    if self.by_name.get(n).is_some_and(|&n| self.nodes[n].slurm_down) {
                        "down*"
                    } else {
                        "alloc"
                    }
                };
                names.iter().map(|n| format!("{n} {}\n", state(n))).collect()
            }
            other => other.to_string(),
        };
        self.programs[id].out.text.extend(text.as_bytes());
        self.end_program(agenda, id, code);
    }

    /// SIGKILL of a step's tasks on the nodes that the controller reaches.
    pub fn kill_step(&mut self, agenda: &mut Agenda, step: usize) {
        if self.steps[step].phase == StepPhase::Ended {
            return;
        }
        self.stand(agenda, step);
        let all = self.steps[step].slots.iter().all(|&n| self.nodes[n].alive && !self.is_cut(n));
        match all {
            true => self.end_step(agenda, step, 128 + libc::SIGKILL),
            false => {
                self.steps[step].left = true;
                let per_node = self.c.ranks_per_node;
                let slots = self.steps[step].slots.clone();
                let cut: Vec<bool> = slots.iter().map(|&n| self.is_cut(n)).collect();
                self.steps[step].stopped.retain(|r| cut[r / per_node]);
            }
        }
    }

    fn roll_call(&mut self, agenda: &mut Agenda, id: usize, nodes: &[usize], missing: &[usize]) {
        let size = nodes.len();
        let first = 0.1 + 0.0004 * size as f64 + self.random.between(0.0, 0.2);
        // a branch of the tree begins with every 50th node
        let behind: Vec<usize> = match size > TREE {
            true => {
                let branch = size.div_ceil(TREE);
                let held: Vec<usize> = (0..size).filter(|i| missing.contains(&nodes[*i])).map(|i| i / branch).collect();
                (0..size).filter(|i| held.contains(&(i / branch))).map(|i| nodes[i]).collect()
            }
            false => Vec::new(),
        };
        let now = agenda.now;
        let mut groups: BTreeMap<Micros, Vec<usize>> = BTreeMap::new();
        for &n in nodes.iter().filter(|n| !missing.contains(n)) {
            let mut at = now + micros(first);
            if behind.contains(&n) {
                at += micros(LAUNCH_TIMEOUT);
            }
            if self.nodes[n].late_until > now {
                at += micros(20.0);
            }
            groups.entry(at).or_default().push(n);
        }
        for (at, group) in groups {
            agenda.at(at, Happening::Program { id, next: ProgramNews::Prints(group) });
        }
    }

    fn prints(&mut self, agenda: &mut Agenda, id: usize, nodes: Vec<usize>) {
        let home = self.programs[id].node;
        for n in nodes {
            if !self.reaches(home, n) {
                continue;
            }
            let line = format!("{}\n", self.nodes[n].name);
            self.programs[id].out.text.extend(line.as_bytes());
        }
        let Kind::RollCall { nodes } = &self.programs[id].kind else { return };
        let lines = self.programs[id].out.text.iter().filter(|b| **b == b'\n').count();
        if lines == nodes.len() {
            self.end_program(agenda, id, 0);
        }
    }

    fn flushed(&mut self, agenda: &mut Agenda, id: usize) {
        let Kind::Flush { nodes, remove } = self.programs[id].kind.clone() else { return };
        if self.is_full_at(agenda.now) || self.blocked_until > agenda.now {
            self.truth.flush_was_refused = true;
            return self.end_program(agenda, id, Exit::Storage.code());
        }
        let code = match self.flush(&nodes, remove) {
            Some(step) => {
                self.truth.tell(agenda.now, format!("step {step} is flushed to disk"));
                0
            }
            None => Exit::NoSnapshot.code(),
        };
        self.end_program(agenda, id, code);
    }

    fn start_ranks(&mut self, agenda: &mut Agenda, id: usize, nodes: Vec<usize>, missing: Vec<usize>, attempt: u64) {
        self.check_books(agenda);
        self.truth.attempts += 1;
        self.truth.mark(agenda.now, Cause::Start);
        let before = self.steps.last().map(|s| s.slots.clone()).unwrap_or_default();
        if before.len() == nodes.len() {
            self.truth.spares_used += nodes.iter().filter(|n| !before.contains(n)).count() as u64;
        }
        let names: Vec<&str> = nodes.iter().map(|&n| self.nodes[n].name.as_str()).collect();
        let line = format!("attempt {attempt} starts on {}", crate::slurm::compress(&names));
        self.truth.tell(agenda.now, line);
        let storage =
            self.blocked_until.max(self.full_until).max(self.away_until) + micros(self.c.roll_call_s) > agenda.now;
        for &n in &missing {
            if !storage && self.was_lost_long(agenda.now, n) {
                let text = format!(
                    "attempt {attempt} starts on {}, which had been dead before it was chosen",
                    self.nodes[n].name
                );
                self.truth.violation(agenda.now, text);
            }
        }
        let step = self.steps.len();
        self.programs[id].step = Some(step);
        self.steps.push(RankStep { id: step, program: id, number: attempt, slots: nodes, ..RankStep::none() });
        self.newest_began = agenda.now;
        self.overtake(agenda, attempt);
        self.quiet_from = Micros::MAX;
        if missing.is_empty() {
            return self.tasks_run(agenda, step);
        }
        agenda.after(LAUNCH_TIMEOUT, Happening::Program { id, next: ProgramNews::LaunchFailed(missing) });
    }

    /// A node that had been out of reach for longer than any roll call takes.
    fn was_lost_long(&self, now: Micros, node: usize) -> bool {
        self.nodes[node].unreachable_since.is_some_and(|since| since + micros(self.c.roll_call_s) < now)
    }

    /// Appends to what a program says on standard error.
    pub fn say(&mut self, agenda: &mut Agenda, id: usize, line: &str) {
        let program = &mut self.programs[id];
        if program.ended.is_none() {
            program.err.text.extend(line.as_bytes());
            agenda.tell(program.owner);
        }
    }

    pub fn end_program(&mut self, agenda: &mut Agenda, id: usize, code: i32) {
        let program = &mut self.programs[id];
        program.ended.get_or_insert(code);
        agenda.tell(program.owner);
    }

    pub fn program_ended(&self, id: usize) -> Option<i32> {
        self.programs[id].ended
    }

    pub fn signal(&mut self, agenda: &mut Agenda, id: usize, signal: i32) {
        if self.programs[id].ended.is_some() {
            return;
        }
        match (signal, self.programs[id].step) {
            (libc::SIGUSR1, Some(step)) => self.ask_ranks(agenda, step),
            (libc::SIGKILL, _) => {
                self.programs[id].ended = Some(128 + libc::SIGKILL);
                if let (Kind::Standby { node }, Some(task)) = (&self.programs[id].kind, self.programs[id].task) {
                    if self.standbys.contains_key(&task) && self.reaches(self.programs[id].node, *node) {
                        agenda.kill(task);
                    }
                }
            }
            _ => {}
        }
    }

    pub fn read_from(&mut self, id: usize, stream: StdStream, into: &mut [u8]) -> io::Result<usize> {
        let program = &mut self.programs[id];
        let ended = program.ended.is_some();
        let said = if stream == StdStream::Out { &mut program.out } else { &mut program.err };
        let left = &said.text[said.read..];
        if left.is_empty() {
            return if ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let n = left.len().min(into.len());
        into[..n].copy_from_slice(&left[..n]);
        said.read += n;
        Ok(n)
    }

    fn give_up_the_job(&mut self, agenda: &mut Agenda) {
        if self.job.state == JobState::Running {
            self.give_to_a_person(agenda);
        }
    }
}

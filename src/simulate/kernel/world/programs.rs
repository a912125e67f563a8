//! Slurm's commands, as the supervisor calls them: their command lines are read here, and what they print is what the supervisor
//! parses (`commands`). `steps` is what becomes of a step that srun starts.

mod commands;
mod steps;

use super::super::news::{Happening, ProgramNews};
use super::super::{Agenda, Kernel, SimTask};
use super::{Cluster, JobState};
use crate::host::StdStream;
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
}

//! Command lines of Slurm's, and what the controller answers.

use super::super::super::truth::Cause;
use super::super::super::Agenda;
use super::super::ranks::{RankStep, StepPhase};
use super::super::{Cluster, JobState};
use super::{Kind, TREE};
use crate::slurm::expand;
use std::collections::BTreeMap;

impl Cluster {
    /// What a command line asks for.
    pub(super) fn read(
        &mut self, agenda: &mut Agenda, program: &str, args: &[String], env: &BTreeMap<String, String>,
    ) -> Kind {
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

    pub(super) fn nodes_of_step(&self, args: &[String], env: &BTreeMap<String, String>) -> Vec<usize> {
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

    pub(super) fn topology(&self) -> String {
        let mut lines = BTreeMap::<usize, Vec<&str>>::new();
        self.nodes.iter().for_each(|n| lines.entry(n.switch).or_default().push(&n.name));
        lines.iter().map(|(s, n)| format!("SwitchName=s{s} Level=0 Nodes={}\n", crate::slurm::compress(n))).collect()
    }

    pub(super) fn answer(&mut self, agenda: &mut Agenda, id: usize, code: i32, out: &str) {
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

    pub(super) fn give_up_the_job(&mut self, agenda: &mut Agenda) {
        if self.job.state == JobState::Running {
            self.give_to_a_person(agenda);
        }
    }
}

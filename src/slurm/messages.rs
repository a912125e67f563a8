//! What `srun` and `slurmstepd` say on stderr about tasks, nodes and launches: the first word of who died, long before
//! the step ends (seen with Slurm 22.05, 24.11 and 26.05; the sentences are in its sources since 2.x).

use super::hostlist;

/// One thing said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlurmMessage {
    /// Tasks ended badly on these nodes.
    Tasks {
        /// Names of the nodes; no order says which task was on which.
        nodes: Vec<String>,
        /// Numbers of the tasks in the step, from 0.
        ranks: Vec<usize>,
        /// The same for all of them.
        how: How,
    },
    /// A node did not take the step.
    LaunchFailed {
        /// Its name.
        node: String,
        /// Slurm's own words.
        why: String,
    },
    /// Slurm has marked a node of the step down.
    NodeFailed {
        /// Its name.
        node: String,
    },
    /// The step was never made.
    Refused {
        /// All that srun says of it.
        why: String,
    },
    /// The kernel ended a process of the step for want of memory.
    OutOfMemory,
    /// Slurm ends the step, on somebody's wish or because MPI's or PMIx's part of it asked: what dies from here on dies of that.
    Aborted,
    /// The program cannot be started on a node: no such file, another architecture, a library that is missing.
    CannotRun {
        /// Name of the node; `None` from a Slurm that does not say it.
        node: Option<String>,
        /// Path of the program and what the system says of it.
        why: String,
    },
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It left by itself, with this exit code.
    Code(i32),
    /// The name Slurm gives a signal: Killed, Terminated, Segmentation fault, …
    Signal(String),
}

/// What a line says; `None` for everything else, ranks' own output included.
pub fn parse(line: &str) -> Option<SlurmMessage> {
    let line = line.trim();
    if line.starts_with("slurmstepd") && (line.contains("oom-kill") || line.contains("oom_kill")) {
        return Some(SlurmMessage::OutOfMemory);
    }
    if line.starts_with("srun: Job step aborted") || line.starts_with("slurmstepd") && line.contains(" CANCELLED AT ") {
        return Some(SlurmMessage::Aborted);
    }
    if let Some((from, why)) = line.split_once(": error: execve(): ") {
        // newer ones say where: slurmstepd-herd2
        let node = from.strip_prefix("slurmstepd")?.strip_prefix('-').map(str::to_string);
        return Some(SlurmMessage::CannotRun { node, why: why.into() });
    }
    let said = line.strip_prefix("srun: error: ")?;
    if let Some(rest) = said.strip_prefix("Task launch for ") {
        let (node, why) = rest.split_once(" failed on node ")?.1.split_once(": ")?;
        return Some(SlurmMessage::LaunchFailed { node: node.into(), why: why.into() });
    }
    if let Some(node) = said.strip_prefix("Node failure on ") {
        return Some(SlurmMessage::NodeFailed { node: node.trim().into() });
    }
    if said.starts_with("Unable to create step") || said.starts_with("Unable to confirm allocation") {
        return Some(SlurmMessage::Refused { why: said.into() });
    }
    let (nodes, rest) = said.split_once(": task")?;
    let (ranks, how) = rest.trim_start_matches('s').trim_start().split_once(": ")?;
    let how = match how.strip_prefix("Exited with exit code ") {
        Some(code) => How::Code(code.trim().parse().ok()?),
        None => How::Signal(how.split(" (").next().unwrap_or(how).trim().to_string()),
    };
    // ranks are written like the inside of a host list's bracket
    let ranks = hostlist::expand(&format!("[{ranks}]")).ok()?;
    let ranks = ranks.iter().filter_map(|r| r.parse().ok()).collect();
    Some(SlurmMessage::Tasks { nodes: hostlist::expand(nodes).ok()?, ranks, how })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Slurm 22.05 wrote them on the private cluster.
    #[test]
    fn sentences_of_slurm() {
        let tasks = |nodes: &[&str], ranks: &[usize], how| {
            let nodes = nodes.iter().map(|n| n.to_string()).collect();
            Some(SlurmMessage::Tasks { nodes, ranks: ranks.to_vec(), how })
        };
        let signal = |s: &str| How::Signal(s.into());
        assert_eq!(parse("srun: error: herd2: task 1: Killed"), tasks(&["herd2"], &[1], signal("Killed")));
        assert_eq!(
            parse("srun: error: herd[1-2]: tasks 0-2,5: Exited with exit code 31"),
            tasks(&["herd1", "herd2"], &[0, 1, 2, 5], How::Code(31))
        );
        assert_eq!(
            parse("srun: error: herd1: task 0: Segmentation fault (core dumped)"),
            tasks(&["herd1"], &[0], signal("Segmentation fault"))
        );
        let failed =
            parse("srun: error: Task launch for StepId=1.6 failed on node herd3: Communication connection failure");
        assert_eq!(
            failed,
            Some(SlurmMessage::LaunchFailed { node: "herd3".into(), why: "Communication connection failure".into() })
        );
        assert_eq!(
            parse("srun: error: Node failure on herd3"),
            Some(SlurmMessage::NodeFailed { node: "herd3".into() })
        );
        assert!(matches!(
            parse("srun: error: Unable to create step for job 1: More processors requested than permitted"),
            Some(SlurmMessage::Refused { .. })
        ));
        let oom = "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0. Some of your processes may have been killed";
        assert_eq!(parse(oom), Some(SlurmMessage::OutOfMemory));
        for aborted in [
            "srun: Job step aborted: Waiting up to 7 seconds for job step to finish.",
            "slurmstepd-herd1: error: *** STEP 1.0 ON herd1 CANCELLED AT 2026-11-28T17:53:22 ***",
            "slurmstepd: error: *** STEP 1.0 ON herd1 CANCELLED AT 2026-11-28T17:53:22 ***",
        ] {
            assert_eq!(parse(aborted), Some(SlurmMessage::Aborted), "{aborted}");
        }
        for (line, node) in [
            ("slurmstepd: error: execve(): /x/herd: Exec format error", None),
            ("slurmstepd-herd2: error: execve(): /x/herd: Exec format error", Some("herd2".to_string())),
        ] {
            assert_eq!(
                parse(line),
                Some(SlurmMessage::CannotRun { node, why: "/x/herd: Exec format error".into() }),
                "{line}"
            );
        }
        for other in ["", "step 5", "herd: error: x: task 1: y", "srun: error: a: task x: Killed"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}

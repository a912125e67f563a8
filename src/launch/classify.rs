//! From what was seen of an attempt's end to what it means. A pure function: the table in its tests is the specification.

use super::history::Class;
use crate::error::Exit;
use crate::liveness::{verdict, Reason, Verdict};
use crate::slurm::messages::{How, Message};

/// Everything seen of the end of an attempt.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The ranks' own `finished` event, of this attempt.
    pub finished: bool,
    /// The ranks' own `stopped` event, of this attempt.
    pub stopped: bool,
    /// The supervisor has passed a signal on.
    pub asked: bool,
    /// The plan stops at a step of its own, and that is where the run stands.
    pub at_stop: bool,
    /// How srun ended, if it has.
    pub code: Option<i32>,
    /// What srun and slurmstepd said, in order.
    pub said: Vec<Message>,
    pub verdicts: Vec<Verdict>,
    /// The ranks did not meet within this many seconds.
    pub no_start_s: Option<f64>,
}

/// What it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub class: Class,
    /// One word for ledger and events.
    pub reason: String,
    /// One line for people.
    pub fact: String,
    /// Nodes that the failure is counted against.
    pub nodes: Vec<String>,
    pub ranks: Vec<usize>,
    /// Exit code that the supervisor leaves with if it stops now.
    pub exit: Exit,
}

/// Signals by which Slurm or the supervisor ends tasks: they say nothing about who failed.
const FROM_OUTSIDE: &[&str] = &["Terminated", "Hangup", "Interrupt"];

impl Seen {
    /// Whether there is reason to end the attempt although srun still runs.
    pub fn is_fault(&self) -> bool {
        let bad = |m: &Message| match m {
            Message::Tasks { how: How::Code(c), .. } => *c != 0 && *c != Exit::Requeue.code(),
            Message::Tasks { how: How::Signal(s), .. } => !FROM_OUTSIDE.contains(&s.as_str()),
            Message::LaunchFailed { .. } | Message::NodeFailed { .. } | Message::Refused { .. } => true,
            Message::OutOfMemory => false, // a word about a death that follows
        };
        !self.finished && (!self.verdicts.is_empty() || self.no_start_s.is_some() || self.said.iter().any(bad))
    }
}

pub fn classify(seen: &Seen) -> Finding {
    let plain = |class, reason: &str, fact: String| Finding {
        class,
        reason: reason.into(),
        fact,
        nodes: vec![],
        ranks: vec![],
        exit: Exit::Internal,
    };
    if seen.finished {
        return Finding { exit: Exit::Ok, ..plain(Class::Done, "finished", "the last step is done".into()) };
    }
    if seen.stopped {
        let class = if seen.at_stop && !seen.asked { Class::StopAt } else { Class::Stopped };
        return Finding { exit: Exit::Requeue, ..plain(class, "stopped", "saved and left on request".into()) };
    }
    let chosen = verdict::choose(&seen.verdicts);
    // A verdict that names a cause comes first, then what Slurm says of dead processes, then a verdict of symptoms.
    let symptom = |v: &Verdict| {
        matches!(v.reason, Reason::PeerLost | Reason::WireStalled | Reason::SkippedCollective | Reason::NoProgress)
    };
    if let Some(v) = chosen.as_ref().filter(|v| !symptom(v)) {
        return of_verdict(v);
    }
    if let Some(found) = of_nodes(seen).or_else(|| of_signal(seen)) {
        return found;
    }
    if let Some(v) = &chosen {
        return of_verdict(v);
    }
    if let Some(limit) = seen.no_start_s {
        return plain(Class::Unknown, "no_start", format!("the ranks did not meet within {limit} s"));
    }
    if let Some(why) = seen.said.iter().find_map(|m| match m {
        Message::Refused { why } => Some(why),
        _ => None,
    }) {
        return plain(Class::Unknown, "refused", why.clone());
    }
    of_codes(seen)
}

fn of_verdict(v: &Verdict) -> Finding {
    let class = match v.reason {
        Reason::UserError => Class::User,
        Reason::DeviceError | Reason::SlowNode => Class::Node,
        Reason::IoError => Class::Storage,
        Reason::MissedProbes if v.whole_node => Class::Node,
        Reason::PeerLost | Reason::WireStalled => Class::Unknown,
        _ => Class::Process,
    };
    // the filesystem, the user's file and the model's numbers are no node's fault
    let blame = !matches!(v.reason, Reason::UserError | Reason::IoError | Reason::NonFinite | Reason::WireStalled);
    let reason = serde_json::to_value(v.reason).ok().and_then(|r| r.as_str().map(str::to_string)).unwrap_or_default();
    Finding {
        class,
        reason,
        fact: v.fact.clone(),
        nodes: if blame { v.nodes.clone() } else { vec![] },
        ranks: v.ranks.clone(),
        exit: exit_of(v.exit),
    }
}

/// Nodes that Slurm could not reach.
fn of_nodes(seen: &Seen) -> Option<Finding> {
    let mut nodes = Vec::new();
    let mut facts = Vec::new();
    for m in &seen.said {
        match m {
            Message::LaunchFailed { node, why } => {
                nodes.push(node.clone());
                facts.push(format!("{node} did not take the step: {why}"));
            }
            Message::NodeFailed { node } => {
                nodes.push(node.clone());
                facts.push(format!("Slurm has marked {node} down"));
            }
            _ => {}
        }
    }
    let fact = facts.join("; ");
    (!nodes.is_empty()).then(|| Finding {
        class: Class::Node,
        reason: "node_lost".into(),
        fact,
        nodes,
        ranks: vec![],
        exit: Exit::Peer,
    })
}

/// The first task that a signal ended, and the others that ended likewise.
fn of_signal(seen: &Seen) -> Option<Finding> {
    let mut found: Option<Finding> = None;
    let memory = seen.said.contains(&Message::OutOfMemory);
    // who could still complain of a peer died of what MPI or Slurm does to the rest
    let complained = |rank: &usize| seen.verdicts.iter().any(|v| v.reason == Reason::PeerLost && v.accuser == *rank);
    for m in &seen.said {
        let Message::Tasks { nodes, ranks, how: How::Signal(signal) } = m else { continue };
        // srun kills the step when it gets the signal that this supervisor got
        let with_srun = seen.asked && signal == "Killed";
        if FROM_OUTSIDE.contains(&signal.as_str()) || with_srun || ranks.iter().all(complained) {
            continue;
        }
        let out_of_memory = memory || signal == "Out Of Memory";
        let (reason, fact) = match out_of_memory {
            true => ("out_of_memory", format!("{} of {}: ended for want of memory", say(ranks), nodes.join(", "))),
            false => ("signal", format!("{} on {}: {signal}", say(ranks), nodes.join(", "))),
        };
        match &mut found {
            Some(f) => {
                f.nodes.extend(nodes.iter().filter(|n| !f.nodes.contains(n)).cloned().collect::<Vec<_>>());
                f.ranks.extend(ranks);
            }
            None => {
                found = Some(Finding {
                    class: Class::Process,
                    reason: reason.into(),
                    fact,
                    nodes: nodes.clone(),
                    ranks: ranks.clone(),
                    exit: Exit::Peer,
                })
            }
        }
    }
    found
}

/// Exit codes: of the tasks as Slurm names them, else of srun.
fn of_codes(seen: &Seen) -> Finding {
    let tasks = seen.said.iter().filter_map(|m| match m {
        Message::Tasks { nodes, ranks, how: How::Code(code) } => Some((*code, nodes.clone(), ranks.clone())),
        _ => None,
    });
    // a code that names a cause before one that follows from another's failure
    let symptom = |code: i32| [Exit::Peer.code(), Exit::Fenced.code()].contains(&code) || code > 128;
    let first = tasks.min_by_key(|(code, ..)| symptom(*code));
    let (code, nodes, ranks) = first.unwrap_or((seen.code.unwrap_or(-1), vec![], vec![]));
    let who =
        if ranks.is_empty() { "the step".to_string() } else { format!("{} on {}", say(&ranks), nodes.join(", ")) };
    let exit = exit_of(code);
    let meaning = Exit::TABLE.iter().find(|row| row.0.code() == code).map_or("", |row| row.1);
    let fact = match (code, seen.code) {
        (0 | -1, _) => "srun ended with code 0, but the run did not finish its steps".to_string(),
        _ => format!("{who} ended with code {code} {meaning}").trim_end().to_string(),
    };
    let (class, blame) = match exit {
        Exit::Usage | Exit::Config | Exit::Data | Exit::Model | Exit::World | Exit::Checkpoint => (Class::User, false),
        Exit::Device => (Class::Node, true),
        Exit::Storage => (Class::Storage, false),
        Exit::NonFinite => (Class::Process, false),
        Exit::Internal if code == Exit::Internal.code() => (Class::Process, true),
        Exit::Requeue => (Class::Stopped, false),
        _ => (Class::Unknown, false),
    };
    let reason = if code <= 0 { "no_end".to_string() } else { format!("code_{code}") };
    Finding { class, reason, fact, nodes: if blame { nodes } else { vec![] }, ranks, exit }
}

fn exit_of(code: i32) -> Exit {
    Exit::TABLE.iter().map(|row| row.0).find(|e| e.code() == code && *e != Exit::Ok).unwrap_or(Exit::Internal)
}

fn say(ranks: &[usize]) -> String {
    match ranks {
        [one] => format!("rank {one}"),
        _ => format!("ranks {}", ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;

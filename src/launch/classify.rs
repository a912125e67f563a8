//! From what was seen of an attempt's end to what it means. A pure function: the table in its tests is the specification.
//!
//! What comes first is what was there first: a rank's own word, nodes that are gone, tasks that died before Slurm ended the step.
//! What dies after that, and codes that no rank has vouched for, blame nobody.

use super::history::{Class, NO_ANSWER};
use super::seen::{exit_of, Finding, Seen, FROM_OUTSIDE};
use super::tasks;
use crate::error::Exit;
use crate::liveness::{verdict, Reason, Verdict};
use crate::slurm::messages::{How, SlurmMessage};
use crate::text::word;

impl Seen {
    /// Whether there is reason to end the attempt although srun still runs.
    pub fn is_fault(&self) -> bool {
        let bad = |m: &SlurmMessage| match m {
            SlurmMessage::Tasks { how: How::Code(c), .. } => *c != 0 && *c != Exit::Requeue.code(),
            SlurmMessage::Tasks { how: How::Signal(s), .. } => !FROM_OUTSIDE.contains(&s.as_str()),
            SlurmMessage::LaunchFailed { .. } | SlurmMessage::NodeFailed { .. } | SlurmMessage::Refused { .. } => true,
            // words about deaths that follow
            SlurmMessage::OutOfMemory | SlurmMessage::Aborted | SlurmMessage::CannotRun { .. } => false,
        };
        let late = self.no_start_s.is_some() || self.no_state.is_some() || !self.late.is_empty();
        !self.finished && (late || !self.verdicts.is_empty() || self.said.iter().any(bad))
    }

    /// Whether all that is known may follow from the loss of a node that nobody has named: tasks died, or Slurm ended the step.
    /// Then the nodes are asked before anybody is blamed.
    pub fn may_follow_from_a_lost_node(&self) -> bool {
        let named = self.cause().is_some() || lost_nodes(self).is_some() || !self.records.is_empty();
        self.is_fault() && !self.stopped && !self.asked && !named
    }

    /// The verdict that names a cause, not a symptom. A death that a rank saw after Slurm had begun to end the step is none.
    fn cause(&self) -> Option<Verdict> {
        let symptom = |v: &Verdict| match v.reason {
            Reason::PeerLost | Reason::WireStalled | Reason::SkippedCollective | Reason::NoProgress => true,
            Reason::Signal => self.said.contains(&SlurmMessage::Aborted),
            _ => false,
        };
        verdict::choose(&self.verdicts).filter(|v| !symptom(v))
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
    // A verdict that names a cause comes first, then nodes that are gone, then what ranks and Slurm say of dead processes, then a
    // verdict of symptoms.
    if let Some(v) = seen.cause() {
        return of_verdict(&v);
    }
    let found = lost_nodes(seen).or_else(|| tasks::of_records(seen)).or_else(|| tasks::of_start(seen));
    if let Some(found) = found.or_else(|| tasks::of_deaths(seen)) {
        return found;
    }
    if let Some(v) = verdict::choose(&seen.verdicts) {
        return of_verdict(&v);
    }
    if let Some(limit) = seen.no_start_s {
        return plain(Class::Unknown, "no_start", format!("the ranks did not meet within {limit} s"));
    }
    if let Some((limit, bytes)) = seen.no_state {
        let fact = format!(
            "the ranks met, but had no state to go on from within {limit:.0} s: launch.start_timeout_s, and {bytes} bytes a rank \
             at launch.restore_mb_s"
        );
        return plain(Class::Unknown, "no_state", fact);
    }
    if let Some(why) = seen.said.iter().find_map(|m| match m {
        SlurmMessage::Refused { why } => Some(why),
        _ => None,
    }) {
        return plain(Class::Unknown, "refused", why.clone());
    }
    tasks::of_command_line(seen).unwrap_or_else(|| tasks::of_codes(seen))
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
    Finding {
        class,
        reason: word(&v.reason),
        fact: v.fact.clone(),
        nodes: if blame { v.nodes.clone() } else { vec![] },
        ranks: v.ranks.clone(),
        exit: exit_of(v.exit),
    }
}

/// Nodes that Slurm could not reach, or that did not answer.
fn lost_nodes(seen: &Seen) -> Option<Finding> {
    let mut nodes = Vec::new();
    let mut facts = Vec::new();
    for m in &seen.said {
        match m {
            SlurmMessage::LaunchFailed { node, why } => {
                nodes.push(node.clone());
                facts.push(format!("{node} did not take the step: {why}"));
            }
            SlurmMessage::NodeFailed { node } => {
                nodes.push(node.clone());
                facts.push(format!("Slurm has marked {node} down"));
            }
            _ => {}
        }
    }
    if !seen.silent.is_empty() {
        nodes.extend(seen.silent.iter().filter(|n| !nodes.contains(n)).cloned().collect::<Vec<_>>());
        facts.push(format!("{} answered no more when ranks had died", seen.silent.join(", ")));
    }
    // being late is no loss yet: the ledger takes it less seriously
    let reason = if nodes.is_empty() { NO_ANSWER } else { "node_lost" };
    let late: Vec<String> = seen.late.iter().filter(|n| !nodes.contains(n)).cloned().collect();
    if !late.is_empty() {
        facts.push(format!("{} did not answer while the ranks were starting", late.join(", ")));
        nodes.extend(late);
    }
    let fact = facts.join("; ");
    (!nodes.is_empty()).then(|| Finding {
        class: Class::Node,
        reason: reason.into(),
        fact,
        nodes,
        ranks: vec![],
        exit: Exit::Peer,
    })
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;

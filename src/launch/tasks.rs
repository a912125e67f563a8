//! What the deaths of tasks mean: those that left a record, those that a signal ended, codes that are nobody's word.

use super::history::{Class, UNFIT};
use super::seen::{exit_of, Finding, Seen, FROM_OUTSIDE};
use crate::error::Exit;
use crate::exit_record::{ExitRecord, Lost};
use crate::liveness::Reason;
use crate::slurm::messages::{How, SlurmMessage};

/// Codes that Slurm or the supervisor ask for, or that follow from another rank's failure.
const NO_CAUSE: &[Exit] = &[Exit::Requeue, Exit::Peer, Exit::Fenced];
/// How Open MPI 5 leaves when its node's slurmstepd, which is its PMIx server, ends the step (seen with 5.0.7 and Slurm 24.11).
const PMIX_GONE: i32 = 14;

/// Tasks that ended together, as srun tells of them.
#[derive(Clone, Copy)]
struct Death<'a> {
    nodes: &'a [String],
    ranks: &'a [usize],
    how: &'a How,
}

impl Death<'_> {
    /// Whether it may have been the first, and not what followed from another's.
    fn may_be_first(&self) -> bool {
        match self.how {
            How::Code(code) => *code != 0 && *code != PMIX_GONE && !NO_CAUSE.contains(&exit_of(*code)),
            How::Signal(signal) => !FROM_OUTSIDE.contains(&signal.as_str()),
        }
    }

    /// Whether it left because of another's failure: by a code that follows from one.
    fn complained(&self) -> bool {
        matches!(self.how, How::Code(code) if [Exit::Peer, Exit::Fenced].contains(&exit_of(*code)))
    }

    fn killed(&self) -> bool {
        matches!(self.how, How::Signal(s) if s == "Killed" || s == "Out Of Memory")
    }
}

/// Deaths before Slurm began to end the step; what comes later is of its doing. But the word of the death that made it end the step
/// may come a moment after the word that it does (Slurm 24.11: one goes by way of the controller, the other does not). So where
/// there is none before, one after it may count. Where a rank has complained and left, Slurm ends the step for that, and none that
/// it kills is the first.
fn deaths(seen: &Seen) -> Vec<Death<'_>> {
    let aborted = seen.said.iter().position(|m| *m == SlurmMessage::Aborted).unwrap_or(seen.said.len());
    let (before, after) = seen.said.split_at(aborted);
    let mut found: Vec<Death> = before.iter().filter_map(death_of).collect();
    if seen.leaves_steps {
        return found;
    }
    let complaint = found.iter().position(Death::complained).unwrap_or(found.len());
    let later = found.split_off(complaint);
    found.extend(later.into_iter().filter(|d| !d.killed()));
    if found.is_empty() {
        found.extend(first_of_the_ended(seen, after));
    }
    found
}

/// Of the deaths told after the word that Slurm ends the step: the first that Slurm and PMIx do not cause themselves; else the only
/// one that was killed, where PMIx ended all the others for it; else the first one of all. `None` where that may be several ranks.
fn first_of_the_ended<'a>(seen: &Seen, after: &'a [SlurmMessage]) -> Option<Death<'a>> {
    let told: Vec<Death> = after.iter().filter_map(death_of).collect();
    let complained = told.iter().any(Death::complained) || seen.verdicts.iter().any(|v| v.reason == Reason::PeerLost);
    let all_told = told.iter().map(|d| d.ranks.len()).sum::<usize>() >= seen.nodes;
    let own = told.iter().find(|d| d.may_be_first() && !d.killed());
    let mut killed = told.iter().filter(|d| d.killed());
    let only = killed.next().filter(|_| killed.next().is_none() && all_told);
    let ended = only.or(told.first()).filter(|_| !complained);
    own.or(ended).filter(|d| d.ranks.len() == 1).copied()
}

fn death_of(m: &SlurmMessage) -> Option<Death<'_>> {
    match m {
        SlurmMessage::Tasks { nodes, ranks, how } => Some(Death { nodes, ranks, how }),
        _ => None,
    }
}

/// What a rank wrote down as it left: the user's mistake first, then what names a device, the filesystem, a bug.
pub(super) fn of_records(seen: &Seen) -> Option<Finding> {
    let weight = |r: &&ExitRecord| match exit_of(r.code) {
        Exit::Device => 2,
        Exit::Storage | Exit::Gone => 3,
        Exit::Internal => 4,
        Exit::Requeue => 5,
        _ => 1,
    };
    let first = seen.records.iter().min_by_key(weight)?;
    let exit = exit_of(first.code);
    let same = || seen.records.iter().filter(|r| r.code == first.code);
    let (class, blame) = meaning(exit);
    let mut nodes: Vec<String> = Vec::new();
    same().filter(|_| blame && !first.agreed).for_each(|r| {
        if !nodes.contains(&r.node) {
            nodes.push(r.node.clone());
        }
    });
    let fact = match (first.agreed, first.rank) {
        (true, _) => first.fact.clone(),
        (false, Some(rank)) => format!("rank {rank} on {}: {}", first.node, first.fact),
        (false, None) => format!("{}: {}", first.node, first.fact),
    };
    let ranks = same().filter(|_| !first.agreed).filter_map(|r| r.rank).collect();
    Some(Finding { class, reason: format!("code_{}", first.code), fact, nodes, ranks, exit })
}

/// What an exit code of herd's own means, and whether the node that it came from is to blame.
fn meaning(exit: Exit) -> (Class, bool) {
    match exit {
        Exit::Usage | Exit::Config | Exit::Data | Exit::Model | Exit::World | Exit::Checkpoint => (Class::User, false),
        Exit::Device => (Class::Node, true),
        Exit::Storage | Exit::Gone => (Class::Storage, false),
        Exit::NonFinite => (Class::Process, false),
        Exit::Internal => (Class::Process, true),
        Exit::Requeue => (Class::Stopped, false),
        _ => (Class::Unknown, false),
    }
}

/// Some nodes cannot run the program, while others can: what a rank dies of before the ranks have met, and not by its own word,
/// belongs to its node.
pub(super) fn of_start(seen: &Seen) -> Option<Finding> {
    let why = seen.said.iter().find_map(|m| match m {
        SlurmMessage::CannotRun { why, .. } => Some(why.clone()),
        _ => None,
    });
    if seen.met || seen.asked || seen.error.is_some() {
        return None;
    }
    let deaths = deaths(seen);
    let dead: Vec<&Death> = deaths.iter().filter(|d| d.may_be_first()).collect();
    let first = dead.first()?;
    let mut nodes: Vec<String> = seen
        .said
        .iter()
        .filter_map(|m| match m {
            SlurmMessage::CannotRun { node, .. } => node.clone(),
            _ => None,
        })
        .collect();
    if nodes.is_empty() {
        nodes = dead.iter().filter(|d| d.how == first.how).flat_map(|d| d.nodes.to_vec()).collect();
    }
    nodes.sort();
    nodes.dedup();
    let how = why.unwrap_or_else(|| match first.how {
        How::Code(code) => format!("{} ended with code {code}", say(first.ranks)),
        How::Signal(signal) => format!("{} was ended by a signal: {signal}", say(first.ranks)),
    });
    let everywhere = nodes.len() == seen.nodes && seen.nodes > 1;
    Some(match everywhere {
        true => Finding {
            class: Class::User,
            reason: UNFIT.into(),
            fact: format!("the program runs on none of the {} nodes: {how}", seen.nodes),
            nodes: vec![],
            ranks: vec![],
            exit: Exit::World,
        },
        false => Finding {
            class: Class::Node,
            reason: UNFIT.into(),
            fact: format!("{} cannot run the ranks: {how}", nodes.join(", ")),
            nodes,
            ranks: first.ranks.to_vec(),
            exit: Exit::Peer,
        },
    })
}

/// The task that died first, by a signal or with a code that no rank has vouched for. One that was killed comes before one that
/// crashed: a rank may crash when a connection breaks (MPICH over UCX does), and none is killed by that. Others that were killed
/// too are named with it.
pub(super) fn of_deaths(seen: &Seen) -> Option<Finding> {
    // who could still complain of a peer died of what MPI or Slurm does to the rest
    let complained = |rank: &usize| seen.verdicts.iter().any(|v| v.reason == Reason::PeerLost && v.accuser == *rank);
    // srun kills the step when it gets the signal that this supervisor got
    let with_srun = |d: &Death| seen.asked && d.killed();
    let counts = |d: &Death| d.may_be_first() && !with_srun(d) && !d.ranks.iter().all(complained);
    let lost = first_lost(seen);
    let of_lost = |d: &Death| lost.is_some_and(|l| d.nodes.iter().all(|n| *n == l.node));
    let alone: Vec<Death> = seen.said.iter().filter_map(death_of).filter(of_lost).collect();
    let is_told = !alone.is_empty();
    let mut dead: Vec<Death> = alone.into_iter().filter(counts).collect();
    if dead.is_empty() {
        dead = deaths(seen).into_iter().filter(counts).collect();
        // nobody left by a code of its own, and srun does not tell the lost node's death from the others'
        if let Some(lost) = lost.filter(|_| !is_told && dead.iter().all(Death::killed)) {
            return Some(of_witness(lost));
        }
    }
    let first = dead.iter().position(|d| d.killed()).unwrap_or(0);
    let death = dead.get(first)?;
    let mut found = of_death(seen, death);
    for other in dead[first + 1..].iter().filter(|d| d.killed() && death.killed()) {
        found.nodes.extend(other.nodes.iter().filter(|n| !found.nodes.contains(n)).cloned().collect::<Vec<_>>());
        found.ranks.extend(other.ranks);
    }
    Some(found)
}

/// The node whose process was gone first, where anybody saw it; Slurm and PMIx end the others some 10 ms later. Only where they do
/// end them: else what srun says in its order is as good. What was seen after a rank had spoken follows from its leaving.
fn first_lost(seen: &Seen) -> Option<&Lost> {
    let spoken = |l: &&Lost| seen.verdicts.iter().any(|v| v.time < l.time);
    seen.lost.first().filter(|l| !seen.leaves_steps && !seen.asked && !srun_was_killed(seen) && !spoken(l))
}

/// srun of the ranks was ended by a signal, and said nothing of them before: Slurm ends them all for that.
fn srun_was_killed(seen: &Seen) -> bool {
    let told = |m: &SlurmMessage| matches!(m, SlurmMessage::Tasks { .. } | SlurmMessage::Aborted);
    seen.code.is_some_and(|code| code > 128) && !seen.said.iter().any(told)
}

/// What a neighbour saw, where srun tells of that node only together with others, or not at all.
fn of_witness(lost: &Lost) -> Finding {
    let Lost { node, by, .. } = lost;
    Finding {
        class: Class::Process,
        reason: "signal".into(),
        fact: format!("a process on {node} ended without a word, as {by} saw before the step was ended"),
        nodes: vec![node.clone()],
        ranks: vec![],
        exit: Exit::Peer,
    }
}

fn of_death(seen: &Seen, death: &Death) -> Finding {
    let who = format!("{} on {}", say(death.ranks), death.nodes.join(", "));
    let process = |reason: String, fact: String| Finding {
        class: Class::Process,
        reason,
        fact,
        nodes: death.nodes.to_vec(),
        ranks: death.ranks.to_vec(),
        exit: Exit::Peer,
    };
    match death.how {
        How::Signal(signal) if signal == "Out Of Memory" || seen.said.contains(&SlurmMessage::OutOfMemory) => {
            process("out_of_memory".into(), format!("{who}: ended for want of memory"))
        }
        How::Signal(signal) => process("signal".into(), format!("{who}: {signal}")),
        How::Code(code) => {
            let (exit, reason) = (exit_of(*code), format!("code_{code}"));
            let (class, blame) = meaning(exit);
            match &seen.error {
                // a rank that could not write its record has still spoken
                Some(error) if exit.code() == *code && !blame => {
                    Finding { class, nodes: vec![], exit, ..process(reason, format!("{who}: {error}")) }
                }
                _ => process(reason, format!("{who} ended with code {code}, and no rank wrote down why")),
            }
        }
    }
}

/// srun ended by itself before any task was there, and said why: its command line is refused, and will be again.
pub(super) fn of_command_line(seen: &Seen) -> Option<Finding> {
    let tasks = seen.met || seen.said.iter().any(|m| matches!(m, SlurmMessage::Tasks { .. } | SlurmMessage::Aborted));
    // what a configuration or a controller that is away makes srun say names no option
    let names_one = |l: &String| {
        let words = ["--", "option", "invalid", "incompatible", "mpi", "plugin", "usage", "specif"];
        words.iter().any(|w| l.to_ascii_lowercase().contains(w))
    };
    // 255 is what a tool of Slurm's leaves with for an option that it does not know
    if tasks || !matches!(seen.code, Some(1..=127 | 255)) || !seen.srun.iter().any(names_one) {
        return None;
    }
    Some(Finding {
        class: Class::User,
        reason: "srun_refused".into(),
        fact: format!("srun refuses its command line: {}", seen.srun.join("; ")),
        nodes: vec![],
        ranks: vec![],
        exit: Exit::World,
    })
}

/// Nothing but exit codes that follow from something else: those of tasks that MPI, PMIx or Slurm ended, else srun's own. Nobody
/// is blamed.
pub(super) fn of_codes(seen: &Seen) -> Finding {
    let first = seen.said.iter().find_map(|m| match m {
        SlurmMessage::Tasks { nodes, ranks, how: How::Code(code) } => Some((*code, nodes.as_slice(), ranks.as_slice())),
        _ => None,
    });
    let (code, nodes, ranks) = first.unwrap_or((seen.code.unwrap_or(-1), &[], &[]));
    let who = if ranks.is_empty() { "the step".to_string() } else { format!("{} on {}", say(ranks), nodes.join(", ")) };
    let (class, reason, fact, exit) = if code <= 0 {
        let fact = "srun ended with code 0, but the run did not finish its steps".to_string();
        (Class::Unknown, "no_end".to_string(), fact, Exit::Internal)
    } else if exit_of(code) == Exit::Requeue {
        (Class::Stopped, format!("code_{code}"), format!("{who} stopped on a signal"), Exit::Requeue)
    } else if seen.said.contains(&SlurmMessage::Aborted) {
        let fact = format!("Slurm or PMIx ended the step, and nothing says why: {who} ended with code {code}");
        (Class::Unknown, "step_ended".into(), fact, Exit::Peer)
    } else if srun_was_killed(seen) {
        let fact = format!("srun of the ranks was ended by signal {}", code - 128);
        (Class::Unknown, "srun_killed".into(), fact, Exit::Peer)
    } else {
        let fact = format!("{who} ended with code {code}, and no rank wrote down why: MPI, PMIx or Slurm ended it");
        (Class::Unknown, format!("code_{code}"), fact, Exit::Peer)
    };
    Finding { class, reason, fact, nodes: vec![], ranks: ranks.to_vec(), exit }
}

fn say(ranks: &[usize]) -> String {
    match ranks {
        [one] => format!("rank {one}"),
        _ => format!("ranks {}", ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}

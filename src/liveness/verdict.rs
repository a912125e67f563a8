//! Verdicts: who failed, why, and how that is known. A rank that accuses, or that confesses its own failure, leaves one in the
//! run directory ([`super::folder`]). The supervisor reads them all and acts on what [`choose`] makes of them.

use super::Phase;
use crate::error::Exit;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// Why ranks are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The process ended without a word: a signal, the out-of-memory killer, a crash. Seen by its node's leader.
    Signal,
    /// A device failed or is missing. Confessed.
    DeviceError,
    /// The filesystem refused: full, quota, I/O error. Confessed.
    IoError,
    /// Loss or gradient norm not finite too many steps in a row. Confessed, for the whole run.
    NonFinite,
    /// The user's mistake: configuration, data, model. Confessed; starting again does not help.
    UserError,
    /// A bug: a panic, or ranks that disagree. Confessed.
    Internal,
    /// Silent for `misses` intervals: stopped, hung in the kernel, cut off, or its node is gone.
    MissedProbes,
    /// Others wait in a collective that this rank never entered, and it waits elsewhere for them.
    SkippedCollective,
    /// Alive, but no progress for longer than its limit, and waiting for nobody.
    NoProgress,
    /// Every rank of a collective has entered it and none comes out: the wire, not a rank.
    WireStalled,
    /// Its own work takes much longer than the others'; only where the configuration evicts for that.
    SlowNode,
    /// A communication call failed, or the other ranks stopped answering, without knowledge of who failed. Names nobody.
    PeerLost,
}

impl Reason {
    /// How much a verdict for this reason explains, lower is more: what a process says about itself, then silence, then
    /// being stuck, then what merely follows from another's failure.
    fn weight(self) -> u8 {
        match self {
            Reason::UserError | Reason::NonFinite => 0,
            Reason::DeviceError | Reason::IoError | Reason::Internal => 1,
            Reason::Signal => 2,
            Reason::MissedProbes => 3,
            Reason::SkippedCollective | Reason::NoProgress => 4,
            Reason::SlowNode => 5,
            Reason::WireStalled => 6,
            Reason::PeerLost => 7,
        }
    }

    /// What an error says about the process that ends with it.
    pub fn of(exit: Exit) -> Reason {
        match exit {
            Exit::Usage | Exit::Config | Exit::Data | Exit::Model | Exit::World | Exit::Checkpoint => Reason::UserError,
            Exit::Storage | Exit::Gone => Reason::IoError,
            Exit::Device => Reason::DeviceError,
            Exit::NonFinite => Reason::NonFinite,
            Exit::Peer => Reason::PeerLost,
            _ => Reason::Internal,
        }
    }
}

/// One rank's accusation or confession.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Attempt of the run that the accuser belongs to.
    pub attempt: u64,
    /// World rank that wrote it.
    pub accuser: usize,
    /// Its node, named as in `nodes`; the file is named after it.
    pub accuser_node: String,
    /// Why the ranks are given up.
    pub reason: Reason,
    /// World ranks given up, ascending; empty for [`Reason::PeerLost`].
    pub ranks: Vec<usize>,
    /// Their nodes (Slurm's name where Slurm started the rank, else the host name), in order of rank, each once.
    pub nodes: Vec<String>,
    /// Every rank of `nodes` is in `ranks`, and nobody on them was heard: the node or its link, not a process.
    pub whole_node: bool,
    /// The newest step the accuser knows to be under way on the first of `ranks`: steps finished before it.
    pub step: u64,
    /// Where in that step it was last seen.
    pub phase: Phase,
    /// Exit code that the accuser's world leaves with.
    pub exit: i32,
    /// Accuser's wall clock, for people: clocks of different nodes are never compared.
    pub time: jiff::Timestamp,
    /// One line for people.
    pub fact: String,
    /// What it rests on; a confession leaves nearly all of it at zero.
    #[serde(default)]
    pub evidence: Evidence,
}

/// What a verdict rests on. All times are durations by one process's monotonic clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// Seconds since the last sign of life (silence) or of progress (stuck) of the first of the ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_s: Option<f64>,
    /// The limit that was passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_s: Option<f64>,
    /// Seconds between probes; 0 in a confession.
    pub interval_s: f64,
    /// Probes missed in a row after which a rank is given up, as configured; 0 in a confession.
    pub misses: u32,
    /// Seconds of the accuser's last steps, newest last; what the limit of progress was made from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub step_s: Vec<f64>,
    /// Nodes the accuser heard within its limit, its own included: settles mutual accusations.
    pub nodes_heard: usize,
    /// Ranks that were late too, but not late enough to be given up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub suspects: Vec<Suspect>,
    /// Who waits for whom, where the verdict is about progress.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
}

/// A rank that was late when others were given up: worth a look before it is used again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suspect {
    /// World rank.
    pub rank: usize,
    /// Name of its node.
    pub node: String,
    /// Seconds since it was last heard.
    pub age_s: f64,
}

/// A rank inside a collective that others have not entered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// World rank that waits.
    pub rank: usize,
    /// Steps that it has finished.
    pub step: u64,
    /// Where it is in the step after them.
    pub phase: Phase,
    /// Axis of the wire, or `control`.
    pub wire: String,
    /// Which operation of that wire it is in, counted from 1, modulo 2³².
    pub operation: u64,
    /// World ranks that it waits for, ascending, 64 at most; empty: nobody, or all have entered.
    pub waits_for: Vec<usize>,
}

/// What to act on when several ranks have spoken: the reason that explains most, and everybody named for it.
///
/// A rank that is silent beats one that merely waits for it. Of two verdicts that accuse each other's writers (a cut
/// network, seen from both sides) the one counts whose writer hears more nodes, then the one that gives up fewer ranks,
/// then the one of the lower rank. `None` for no verdicts.
pub fn choose(verdicts: &[Verdict]) -> Option<Verdict> {
    let speakers = Speakers::new(verdicts);
    let standing: Vec<&Verdict> = verdicts.iter().filter(|v| !speakers.refute(v)).collect();
    let best = *standing.iter().min_by_key(|v| (v.reason.weight(), v.accuser))?;
    let mut out = best.clone();
    for other in standing.into_iter().filter(|v| v.reason.weight() == best.reason.weight() && !std::ptr::eq(*v, best)) {
        out.ranks.extend(&other.ranks);
        out.nodes.extend(other.nodes.iter().cloned());
        out.whole_node &= other.whole_node;
        out.evidence.suspects.extend(other.evidence.suspects.iter().cloned());
    }
    out.ranks.sort_unstable();
    out.ranks.dedup();
    let mut seen = HashSet::new();
    out.nodes.retain(|n| seen.insert(n.clone()));
    let named = &out.ranks;
    out.evidence.suspects.retain(|s| named.binary_search(&s.rank).is_err());
    Some(out)
}

/// Who has spoken, so that a verdict is held against those that it names and no others.
struct Speakers<'a> {
    /// By accuser: its verdicts, and whom they give up.
    by_rank: HashMap<usize, Vec<(&'a Verdict, HashSet<usize>)>>,
}

impl Speakers<'_> {
    fn new(verdicts: &[Verdict]) -> Speakers<'_> {
        let mut by_rank: HashMap<_, Vec<_>> = HashMap::new();
        // one that names nobody refutes nobody
        for v in verdicts.iter().filter(|v| !v.ranks.is_empty()) {
            by_rank.entry(v.accuser).or_default().push((v, v.ranks.iter().copied().collect()));
        }
        Speakers { by_rank }
    }

    /// Whether another takes the ground from `v`: it gives up `v`'s writer, `v` gives up or suspects its own, and the other is
    /// in the better place to know.
    fn refute(&self, v: &Verdict) -> bool {
        let place = |v: &Verdict| (std::cmp::Reverse(v.evidence.nodes_heard), v.ranks.len(), v.accuser);
        let named = v.ranks.iter().chain(v.evidence.suspects.iter().map(|s| &s.rank)).filter(|&&r| r != v.accuser);
        let mut others = named.filter_map(|r| self.by_rank.get(r)).flatten();
        others.any(|(other, gives_up)| gives_up.contains(&v.accuser) && place(other) < place(v))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn verdict(accuser: usize, reason: Reason, ranks: &[usize]) -> Verdict {
        Verdict {
            attempt: 2,
            accuser,
            accuser_node: format!("n{accuser}"),
            reason,
            ranks: ranks.to_vec(),
            nodes: ranks.iter().map(|r| format!("n{r}")).collect(),
            whole_node: true,
            step: 7,
            phase: Phase::Reduce,
            exit: Exit::Peer.code(),
            time: jiff::Timestamp::UNIX_EPOCH,
            fact: String::new(),
            evidence: Evidence::default(),
        }
    }

    fn chosen(verdicts: &[Verdict]) -> (Reason, Vec<usize>) {
        let v = choose(verdicts).unwrap();
        (v.reason, v.ranks)
    }

    #[test]
    fn the_nearest_cause_wins() {
        use Reason::*;
        assert_eq!(choose(&[]), None);
        let waits = verdict(0, NoProgress, &[2]);
        let silent = verdict(4, MissedProbes, &[3]);
        assert_eq!(chosen(&[waits.clone(), silent.clone()]), (MissedProbes, vec![3]));
        let lost = verdict(1, PeerLost, &[]);
        assert_eq!(chosen(&[lost.clone(), waits]), (NoProgress, vec![2]));
        assert_eq!(chosen(std::slice::from_ref(&lost)), (PeerLost, vec![]));
        let full = verdict(5, IoError, &[5]);
        assert_eq!(chosen(&[lost, silent, full]), (IoError, vec![5]));
    }

    #[test]
    fn two_at_once_are_both_named() {
        let a = verdict(0, Reason::MissedProbes, &[3]);
        let b = verdict(2, Reason::MissedProbes, &[1, 3]);
        let both = choose(&[a, b]).unwrap();
        assert_eq!((both.ranks, both.nodes), (vec![1, 3], vec!["n3".to_string(), "n1".to_string()]));
    }

    #[test]
    fn of_two_sides_of_a_cut_the_larger_counts() {
        let heard = |mut v: Verdict, n| {
            v.evidence.nodes_heard = n;
            v
        };
        // The monitor sees everybody silent; the deputy, whom the others tell so, names the monitor.
        let cut_off = heard(verdict(0, Reason::MissedProbes, &[1, 2]), 1);
        let deputy = heard(verdict(1, Reason::MissedProbes, &[0]), 2);
        assert_eq!(chosen(&[cut_off.clone(), deputy.clone()]), (Reason::MissedProbes, vec![0]));
        assert_eq!(chosen(&[deputy, cut_off]), (Reason::MissedProbes, vec![0]));
        // Two nodes: no third opinion; the monitor's side.
        let a = heard(verdict(0, Reason::MissedProbes, &[1]), 1);
        let b = heard(verdict(1, Reason::MissedProbes, &[0]), 1);
        assert_eq!(chosen(&[b, a]), (Reason::MissedProbes, vec![1]));
    }
}

//! Verdicts: files in the run directory that say who failed, why, and how that is known.
//!
//! `verdicts/attempt-NNNN-rank-NNNNN.json` holds one JSON document by the rank in its name: the rank that accuses, or that
//! confesses its own failure. At most one a rank and attempt, the first. The supervisor reads them all and acts on what
//! [`choose`] makes of them.

use super::Phase;
use crate::appended::{gone, is_gone};
use crate::durable::{refused, sync_dir, write_synced};
use crate::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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
    pub attempt: u64,
    /// World rank that wrote it.
    pub accuser: usize,
    pub accuser_node: String,
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
    pub interval_s: f64,
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
    pub rank: usize,
    pub node: String,
    pub age_s: f64,
}

/// A rank inside a collective that others have not entered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    pub rank: usize,
    pub step: u64,
    pub phase: Phase,
    /// Axis of the wire, or `control`.
    pub wire: String,
    /// Which operation of that wire it is in, counted from 1.
    pub operation: u64,
    pub waits_for: Vec<usize>,
}

/// Directory of verdicts.
pub fn dir(run_dir: &Path) -> PathBuf {
    run_dir.join("verdicts")
}

impl Verdict {
    /// Where it lies in a run directory.
    pub fn path(&self, run_dir: &Path) -> PathBuf {
        dir(run_dir).join(format!("attempt-{:04}-rank-{:05}.json", self.attempt, self.accuser))
    }

    /// Writes it, unless this rank has already written one of this attempt: the first is nearest the cause.
    ///
    /// # Errors
    /// [`Exit::Gone`]: there is no run directory any more; [`Exit::Storage`].
    pub fn write(&self, run_dir: &Path) -> Result<PathBuf> {
        let path = self.path(run_dir);
        let dir = dir(run_dir);
        if is_gone(run_dir) {
            return Err(gone(run_dir));
        }
        std::fs::create_dir_all(&dir).map_err(refused(&dir, "create"))?;
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
        let temporary = path.with_extension("json.tmp");
        write_synced(&temporary, format!("{text}\n").as_bytes())?;
        // A hard link, unlike a rename, never replaces.
        match std::fs::hard_link(&temporary, &path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Ok(()) => {}
            // Filesystems without hard links.
            Err(_) if path.exists() => {}
            Err(_) => std::fs::rename(&temporary, &path).map_err(refused(&path, "write"))?,
        }
        let _ = std::fs::remove_file(&temporary);
        sync_dir(&dir)?;
        Ok(path)
    }
}

/// All verdicts of one attempt, by accuser. Files that cannot be understood are left out: a broken one must not hide the
/// others.
///
/// # Errors
/// [`Exit::Storage`] when the directory cannot be read.
pub fn read_all(run_dir: &Path, attempt: u64) -> Result<Vec<Verdict>> {
    let dir = dir(run_dir);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(&dir, "read", &e, Exit::Storage)),
    };
    let prefix = format!("attempt-{attempt:04}-rank-");
    let ours = |name: &str| name.starts_with(&prefix) && name.ends_with(".json");
    let mut found: Vec<Verdict> = entries
        .flatten()
        .filter(|e| ours(&e.file_name().to_string_lossy()))
        .filter_map(|e| serde_json::from_slice(&std::fs::read(e.path()).ok()?).ok())
        .filter(|v: &Verdict| v.attempt == attempt)
        .collect();
    found.sort_by_key(|v| v.accuser);
    Ok(found)
}

/// What to act on when several ranks have spoken: the reason that explains most, and everybody named for it.
///
/// A rank that is silent beats one that merely waits for it. Of two verdicts that accuse each other's writers (a cut
/// network, seen from both sides) the one counts whose writer hears more nodes, then the one that gives up fewer ranks,
/// then the one of the lower rank. `None` for no verdicts.
pub fn choose(verdicts: &[Verdict]) -> Option<Verdict> {
    let stands = |v: &&Verdict| !verdicts.iter().any(|o| refutes(o, v));
    let standing: Vec<&Verdict> = verdicts.iter().filter(stands).collect();
    let best = standing.iter().min_by_key(|v| (v.reason.weight(), v.accuser))?;
    let mut out = (*best).clone();
    let same = standing.iter().filter(|v| v.reason.weight() == best.reason.weight());
    for other in same.filter(|v| v.accuser != best.accuser) {
        out.ranks.extend(&other.ranks);
        out.nodes.extend(other.nodes.iter().cloned());
        out.whole_node &= other.whole_node;
        out.evidence.suspects.extend(other.evidence.suspects.iter().cloned());
    }
    out.ranks.sort_unstable();
    out.ranks.dedup();
    let mut seen = Vec::new();
    out.nodes.retain(|n| {
        !seen.contains(n) && {
            seen.push(n.clone());
            true
        }
    });
    let named = out.ranks.clone();
    out.evidence.suspects.retain(|s| !named.contains(&s.rank));
    Some(out)
}

/// Whether `a` takes the ground from `b`: it gives up `b`'s writer, `b` gives up or suspects its own, and `a` is in the
/// better place to know.
fn refutes(a: &Verdict, b: &Verdict) -> bool {
    let suspected = b.evidence.suspects.iter().any(|s| s.rank == a.accuser);
    let mutual = a.ranks.contains(&b.accuser) && (suspected || b.ranks.contains(&a.accuser));
    let rank = |v: &Verdict| (std::cmp::Reverse(v.evidence.nodes_heard), v.ranks.len(), v.accuser);
    mutual && a.accuser != b.accuser && rank(a) < rank(b)
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

    #[test]
    fn written_and_read_back_and_the_first_stays() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_all(dir.path(), 2).unwrap(), []);
        let mut v = verdict(3, Reason::MissedProbes, &[1]);
        v.evidence = Evidence {
            age_s: Some(15.5),
            suspects: vec![Suspect { rank: 4, node: "n4".into(), age_s: 11.0 }],
            waiting: vec![Waiting {
                rank: 0,
                step: 7,
                phase: Phase::Reduce,
                wire: "data".into(),
                operation: 9,
                waits_for: vec![1],
            }],
            ..Default::default()
        };
        let path = v.write(dir.path()).unwrap();
        assert!(path.ends_with("verdicts/attempt-0002-rank-00003.json"));
        verdict(3, Reason::PeerLost, &[]).write(dir.path()).unwrap();
        verdict(0, Reason::PeerLost, &[]).write(dir.path()).unwrap();
        Verdict { attempt: 1, ..verdict(5, Reason::Signal, &[]) }.write(dir.path()).unwrap();
        std::fs::write(super::dir(dir.path()).join("attempt-0002-rank-00009.json"), "{").unwrap();
        let all = read_all(dir.path(), 2).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[1], v);
        assert!(std::fs::read_dir(super::dir(dir.path()))
            .unwrap()
            .all(|e| e.unwrap().path().extension().unwrap() == "json"));
    }
}

//! `ledger.json`: which nodes have failed, when and why, and which are not to be used. It outlives requeues, since Slurm
//! forgets what a job knew about its nodes.

use super::history::{NO_ANSWER, UNFIT};
use crate::durable::write_atomic;
use crate::error::{Error, Exit, Result};
pub use crate::events::Failure;
use crate::run_dir::RunDir;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The nodes that have failed at least once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// By name, as Slurm writes it.
    pub nodes: BTreeMap<String, Node>,
}

/// What is known against one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Oldest first.
    pub failures: Vec<Failure>,
    /// Until then it is used only where nothing better is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<Timestamp>,
    /// When an examination last found it good: the pause of a failure before that is over, also where another ledger still has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared: Option<Timestamp>,
    /// Never used again. A person takes it back by editing or removing the file.
    #[serde(default)]
    pub given_up: bool,
}

/// How a node may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Used like any other: it never failed, or its pause is over.
    Good,
    /// It failed lately: a last resort.
    Paused,
    /// Never used again.
    GivenUp,
}

/// Where a ledger lies: the run's own, and the site's where one is configured.
#[derive(Clone, Debug)]
pub struct Book {
    run: PathBuf,
    site: Option<PathBuf>,
    /// What both say, and what was added since they were read.
    pub ledger: Ledger,
}

impl Ledger {
    /// How a node may be used at `now`; one that never failed is good.
    pub fn standing(&self, node: &str, now: Timestamp) -> Standing {
        match self.nodes.get(node) {
            Some(n) if n.given_up => Standing::GivenUp,
            Some(n) if n.paused_until.is_some_and(|until| until > now) => Standing::Paused,
            _ => Standing::Good,
        }
    }

    /// Adds a failure, at most one for an attempt. `pause`: not used for that long, where it can be helped. True when this one was
    /// the `limit`th, and the node is given up from now on. One that was only late, however often, is not.
    pub fn record(&mut self, node: &str, failure: Failure, pause: Option<SignedDuration>, limit: u64) -> bool {
        let entry = self.nodes.entry(node.to_string()).or_default();
        // a node that was silent and then does not answer has failed once; one that was found good between has failed again
        let same = |f: &Failure| (f.job, f.attempt) == (failure.job, failure.attempt);
        let counted = entry.failures.last().is_some_and(|f| same(f) && entry.cleared.is_none_or(|good| good < f.time));
        if let Some(pause) = pause {
            let until = failure.time.checked_add(pause).unwrap_or(Timestamp::MAX);
            entry.paused_until = Some(entry.paused_until.map_or(until, |old| old.max(until)));
        }
        if !counted {
            entry.failures.push(failure);
        }
        let real = entry.failures.iter().filter(|f| f.reason != NO_ANSWER).count();
        let first_time = !entry.given_up && real as u64 >= limit;
        entry.given_up |= first_time;
        first_time
    }

    /// Ends the pause of a node whose last failure has a reason that begins so: at `now` it was found good. Whether there was one.
    pub fn clear(&mut self, node: &str, reason: &str, now: Timestamp) -> bool {
        let Some(entry) = self.nodes.get_mut(node).filter(|n| !n.given_up && n.paused_until.is_some()) else {
            return false;
        };
        let ours = entry.failures.last().is_some_and(|f| f.reason.starts_with(reason));
        if ours {
            (entry.paused_until, entry.cleared) = (None, Some(now));
        }
        ours
    }

    /// Whether the last failure of a node was that it cannot run the ranks.
    pub fn is_unfit(&self, node: &str) -> bool {
        self.nodes.get(node).and_then(|n| n.failures.last()).is_some_and(|f| f.reason == UNFIT)
    }

    /// Nodes not to be used: given up, or paused.
    pub fn avoided(&self, now: Timestamp) -> Vec<String> {
        self.nodes.keys().filter(|n| self.standing(n, now) != Standing::Good).cloned().collect()
    }

    /// Takes over what another ledger knows and this one does not.
    fn merge(&mut self, other: Ledger) {
        for (name, theirs) in other.nodes {
            let ours = self.nodes.entry(name).or_default();
            let new: Vec<Failure> = theirs.failures.into_iter().filter(|f| !ours.failures.contains(f)).collect();
            ours.failures.extend(new);
            ours.failures.sort_by_key(|f| f.time);
            ours.cleared = ours.cleared.max(theirs.cleared);
            let is_over = ours.failures.last().is_some_and(|f| ours.cleared.is_some_and(|good| good >= f.time));
            ours.paused_until = ours.paused_until.max(theirs.paused_until).filter(|_| !is_over);
            ours.given_up |= theirs.given_up;
        }
    }
}

impl Book {
    /// The ledger of a run, with what the site's says. A file that is absent is empty.
    ///
    /// # Errors
    /// [`Exit::Storage`]: one cannot be read or is damaged.
    pub fn open(run_dir: &Path, site: Option<&Path>) -> Result<Book> {
        let run = RunDir::new(run_dir).ledger();
        let mut ledger = read(&run)?;
        if let Some(site) = site {
            ledger.merge(read(site)?);
        }
        Ok(Book { run, site: site.map(Path::to_path_buf), ledger })
    }

    /// Writes both files. The site's is read again first, since other runs write there too; of two that write in the same
    /// moment one failure may be lost.
    ///
    /// # Errors
    /// [`Exit::Storage`].
    pub fn save(&mut self) -> Result<()> {
        if let Some(site) = &self.site {
            self.ledger.merge(read(site)?);
            write(site, &self.ledger)?;
        }
        write(&self.run, &self.ledger)
    }
}

/// A ledger file; absent is empty.
pub fn read(path: &Path) -> Result<Ledger> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
            Error::new(Exit::Storage, format!("{} is damaged: {e}", path.display()))
                .hint("mend or remove it: it only says which nodes to avoid")
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Ledger::default()),
        Err(e) => Err(Error::io(path, "read", &e, Exit::Storage)),
    }
}

fn write(path: &Path, ledger: &Ledger) -> Result<()> {
    let text = serde_json::to_string_pretty(ledger).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
    write_atomic(path, format!("{text}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn failure(seconds: i64) -> Failure {
        Failure { time: at(seconds), job: 1, attempt: seconds as u64, reason: "silent".into() }
    }

    #[test]
    fn a_node_is_paused_then_good_then_given_up_for_good() {
        let mut l = Ledger::default();
        let pause = Some(SignedDuration::from_secs(60));
        assert!(!l.record("n1", failure(0), pause, 3));
        assert!(!l.record("n1", Failure { reason: "no_answer".into(), ..failure(0) }, pause, 3));
        assert_eq!(l.nodes["n1"].failures.len(), 1, "one incident counts once");
        assert_eq!(l.standing("n1", at(59)), Standing::Paused);
        assert_eq!(l.standing("n1", at(60)), Standing::Good);
        assert!(!l.record("n1", failure(100), None, 3));
        assert_eq!(l.standing("n1", at(100)), Standing::Good);
        assert!(l.record("n1", failure(200), pause, 3), "the third is the limit");
        assert!(!l.record("n1", failure(300), pause, 3), "told once");
        assert_eq!(l.standing("n1", at(1 << 30)), Standing::GivenUp);
        assert_eq!(l.standing("n2", at(0)), Standing::Good);
        assert_eq!(l.avoided(at(1000)), ["n1"]);
        let late = |seconds| Failure { reason: NO_ANSWER.into(), ..failure(seconds) };
        assert!((0..9).all(|i| !l.record("n3", late(i), pause, 3)));
        assert_eq!(l.standing("n3", at(1000)), Standing::Good);
    }

    #[test]
    fn the_site_s_ledger_is_shared_between_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, site) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("site.json"));
        [&a, &b].iter().for_each(|d| std::fs::create_dir(d).unwrap());
        let mut first = Book::open(&a, Some(&site)).unwrap();
        let mut second = Book::open(&b, Some(&site)).unwrap();
        first.ledger.record("n1", failure(0), None, 9);
        first.save().unwrap();
        second.ledger.record("n2", failure(1), None, 1);
        second.save().unwrap();
        let third = Book::open(&a, Some(&site)).unwrap().ledger;
        assert_eq!(third.nodes.len(), 2);
        assert!(third.nodes["n2"].given_up && third.nodes["n1"].failures.len() == 1);
        // Found good: over for every run, whatever its own ledger still says; another failure pauses it again.
        let pause = Some(SignedDuration::from_secs(1000));
        first.ledger.record("n3", failure(2), pause, 9);
        first.save().unwrap();
        second.save().unwrap();
        assert_eq!(second.ledger.standing("n3", at(3)), Standing::Paused);
        assert!(first.ledger.clear("n3", "silent", at(4)) && !first.ledger.clear("n3", "silent", at(5)));
        first.save().unwrap();
        second.save().unwrap();
        for ledger in [&first.ledger, &second.ledger, &Book::open(&b, Some(&site)).unwrap().ledger] {
            assert_eq!((ledger.standing("n3", at(6)), ledger.nodes["n3"].failures.len()), (Standing::Good, 1));
        }
        second.ledger.record("n3", failure(7), pause, 9);
        second.save().unwrap();
        first.save().unwrap();
        assert_eq!(first.ledger.standing("n3", at(8)), Standing::Paused);
        std::fs::write(&site, "{").unwrap();
        assert_eq!(Book::open(&a, Some(&site)).unwrap_err().exit, Exit::Storage);
    }
}

//! Which nodes the ranks go to. Every node keeps its slot while it is good, so that its ranks find their snapshots on it;
//! a spare takes the slot of the one it replaces.

use super::ledger::Standing;
use std::cmp::Reverse;
use std::collections::{HashSet, VecDeque};

/// Nodes of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// By slot.
    pub active: Vec<String>,
    /// Good nodes of the allocation that are left over.
    pub spares: Vec<String>,
}

/// What a search for nodes came to.
pub enum Found {
    Nodes(Placement),
    TooFew {
        alive: Vec<String>,
    },
    /// Another supervisor has taken over meanwhile.
    Overtaken,
    /// A signal came meanwhile.
    Asked,
}

/// Fills `need` slots from the allocation, in its order. `before`: who held them in the last attempt, empty at first; of the nodes
/// that may take one's place the nearest does (`near`: the more, the nearer). Paused nodes are taken only where good ones do not
/// suffice. `None` when there are not enough.
pub fn place(
    allocation: &[String], before: &[String], need: usize, standing: impl Fn(&str) -> Standing,
    near: impl Fn(&str, &str) -> usize,
) -> Option<Placement> {
    let good = |n: &str| standing(n) == Standing::Good;
    let here: HashSet<&String> = allocation.iter().collect();
    let mut slots: Vec<Option<String>> = (0..need)
        .map(|i| before.get(i).filter(|n| before.len() == need && here.contains(n) && good(n)).cloned())
        .collect();
    let held: HashSet<&String> = slots.iter().flatten().collect();
    let holders: HashSet<&String> = before.iter().collect();
    let mut rest: Vec<&String> = allocation.iter().filter(|n| !held.contains(n)).collect();
    rest.retain(|n| standing(n) < Standing::GivenUp);
    // a stable sort: the good before the paused, else in the allocation's order
    rest.sort_by_key(|n| standing(n));
    let mut rest: VecDeque<&String> = rest.into();
    for (i, slot) in slots.iter_mut().enumerate().filter(|(_, s)| s.is_none()) {
        let best = standing(rest.front()?);
        let alike = rest.iter().take_while(|n| standing(n) == best);
        let next = match before.get(i).filter(|_| before.len() == need) {
            // who held it as a last resort keeps it, and its memory; else of those that hold none, of those as near the first
            Some(lost) => {
                let rank = |n: &String| (n != lost, holders.contains(n), Reverse(near(n, lost)));
                alike.enumerate().min_by_key(|(_, n)| rank(n))?.0
            }
            None => 0,
        };
        *slot = rest.remove(next).cloned();
    }
    let spares = rest.into_iter().filter(|n| good(n)).cloned().collect();
    Some(Placement { active: slots.into_iter().flatten().collect(), spares })
}

/// The largest number of data-parallel replicas below `now` that `ranks` ranks can hold, when one replica takes `others`
/// ranks and the global batch must stay a multiple of micro-batch × replicas. `None` where there is none.
pub fn fewer_replicas(ranks: usize, others: usize, now: usize, global: usize, micro: usize) -> Option<usize> {
    let most = (ranks / others.max(1)).min(now.saturating_sub(1));
    (1..=most).rev().find(|d| global.is_multiple_of(micro * d))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> Vec<String> {
        list.split_whitespace().map(str::to_string).collect()
    }

    fn placed(allocation: &str, before: &str, need: usize, bad: &str, out: &str) -> Option<(String, String)> {
        let (bad, out) = (names(bad), names(out));
        let standing = |n: &str| match n {
            n if out.iter().any(|o| o == n) => Standing::GivenUp,
            n if bad.iter().any(|b| b == n) => Standing::Paused,
            _ => Standing::Good,
        };
        // c, d and x are on one switch
        let near = |a: &str, b: &str| usize::from(a >= "c" && b >= "c");
        let p = place(&names(allocation), &names(before), need, standing, near)?;
        Some((p.active.join(" "), p.spares.join(" ")))
    }

    #[test]
    fn a_spare_takes_the_place_of_the_dead_and_nobody_else_moves() {
        let is = |active: &str, spares: &str| Some((active.to_string(), spares.to_string()));
        assert_eq!(placed("a b c d", "", 3, "", ""), is("a b c", "d"));
        assert_eq!(placed("a b c d", "", 3, "b", ""), is("a c d", ""));
        assert_eq!(placed("a b c d", "a b c", 3, "b", ""), is("a d c", ""));
        assert_eq!(placed("a b c d", "a d c", 3, "a b", ""), is("a d c", ""), "paused ones are the last resort");
        assert_eq!(placed("a b c d", "a b c", 3, "a b", ""), is("d b c", ""));
        // b failed, d took its place as a last resort and c fails now: d has what its ranks need in its memory
        assert_eq!(placed("a b c d e", "a d c", 3, "b d", ""), is("a e c", ""), "a good one before a paused one");
        assert_eq!(placed("a b c d", "a d c", 3, "b d", ""), is("a d c", ""), "of paused ones who holds the slot");
        assert_eq!(placed("a b c d", "a d c", 3, "b c d", ""), is("a d c", ""));
        assert_eq!(placed("a b c d", "a d c", 3, "b d", "a"), is("b d c", ""), "not who holds another slot");
        assert_eq!(placed("a b c d x y", "a b c", 3, "c", ""), is("a b d", "x y"));
        assert_eq!(placed("a b c aa ab d", "a b c", 3, "c", ""), is("a b d", "aa ab"), "the nearest");
        assert_eq!(placed("a b c aa ab d", "a b c", 3, "b c", ""), is("a aa d", "ab"));
        assert_eq!(placed("a b c aa d", "a b c", 3, "c d", ""), is("a b aa", ""), "a good one before a near one");
        assert_eq!(placed("a b c d", "a b c", 3, "", "a b"), None);
        assert_eq!(placed("a b", "", 3, "", ""), None);
        // Another number of slots than before: from the start.
        assert_eq!(placed("a b c", "a b c", 2, "a", ""), is("b c", ""));
    }

    #[test]
    fn fewer_replicas_keep_the_global_batch() {
        assert_eq!(fewer_replicas(3, 1, 4, 12, 1), Some(3));
        assert_eq!(fewer_replicas(3, 1, 4, 8, 1), Some(2));
        assert_eq!(fewer_replicas(12, 4, 4, 16, 2), Some(2));
        assert_eq!(fewer_replicas(3, 4, 4, 16, 1), None);
        assert_eq!(fewer_replicas(1, 1, 1, 16, 1), None);
    }
}

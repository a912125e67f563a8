//! How a judge's order to leave reaches every rank: down a tree of nodes, so that nobody sends to more than [`FAN`] nodes and
//! its own. One rank that told 2,048 leaders would open as many connections in the moment in which it leaves.
//!
//! The judge is the root. A node's first rank that the verdict leaves alive passes the order on: to its node, and to the nodes
//! below it. Nodes of which no rank is believed to live come last, and so have none below them that do. Whoever hears nothing,
//! since a node above it died in that moment, finds both judges silent and decides for itself.

use super::roster::{Roster, RosterNode};
use super::verdict::{Reason, Verdict};
use std::collections::HashSet;

/// Nodes below each node.
const FAN: usize = 32;

/// To whom `me` sends or passes on the verdict of a judge.
pub(super) fn next(roster: &Roster, me: usize, verdict: &Verdict) -> Vec<usize> {
    let gone = gone(verdict);
    let root = roster.node(verdict.accuser).ranks[0];
    let own = roster.node(me);
    let from_root = me == verdict.accuser;
    // beside the judge all have been told by itself
    if !from_root && (own.ranks[0] == root || speaker(own, &gone) != me) {
        return Vec::new();
    }
    let mut nodes: Vec<&RosterNode> = roster.nodes.iter().filter(|n| n.ranks[0] != root).collect();
    nodes.sort_by_key(|n| n.ranks.iter().all(|r| gone.contains(r)));
    // the judge stands before the first
    let place = match from_root {
        true => Some(0),
        false => nodes.iter().position(|n| n.ranks[0] == own.ranks[0]).map(|at| at + 1),
    };
    let below = place.map_or(0..0, |p| (p * FAN).min(nodes.len())..((p + 1) * FAN).min(nodes.len()));
    let others = own.ranks.iter().copied().filter(|&r| r != me);
    nodes[below].iter().map(|n| speaker(n, &gone)).chain(others).collect()
}

/// Ranks that are believed not to pass anything on: ended, silent, or late.
fn gone(verdict: &Verdict) -> HashSet<usize> {
    let silent = matches!(verdict.reason, Reason::MissedProbes | Reason::Signal);
    let named = verdict.ranks.iter().filter(|_| silent);
    named.copied().chain(verdict.evidence.suspects.iter().map(|s| s.rank)).collect()
}

/// Who hears for a node: its first rank that lives; its leader where none does.
fn speaker(node: &RosterNode, gone: &HashSet<usize>) -> usize {
    node.ranks.iter().copied().find(|r| !gone.contains(r)).unwrap_or(node.ranks[0])
}

#[cfg(test)]
mod tests {
    use super::super::roster::tests::grid;
    use super::super::verdict::tests::verdict;
    use super::super::verdict::Suspect;
    use super::*;
    use std::collections::BTreeMap;

    /// Hops after which each rank has heard, where `dead` ones pass nothing on, and the most that anybody sends.
    fn spread(roster: &Roster, verdict: &Verdict, dead: &[usize]) -> (BTreeMap<usize, usize>, usize) {
        let mut heard = BTreeMap::from([(verdict.accuser, 0)]);
        let (mut wave, mut most) = (vec![verdict.accuser], 0);
        for hop in 1.. {
            let speaks = |r: &&usize| !dead.contains(r);
            let sent: Vec<Vec<usize>> = wave.iter().filter(speaks).map(|&r| next(roster, r, verdict)).collect();
            most = sent.iter().map(Vec::len).max().unwrap_or(0).max(most);
            wave = sent.concat();
            if wave.is_empty() {
                break;
            }
            for &r in &wave {
                assert!(heard.insert(r, hop).is_none(), "rank {r} was told twice");
            }
        }
        (heard, most)
    }

    #[test]
    fn all_ranks_of_2048_nodes_are_told_once_by_few() {
        let roster = grid(0, 2048, 8);
        for accuser in [0, 8] {
            let (heard, most) = spread(&roster, &verdict(accuser, Reason::WireStalled, &[0, 8, 77]), &[]);
            assert_eq!((heard.len(), most), (16_384, FAN + 7));
            assert!(heard.values().all(|&hops| hops <= 4), "{:?}", heard.values().max());
        }
    }

    #[test]
    fn what_is_gone_passes_nothing_on_and_need_not() {
        let roster = grid(0, 300, 2);
        // A node, the leader of another, and one that is late.
        let dead = [2, 3, 8, 20, 21];
        let mut v = verdict(0, Reason::MissedProbes, &[2, 3, 8]);
        let late = |rank| Suspect { rank, node: String::new(), age_s: 1.0 };
        v.evidence.suspects = vec![late(20), late(21)];
        let (heard, _) = spread(&roster, &v, &dead);
        let missing: Vec<usize> = (0..600).filter(|r| !heard.contains_key(r)).collect();
        assert_eq!(missing, [3, 21], "beside a leader that is gone too");
        // The deputy where the monitor's process alone has ended: the other rank of its node speaks for it.
        let (heard, _) = spread(&roster, &verdict(2, Reason::Signal, &[0]), &[0]);
        assert_eq!(heard.len(), 600);
    }

    #[test]
    fn one_node() {
        let roster = grid(0, 1, 3);
        assert_eq!(next(&roster, 1, &verdict(1, Reason::MissedProbes, &[0])), [0, 2]);
        assert!(next(&roster, 2, &verdict(1, Reason::MissedProbes, &[0])).is_empty());
    }
}

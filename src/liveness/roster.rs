//! Who is where, and who speaks to whom.
//!
//! A rank reports to its node's *leader* (the node's lowest rank), a leader to the *monitor* (the first node's leader). The
//! *deputy*, the leader of another node, is who they turn to when the one above them is silent; it judges the monitor. So
//! a node sends one message an interval, and no rank's loss is special.

use std::sync::Arc;

/// A node with ranks of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct RosterNode {
    pub name: String,
    /// World ranks, ascending; the first leads.
    pub ranks: Vec<usize>,
}

/// The ranks of one attempt, seen from one of them. Clones share what is as long as the world.
#[derive(Clone, Debug)]
pub struct Roster {
    /// Number of the attempt, which every start of the run raises.
    pub attempt: u64,
    /// World rank from whose side this is seen.
    pub rank: usize,
    /// In order of their leaders.
    pub nodes: Arc<Vec<RosterNode>>,
    /// Node of each rank.
    node_of: Arc<Vec<u32>>,
    /// Sizes of the axes: which ranks have the same work.
    pub sizes: [usize; 4],
}

impl Roster {
    /// `places`: leader and node name of each rank.
    pub fn new(attempt: u64, rank: usize, sizes: [usize; 4], places: &[(usize, String)]) -> Roster {
        let mut leaders: Vec<usize> = places.iter().map(|(leader, _)| *leader).collect();
        leaders.sort_unstable();
        leaders.dedup();
        let mut nodes: Vec<RosterNode> =
            leaders.iter().map(|&l| RosterNode { name: places[l].1.clone(), ranks: Vec::new() }).collect();
        let mut node_of = Vec::with_capacity(places.len());
        for (r, (leader, _)) in places.iter().enumerate() {
            let node = leaders.partition_point(|l| l < leader);
            nodes[node].ranks.push(r);
            node_of.push(node as u32);
        }
        Roster { attempt, rank, nodes: nodes.into(), node_of: node_of.into(), sizes }
    }

    /// Ranks of the world.
    pub fn size(&self) -> usize {
        self.node_of.len()
    }

    /// Node of a rank; a number that is no rank is on the first.
    pub fn node(&self, rank: usize) -> &RosterNode {
        &self.nodes[self.node_of.get(rank).map_or(0, |&n| n as usize)]
    }

    /// The lowest world rank on the node of `rank`.
    pub fn leader(&self, rank: usize) -> usize {
        self.node(rank).ranks[0]
    }

    /// Whether `rank` leads its node.
    pub fn is_leader(&self, rank: usize) -> bool {
        self.leader(rank) == rank
    }

    /// World ranks that lead, one a node, ascending.
    pub fn leaders(&self) -> impl Iterator<Item = usize> + '_ {
        self.nodes.iter().map(|n| n.ranks[0])
    }

    /// World rank that judges all others: the first node's leader.
    pub fn monitor(&self) -> usize {
        self.nodes[0].ranks[0]
    }

    /// The second node's leader; on one node its second rank.
    pub fn deputy(&self) -> Option<usize> {
        match self.nodes.get(1) {
            Some(node) => Some(node.ranks[0]),
            None => self.nodes[0].ranks.get(1).copied(),
        }
    }

    /// Whom a rank reports to; nobody is above the monitor.
    pub fn above(&self, rank: usize) -> Option<usize> {
        let above = if self.is_leader(rank) { self.monitor() } else { self.leader(rank) };
        (above != rank).then_some(above)
    }

    /// Whom a rank turns to when the one above it is silent. The deputy turns to itself.
    pub fn second(&self, rank: usize) -> Option<usize> {
        match self.above(rank)? {
            above if above == self.monitor() => self.deputy(),
            _ => Some(self.monitor()),
        }
    }

    /// Who reports to a rank: its node if it leads, and all leaders if it is the monitor.
    pub fn below(&self, rank: usize) -> Vec<usize> {
        let mut out = Vec::new();
        if self.is_leader(rank) {
            out.extend(self.node(rank).ranks.iter().copied().filter(|&r| r != rank));
        }
        if rank == self.monitor() {
            out.extend(self.leaders().filter(|&l| l != rank));
        }
        out
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `nodes` nodes of `per_node` ranks, all on the data axis.
    pub fn grid(rank: usize, nodes: usize, per_node: usize) -> Roster {
        let places: Vec<(usize, String)> =
            (0..nodes * per_node).map(|r| (r / per_node * per_node, format!("n{}", r / per_node))).collect();
        Roster::new(2, rank, [1, 1, 1, nodes * per_node], &places)
    }

    #[test]
    fn everybody_has_somebody_to_turn_to() {
        let r = grid(0, 3, 2);
        assert_eq!((r.monitor(), r.deputy()), (0, Some(2)));
        let lines: Vec<_> = (0..6).map(|x| (r.above(x), r.second(x))).collect();
        assert_eq!(lines[0], (None, None));
        assert_eq!(lines[1], (Some(0), Some(2)), "beside the monitor");
        assert_eq!(lines[2], (Some(0), Some(2)), "the deputy turns to itself");
        assert_eq!(lines[3], (Some(2), Some(0)));
        assert_eq!(lines[4], (Some(0), Some(2)));
        assert_eq!(lines[5], (Some(4), Some(0)));
        assert_eq!(r.below(0), [1, 2, 4]);
        assert_eq!((r.below(2), r.below(5)), (vec![3], vec![]));
        let one = grid(0, 1, 3);
        assert_eq!((one.deputy(), one.above(1), one.second(1), one.second(2)), (Some(1), Some(0), Some(1), Some(1)));
        assert_eq!(grid(0, 1, 1).deputy(), None);
    }

    #[test]
    fn ranks_dealt_round_the_nodes() {
        let places: Vec<(usize, String)> = (0..6).map(|r| (r % 2, format!("n{}", r % 2))).collect();
        let r = Roster::new(0, 3, [1, 1, 1, 6], &places);
        assert_eq!(r.nodes[1], RosterNode { name: "n1".into(), ranks: vec![1, 3, 5] });
        assert_eq!((r.leader(4), r.leader(5), r.above(3)), (0, 1, Some(1)));
    }
}

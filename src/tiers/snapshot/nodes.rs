//! Which ranks share a node's memory, and which rank keeps the second copy of whose snapshot.

use crate::config::Partner;
use crate::error::{Error, Exit, Result};
use crate::world::World;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The ranks by nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Nodes {
    /// For each rank the lowest rank of its node, which speaks for the node.
    pub leader: Vec<usize>,
    /// For each rank the switch its node hangs on; empty where nobody knows.
    switch: Vec<String>,
}

impl Nodes {
    /// Ranks are of one node when they see one host name and one `snapshot_dir`. Collective.
    pub fn by_snapshot_dir(snapshot_dir: &Path, world: &World) -> Result<Nodes> {
        let seen = std::fs::metadata(snapshot_dir).map(|m| format!("{}:{}", m.dev(), m.ino())).unwrap_or_default();
        // srun(1): SLURM_TOPOLOGY_ADDR is the path of names from the top switch down to the node.
        let address = std::env::var("SLURM_TOPOLOGY_ADDR").unwrap_or_default();
        let switch = address.rsplit_once('.').map_or("", |(above, _)| above);
        let all = world.all_gather_bytes(format!("{}\n{seen}\n{switch}", world.host()).as_bytes())?;
        let texts: Vec<String> = all.iter().map(|b| String::from_utf8_lossy(b).into_owned()).collect();
        let parts: Vec<(&str, &str)> = texts.iter().map(|t| t.rsplit_once('\n').unwrap_or((t, ""))).collect();
        let mut first = HashMap::new();
        let leader = parts.iter().enumerate().map(|(rank, p)| *first.entry(p.0).or_insert(rank)).collect();
        Ok(Nodes { leader, switch: parts.iter().map(|p| p.1.to_string()).collect() })
    }

    /// Nodes of one rank each, on these switches.
    pub fn single(switches: Vec<String>) -> Nodes {
        Nodes { leader: (0..switches.len()).collect(), switch: switches }
    }

    /// Leaders of all nodes, in order.
    pub fn leaders(&self) -> Vec<usize> {
        (0..self.leader.len()).filter(|&r| self.leader[r] == r).collect()
    }

    /// Ranks of the node for which `leader` speaks, ascending, itself among them.
    pub fn members(&self, leader: usize) -> Vec<usize> {
        (0..self.leader.len()).filter(|&r| self.leader[r] == leader).collect()
    }

    /// For each rank the rank that keeps its second copy; `None` where there is nobody.
    ///
    /// Nodes make a ring in which neighbours are behind different switches as far as their numbers allow; a node's ranks
    /// go to the next node's, one each where it has as many.
    pub fn partners(&self, rule: Partner) -> Option<Vec<usize>> {
        let size = self.leader.len();
        match rule {
            Partner::Off => None,
            Partner::Rank => (size > 1).then(|| (0..size).map(|r| (r + 1) % size).collect()),
            Partner::Node => {
                let ring = self.ring();
                if ring.len() < 2 {
                    return None;
                }
                let members = self.by_leader();
                let mut to = vec![0; size];
                for (i, leader) in ring.iter().enumerate() {
                    let next = &members[&ring[(i + 1) % ring.len()]];
                    members[leader].iter().enumerate().for_each(|(j, &r)| to[r] = next[j % next.len()]);
                }
                Some(to)
            }
        }
    }

    /// The ranks of each node, ascending.
    fn by_leader(&self) -> HashMap<usize, Vec<usize>> {
        let mut members: HashMap<usize, Vec<usize>> = HashMap::new();
        self.leader.iter().enumerate().for_each(|(rank, &leader)| members.entry(leader).or_default().push(rank));
        members
    }

    /// Leaders, one of each switch in turn.
    fn ring(&self) -> Vec<usize> {
        let mut by_switch: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        self.leaders().into_iter().for_each(|l| by_switch.entry(&self.switch[l]).or_default().push(l));
        // Position of a node among its switch's, as a share of them: spreads large switches over the whole ring.
        let mut spread: Vec<(usize, usize, usize)> = Vec::new();
        for nodes in by_switch.values() {
            spread.extend(
                nodes.iter().enumerate().map(|(i, &l)| ((2 * i + 1) * (1 << 20) / nodes.len(), nodes.len(), l)),
            );
        }
        spread.sort_unstable();
        spread.into_iter().map(|s| s.2).collect()
    }
}

/// An error when what a node's ranks are going to allocate does not fit its memory filesystem. Collective.
pub fn check_room(nodes: &Nodes, need: u64, free: u64, dir: &Path, world: &World) -> Result<()> {
    let all = world.all_gather_bytes(&need.to_le_bytes())?;
    let need_of = |r: &usize| u64::from_le_bytes(all[*r][..].try_into().unwrap_or_default());
    let members = nodes.members(nodes.leader[world.rank()]);
    let sum: u64 = members.iter().map(need_of).sum();
    world.agree(match sum <= free {
        true => Ok(()),
        false => Err(Error::new(
            Exit::Storage,
            format!(
                "snapshots of {} ranks need {sum} bytes on this node, but {} has {free} bytes free",
                members.len(),
                dir.display()
            ),
        )
        .hint("enlarge it (mount -o remount,size=…), set checkpoint.partner=off, or checkpoint.snapshot_every=0")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(per_node: &[usize], switches: &[&str]) -> Nodes {
        let (mut leader, mut switch) = (Vec::new(), Vec::new());
        for (n, s) in per_node.iter().zip(switches) {
            let first = leader.len();
            leader.extend(vec![first; *n]);
            switch.extend(vec![s.to_string(); *n]);
        }
        Nodes { leader, switch }
    }

    #[test]
    fn a_copy_never_stays_on_its_node() {
        for per_node in [&[2, 2][..], &[1, 3], &[4, 1, 2], &[1; 7]] {
            let n = nodes(per_node, &vec![""; per_node.len()]);
            let to = n.partners(Partner::Node).unwrap();
            assert!(to.iter().enumerate().all(|(r, &p)| n.leader[r] != n.leader[p]), "{to:?}");
        }
        assert_eq!(nodes(&[4], &[""]).partners(Partner::Node), None);
        assert_eq!(nodes(&[2], &[""]).partners(Partner::Rank), Some(vec![1, 0]));
        assert_eq!(nodes(&[2, 2], &["", ""]).partners(Partner::Off), None);
    }

    #[test]
    fn even_nodes_keep_one_copy_a_rank() {
        let mut to = nodes(&[2, 2, 2], &["", "", ""]).partners(Partner::Node).unwrap();
        to.sort_unstable();
        assert_eq!(to, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn neighbours_are_behind_different_switches() {
        for switches in [&["a", "a", "b", "b"][..], &["a", "a", "a", "b", "b", "b"], &["a", "b", "c", "a", "b", "c"]] {
            let n = nodes(&vec![1; switches.len()], switches);
            let to = n.partners(Partner::Node).unwrap();
            assert!(to.iter().enumerate().all(|(r, &p)| switches[r] != switches[p]), "{switches:?} {to:?}");
        }
    }
}

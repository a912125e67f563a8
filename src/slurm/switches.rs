//! Which nodes share a switch, as Slurm's topology plugins know it (scontrol(1), `show topology`; topology.conf(5)): a tree of
//! switches, or blocks. A site that has told Slurm nothing has no order but that of its nodes.

use super::hostlist::expand;
use super::process::{command, output};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

/// The switches above each node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// From the highest to the leaf, by their places in Slurm's list.
    above: HashMap<String, Vec<usize>>,
}

impl Switches {
    /// Asks Slurm; none where it does not answer, which is said.
    pub fn ask() -> Switches {
        let shown = output(command("scontrol", &["show", "topology"]), LIMIT).unwrap_or_else(|e| {
            tracing::warn!("scontrol show topology was not answered, so nodes keep the order of the allocation: {e}");
            String::new()
        });
        Switches::read(&shown)
    }

    fn read(shown: &str) -> Switches {
        let value = |line: &str, key: &str| {
            line.split_whitespace().find_map(|w| w.strip_prefix(key)?.strip_prefix('=').map(str::to_string))
        };
        let lines = shown.lines().filter(|l| value(l, "SwitchName").or(value(l, "BlockName")).is_some());
        let mut switches: Vec<(Reverse<u64>, usize, Vec<String>)> = Vec::new();
        for (place, line) in lines.enumerate() {
            let level = value(line, "Level").and_then(|l| l.parse().ok()).unwrap_or(0);
            let nodes = value(line, "Nodes").and_then(|list| expand(&list).ok()).unwrap_or_default();
            switches.push((Reverse(level), place, nodes));
        }
        switches.sort();
        let mut above: HashMap<String, Vec<usize>> = HashMap::new();
        for (_, place, nodes) in switches {
            nodes.into_iter().for_each(|node| above.entry(node).or_default().push(place));
        }
        Switches { above }
    }

    /// The nodes with those of a switch together, at each level of the tree; within a switch as they were. Nodes that no switch
    /// has come last.
    pub fn in_order(&self, nodes: &[String]) -> Vec<String> {
        let mut out = nodes.to_vec();
        out.sort_by_key(|n| (!self.above.contains_key(n), self.above.get(n)));
        out
    }

    /// How many switches are above both.
    pub fn shared(&self, a: &str, b: &str) -> usize {
        match (self.above.get(a), self.above.get(b)) {
            (Some(a), Some(b)) => a.iter().zip(b).take_while(|(a, b)| a == b).count(),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Slurm 22.05 prints a tree.
    const TREE: &str = "SwitchName=s0 Level=0 LinkSpeed=1 Nodes=n[1,3] \nSwitchName=s1 Level=0 LinkSpeed=1 Nodes=n[2,4] \n\
        SwitchName=s2 Level=0 LinkSpeed=1 Nodes=n[5-6] \nSwitchName=top1 Level=1 LinkSpeed=1 Nodes=n[1,3,5-6] Switches=s[0,2] \n\
        SwitchName=top2 Level=1 LinkSpeed=1 Nodes=n[2,4] Switches=s1 \n";
    const BLOCKS: &str =
        "BlockName=b1 BlockIndex=0 Nodes=n[2,4] BlockSize=2\nBlockName=b2 BlockIndex=1 Nodes=n[1,3] BlockSize=2\n";

    fn order(shown: &str, nodes: &str) -> String {
        Switches::read(shown).in_order(&expand(nodes).unwrap()).join(" ")
    }

    #[test]
    fn nodes_of_a_switch_stand_together() {
        assert_eq!(order(TREE, "n[0-6]"), "n1 n3 n5 n6 n2 n4 n0");
        assert_eq!(order(TREE, "n[6,4,3]"), "n3 n6 n4");
        assert_eq!(order(BLOCKS, "n[1-4]"), "n2 n4 n1 n3");
        for none in ["", "There is no topology information available\n", "SwitchName=s0 Level=0 Nodes=n[1-\n"] {
            assert_eq!(order(none, "n[3,1-2]"), "n3 n1 n2");
        }
    }

    #[test]
    fn near_is_how_many_switches_are_shared() {
        let s = Switches::read(TREE);
        assert_eq!([("n1", "n3"), ("n1", "n6"), ("n1", "n2"), ("n1", "n9")].map(|(a, b)| s.shared(a, b)), [2, 1, 0, 0]);
    }
}

//! One row of the table: what was looked at, how it is, who is meant, and the cure.

use crate::slurm::compress;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a check came out. The order is that of the table, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Light {
    /// A run would fail, be wrong or be far slower.
    Red,
    /// A run works, and something about it is worth a look.
    Amber,
    /// Nothing here stands in a run's way.
    Green,
    /// Not measured; the fact says why.
    Skipped,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Stable, lower case, as docs/doctor.md lists them.
    pub name: String,
    /// How it came out; rows are sorted by it.
    pub light: Light,
    /// Nodes that are meant; none where all are alike, or nobody can be named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// The two ends of a link that is meant, where neither of its nodes is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<(String, String)>,
    /// What was found, with every number.
    pub fact: String,
    /// What to do about it, on red and amber rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Check {
    fn new(name: &str, light: Light, fact: impl Into<String>) -> Check {
        Check { name: name.into(), light, nodes: Vec::new(), link: None, fact: fact.into(), cure: None }
    }

    /// A row that is well, without a cure.
    pub fn green(name: &str, fact: impl Into<String>) -> Check {
        Check::new(name, Light::Green, fact)
    }

    /// A row that was not measured; `why` becomes its fact.
    pub fn skipped(name: &str, why: impl Into<String>) -> Check {
        Check::new(name, Light::Skipped, why)
    }

    /// A row that is worth a look, with its cure.
    pub fn amber(name: &str, fact: impl Into<String>, cure: impl Into<String>) -> Check {
        Check { cure: Some(cure.into()), ..Check::new(name, Light::Amber, fact) }
    }

    /// A row that stops or spoils a run, with its cure.
    pub fn red(name: &str, fact: impl Into<String>, cure: impl Into<String>) -> Check {
        Check { cure: Some(cure.into()), ..Check::new(name, Light::Red, fact) }
    }

    /// The same, of these nodes.
    pub fn on<S: ToString>(self, nodes: impl IntoIterator<Item = S>) -> Check {
        Check { nodes: nodes.into_iter().map(|n| n.to_string()).collect(), ..self }
    }

    /// The same, of the link between two nodes.
    pub fn between(self, a: &str, b: &str) -> Check {
        Check { link: Some((a.into(), b.into())), ..self }
    }

    /// Who is meant, for people.
    pub fn who(&self) -> String {
        match (&self.link, self.nodes.is_empty()) {
            (Some((a, b)), _) => format!("{a} – {b}"),
            (None, true) => "all".into(),
            (None, false) => compress(&self.nodes),
        }
    }
}

/// How long a part of the examination took, and by what it grows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartTime {
    /// `look`, `clock`, `storage`, `speed`, `links`, or `again` for what was measured once more.
    pub name: String,
    /// Wall clock on rank 0.
    pub seconds: f64,
    /// Rounds in which pairs of nodes met; 0: each node works by itself, in the same time whatever their number.
    pub rounds: usize,
}

/// All rows, worst first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Names of all nodes that were to be examined, those that did not answer included.
    pub nodes: Vec<String>,
    /// Ranks of the examination, on all nodes together.
    pub ranks: usize,
    /// Sorted by light.
    pub checks: Vec<Check>,
    /// In the order in which they ran; none where the ranks did not come together.
    pub parts: Vec<PartTime>,
    /// Bytes of facts that came to rank 0.
    pub bytes: usize,
    /// Wall clock of the whole examination.
    pub seconds: f64,
}

impl Diagnosis {
    /// Of rows in any order; parts, bytes and seconds are left empty.
    pub fn new(nodes: Vec<String>, ranks: usize, mut checks: Vec<Check>) -> Diagnosis {
        checks.sort_by_key(|c| c.light);
        Diagnosis { nodes, ranks, checks, parts: Vec::new(), bytes: 0, seconds: 0.0 }
    }

    /// Further rows, in their places.
    pub fn add(&mut self, more: Vec<Check>) {
        self.checks.extend(more);
        self.checks.sort_by_key(|c| c.light);
    }

    /// Rows that came out so.
    pub fn count(&self, light: Light) -> usize {
        self.checks.iter().filter(|c| c.light == light).count()
    }

    /// Nodes that a red row names, each with the names of those rows. A row that names all nodes, of several, says that the site is
    /// at fault and no node.
    pub fn bad_nodes(&self) -> BTreeMap<String, Vec<String>> {
        let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let all = self.nodes.len();
        let named = |c: &&Check| c.light == Light::Red && (c.nodes.len() < all || all == 1);
        for c in self.checks.iter().filter(named) {
            for node in &c.nodes {
                let rows = out.entry(node.clone()).or_default();
                if !rows.contains(&c.name) {
                    rows.push(c.name.clone());
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_a_fault_of_all_blames_no_node() {
        let names = ["n1", "n2", "n3"];
        let checks = vec![
            Check::green("kernel", "one"),
            Check::red("storage", "full", "free space").on(names),
            Check::skipped("gpu", "none"),
            Check::amber("cpu", "two kinds", "look").on(["n2"]),
            Check::red("clock", "3 s", "ntp").on(["n3"]),
            Check::red("links", "slow", "cable").between("n1", "n2"),
        ];
        let d = Diagnosis::new(names.map(String::from).to_vec(), 3, checks);
        let lights: Vec<Light> = d.checks.iter().map(|c| c.light).collect();
        assert!(lights.is_sorted(), "{lights:?}");
        assert_eq!((d.count(Light::Red), d.count(Light::Amber)), (3, 1));
        let bad = d.bad_nodes();
        assert_eq!(bad.keys().collect::<Vec<_>>(), ["n3"]);
        assert_eq!(bad["n3"], ["clock"]);
        assert_eq!(d.checks[0].who(), "n[1-3]");
        assert_eq!(d.checks[2].who(), "n1 – n2");
    }
}

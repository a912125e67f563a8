//! The same programs, libraries and configuration on every node.

use super::compare::{agreement, Agreement};
use crate::doctor::check::{Check, Light};
use crate::doctor::facts::HostFacts;
use crate::slurm::compress;

/// Name, how bad a difference is, and what cures it.
const RULES: &[(&str, Light, &str)] = &[
    ("herd", Light::Red, "install herd once on shared storage, or the same build on every node"),
    ("libtorch", Light::Red, "point LD_LIBRARY_PATH and the module at one libtorch on every node"),
    ("libtorch cuda", Light::Red, "point LD_LIBRARY_PATH and the module at one libtorch on every node"),
    ("mpi", Light::Red, "load the same MPI module on every node"),
    ("mpi library", Light::Red, "install the same build of MPI on every node"),
    ("configuration", Light::Red, "keep the configuration on shared storage; only rank 0's copy is read by herd train"),
    ("driver", Light::Red, "install the same NVIDIA driver on every node"),
    ("nccl", Light::Red, "load the same NCCL on every node"),
    ("kernel", Light::Amber, "reboot the node into the others' kernel"),
    ("glibc", Light::Amber, "install the node as the others are"),
    ("cpu", Light::Amber, "ask Slurm for one kind of node (--constraint): steps go at the pace of the slowest, and a resume on other CPUs has other bits"),
];

/// Nodes that are listed with their values; more are counted.
const LISTED: usize = 4;

pub fn judge(hosts: &[HostFacts]) -> Vec<Check> {
    let driver = hosts.iter().any(|h| h.software.contains_key("driver"));
    let mut out = Vec::new();
    for (name, light, cure) in RULES {
        let value = |h: &HostFacts| h.software.get(*name).cloned().unwrap_or_else(|| "none".into());
        let values: Vec<(String, String)> = hosts.iter().map(|h| (h.node.clone(), value(h))).collect();
        let differs = |fact: String| match light {
            Light::Red => Check::red(name, fact, *cure),
            _ => Check::amber(name, fact, *cure),
        };
        match agreement(&values) {
            Agreement::Same(v) if v == "none" => {
                if *name == "driver" && !driver {
                    out.push(Check::skipped(name, "no NVIDIA driver on any node"));
                }
            }
            Agreement::Same(v) => out.push(Check::green(name, v)),
            Agreement::Most { usual, others } => {
                let mut each: Vec<String> = others.iter().take(LISTED).map(|(n, v)| format!("{n}: {v}")).collect();
                if others.len() > LISTED {
                    each.push(format!("and {} more", others.len() - LISTED));
                }
                let fact = format!("{}; the others have {usual}", each.join(", "));
                out.push(differs(fact).on(others.iter().map(|(n, _)| n)));
            }
            Agreement::Split(groups) => {
                let each: Vec<String> = groups.iter().map(|(v, nodes)| format!("{}: {v}", compress(nodes))).collect();
                out.push(differs(format!("{}; neither is in the majority", each.join(", "))));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(node: &str, software: &[(&str, &str)]) -> HostFacts {
        let software = software.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        HostFacts { node: node.into(), software, ..HostFacts::default() }
    }

    #[test]
    fn the_node_that_differs_is_named_and_two_that_differ_are_not() {
        let same = [("herd", "a"), ("libtorch", "x"), ("kernel", "6.1")];
        let hosts =
            [host("n1", &same), host("n2", &[same[0], ("libtorch", "y"), ("kernel", "6.2")]), host("n3", &same)];
        let found = judge(&hosts);
        let row = |name: &str| found.iter().find(|c| c.name == name).unwrap();
        assert_eq!((row("libtorch").light, row("libtorch").who()), (Light::Red, "n2".into()));
        assert_eq!(row("libtorch").fact, "n2: y; the others have x");
        assert_eq!((row("kernel").light, row("herd").light), (Light::Amber, Light::Green));
        assert_eq!(row("driver").light, Light::Skipped);
        assert!(!found.iter().any(|c| c.name == "nccl"));
        let two = judge(&hosts[..2]);
        let row = two.iter().find(|c| c.name == "libtorch").unwrap();
        assert!(row.light == Light::Red && row.nodes.is_empty() && row.fact.contains("n1: x, n2: y"), "{row:?}");
        // a library that one node does not have
        let found = judge(&[hosts[0].clone(), host("n2", &[("herd", "a"), ("kernel", "6.1")]), hosts[2].clone()]);
        assert_eq!(found.iter().find(|c| c.name == "libtorch").unwrap().who(), "n2");
    }
}

//! An examination that did not come to its end: what the ranks waited for says which node or link did not answer.

use crate::doctor::check::Check;
use crate::doctor::watchdog::StalledWait;
use std::collections::BTreeMap;

const CURE: &str = "see whether the node answers ping and ssh, and whether its firewall lets all TCP ports of the cluster's network through";

/// `nodes`: all that take part; `said`: what their ranks waited for, as far as they said it.
pub fn judge(nodes: &[String], said: &[StalledWait]) -> Vec<Check> {
    let mut out = Vec::new();
    let silent: Vec<&String> = nodes.iter().filter(|n| !said.iter().any(|w| &&w.node == n)).collect();
    if !said.is_empty() && !silent.is_empty() && silent.len() < nodes.len() {
        let fact = "its rank said nothing when the time was up";
        out.push(Check::red("mpi reach", fact, CURE).on(silent.iter().map(|n| n.as_str())));
    }
    // a pair that waits for each other has a dead link; who is waited for by several is dead itself
    let mut waited: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for w in said {
        if let Some(peer) = &w.peer {
            waited.entry(peer).or_default().push(&w.node);
        }
    }
    let mut told: Vec<(&str, &str)> = Vec::new();
    for (peer, by) in &waited {
        if silent.iter().any(|s| s == peer) {
            continue;
        }
        if by.len() > 1 {
            let fact = format!("{} waited for its messages in vain", by.join(", "));
            out.push(Check::red("mpi reach", fact, CURE).on([peer]));
            continue;
        }
        let by = by[0];
        let each_other = waited.get(by).is_some_and(|others| others.contains(peer));
        let pair = if by < *peer { (by, *peer) } else { (*peer, by) };
        if each_other && !told.contains(&pair) {
            told.push(pair);
            out.push(
                Check::red("mpi reach", "each waited for the other's messages in vain", CURE).between(pair.0, pair.1),
            );
        }
    }
    if out.is_empty() {
        let parts: Vec<String> = said
            .iter()
            .take(4)
            .map(|w| match &w.peer {
                Some(peer) => format!("{} waited for {peer} ({})", w.node, w.part),
                None => format!("{} waited for all ({})", w.node, w.part),
            })
            .collect();
        let fact = match parts.is_empty() {
            true => "the ranks did not start, or did not find each other through MPI".to_string(),
            false => format!("the examination did not come to its end: {}", parts.join("; ")),
        };
        out.push(Check::red(
            "mpi reach",
            fact,
            "see srun's words above; try `srun --mpi=list` and an MPI hello world on these nodes",
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(node: &str, peer: Option<&str>) -> StalledWait {
        StalledWait { node: node.into(), part: "links".into(), peer: peer.map(String::from) }
    }

    #[test]
    fn a_dead_link_a_dead_node_or_nobody() {
        let nodes: Vec<String> = ["n1", "n2", "n3", "n4"].map(String::from).to_vec();
        let link = [waiting("n1", Some("n2")), waiting("n2", Some("n1")), waiting("n3", None), waiting("n4", None)];
        let found = judge(&nodes, &link);
        assert_eq!((found.len(), found[0].who()), (1, "n1 – n2".into()), "{found:?}");
        let node = [waiting("n1", Some("n3")), waiting("n2", Some("n3")), waiting("n4", None)];
        let found = judge(&nodes, &node);
        assert_eq!((found.len(), found[0].who()), (1, "n3".into()), "{found:?}");
        assert!(judge(&nodes, &[])[0].nodes.is_empty());
    }
}

//! What each node's resolver makes of its peers' names: whose resolver is wrong, or which name.

use super::compare::{agreement, Agreement};
use crate::doctor::check::Check;
use crate::doctor::facts::HostFacts;
use std::collections::{BTreeMap, BTreeSet};

const CURE: &str = "mend DNS or /etc/hosts there: getent hosts NAME";

pub fn judge(hosts: &[HostFacts]) -> Vec<Check> {
    let asked: usize = hosts.iter().map(|h| h.names.len()).sum();
    if asked == 0 {
        return vec![Check::skipped("names", "no peers to look up")];
    }
    // (who asked, for which name), with the resolver's words
    let mut failed: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for h in hosts {
        let bad = h.names.iter().filter_map(|(name, r)| Some((name.as_str(), r.as_ref().err()?.as_str())));
        failed.extend(bad.map(|(name, why)| ((h.node.as_str(), name), why)));
    }
    if failed.len() == asked {
        let fact = "no node resolves any other's name: herd itself needs none, ssh and mpirun do";
        return vec![Check::amber("names", fact, CURE)];
    }
    let mut out = Vec::new();
    // whoever fails most often, as a name or as the one that asks, explains its failures first
    while let Some((&(by, name), why)) = failed.iter().next() {
        let names: BTreeSet<&str> = failed.keys().map(|k| k.1).collect();
        let askers: BTreeSet<&str> = failed.keys().map(|k| k.0).collect();
        let as_name = |n: &str| failed.keys().filter(|k| k.1 == n).count();
        let as_asker = |n: &str| failed.keys().filter(|k| k.0 == n).count();
        let worst_name = names.iter().copied().max_by_key(|n| as_name(n)).unwrap_or(name);
        let worst_asker = askers.iter().copied().max_by_key(|n| as_asker(n)).unwrap_or(by);
        let why = why.to_string();
        let check = match as_name(worst_name) > as_asker(worst_asker) {
            true => {
                let fact = format!("the name {worst_name} is not resolved by {} nodes: {why}", as_name(worst_name));
                Check::red("names", fact, CURE).on([worst_name])
            }
            false => {
                let mine: Vec<&str> = failed.keys().filter(|k| k.0 == worst_asker).map(|k| k.1).take(4).collect();
                let fact = format!("does not resolve {}: {why}", mine.join(", "));
                Check::red("names", fact, CURE).on([worst_asker])
            }
        };
        let by_name = as_name(worst_name) > as_asker(worst_asker);
        let (worst_name, worst_asker) = (worst_name.to_string(), worst_asker.to_string());
        failed.retain(|k, _| if by_name { k.1 != worst_name } else { k.0 != worst_asker });
        out.push(check);
    }
    out.extend(addresses(hosts));
    if out.is_empty() {
        out.push(Check::green("names", format!("{asked} look-ups, every one of them answered alike")));
    }
    out
}

/// One name, several addresses. A node may know its own name by another one (127.0.1.1 on Debian).
fn addresses(hosts: &[HostFacts]) -> Vec<Check> {
    let mut by_name: BTreeMap<&String, Vec<(String, String)>> = BTreeMap::new();
    for h in hosts {
        for (name, found) in h.names.iter().filter(|(name, _)| **name != h.node) {
            if let Ok(address) = found {
                by_name.entry(name).or_default().push((h.node.clone(), address.clone()));
            }
        }
    }
    let mut out = Vec::new();
    for (name, values) in by_name {
        let cure = "give one name one address on every node";
        match agreement(&values) {
            Agreement::Same(_) => {}
            Agreement::Most { usual, others } => {
                let fact = format!("{name} is {} here and {usual} elsewhere", others[0].1);
                out.push(Check::amber("names", fact, cure).on(others.iter().map(|(n, _)| n)));
            }
            Agreement::Split(groups) => {
                let each: Vec<String> = groups.into_iter().map(|(a, _)| a).collect();
                out.push(Check::amber("names", format!("{name} has several addresses: {}", each.join(", ")), cure));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Light;

    fn hosts(bad: impl Fn(usize, usize) -> bool) -> Vec<HostFacts> {
        let name = |i: usize| format!("n{i}");
        let host = |i: usize| {
            let found =
                |j: usize| if bad(i, j) { Err("Name or service not known".into()) } else { Ok(format!("10.0.0.{j}")) };
            HostFacts {
                node: name(i),
                names: (0..4).filter(|j| *j != i).map(|j| (name(j), found(j))).collect(),
                ..HostFacts::default()
            }
        };
        (0..4).map(host).collect()
    }

    #[test]
    fn a_name_or_a_resolver_is_named() {
        assert_eq!(judge(&hosts(|_, _| false))[0].light, Light::Green);
        for (bad, who, words) in [
            (&(|_: usize, j: usize| j == 2) as &dyn Fn(usize, usize) -> bool, "n2", "is not resolved by 3 nodes"),
            (&|i, _| i == 3, "n3", "does not resolve n0, n1, n2"),
            (&|i, j| (i, j) == (1, 2), "n1", "does not resolve n2"),
        ] {
            let found = judge(&hosts(bad));
            assert_eq!((found.len(), found[0].light, found[0].who()), (1, Light::Red, who.to_string()), "{found:?}");
            assert!(found[0].fact.contains(words), "{found:?}");
        }
        assert_eq!(judge(&hosts(|_, _| true))[0].light, Light::Amber);
    }

    #[test]
    fn an_address_that_differs_on_one_node() {
        let mut all = hosts(|_, _| false);
        all[0].names.insert("n2".into(), Ok("10.9.9.9".into()));
        let found = judge(&all);
        assert_eq!((found.len(), found[0].light, found[0].who()), (1, Light::Amber, "n0".into()), "{found:?}");
    }
}

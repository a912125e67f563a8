//! Links between pairs of nodes: which are slow, and whether a node is the cause of those that it has, or one link alone is.

use super::compare::median;
use crate::doctor::check::{Check, Light};
use crate::doctor::facts::{HostFacts, LinkFacts};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is to be measured once more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Suspects {
    /// Products and copies, on all hosts.
    pub speed: bool,
    /// Writing and reading in the shared directories, on all hosts.
    pub storage: bool,
    /// Indexes of two hosts, the lower first.
    pub links: Vec<(usize, usize)>,
}

impl Suspects {
    /// Whether nothing is to be measured again.
    pub fn none(&self) -> bool {
        *self == Suspects::default()
    }
}

/// A slow link has this share of the usual bandwidth, or this many times its latency and as much more.
const BANDWIDTH: [f64; 2] = [0.2, 0.33];
const LATENCY: [f64; 2] = [6.0, 3.0];
const LATENCY_MORE_S: [f64; 2] = [500e-6, 200e-6];
/// The mean of the trips against the usual one: single trips that take very long are lost packets.
const MEAN_MORE_S: [f64; 2] = [3e-3, 2e-3];
const CURE_LINK: &str = "check cable, transceiver and switch port between the two (ethtool -S, ibdiagnet, ip -s link)";
const CURE_NODE: &str =
    "check this node's adapter, cable and switch port (ethtool, ibstat, ip -s link), and drain it until it is mended";

/// The best that was seen of each link.
fn best(hosts: &[HostFacts]) -> BTreeMap<(usize, usize), LinkFacts> {
    let mut out: BTreeMap<(usize, usize), LinkFacts> = BTreeMap::new();
    for (i, h) in hosts.iter().enumerate() {
        for l in h.links.iter().filter(|l| l.peer < hosts.len()) {
            let b = out.entry((i.min(l.peer), i.max(l.peer))).or_insert(*l);
            b.latency_s = b.latency_s.min(l.latency_s);
            b.mean_s = b.mean_s.min(l.mean_s);
            b.bandwidth = b.bandwidth.max(l.bandwidth);
        }
    }
    out
}

/// What links usually do: the median over nodes of each node's best link, so that neither one bad node nor one bad link moves it.
fn usual(links: &BTreeMap<(usize, usize), LinkFacts>, n: usize) -> LinkFacts {
    let of = |i: usize| links.iter().filter(move |((a, b), _)| *a == i || *b == i).map(|(_, l)| l);
    let middle = |pick: &dyn Fn(usize) -> Option<f64>| median((0..n).filter_map(pick));
    let least = |i: usize, of_link: fn(&LinkFacts) -> f64| of(i).map(of_link).reduce(f64::min);
    LinkFacts {
        peer: 0,
        latency_s: middle(&|i| least(i, |l| l.latency_s)),
        mean_s: middle(&|i| least(i, |l| l.mean_s)),
        bandwidth: middle(&|i| of(i).map(|l| l.bandwidth).reduce(f64::max)),
    }
}

/// How bad a link is.
fn light(l: &LinkFacts, usual: &LinkFacts) -> Light {
    let beyond = |i: usize| {
        l.bandwidth < BANDWIDTH[i] * usual.bandwidth
            || l.latency_s > (LATENCY[i] * usual.latency_s).max(usual.latency_s + LATENCY_MORE_S[i])
            || l.mean_s > (LATENCY[i] * usual.mean_s).max(usual.mean_s + MEAN_MORE_S[i])
    };
    match (beyond(0), beyond(1)) {
        (true, _) => Light::Red,
        (_, true) => Light::Amber,
        _ => Light::Green,
    }
}

/// Links that look slow by what was measured so far.
pub fn suspicious(hosts: &[HostFacts]) -> Vec<(usize, usize)> {
    let links = best(hosts);
    let usual = usual(&links, hosts.len());
    links.iter().filter(|(_, l)| light(l, &usual) != Light::Green).map(|(pair, _)| *pair).collect()
}

fn words(l: &LinkFacts) -> String {
    format!("{:.0} µs (mean {:.0}), {:.3} GB/s", l.latency_s * 1e6, l.mean_s * 1e6, l.bandwidth / 1e9)
}

pub fn judge(hosts: &[HostFacts]) -> Vec<Check> {
    let links = best(hosts);
    if links.is_empty() {
        let why = if hosts.len() < 2 { "one node: no link to measure" } else { "not measured" };
        return vec![Check::skipped("links", why)];
    }
    let usual = usual(&links, hosts.len());
    let mut slow: BTreeMap<(usize, usize), (Light, LinkFacts)> = links
        .iter()
        .map(|(pair, l)| (*pair, (light(l, &usual), *l)))
        .filter(|(_, (light, _))| *light != Light::Green)
        .collect();
    let mut out = Vec::new();
    // the node with the most slow links explains them, where it has at least two and they are most of what it has
    loop {
        let of = |i: usize, pair: &(usize, usize)| pair.0 == i || pair.1 == i;
        let count = |i: usize| slow.keys().filter(|p| of(i, p)).count();
        let all = |i: usize| links.keys().filter(|p| of(i, p)).count();
        let guilty = |i: &usize| count(*i) >= 2 && 2 * count(*i) > all(*i);
        let Some(i) = (0..hosts.len()).filter(guilty).max_by_key(|&i| count(i)) else { break };
        let mine: Vec<(Light, LinkFacts)> = slow.iter().filter(|(p, _)| of(i, p)).map(|(_, l)| *l).collect();
        let Some(worst) = mine.iter().min_by(|a, b| a.1.bandwidth.total_cmp(&b.1.bandwidth)) else { break };
        let fact = format!(
            "{} of its {} links are slow, the slowest {}; usual is {}",
            mine.len(),
            all(i),
            words(&worst.1),
            words(&usual)
        );
        let is_red = mine.iter().any(|(l, _)| *l == Light::Red);
        let check = if is_red { Check::red("links", fact, CURE_NODE) } else { Check::amber("links", fact, CURE_NODE) };
        out.push(check.on([&hosts[i].node]));
        slow.retain(|p, _| !of(i, p));
    }
    for ((a, b), (light, l)) in slow {
        let fact = format!("{}; usual is {}", words(&l), words(&usual));
        let check = if light == Light::Red {
            Check::red("links", fact, CURE_LINK)
        } else {
            Check::amber("links", fact, CURE_LINK)
        };
        out.push(check.between(&hosts[a].node, &hosts[b].node));
    }
    if out.is_empty() {
        out.push(Check::green("links", format!("{} pairs, usual is {}", links.len(), words(&usual))));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: LinkFacts = LinkFacts { peer: 0, latency_s: 30e-6, mean_s: 35e-6, bandwidth: 2e9 };

    fn hosts(n: usize, slow: impl Fn(usize, usize) -> Option<LinkFacts>) -> Vec<HostFacts> {
        let host = |i: usize| {
            let links = (i + 1..n).map(|j| LinkFacts { peer: j, ..slow(i, j).unwrap_or(GOOD) }).collect();
            HostFacts { node: format!("n{i}"), links, ..HostFacts::default() }
        };
        (0..n).map(host).collect()
    }

    const NARROW: LinkFacts = LinkFacts { bandwidth: 1e8, ..GOOD };
    const LATE: LinkFacts = LinkFacts { latency_s: 5e-3, mean_s: 5e-3, ..GOOD };
    const LOSSY: LinkFacts = LinkFacts { mean_s: 10e-3, ..GOOD };

    #[test]
    fn a_node_or_a_link_is_told() {
        for bad in [NARROW, LATE, LOSSY] {
            for n in 3..7 {
                for node in 0..n {
                    let found = judge(&hosts(n, |a, b| (a == node || b == node).then_some(bad)));
                    assert_eq!(found.len(), 1, "{found:?}");
                    assert_eq!((found[0].light, found[0].who()), (Light::Red, format!("n{node}")));
                }
                let found = judge(&hosts(n, |a, b| ((a, b) == (0, 2)).then_some(bad)));
                assert_eq!((found.len(), found[0].who()), (1, "n0 – n2".into()), "{n}: {found:?}");
                assert!(found[0].nodes.is_empty());
            }
        }
    }

    #[test]
    fn two_nodes_have_one_link_and_nothing_to_compare_it_with() {
        let found = judge(&hosts(2, |_, _| Some(NARROW)));
        assert_eq!((found.len(), found[0].light), (1, Light::Green));
        assert_eq!(judge(&hosts(1, |_, _| None))[0].light, Light::Skipped);
    }

    #[test]
    fn the_best_of_several_times_counts() {
        let mut all = hosts(4, |a, b| ((a, b) == (1, 3)).then_some(NARROW));
        assert_eq!(suspicious(&all), [(1, 3)]);
        all[1].links.push(LinkFacts { peer: 3, ..GOOD });
        assert_eq!(suspicious(&all), []);
        assert_eq!(judge(&all)[0].light, Light::Green);
    }
}

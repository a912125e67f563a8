//! Cores and memory of each node against the median of all, and results that are wrong.

use super::compare::median;
use crate::doctor::check::Check;
use crate::doctor::facts::{HostFacts, SpeedFacts};

/// Shares of the median.
const RED: f64 = 0.7;
const AMBER: f64 = 0.85;

type Which = (&'static str, fn(&SpeedFacts) -> f64, f64, &'static str, &'static str);
const KINDS: [Which; 2] = [
    (
        "cpu speed",
        |s| s.flops,
        1e9,
        "GFLOP/s in fp32 products",
        "look for other processes, power and heat limits, and a CPU quota of the job's control group on this node",
    ),
    (
        "memory speed",
        |s| s.memory,
        1e9,
        "GB/s of copies",
        "look for other processes on this node, a failed memory module, and the NUMA settings of its firmware",
    ),
];

/// A node's best share of the median of all, over the times it was measured: what is slow each time is slow.
fn share(hosts: &[HostFacts], host: &HostFacts, of: fn(&SpeedFacts) -> f64) -> f64 {
    let tries = host.speeds.iter().enumerate().map(|(t, s)| {
        let middle = median(hosts.iter().filter_map(|h| h.speeds.get(t)).map(of));
        of(s) / middle
    });
    tries.fold(0.0, f64::max)
}

/// Whether a node looks slow by what was measured so far.
pub fn suspicious(hosts: &[HostFacts]) -> bool {
    hosts.len() > 1 && KINDS.iter().any(|k| hosts.iter().any(|h| !h.speeds.is_empty() && share(hosts, h, k.1) < AMBER))
}

pub fn judge(hosts: &[HostFacts]) -> Vec<Check> {
    if hosts.iter().all(|h| h.speeds.is_empty()) {
        return vec![Check::skipped("cpu speed", "not measured")];
    }
    let mut out: Vec<Check> = KINDS.iter().flat_map(|k| of_kind(hosts, k)).collect();
    let wrong = |h: &HostFacts| h.speeds.iter().map(|s| s.wrong).sum::<u64>();
    let bad: Vec<&HostFacts> = hosts.iter().filter(|h| wrong(h) > 0).collect();
    out.push(match bad.is_empty() {
        true => Check::green("results", "all products have the known bits"),
        false => {
            let each: Vec<String> = bad.iter().map(|h| format!("{}: {} wrong", h.node, wrong(h))).collect();
            let fact = format!("products of whole numbers came out wrong: {}", each.join(", "));
            Check::red("results", fact, "take the node out of service: its processor or memory makes errors")
                .on(bad.iter().map(|h| &h.node))
        }
    });
    out
}

fn of_kind(hosts: &[HostFacts], (name, of, unit, words, cure): &Which) -> Vec<Check> {
    let best = |h: &HostFacts| h.speeds.iter().map(of).fold(0.0, f64::max) / unit;
    let middle = median(hosts.iter().map(best));
    let shares: Vec<f64> = hosts.iter().map(|h| share(hosts, h, *of)).collect();
    let mut out = Vec::new();
    for (low, high, red) in [(0.0, RED, true), (RED, AMBER, false)] {
        let slow: Vec<usize> = (0..hosts.len()).filter(|&i| shares[i] >= low && shares[i] < high).collect();
        if slow.is_empty() || hosts.len() < 2 {
            continue;
        }
        let each = |&i: &usize| format!("{} {:.0}% ({:.3} {words})", hosts[i].node, 100.0 * shares[i], best(&hosts[i]));
        let list: Vec<String> = slow.iter().take(4).map(each).collect();
        let tries = hosts[slow[0]].speeds.len();
        let fact =
            format!("{} of the median ({middle:.3}), measured {tries} times with all nodes at work", list.join(", "));
        let check = if red { Check::red(name, fact, *cure) } else { Check::amber(name, fact, *cure) };
        out.push(check.on(slow.iter().map(|&i| &hosts[i].node)));
    }
    if out.is_empty() {
        let slowest = shares.iter().copied().fold(f64::MAX, f64::min);
        let beside = if hosts.len() > 1 {
            format!("; the slowest node has {:.0}% of it", 100.0 * slowest)
        } else {
            String::new()
        };
        let fact = format!("{middle:.3} {words} a node{beside}");
        out.push(Check::green(name, fact));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Light;

    fn hosts(tries: &[&[f64]]) -> Vec<HostFacts> {
        let host = |i: usize| {
            let speeds = tries.iter().map(|t| SpeedFacts { flops: t[i], memory: 1.0, wrong: 0 }).collect();
            HostFacts { node: format!("n{i}"), speeds, ..HostFacts::default() }
        };
        (0..tries[0].len()).map(host).collect()
    }

    #[test]
    fn what_is_slow_each_time_is_slow() {
        let once: [&[f64]; 1] = [&[100.0, 40.0, 101.0, 99.0]];
        assert!(suspicious(&hosts(&once)));
        let row = &judge(&hosts(&once))[0];
        assert_eq!((row.light, row.who(), row.name.as_str()), (Light::Red, "n1".into(), "cpu speed"));
        assert!(row.fact.contains("n1 40%"), "{}", row.fact);
        // a moment's disturbance
        let again = hosts(&[once[0], &[100.0, 98.0, 60.0, 99.0]]);
        assert!(!suspicious(&again));
        assert_eq!(judge(&again)[0].light, Light::Green);
        assert_eq!(judge(&hosts(&[&[100.0, 80.0, 100.0]]))[0].light, Light::Amber);
        assert_eq!(judge(&hosts(&[&[5.0]]))[0].light, Light::Green);
        assert_eq!(judge(&hosts(&[&[100.0, 30.0]]))[0].who(), "n1");
    }

    #[test]
    fn a_wrong_result_is_red_whatever_the_speed() {
        let mut all = hosts(&[&[1.0, 1.0, 1.0]]);
        all[2].speeds[0].wrong = 1;
        let row = judge(&all).into_iter().find(|c| c.name == "results").unwrap();
        assert_eq!((row.light, row.who()), (Light::Red, "n2".into()));
    }
}

//! Wall clocks: object stores refuse what is minutes off, munge too; logs, events and files of several nodes have one order only
//! where clocks agree.

use super::compare::median;
use crate::doctor::check::Check;
use crate::doctor::facts::HostFacts;

/// Seconds from the median of the nodes, beyond what the measurement may be off.
const RED: f64 = 1.0;
const AMBER: f64 = 0.1;
const CURE: &str = "set the clock by NTP: chronyc tracking, timedatectl";

/// Seconds of each host ahead of the first, and by how much they may be off: sums along the way to it.
fn offsets(hosts: &[HostFacts]) -> Option<Vec<(f64, f64)>> {
    let mut out: Vec<(f64, f64)> = vec![(0.0, 0.0)];
    for h in &hosts[1..] {
        let c = h.clock?;
        let (parent, error) = *out.get(c.parent)?;
        out.push((parent - c.ahead_s, error + c.error_s));
    }
    Some(out)
}

pub fn judge(hosts: &[HostFacts]) -> Vec<Check> {
    if hosts.len() < 2 {
        return vec![Check::skipped("clock", "one node: nothing to compare its clock with")];
    }
    let Some(all) = offsets(hosts) else {
        return vec![Check::skipped("clock", "clocks were not compared")];
    };
    let middle = median(all.iter().map(|(o, _)| *o));
    // of two nobody knows which is right
    let far = |i: usize| match hosts.len() {
        2 => (all[1].0 - all[0].0).abs() - all[1].1,
        _ => (all[i].0 - middle).abs() - all[i].1,
    };
    let mut out = Vec::new();
    let named =
        |low: f64, high: f64| -> Vec<usize> { (0..hosts.len()).filter(|&i| far(i) > low && far(i) <= high).collect() };
    for (which, red) in [(named(RED, f64::MAX), true), (named(AMBER, RED), false)] {
        if which.is_empty() {
            continue;
        }
        let each = |&i: &usize| format!("{} {:+.3} s (± {:.4} s)", hosts[i].node, all[i].0 - middle, all[i].1);
        let (fact, nodes) = match hosts.len() {
            2 => {
                let (gap, error) = (all[1].0 - all[0].0, all[1].1);
                (
                    format!(
                        "{} is {gap:+.3} s (± {error:.4} s) from {}; which is right is not known from two",
                        hosts[1].node, hosts[0].node
                    ),
                    vec![],
                )
            }
            _ => {
                let limit = if red { RED } else { AMBER };
                let list: Vec<String> = which.iter().take(4).map(each).collect();
                (format!("{} from the median of the nodes; limit {limit} s", list.join(", ")), which.clone())
            }
        };
        let check = if red { Check::red("clock", fact, CURE) } else { Check::amber("clock", fact, CURE) };
        out.push(check.on(nodes.iter().map(|&i| &hosts[i].node)));
    }
    if out.is_empty() {
        let widest = all.iter().map(|(o, _)| (o - middle).abs()).fold(0.0, f64::max);
        let error = all.iter().map(|(_, e)| *e).fold(0.0, f64::max);
        out.push(Check::green(
            "clock",
            format!("within {:.2} ms of the median, measured to ± {:.2} ms", widest * 1e3, error * 1e3),
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Light;
    use crate::doctor::facts::ClockFacts;

    /// Clocks as they are, measured along the tree with errors of 1 ms.
    fn hosts(clocks: &[f64]) -> Vec<HostFacts> {
        let host = |i: usize| {
            let parent = i & i.wrapping_sub(1);
            let clock = ClockFacts { parent, ahead_s: clocks[parent] - clocks[i], error_s: 1e-3 };
            HostFacts { node: format!("n{i}"), clock: (i > 0).then_some(clock), ..HostFacts::default() }
        };
        (0..clocks.len()).map(host).collect()
    }

    #[test]
    fn who_is_off_is_named_whoever_asked_whom() {
        for wrong in 0..5 {
            let mut clocks = [0.0, 0.001, -0.001, 0.002, 0.0];
            clocks[wrong] += 3.0;
            let found = judge(&hosts(&clocks));
            assert_eq!((found.len(), found[0].light, found[0].who()), (1, Light::Red, format!("n{wrong}")));
            clocks[wrong] -= 3.3;
            let found = judge(&hosts(&clocks));
            assert_eq!((found[0].light, found[0].who()), (Light::Amber, format!("n{wrong}")), "{found:?}");
        }
        assert_eq!(judge(&hosts(&[0.0, 0.05, -0.05]))[0].light, Light::Green);
        let two = judge(&hosts(&[0.0, 3.0]));
        assert!(two.len() == 1 && two[0].light == Light::Red && two[0].nodes.is_empty(), "{two:?}");
        assert_eq!(judge(&hosts(&[0.0]))[0].light, Light::Skipped);
    }

    #[test]
    fn what_cannot_be_measured_so_finely_accuses_nobody() {
        let mut all = hosts(&[0.0, 0.5, 0.0, 0.0]);
        all[1].clock.as_mut().unwrap().error_s = 0.6;
        assert_eq!(judge(&all)[0].light, Light::Green);
    }
}

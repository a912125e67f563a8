//! Interfaces of the same name on every node: up, as fast, without errors.

use super::compare::{agreement, median, Agreement};
use crate::doctor::check::Check;
use crate::doctor::facts::{HostFacts, Interface};
use std::collections::BTreeMap;

/// Errors since the host started that are worth a look, where they are ten times the median too.
const ERRORS: u64 = 1000;
const CURE: &str = "check cable, transceiver and switch port (ethtool NAME, ibstat)";

pub fn judge(hosts: &[HostFacts]) -> Vec<Check> {
    let mut by_name: BTreeMap<&str, Vec<(&HostFacts, &Interface)>> = BTreeMap::new();
    for h in hosts {
        h.interfaces.iter().for_each(|i| by_name.entry(&i.name).or_default().push((h, i)));
    }
    let mut out = Vec::new();
    for (name, all) in &by_name {
        // what most nodes do not have is a management port or the like
        if 2 * all.len() <= hosts.len() {
            continue;
        }
        let lacking: Vec<&String> =
            hosts.iter().filter(|h| !h.interfaces.iter().any(|i| i.name == *name)).map(|h| &h.node).collect();
        if !lacking.is_empty() {
            out.push(Check::amber("network", format!("has no {name}, which the others have"), CURE).on(lacking));
        }
        let states: Vec<(String, (bool, Option<u64>))> =
            all.iter().map(|(h, i)| (h.node.clone(), (i.up, i.mbit_s))).collect();
        if let Agreement::Most { usual, others } = agreement(&states) {
            let worse =
                |(up, speed): (bool, Option<u64>)| !up && usual.0 || speed.zip(usual.1).is_some_and(|(s, u)| s < u);
            let words = |(up, speed): (bool, Option<u64>)| match (up, speed) {
                (false, _) => "down".to_string(),
                (true, Some(s)) => format!("{s} Mbit/s"),
                (true, None) => "up".to_string(),
            };
            let bad: Vec<&(String, (bool, Option<u64>))> = others.iter().filter(|(_, s)| worse(*s)).collect();
            if let Some((_, state)) = bad.first() {
                let fact = format!("{name} is {} where the others have {}", words(*state), words(usual));
                out.push(Check::red("network", fact, CURE).on(bad.iter().map(|(n, _)| n)));
            }
        }
        let middle = median(all.iter().map(|(_, i)| i.errors as f64));
        let bad: Vec<_> = all.iter().filter(|(_, i)| i.errors > ERRORS && i.errors as f64 > 10.0 * middle).collect();
        if let Some((_, i)) = bad.first() {
            let fact = format!("{name} has had {} errors since the node started; the median is {middle:.0}", i.errors);
            out.push(Check::amber("network", fact, CURE).on(bad.iter().map(|(h, _)| &h.node)));
        }
    }
    if out.is_empty() {
        let speed = |i: &Interface| i.mbit_s.map_or(String::new(), |s| format!(" {s} Mbit/s"));
        let up = hosts[0].interfaces.iter().filter(|i| i.up).map(|i| format!("{}{}", i.name, speed(i)));
        let list: Vec<String> = up.take(12).collect();
        out.push(match list.is_empty() {
            true => Check::skipped("network", "no interface but loopback"),
            false => Check::green("network", format!("up on every node: {}", list.join(", "))),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Light;

    fn with(change: impl Fn(&mut Vec<Interface>)) -> Vec<Check> {
        let eth = Interface { name: "eth0".into(), up: true, mbit_s: Some(100_000), errors: 3 };
        let mut all = vec![vec![eth]; 4];
        change(&mut all[3]);
        let host = |(i, interfaces)| HostFacts { node: format!("n{i}"), interfaces, ..HostFacts::default() };
        judge(&all.into_iter().enumerate().map(host).collect::<Vec<_>>())
    }

    #[test]
    fn down_slow_missing_or_with_errors() {
        assert_eq!(with(|_| {})[0].light, Light::Green);
        type Case<'a> = (&'a dyn Fn(&mut Vec<Interface>), Light, &'a str);
        let cases: [Case; 4] = [
            (&|i| i[0].up = false, Light::Red, "eth0 is down"),
            (&|i| i[0].mbit_s = Some(10_000), Light::Red, "10000 Mbit/s where the others have 100000"),
            (&|i| i.clear(), Light::Amber, "has no eth0"),
            (&|i| i[0].errors = 5000, Light::Amber, "5000 errors"),
        ];
        for (change, light, words) in cases {
            let found = with(change);
            assert_eq!((found.len(), found[0].light, found[0].who()), (1, light, "n3".into()), "{found:?}");
            assert!(found[0].fact.contains(words), "{found:?}");
        }
        // what one node alone has
        let extra = Interface { name: "eth9".into(), ..Interface::default() };
        assert_eq!(with(|i| i.push(extra.clone()))[0].light, Light::Green);
    }
}

//! Graphics cards: as many everywhere, of one kind, empty, without errors, not held down.

use super::compare::{agreement, median, Agreement};
use crate::doctor::check::Check;
use crate::doctor::facts::{GpuFacts, HostFacts};

/// Reasons why a clock is held down that are faults: hardware slowdown, software and hardware heat limits, power brake (nvml.h,
/// nvmlClocksThrottleReason*). A cap by software and idling are none.
const HELD: u64 = 0x8 | 0x20 | 0x40 | 0x80;

pub fn judge(hosts: &[HostFacts]) -> Vec<Check> {
    if hosts.iter().all(|h| h.gpus.is_none()) {
        return vec![Check::skipped("gpu", "no NVIDIA driver on any node")];
    }
    let mut out = Vec::new();
    for h in hosts {
        if let Some(Err(why)) = &h.gpus {
            out.push(
                Check::red("gpu", format!("the driver does not answer: {why}"), "reset the cards or reboot the node")
                    .on([&h.node]),
            );
        }
    }
    let cards = |h: &HostFacts| h.gpus.as_ref().and_then(|g| g.as_ref().ok()).cloned().unwrap_or_default();
    let kinds: Vec<(String, (usize, String))> = hosts
        .iter()
        .filter(|h| !matches!(h.gpus, Some(Err(_))))
        .map(|h| (h.node.clone(), (cards(h).len(), cards(h).first().map_or("no card".into(), |c| c.name.clone()))))
        .collect();
    match agreement(&kinds) {
        Agreement::Most { usual, others } => {
            let (n, name) = &others[0].1;
            let fact = format!("{n} × {name} where the others have {} × {}", usual.0, usual.1);
            out.push(
                Check::red(
                    "gpu",
                    fact,
                    "look for a card that fell off the bus (nvidia-smi, dmesg), or ask for one kind",
                )
                .on(others.iter().map(|(n, _)| n)),
            );
        }
        Agreement::Split(groups) => {
            let each: Vec<String> = groups.iter().map(|((n, name), _)| format!("{n} × {name}")).collect();
            out.push(Check::red("gpu", format!("nodes have {}", each.join(" and ")), "ask Slurm for one kind of node"));
        }
        Agreement::Same(_) => {}
    }
    let all: Vec<(&HostFacts, GpuFacts)> =
        hosts.iter().flat_map(|h| cards(h).into_iter().map(move |c| (h, c))).collect();
    let power = median(all.iter().filter_map(|(_, c)| c.power_limit));
    type Rule<'a> = (&'a dyn Fn(&GpuFacts) -> Option<String>, bool, &'a str);
    let rules: [Rule; 6] = [
        (
            &|c| c.uncorrected.filter(|n| *n > 0).map(|n| format!("{n} uncorrected memory errors")),
            true,
            "drain the node, reset or replace the card",
        ),
        (
            &|c| (c.throttled & HELD != 0).then(|| format!("its clock is held down, reasons {:#x}", c.throttled)),
            true,
            "check cooling and power supply",
        ),
        (
            &|c| {
                (2 * c.memory_free < c.memory_total)
                    .then(|| format!("{} of {} MiB are free", c.memory_free, c.memory_total))
            },
            true,
            "end the process that holds its memory (nvidia-smi)",
        ),
        (
            &|c| {
                (20 * c.memory_free < 19 * c.memory_total && 2 * c.memory_free >= c.memory_total)
                    .then(|| format!("{} of {} MiB are free", c.memory_free, c.memory_total))
            },
            false,
            "see which process holds its memory (nvidia-smi)",
        ),
        (
            &|c| {
                c.power_limit
                    .filter(|p| *p < 0.95 * power)
                    .map(|p| format!("its power is capped at {p} W; the median is {power} W"))
            },
            false,
            "set it as on the others: nvidia-smi -pl",
        ),
        (
            &|c| (!c.persistent).then(|| "persistence mode is off: starts are slower".into()),
            false,
            "nvidia-smi -pm 1, or nvidia-persistenced",
        ),
    ];
    for (rule, red, cure) in rules {
        let bad: Vec<(&String, u64, String)> =
            all.iter().filter_map(|(h, c)| Some((&h.node, c.index, rule(c)?))).collect();
        let Some((node, card, words)) = bad.first() else { continue };
        let fact = format!(
            "card {card} on {node}: {words}{}",
            if bad.len() > 1 { format!("; {} cards in all", bad.len()) } else { String::new() }
        );
        let mut nodes: Vec<&String> = bad.iter().map(|b| b.0).collect();
        nodes.dedup();
        let check = if red { Check::red("gpu", fact, cure) } else { Check::amber("gpu", fact, cure) };
        out.push(check.on(nodes));
    }
    if out.is_empty() {
        let name = all.first().map_or("no card", |(_, c)| &c.name);
        out.push(Check::green("gpu", format!("{} × {name} on each of {} nodes", all.len() / hosts.len(), hosts.len())));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Light;

    fn with(change: impl Fn(&mut Option<Result<Vec<GpuFacts>, String>>)) -> Vec<Check> {
        let card = |index| GpuFacts {
            index,
            name: "H100".into(),
            memory_total: 80_000,
            memory_free: 79_500,
            uncorrected: Some(0),
            throttled: 1,
            power_limit: Some(700.0),
            power_default: Some(700.0),
            persistent: true,
        };
        let mut all = vec![Some(Ok(vec![card(0), card(1)])); 3];
        change(&mut all[1]);
        let host = |(i, gpus)| HostFacts { node: format!("n{i}"), gpus, ..HostFacts::default() };
        judge(&all.into_iter().enumerate().map(host).collect::<Vec<_>>())
    }

    #[test]
    fn each_fault_of_a_card_is_named() {
        assert_eq!(with(|_| {})[0].light, Light::Green);
        let card = |change: &dyn Fn(&mut GpuFacts)| {
            with(|g| {
                if let Some(Ok(cards)) = g {
                    change(&mut cards[1]);
                }
            })
        };
        type Fault<'a> = (&'a dyn Fn(&mut GpuFacts), Light);
        let faults: [Fault; 6] = [
            (&|c| c.uncorrected = Some(2), Light::Red),
            (&|c| c.throttled = 0x40, Light::Red),
            (&|c| c.memory_free = 10_000, Light::Red),
            (&|c| c.memory_free = 60_000, Light::Amber),
            (&|c| c.power_limit = Some(400.0), Light::Amber),
            (&|c| c.persistent = false, Light::Amber),
        ];
        for (change, light) in faults {
            let found = card(change);
            assert_eq!((found.len(), found[0].light, found[0].who()), (1, light, "n1".into()), "{found:?}");
        }
        for change in [Some(Err("timeout".to_string())), Some(Ok(vec![])), None] {
            let found = with(|g| *g = change.clone());
            assert_eq!((found.len(), found[0].light, found[0].who()), (1, Light::Red, "n1".into()), "{found:?}");
        }
        let none = judge(&[HostFacts::default()]);
        assert_eq!(none[0].light, Light::Skipped);
    }
}

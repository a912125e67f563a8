//! One content seen by all nodes: files that each wrote and others read, and the inputs of the run.

use super::compare::{agreement, Agreement};
use crate::doctor::check::Check;
use crate::doctor::facts::HostFacts;
use crate::doctor::question::Inquiry;
use crate::slurm::compress;

/// Nodes that see each other's files belong together; those outside the largest such group are named. A node that could not write
/// is told by the row of that, and whoever looks for its file in vain is not to blame.
pub fn judge(hosts: &[HostFacts]) -> Vec<Check> {
    let count = hosts.iter().map(|h| h.places.len()).max().unwrap_or(0);
    (0..count).filter_map(|i| place(hosts, i)).collect()
}

fn place(hosts: &[HostFacts], i: usize) -> Option<Check> {
    let wrote = |h: &HostFacts| h.places.get(i).is_some_and(|p| matches!(p.written, Some(Ok(_))));
    let writers: Vec<usize> = (0..hosts.len()).filter(|&h| wrote(&hosts[h])).collect();
    let path = &hosts[0].places.get(i)?.path;
    // without MPI nobody reads what others wrote
    let read = |h: &HostFacts| h.places.get(i).is_some_and(|p| !p.seen.is_empty());
    if writers.len() < 2 || !hosts.iter().any(read) {
        return None;
    }
    let mut group: Vec<usize> = (0..hosts.len()).collect();
    for &h in &writers {
        for (&other, seen) in &hosts[h].places[i].seen {
            if seen.is_ok() && writers.contains(&other) {
                let (from, to) = (group[other], group[h]);
                group.iter_mut().filter(|g| **g == from).for_each(|g| *g = to);
            }
        }
    }
    let names = |of: usize| -> Vec<String> {
        writers.iter().filter(|&&w| group[w] == of).map(|&w| hosts[w].node.clone()).collect()
    };
    let mut groups: Vec<Vec<String>> = Vec::new();
    for &w in &writers {
        let members = names(group[w]);
        if !groups.contains(&members) {
            groups.push(members);
        }
    }
    groups.sort_by_key(|g| std::cmp::Reverse(g.len()));
    let cure = "mount the same shared filesystem at this path on every node";
    Some(match &groups[..] {
        [_] => Check::green("storage seen", format!("{path}: what one node writes, the others see")),
        [most, second, ..] if most.len() > second.len() => {
            let fact = format!("files written to {path} by {} are not seen here, nor these there", compress(most));
            Check::red("storage seen", fact, cure).on(groups[1..].concat())
        }
        _ => {
            let each: Vec<String> = groups.iter().take(4).map(|g| compress(g)).collect();
            Check::red(
                "storage seen",
                format!("{path} is not one directory: {} do not see each other's files", each.join(" and ")),
                cure,
            )
        }
    })
}

/// Data, tokenizer and first weights.
pub fn inputs(q: &Inquiry, hosts: &[HostFacts]) -> Vec<Check> {
    let mut out = Vec::new();
    for path in q.inputs.iter().map(|p| p.display().to_string()) {
        let value = |h: &HostFacts| match h.inputs.get(&path) {
            Some(Ok(digest)) => digest.clone(),
            Some(Err(why)) => format!("cannot be read ({why})"),
            None => "not looked at".into(),
        };
        let values: Vec<(String, String)> = hosts.iter().map(|h| (h.node.clone(), value(h))).collect();
        let cure = "make the file and its filesystem the same on every node";
        match agreement(&values) {
            Agreement::Same(v) if v.starts_with("cannot") => {
                out.push(Check::red("inputs", format!("{path} {v}"), "check the path in the configuration"));
            }
            Agreement::Same(_) => {}
            Agreement::Most { usual, others } => {
                let fact = format!("{path}: {} where the others have {usual}", others[0].1);
                out.push(Check::red("inputs", fact, cure).on(others.iter().map(|(n, _)| n)));
            }
            Agreement::Split(groups) => {
                let each: Vec<String> = groups.iter().map(|(v, nodes)| format!("{}: {v}", compress(nodes))).collect();
                out.push(Check::red("inputs", format!("{path}: {}", each.join(", ")), cure));
            }
        }
    }
    if out.is_empty() && !q.inputs.is_empty() {
        let rest = match q.inputs_left_out {
            0 => String::new(),
            n => format!("; {n} further files were not looked at"),
        };
        out.push(Check::green(
            "inputs",
            format!("{} files of data and model, the same everywhere{rest}", q.inputs.len()),
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Light;
    use crate::doctor::facts::PlaceFacts;
    use crate::doctor::shared::others;

    /// `part[i]`: which filesystem host i has; `None`: it cannot write.
    fn hosts(part: &[Option<usize>]) -> Vec<HostFacts> {
        let n = part.len();
        let host = |i: usize| {
            let sees = |j: usize| match part[i].is_some() && part[i] == part[j] {
                true => Ok(1e9),
                false => Err("no such file or directory".to_string()),
            };
            let written = Some(if part[i].is_some() { Ok(1e9) } else { Err("read-only file system".into()) });
            let seen = others(i, n).map(|j| (j, sees(j))).collect();
            let place = PlaceFacts { path: "/s".into(), written, seen, ..PlaceFacts::default() };
            HostFacts { node: format!("n{i}"), places: vec![place], ..HostFacts::default() }
        };
        (0..n).map(host).collect()
    }

    #[test]
    fn the_node_with_another_filesystem_is_named_also_where_it_is_the_first() {
        for n in 3..9 {
            for odd in 0..n {
                let mut part = vec![Some(0); n];
                part[odd] = Some(1);
                let found = judge(&hosts(&part));
                assert_eq!(
                    (found.len(), found[0].light, found[0].who()),
                    (1, Light::Red, format!("n{odd}")),
                    "{found:?}"
                );
                // who cannot write is told elsewhere, and nobody else is accused here
                part[odd] = None;
                assert_eq!(judge(&hosts(&part))[0].light, Light::Green, "{n} without {odd}");
            }
        }
        let split = judge(&hosts(&[Some(0), Some(1)]));
        assert!(
            split[0].light == Light::Red && split[0].nodes.is_empty() && split[0].fact.contains("n0 and n1"),
            "{split:?}"
        );
    }

    #[test]
    fn an_input_that_differs_or_is_missing() {
        let q = Inquiry { inputs: vec!["/d/a.bin".into()], ..Inquiry::default() };
        let host = |node: &str, v: Result<&str, &str>| {
            let value = v.map(String::from).map_err(String::from);
            HostFacts { node: node.into(), inputs: [("/d/a.bin".to_string(), value)].into(), ..HostFacts::default() }
        };
        let good = [host("n1", Ok("aa")), host("n2", Ok("aa")), host("n3", Ok("aa"))];
        assert_eq!(inputs(&q, &good)[0].light, Light::Green);
        let bad = [good[0].clone(), host("n2", Err("no such file or directory")), good[2].clone()];
        let row = &inputs(&q, &bad)[0];
        assert!(row.light == Light::Red && row.who() == "n2" && row.fact.contains("cannot be read"), "{row:?}");
        let none: Vec<_> = ["n1", "n2"].iter().map(|n| host(n, Err("no such file or directory"))).collect();
        assert!(inputs(&q, &none)[0].nodes.is_empty());
    }
}

//! Limits of processes, cores, memory, and how long programs take to load.

use super::compare::{agreement, median, Agreement};
use crate::doctor::check::Check;
use crate::doctor::facts::HostFacts;
use crate::doctor::question::Inquiry;
use crate::text::binary;

/// Files that a rank opens whatever the size of the run, and for each peer (a socket each way where MPI goes over TCP).
const FILES: u64 = 256;
const FILES_PEER: u64 = 2;
/// More than this no program is asked for.
const FILES_MOST: u64 = 65536;
/// Threads of a rank beside those that compute.
const THREADS: u64 = 32;
/// Pinned buffers of a fabric.
const LOCKED: u64 = 1 << 30;
/// Loading is slow where it takes this many times the median and as many seconds more.
const SLOW_START: (f64, f64) = (3.0, 5.0);

pub fn judge(q: &Inquiry, hosts: &[HostFacts]) -> Vec<Check> {
    let mut out = limits(q, hosts);
    out.extend(cores(hosts));
    out.extend(memory(q, hosts));
    out.extend(start(hosts));
    out
}

/// Soft and hard limits under what a run needs.
fn limits(q: &Inquiry, hosts: &[HostFacts]) -> Vec<Check> {
    let ranks = q.run_ranks.max(hosts.iter().map(|h| h.ranks).sum()) as u64;
    let fabric = |h: &HostFacts| h.interfaces.iter().any(|i| i.name.contains(" port "));
    let files = |_: &HostFacts| Some((FILES + FILES_PEER * ranks).min(FILES_MOST));
    let processes = |h: &HostFacts| Some(h.ranks.max(1) as u64 * (h.cores as u64 + THREADS));
    let locked = |h: &HostFacts| fabric(h).then_some(LOCKED);
    type Need<'a> = &'a dyn Fn(&HostFacts) -> Option<u64>;
    let rules: [(&str, Need, &str); 3] = [
        ("open files", &files, "raise it: LimitNOFILE of slurmd's unit, /etc/security/limits.conf, PropagateResourceLimitsExcept=NOFILE in slurm.conf"),
        ("processes", &processes, "raise it: LimitNPROC of slurmd's unit, TasksMax, /etc/security/limits.conf"),
        ("locked memory", &locked, "make it unlimited: LimitMEMLOCK=infinity of slurmd's unit, PropagateResourceLimitsExcept=MEMLOCK in slurm.conf"),
    ];
    let mut out = Vec::new();
    for (name, need, cure) in rules {
        let low: Vec<(&HostFacts, u64, u64)> = hosts
            .iter()
            .filter_map(|h| {
                let (need, soft) = (need(h)?, h.limits.get(name)?.0?);
                (soft < need).then_some((h, soft, need))
            })
            .collect();
        if let Some((_, soft, need)) = low.iter().min_by_key(|l| l.1) {
            let hard =
                |h: &HostFacts| h.limits.get(name).and_then(|l| l.1).map_or("unlimited".into(), |n| n.to_string());
            let fact = format!("{name}: the limit is {soft} (hard {}), and this run may need {need}", hard(low[0].0));
            out.push(Check::red("limits", fact, cure).on(low.iter().map(|(h, ..)| &h.node)));
        }
    }
    if out.is_empty() {
        let files = hosts.iter().filter_map(|h| h.limits.get("open files")?.0).min();
        let text = files.map_or("unlimited".into(), |n| n.to_string());
        out.push(Check::green("limits", format!("open files at least {text}, processes and locked memory as needed")));
    }
    out
}

fn cores(hosts: &[HostFacts]) -> Vec<Check> {
    let values: Vec<(String, usize)> = hosts.iter().map(|h| (h.node.clone(), h.cores)).collect();
    match agreement(&values) {
        Agreement::Same(n) => vec![Check::green("cores", format!("{n} cores for a rank"))],
        Agreement::Most { usual, others } => {
            let fact = format!("{} cores for a rank where the others have {usual}", others[0].1);
            let (cure, nodes) = (
                "ask for whole nodes of one kind (--exclusive), or look for cores that are offline",
                others.iter().map(|(n, _)| n),
            );
            vec![match others.iter().any(|(_, n)| 2 * n <= usual) {
                true => Check::red("cores", fact, cure).on(nodes),
                false => Check::amber("cores", fact, cure).on(nodes),
            }]
        }
        Agreement::Split(groups) => {
            let each: Vec<String> =
                groups.iter().map(|(n, nodes)| format!("{n} on {}", crate::slurm::compress(nodes))).collect();
            vec![Check::amber("cores", format!("cores for a rank: {}", each.join(", ")), "ask for nodes of one kind")]
        }
    }
}

fn memory(q: &Inquiry, hosts: &[HostFacts]) -> Vec<Check> {
    let mut out = Vec::new();
    let usual = median(hosts.iter().map(|h| h.memory as f64));
    let small: Vec<&HostFacts> = hosts.iter().filter(|h| (h.memory as f64) < 0.9 * usual).collect();
    if let Some(h) = small.first() {
        let fact = format!("{} of memory where the others have {}", binary(h.memory), binary(usual as u64));
        out.push(
            Check::amber("memory", fact, "look for a memory module that has failed").on(small.iter().map(|h| &h.node)),
        );
    }
    // snapshots count as memory of the job
    let need = q.needs.as_ref().map_or(0, |n| n.snapshots as u64);
    let tight: Vec<&HostFacts> = hosts.iter().filter(|h| h.memory_limit.is_some_and(|l| l < need)).collect();
    if let Some(h) = tight.first() {
        let fact = format!(
            "the job may use {} of memory on a node, and snapshots alone need {}",
            binary(h.memory_limit.unwrap_or(0)),
            binary(need)
        );
        out.push(
            Check::red("memory", fact, "ask sbatch for all memory of the nodes: --mem=0")
                .on(tight.iter().map(|h| &h.node)),
        );
    }
    if out.is_empty() {
        let limit = hosts.iter().filter_map(|h| h.memory_limit).min();
        let limit = limit.map_or(String::new(), |l| format!(", of which this job may use {}", binary(l)));
        out.push(Check::green("memory", format!("{} a node{limit}", binary(usual as u64))));
    }
    out
}

/// The loader with libtorch, and MPI_Init.
fn start(hosts: &[HostFacts]) -> Vec<Check> {
    let seconds = |h: &HostFacts| h.load_s;
    let usual = median(hosts.iter().map(seconds));
    let slow: Vec<&HostFacts> =
        hosts.iter().filter(|h| seconds(h) > (SLOW_START.0 * usual).max(usual + SLOW_START.1)).collect();
    if let Some(h) = slow.first() {
        let fact = format!("herd and its libraries took {:.1} s to load; the median is {usual:.1} s", seconds(h));
        let cure =
            "look at this node's network to the filesystem that holds libtorch, or stage it on local disks (sbcast)";
        return vec![Check::amber("start", fact, cure).on(slow.iter().map(|h| &h.node))];
    }
    let mpi = median(hosts.iter().map(|h| h.mpi_s));
    vec![Check::green("start", format!("libraries load in {usual:.2} s, MPI starts in {mpi:.2} s"))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Light;

    fn host(i: usize) -> HostFacts {
        HostFacts {
            node: format!("n{i}"),
            limits: [
                ("open files".to_string(), (Some(1024), Some(4096))),
                ("locked memory".to_string(), (Some(65536), Some(65536))),
            ]
            .into(),
            cores: 8,
            ranks: 1,
            memory: 64 << 30,
            load_s: 0.5,
            ..HostFacts::default()
        }
    }

    fn with(change: impl Fn(&mut HostFacts)) -> Vec<Check> {
        let mut hosts: Vec<HostFacts> = (0..4).map(host).collect();
        change(&mut hosts[1]);
        judge(&Inquiry::default(), &hosts).into_iter().filter(|c| c.light < Light::Green).collect()
    }

    #[test]
    fn each_is_named() {
        assert_eq!(with(|_| {}), []);
        type Case<'a> = (&'a dyn Fn(&mut HostFacts), &'a str, Light);
        let port = crate::doctor::facts::Interface { name: "mlx5_0 port 1".into(), ..Default::default() };
        let cases: [Case; 6] = [
            (&|h| _ = h.limits.insert("open files".into(), (Some(64), Some(64))), "limits", Light::Red),
            (&|h| h.interfaces = vec![port.clone()], "limits", Light::Red),
            (&|h| h.cores = 4, "cores", Light::Red),
            (&|h| h.cores = 7, "cores", Light::Amber),
            (&|h| h.memory = 32 << 30, "memory", Light::Amber),
            (&|h| h.load_s = 30.0, "start", Light::Amber),
        ];
        for (change, name, light) in cases {
            let found = with(change);
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            assert_eq!((found[0].name.as_str(), found[0].light, found[0].who()), (name, light, "n1".into()));
        }
        // a large run needs more files of all
        let found = judge(&Inquiry { run_ranks: 2048, ..Inquiry::default() }, &[host(0), host(1)]);
        assert!(found[0].light == Light::Red && found[0].fact.contains("may need 4352"), "{found:?}");
    }
}

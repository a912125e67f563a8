//! The filesystem of snapshots (`checkpoint.snapshot_dir`, /dev/shm), which MPI and libtorch use too.

use super::compare::median;
use crate::doctor::check::Check;
use crate::doctor::facts::{HostFacts, Space};
use crate::doctor::question::Inquiry;
use crate::text::binary;

/// What MPI and libtorch may need of it, whatever the run.
const LEAST: u64 = 64 << 20;

pub fn judge(q: &Inquiry, hosts: &[HostFacts]) -> Vec<Check> {
    let name = "shared memory";
    let dir = q.snapshot_dir.display();
    let snapshots = q.needs.as_ref().map_or(0, |n| n.snapshots as u64);
    let need = snapshots.max(LEAST);
    let here: Vec<(&HostFacts, &Space)> = hosts.iter().filter_map(|h| Some((h, h.shared_memory.as_ref()?))).collect();
    let mut out = Vec::new();
    let mut tell = |which: Vec<(&HostFacts, &Space)>, red: bool, what: &str, cure: &str| {
        let Some((_, s)) = which.iter().min_by_key(|(_, s)| s.size) else { return };
        let fact = format!("{dir} ({}) has {} in all, {} free: {what}", s.kind, binary(s.size), binary(s.free));
        let check = if red { Check::red(name, fact, cure) } else { Check::amber(name, fact, cure) };
        out.push(check.on(which.iter().map(|(h, _)| &h.node)));
    };
    let lacking: Vec<&HostFacts> = hosts.iter().filter(|h| h.shared_memory.is_none()).collect();
    let larger = "mount it larger: mount -o remount,size=… /dev/shm, or --shm-size of a container";
    let needs = match snapshots > LEAST {
        true => format!("snapshots need {} on a node", binary(snapshots)),
        false => format!("MPI and libtorch may need {}", binary(LEAST)),
    };
    let (small, rest): (Vec<_>, Vec<_>) = here.iter().copied().partition(|(_, s)| s.size < need);
    tell(small, true, &needs, larger);
    let (full, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, s)| s.free < need);
    tell(full, false, &needs, "see what lies there, and remove what crashed jobs left behind");
    let usual = median(here.iter().map(|(_, s)| s.size as f64));
    let (odd, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, s)| (s.size as f64) < 0.5 * usual);
    tell(odd, false, &format!("the others have {}", binary(usual as u64)), larger);
    let disk: Vec<_> = rest.into_iter().filter(|(_, s)| snapshots > 0 && s.kind != "tmpfs").collect();
    tell(disk, true, "snapshots must lie in memory (tmpfs)", "set checkpoint.snapshot_dir to a tmpfs");
    if !lacking.is_empty() {
        let check = Check::red(
            name,
            format!("{dir} is not there"),
            "set checkpoint.snapshot_dir to a tmpfs that every node has",
        );
        out.push(check.on(lacking.iter().map(|h| &h.node)));
    }
    if out.is_empty() {
        let free = here.iter().map(|(_, s)| s.free).min().unwrap_or(0);
        out.push(Check::green(name, format!("{dir}: at least {} free; {needs}", binary(free))));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Light;
    use crate::doctor::question::Needs;

    fn judged(sizes: &[u64], snapshots: f64) -> Vec<Check> {
        let host = |(i, size): (usize, &u64)| HostFacts {
            node: format!("n{i}"),
            shared_memory: Some(Space { kind: "tmpfs".into(), size: *size, free: *size, files_free: None }),
            ..HostFacts::default()
        };
        let hosts: Vec<HostFacts> = sizes.iter().enumerate().map(host).collect();
        let needs = Some(Needs { snapshots, ..Needs::default() });
        judge(&Inquiry { needs, snapshot_dir: "/dev/shm".into(), ..Inquiry::default() }, &hosts)
    }

    #[test]
    fn tiny_small_and_smaller_than_elsewhere() {
        let gib = 1u64 << 30;
        assert_eq!(judged(&[gib, gib, gib], 0.0)[0].light, Light::Green);
        let tiny = judged(&[gib, 1 << 20, gib], 0.0);
        assert!(tiny.len() == 1 && tiny[0].light == Light::Red && tiny[0].who() == "n1", "{tiny:?}");
        let odd = judged(&[gib, gib / 4, gib], 0.0);
        assert!(odd.len() == 1 && odd[0].light == Light::Amber && odd[0].who() == "n1", "{odd:?}");
        let snapshots = judged(&[gib, gib, 3 * gib], 2e9);
        assert!(snapshots[0].light == Light::Red && snapshots[0].nodes.len() == 2, "{snapshots:?}");
        assert!(snapshots[0].fact.contains("snapshots need 1.86 GiB"), "{snapshots:?}");
    }
}

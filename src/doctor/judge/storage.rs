//! Directories that all nodes write to: there, writable, with room for the checkpoints, and as fast as on the other nodes.

use super::compare::{agreement, median, Agreement};
use crate::doctor::check::Check;
use crate::doctor::facts::{HostFacts, PlaceFacts};
use crate::doctor::look::space::SHARED;
use crate::doctor::question::Inquiry;
use crate::text::binary;
use std::collections::BTreeMap;

/// Shares of the median speed.
const RED: f64 = 0.1;
const AMBER: f64 = 0.25;
/// Files that a run may make.
const FILES: u64 = 10_000;

pub fn judge(q: &Inquiry, hosts: &[HostFacts]) -> Vec<Check> {
    let count = hosts.iter().map(|h| h.places.len()).max().unwrap_or(0);
    (0..count).flat_map(|i| place(q, hosts, i)).collect()
}

fn place(q: &Inquiry, hosts: &[HostFacts], i: usize) -> Vec<Check> {
    let here: Vec<(&HostFacts, &PlaceFacts)> = hosts.iter().filter_map(|h| Some((h, h.places.get(i)?))).collect();
    let path = &here[0].1.path;
    let mut out = Vec::new();
    // what is missing is told once, by the nodes where it is
    let there: Vec<(String, String)> = here.iter().map(|(h, p)| (h.node.clone(), p.there.clone())).collect();
    let mut missing: Vec<String> = Vec::new();
    if let Agreement::Most { usual, others } = agreement(&there) {
        let lacking: Vec<&(String, String)> = others.iter().filter(|(_, t)| usual.starts_with(t.as_str())).collect();
        if let Some((_, instead)) = lacking.first() {
            missing = lacking.iter().map(|(n, _)| n.clone()).collect();
            let fact = format!("{usual} is not there; the nearest directory is {instead}");
            out.push(Check::red("storage", fact, "mount the filesystem on this node").on(&missing));
        }
    }
    // why writing failed → nodes
    let mut refused: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for (h, p) in here.iter().filter(|(h, _)| !missing.contains(&h.node)) {
        if let Some(Err(why)) = &p.written {
            refused.entry(why).or_default().push(&h.node);
        }
    }
    for (why, nodes) in refused {
        let cure = match why.as_str() {
            w if w.contains("no space") => "free space on it, or take another run_dir",
            w if w.contains("quota") => "free space, or ask for a larger quota",
            w if w.contains("read-only") => {
                "mount the filesystem for writing on this node; a filesystem that met errors turns read-only"
            }
            w if w.contains("permission") => "check owner and mode of the directory",
            _ => "look at the filesystem's log on this node (dmesg)",
        };
        let beside = if nodes.len() < hosts.len() { "; others can" } else { "" };
        out.push(Check::red("storage", format!("cannot write to {}: {why}{beside}", here[0].1.there), cure).on(nodes));
    }
    out.extend(slow(&here, path));
    out.extend(room(q, &here, path, i == 0));
    if out.is_empty() {
        let p = here[0].1;
        let kind = p.space.as_ref().map_or("unknown", |s| s.kind.as_str());
        let free = p.space.as_ref().map_or(0, |s| s.free);
        let speeds = |of: fn(&PlaceFacts) -> Option<f64>| median(here.iter().filter_map(|(_, p)| of(p)));
        let speed = match (speeds(write_speed), speeds(read_speed)) {
            (w, _) if w.is_nan() => "not written to".to_string(),
            (w, r) if r.is_nan() => format!("written at {:.2} GB/s a node", w / 1e9),
            (w, r) => format!("written at {:.2} GB/s, read at {:.2} GB/s a node", w / 1e9, r / 1e9),
        };
        let check = format!("{path}: {kind}, {} free, {speed}", binary(free));
        // a disk of one host cannot hold the run of several
        out.push(
            match hosts.len() > 1
                && !SHARED.contains(&kind)
                && here.iter().any(|(_, p)| !p.seen.is_empty())
                && here.iter().all(|(_, p)| p.seen.values().all(Result::is_err))
            {
                true => Check::amber(
                    "storage",
                    format!("{check}; this is no filesystem that nodes share"),
                    "put run_dir on shared storage",
                ),
                false => Check::green("storage", check),
            },
        );
    }
    out
}

fn write_speed(p: &PlaceFacts) -> Option<f64> {
    p.written.as_ref()?.as_ref().ok().copied()
}

fn read_speed(p: &PlaceFacts) -> Option<f64> {
    let all: Vec<f64> = p.seen.values().filter_map(|r| r.as_ref().ok().copied()).collect();
    (!all.is_empty()).then(|| median(all))
}

/// Speeds of every node against the median, where there are several.
fn shares(here: &[(&HostFacts, &PlaceFacts)], of: fn(&PlaceFacts) -> Option<f64>) -> Vec<(String, f64, f64)> {
    let known: Vec<(&String, f64)> = here.iter().filter_map(|(h, p)| Some((&h.node, of(p)?))).collect();
    let middle = median(known.iter().map(|k| k.1));
    if known.len() < 2 {
        return Vec::new();
    }
    known.into_iter().map(|(node, v)| (node.clone(), v / middle, middle)).collect()
}

/// Whether a node's storage looks slow by what was measured so far.
pub fn suspicious(hosts: &[HostFacts]) -> bool {
    let count = hosts.iter().map(|h| h.places.len()).max().unwrap_or(0);
    (0..count).any(|i| {
        let here: Vec<_> = hosts.iter().filter_map(|h| Some((h, h.places.get(i)?))).collect();
        [write_speed as fn(&PlaceFacts) -> Option<f64>, read_speed]
            .iter()
            .any(|of| shares(&here, *of).iter().any(|s| s.1 < AMBER))
    })
}

fn slow(here: &[(&HostFacts, &PlaceFacts)], path: &str) -> Vec<Check> {
    let mut out = Vec::new();
    for (what, of) in [("written", write_speed as fn(&PlaceFacts) -> Option<f64>), ("read", read_speed)] {
        let slow: Vec<_> = shares(here, of).into_iter().filter(|s| s.1 < AMBER).collect();
        let Some(worst) = slow.iter().min_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
        let fact = format!(
            "{path} is {what} at {:.3} GB/s, {:.0}% of the median of the nodes ({:.3} GB/s)",
            worst.1 * worst.2 / 1e9,
            100.0 * worst.1,
            worst.2 / 1e9
        );
        let cure = "look at this node's mount options and its network to the servers";
        let check = if worst.1 < RED {
            Check::red("storage speed", fact, cure)
        } else {
            Check::amber("storage speed", fact, cure)
        };
        out.push(check.on(slow.iter().map(|s| &s.0)));
    }
    out
}

/// Room for the planned checkpoints, in the run directory (`is_run`), and for files.
fn room(q: &Inquiry, here: &[(&HostFacts, &PlaceFacts)], path: &str, is_run: bool) -> Vec<Check> {
    // where writing was refused, that is told already
    let written = |p: &&PlaceFacts| !matches!(p.written, Some(Err(_)));
    let least = |of: &dyn Fn(&PlaceFacts) -> Option<u64>| here.iter().map(|h| h.1).filter(written).filter_map(of).min();
    let mut out = Vec::new();
    let space = least(&|p| p.space.as_ref().map(|s| s.free));
    let quota = least(&|p| p.quota_free);
    let free = [space, quota].into_iter().flatten().min();
    if let (Some(needs), Some(free), true) = (&q.needs, free, is_run) {
        let (one, all) = (needs.checkpoint as u64, (needs.checkpoint * needs.checkpoints as f64) as u64);
        let by = if quota == Some(free) { " by quota" } else { "" };
        let fact = format!(
            "{path} has {} free{by}; a checkpoint is {}, {} of them lie there at a time: {}",
            binary(free),
            binary(one),
            needs.checkpoints,
            binary(all)
        );
        let cure = "free space, or keep fewer checkpoints (checkpoint.keep)";
        match free {
            f if f < one => out.push(Check::red("storage room", fact, cure)),
            f if f < all => out.push(Check::amber("storage room", fact, cure)),
            _ => {}
        }
    }
    if let Some(files) = least(&|p| p.space.as_ref().and_then(|s| s.files_free)).filter(|f| *f < FILES) {
        let fact = format!("{path} has room for {files} more files; a run may make {FILES}");
        let cure = "remove small files, or take another filesystem";
        out.push(if files < 100 {
            Check::red("storage files", fact, cure)
        } else {
            Check::amber("storage files", fact, cure)
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Light;
    use crate::doctor::facts::Space;
    use crate::doctor::question::Needs;

    fn host(i: usize) -> HostFacts {
        let space = Space { kind: "NFS".into(), size: 1 << 40, free: 1 << 39, files_free: Some(1 << 30) };
        let place = PlaceFacts {
            path: "/scratch/run".into(),
            there: "/scratch/run".into(),
            space: Some(space),
            written: Some(Ok(1e9)),
            seen: [(0, Ok(2e9))].into(),
            ..PlaceFacts::default()
        };
        HostFacts { node: format!("n{i}"), places: vec![place], ..HostFacts::default() }
    }

    fn with(change: impl Fn(&mut PlaceFacts)) -> Vec<Check> {
        let mut hosts: Vec<HostFacts> = (0..4).map(host).collect();
        change(&mut hosts[2].places[0]);
        judge(&Inquiry::default(), &hosts)
    }

    #[test]
    fn each_fault_of_one_node_is_told_once_and_by_its_name() {
        assert_eq!(with(|_| {})[0].light, Light::Green);
        type Case<'a> = (&'a dyn Fn(&mut PlaceFacts), &'a str, &'a str);
        let cases: [Case; 5] = [
            (
                &|p| (p.there, p.written) = ("/scratch".into(), Some(Err("no such file or directory".into()))),
                "storage",
                "is not there",
            ),
            (
                &|p| p.written = Some(Err("read-only file system".into())),
                "storage",
                "read-only file system; others can",
            ),
            (&|p| p.written = Some(Err("no space left on device".into())), "storage", "no space left"),
            (&|p| p.written = Some(Err("disk quota exceeded".into())), "storage", "quota"),
            (&|p| p.written = Some(Ok(5e7)), "storage speed", "5% of the median"),
        ];
        for (change, name, words) in cases {
            let found = with(change);
            assert_eq!(found.len(), 1, "{found:?}");
            let c = &found[0];
            assert!(c.light == Light::Red && c.who() == "n2" && c.name == name && c.fact.contains(words), "{c:?}");
            assert!(c.cure.is_some());
        }
    }

    #[test]
    fn checkpoints_need_room() {
        let hosts: Vec<HostFacts> = (0..2).map(host).collect();
        let of = |checkpoint: f64| {
            let needs = Some(Needs { checkpoint, checkpoints: 4, snapshots: 0.0 });
            judge(&Inquiry { needs, ..Inquiry::default() }, &hosts)[0].clone()
        };
        assert_eq!(of(1e9).light, Light::Green);
        assert_eq!((of(2e11).light, of(2e11).name.as_str()), (Light::Amber, "storage room"));
        let red = of(1e12);
        assert!(red.light == Light::Red && red.nodes.is_empty() && red.fact.contains("512 GiB free"), "{red:?}");
    }
}

//! What a site's Slurm offers a job: partitions with their nodes, devices and limits, asked of `sinfo` and `scontrol`.

use super::process::{command, output};
use crate::error::Result;
use std::time::Duration;

/// A controller that serves thousands of nodes may take a few seconds.
const LIMIT: Duration = Duration::from_secs(20);

/// Nodes of one kind in one partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offer {
    /// Name of the partition.
    pub partition: String,
    /// Slurm takes this partition where none is asked for.
    pub is_default: bool,
    /// Longest time of a job, minutes; None without a limit.
    pub limit_min: Option<u64>,
    /// CPUs of a node, as Slurm counts them.
    pub cpus: usize,
    /// Memory of a node, MiB.
    pub memory_mib: u64,
    /// Devices of a node, 0 without.
    pub gpus: usize,
    /// Their type as Slurm's Gres names it; empty where it names none.
    pub gpu_type: String,
    /// Nodes that can run jobs, now or when others end.
    pub usable: usize,
    /// Nodes that are down or drained.
    pub unusable: usize,
}

/// Asks sinfo.
///
/// # Errors
/// [`Exit::World`](crate::error::Exit::World): it cannot be started or does not answer.
pub fn ask() -> Result<Vec<Offer>> {
    let said = output(command("sinfo", &["-h", "-e", "-o", "%P|%a|%l|%D|%c|%m|%G|%T"]), LIMIT)?;
    Ok(read(&said))
}

/// Whether jobs must say how much memory they want, by `SelectTypeParameters`; None where scontrol does not answer.
pub fn counts_memory() -> Option<bool> {
    let said = output(command("scontrol", &["show", "config"]), LIMIT).ok()?;
    let line = said.lines().find(|l| l.trim_start().starts_with("SelectTypeParameters"))?;
    Some(line.to_ascii_uppercase().contains("MEMORY"))
}

/// The user's account where Slurm's accounting has one, or why it is not known.
pub fn account(user: &str) -> std::result::Result<String, String> {
    let said = output(command("sacctmgr", &["-nP", "show", "user", user, "format=DefaultAccount"]), LIMIT);
    match said {
        Ok(text) => match text.lines().map(str::trim).find(|l| !l.is_empty()) {
            Some(account) => Ok(account.to_string()),
            None => Err(format!("Slurm's accounting knows no account of {user}")),
        },
        Err(e) => Err(format!("Slurm's accounting was not asked: {}", e.fact)),
    }
}

/// `PARTITION|avail|limit|nodes|cpus|memory|gres|state`, a line a kind of nodes and state. Partitions that are down are left out.
fn read(said: &str) -> Vec<Offer> {
    let mut out: Vec<Offer> = Vec::new();
    for line in said.lines() {
        let f: Vec<&str> = line.trim().split('|').collect();
        let [partition, "up", limit, nodes, cpus, memory, gres, state] = f[..] else { continue };
        let number = |text: &str| text.trim_end_matches('+').parse().unwrap_or(0);
        let (gpus, gpu_type) = devices(gres);
        let kind = Offer {
            partition: partition.trim_end_matches('*').into(),
            is_default: partition.ends_with('*'),
            limit_min: minutes(limit),
            cpus: number(cpus),
            memory_mib: number(memory) as u64,
            gpus,
            gpu_type,
            ..Offer::default()
        };
        let found = out.iter().position(|o| Offer { usable: 0, unusable: 0, ..o.clone() } == kind);
        let at = found.unwrap_or_else(|| {
            out.push(kind);
            out.len() - 1
        });
        match is_usable(state) {
            true => out[at].usable += number(nodes),
            false => out[at].unusable += number(nodes),
        }
    }
    out
}

/// `idle`, `mixed`, `allocated~`: whether a job may come to run there. `*` means that the node does not answer.
fn is_usable(state: &str) -> bool {
    let word = state.trim_end_matches(['~', '#', '!', '%', '$', '@', '^', '-']);
    matches!(word, "idle" | "mixed" | "allocated" | "completing" | "planned" | "reserved")
}

/// Number and type of the GPUs of a node: `gpu:h100:8(S:0-1)`, `gpu:4`, `nvme:1,gpu:a100:4`.
fn devices(gres: &str) -> (usize, String) {
    let (mut found, mut first) = ((0, String::new()), true);
    let mut depth = 0;
    let parts = gres.split(|c: char| {
        depth += (c == '(') as i32 - (c == ')') as i32;
        c == ',' && depth == 0
    });
    for part in parts {
        let plain = part.split('(').next().unwrap_or_default();
        let words: Vec<&str> = plain.split(':').collect();
        let (count, kind) = match words[..] {
            ["gpu", kind, n] => (n.parse().unwrap_or(0), kind),
            ["gpu", n] => (n.parse().unwrap_or(0), ""),
            _ => continue,
        };
        found.0 += count;
        // the name of all of them, or none
        found.1 = if first || found.1 == kind { kind.to_string() } else { String::new() };
        first = false;
    }
    found
}

/// Slurm's time limits: `30`, `30:00`, `24:00:00`, `1-00:00:00`, `infinite`.
fn minutes(text: &str) -> Option<u64> {
    let (days, rest) = match text.split_once('-') {
        Some((d, rest)) => (d.parse().ok()?, rest),
        None => (0, text),
    };
    let parts: Vec<u64> = rest.split(':').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    let minutes = match (parts[..].len(), text.contains('-')) {
        (3, _) => parts[0] * 60 + parts[1],
        (2, true) => parts[0] * 60 + parts[1],
        (1, true) => parts[0] * 60,
        (2 | 1, false) => parts[0],
        _ => return None,
    };
    Some(days * 1440 + minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sinfo_says_becomes_offers() {
        let said = "gpu*|up|2-00:00:00|12|128|2000000|gpu:h100:8(S:0-1)|idle\ngpu*|up|2-00:00:00|3|128|2000000|gpu:h100:8(S:0-1)|mixed\n\
                    gpu*|up|2-00:00:00|1|128|2000000|gpu:h100:8(S:0-1)|down*\ncpu|up|infinite|4|64|256000|(null)|idle~\nold|down|1:00|9|8|1|gpu:4|idle\nx\n";
        let found = read(said);
        assert_eq!(found.len(), 2);
        let gpu = &found[0];
        assert_eq!((gpu.usable, gpu.unusable, gpu.gpus, gpu.gpu_type.as_str()), (15, 1, 8, "h100"));
        assert!(gpu.is_default && gpu.limit_min == Some(2880) && gpu.memory_mib == 2_000_000);
        assert_eq!((found[1].usable, found[1].gpus, found[1].limit_min), (4, 0, None));
    }

    #[test]
    fn gres_and_times_in_all_their_forms() {
        assert_eq!(devices("nvme:1,gpu:a100:4(S:0,2-3),gpu:a100:4"), (8, "a100".into()));
        assert_eq!(devices("gpu:a100:4,gpu:h100:4"), (8, String::new()));
        assert_eq!(devices("gpu:4,gpu:h100:4"), (8, String::new()));
        assert_eq!([devices("gpu:4").0, devices("(null)").0, devices("gpu:x:y").0], [4, 0, 0]);
        let all = ["30", "90:00", "24:00:00", "1-00", "1-12:30", "1-00:00:00", "infinite", "n/a"];
        let want = [Some(30), Some(90), Some(1440), Some(1440), Some(2190), Some(1440), None, None];
        assert_eq!(all.map(minutes), want);
        assert!(
            is_usable("allocated+") == is_usable("x")
                && is_usable("idle~")
                && !is_usable("idle*")
                && !is_usable("drained")
        );
    }
}

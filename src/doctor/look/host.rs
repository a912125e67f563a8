//! Limits of this process and memory of its host.

use rustix::process::{getrlimit, Resource};
use std::collections::BTreeMap;

/// Soft and hard limits by name; `None`: unlimited.
pub fn limits() -> BTreeMap<String, (Option<u64>, Option<u64>)> {
    let all = [("open files", Resource::Nofile), ("processes", Resource::Nproc), ("locked memory", Resource::Memlock)];
    let read = |(name, which): (&str, Resource)| {
        let limit = getrlimit(which);
        (name.to_string(), (limit.current, limit.maximum))
    };
    all.map(read).into_iter().collect()
}

/// Bytes of memory of the host.
pub fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kib(&text, "MemTotal:").unwrap_or(0) << 10
}

fn kib(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

/// The tightest limit on memory of this process's control groups, version 2 or 1, where there is one.
pub fn memory_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(kinds), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match kinds {
            "" => ("/sys/fs/cgroup", "memory.max"),
            k if k.split(',').any(|k| k == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        // every group above counts too
        let mut at = Some(path.trim_end_matches('/'));
        while let Some(path) = at {
            let text = std::fs::read_to_string(format!("{root}{path}/{file}")).unwrap_or_default();
            let value = text.trim().parse::<u64>().ok().filter(|v| *v < 1 << 60);
            least = [least, value].into_iter().flatten().min();
            at = path.rsplit_once('/').map(|(above, _)| above);
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_memory_and_limits() {
        assert!(memory() > 1 << 28);
        assert!(limits()["open files"].0.is_none_or(|n| n > 16));
        assert_eq!(kib("MemTotal:       24689764 kB\n", "MemTotal:"), Some(24689764));
        assert_eq!(kib("", "MemTotal:"), None);
    }
}

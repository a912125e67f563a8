//! Interfaces of this host and what it makes of its peers' names.

use crate::doctor::facts::Interface;
use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long all names may take; the resolver's own limit is 5 s for each server and try (resolv.conf(5)).
const NAMES: Duration = Duration::from_secs(3);

/// Ethernet interfaces (without loopback and those that are containers' own) and ports of fabrics, in the order of their names.
/// Their list is that of this network namespace, `/proc/net/dev`; `/sys` may be another's.
pub fn interfaces() -> Vec<Interface> {
    let mut out = of_dev(&std::fs::read_to_string("/proc/net/dev").unwrap_or_default(), Path::new("/sys/class/net"));
    out.extend(fabric(Path::new("/sys/class/infiniband")));
    out.sort();
    out
}

/// Names that software makes for itself: they differ from host to host and carry nothing between hosts.
const VIRTUAL: &[&str] = &[
    "lo", "docker", "veth", "virbr", "cni", "flannel", "cali", "tun", "tap", "br-", "dummy", "sit", "ip6tnl", "gre",
    "erspan", "tunl", "ip_vti", "ip6_vti", "ip6gre", "gretap",
];

fn of_dev(text: &str, sys: &Path) -> Vec<Interface> {
    let mut out = Vec::new();
    for (name, counts) in text.lines().filter_map(|l| l.split_once(':')) {
        let name = name.trim();
        if VIRTUAL.iter().any(|v| name.starts_with(v)) {
            continue;
        }
        let counts: Vec<u64> = counts.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let read = |file: &str| std::fs::read_to_string(sys.join(name).join(file)).ok();
        let state = read("operstate").map(|s| s.trim().to_string());
        out.push(Interface {
            name: name.to_string(),
            up: state.as_deref() != Some("down"),
            mbit_s: read("speed").and_then(|s| s.trim().parse::<i64>().ok()).and_then(|s| u64::try_from(s).ok()),
            // fields: bytes packets errs drop fifo frame compressed multicast, then the same of what was sent (proc_pid_net(5))
            errors: counts.get(2).unwrap_or(&0) + counts.get(10).unwrap_or(&0),
        });
    }
    out
}

/// Ports of InfiniBand and RoCE (Linux, Documentation/ABI/stable/sysfs-class-infiniband).
fn fabric(sys: &Path) -> Vec<Interface> {
    let list =
        |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>();
    let mut out = Vec::new();
    for device in list(sys) {
        for port in list(&device.join("ports")) {
            let read = |file: &str| std::fs::read_to_string(port.join(file)).unwrap_or_default();
            let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let errors = ["symbol_error", "link_downed", "port_rcv_errors"];
            out.push(Interface {
                name: format!("{} port {}", name(&device), name(&port)),
                // "4: ACTIVE"
                up: read("state").contains("ACTIVE"),
                // "400 Gb/sec (4X NDR)"
                mbit_s: read("rate")
                    .split_whitespace()
                    .next()
                    .and_then(|n| n.parse::<f64>().ok())
                    .map(|g| (g * 1e3) as u64),
                errors: errors.iter().filter_map(|e| read(&format!("counters/{e}")).trim().parse::<u64>().ok()).sum(),
            });
        }
    }
    out
}

/// What the host's resolver says of each name, all of them within [`NAMES`].
pub fn resolve(names: &[String]) -> BTreeMap<String, Result<String, String>> {
    let (tell, told) = mpsc::channel();
    for name in names.iter().cloned() {
        let tell = tell.clone();
        let look = move || {
            let found = address(&name);
            let _ = tell.send((name, found));
        };
        if std::thread::Builder::new().name("herd-names".into()).stack_size(256 << 10).spawn(look).is_err() {
            break;
        }
    }
    drop(tell);
    let late = || Err(format!("no answer within {} s", NAMES.as_secs()));
    let mut out: BTreeMap<String, Result<String, String>> = names.iter().map(|n| (n.clone(), late())).collect();
    let end = Instant::now() + NAMES;
    while let Ok((name, found)) = told.recv_timeout(end.saturating_duration_since(Instant::now())) {
        out.insert(name, found);
    }
    out
}

/// The lowest address, of those that are not loopback where there are others: which comes first may differ from call to call.
fn address(name: &str) -> Result<String, String> {
    let found = (name, 0u16).to_socket_addrs().map_err(|e| e.to_string())?;
    let mut all: Vec<IpAddr> = found.map(|a| a.ip()).collect();
    all.sort_by_key(|a| (a.is_loopback(), a.is_ipv6(), *a));
    all.first().map(IpAddr::to_string).ok_or_else(|| "no address".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_come_from_the_own_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("net/eth0/operstate", "up\n");
        write("net/eth0/speed", "25000\n");
        write("net/eth1/operstate", "down\n");
        write("net/eth1/speed", "-1\n");
        let dev = "Inter-|   Receive\n face |bytes    packets errs\n\
                   lo: 1 2 0 0 0 0 0 0 1 2 0 0 0 0 0 0\n eth0: 10 20 3 0 0 0 0 0 30 40 5 0 0 0 0 0\n eth1: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        let found = of_dev(dev, &dir.path().join("net"));
        let eth = |name: &str, up, mbit_s, errors| Interface { name: name.into(), up, mbit_s, errors };
        assert_eq!(found, [eth("eth0", true, Some(25000), 8), eth("eth1", false, None, 0)]);
        write("ib/mlx5_0/ports/1/state", "4: ACTIVE\n");
        write("ib/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)\n");
        write("ib/mlx5_0/ports/1/counters/link_downed", "2\n");
        assert_eq!(fabric(&dir.path().join("ib")), [eth("mlx5_0 port 1", true, Some(400_000), 2)]);
    }

    #[test]
    fn a_name_has_an_address_or_a_reason() {
        let found = resolve(&["localhost".into(), "no-such-host.invalid".into()]);
        assert!(found["localhost"].is_ok(), "{found:?}");
        assert!(found["no-such-host.invalid"].is_err(), "{found:?}");
    }
}

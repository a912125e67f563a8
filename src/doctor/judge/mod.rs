//! Facts of all hosts → rows of the table. Pure functions; what is slow or different is measured by the other hosts.

mod clock;
mod compare;
mod gpu;
mod host;
mod links;
mod names;
mod network;
mod program;
mod shared_memory;
pub mod slurm;
mod software;
mod speed;
mod storage;
pub mod stuck;
mod visible;

pub use links::Suspects;

use super::check::{Check, Light};
use super::facts::HostFacts;
use super::question::Inquiry;

/// Every row.
pub fn all(q: &Inquiry, hosts: &[HostFacts]) -> Vec<Check> {
    let mut out = without_mpi(q, hosts);
    out.extend(clock::judge(hosts));
    out.extend(speed::judge(hosts));
    let links = links::judge(hosts).into_iter().map(|link| explained(link, &out)).collect::<Vec<_>>();
    out.extend(links);
    out
}

/// A link that is slow because one of its ends has too slow cores to serve it is that node's, not a link's.
fn explained(link: Check, others: &[Check]) -> Check {
    let Some((a, b)) = link.link.clone() else { return link };
    let slow =
        |n: &&String| others.iter().any(|c| c.name == "cpu speed" && c.light == Light::Red && c.nodes.contains(n));
    let slow: Vec<&String> = [&a, &b].into_iter().filter(slow).collect();
    match slow.is_empty() {
        true => link,
        false => {
            let fact = format!("its link {a} – {b}: {}; its cores are slow", link.fact);
            Check { link: None, fact, cure: Some("see its cpu speed".into()), ..link }.on(slow)
        }
    }
}

/// The rows of what hosts find out without each other.
pub fn without_mpi(q: &Inquiry, hosts: &[HostFacts]) -> Vec<Check> {
    let mut out = software::judge(hosts);
    out.extend(storage::judge(q, hosts));
    out.extend(visible::judge(hosts));
    out.extend(visible::inputs(q, hosts));
    out.extend(shared_memory::judge(q, hosts));
    out.extend(host::judge(q, hosts));
    out.extend(names::judge(hosts));
    out.extend(network::judge(hosts));
    out.extend(gpu::judge(hosts));
    out.extend(program::judge(hosts));
    out
}

/// What looks slow and is to be measured once more before anybody is named.
pub fn suspects(hosts: &[HostFacts]) -> Suspects {
    Suspects { speed: speed::suspicious(hosts), storage: storage::suspicious(hosts), links: links::suspicious(hosts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_a_node_with_slow_cores_is_no_bad_link() {
        let cpu = [Check::red("cpu speed", "slow", "look").on(["n2"])];
        let link = || Check::red("links", "9 ms", "cable").between("n1", "n2");
        let found = explained(link(), &cpu);
        assert_eq!((found.who(), found.link.clone()), ("n2".into(), None));
        assert!(found.fact.contains("its link n1 – n2: 9 ms"), "{found:?}");
        assert_eq!(explained(link(), &[Check::red("clock", "3 s", "ntp").on(["n2"])]), link());
    }
}

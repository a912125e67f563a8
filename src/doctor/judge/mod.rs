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

use super::check::Check;
use super::facts::HostFacts;
use super::question::Inquiry;

/// Every row.
pub fn all(q: &Inquiry, hosts: &[HostFacts]) -> Vec<Check> {
    let mut out = without_mpi(q, hosts);
    out.extend(clock::judge(hosts));
    out.extend(speed::judge(hosts));
    out.extend(links::judge(hosts));
    out
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

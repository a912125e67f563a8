//! What a host finds out by itself.

pub mod fingerprint;
pub mod gpu;
mod host;
mod network;
mod program;
pub mod software;
pub mod space;
mod speed;

pub use speed::Load;

use super::facts::HostFacts;
use super::question::Inquiry;
use crate::text::short_reason;

/// Everything about this host that needs nobody else. `peers`: names to look up.
pub fn look(q: &Inquiry, node: &str, peers: &[String]) -> HostFacts {
    HostFacts {
        node: node.to_string(),
        software: software::all(q.config.as_deref()),
        cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
        memory: host::memory(),
        memory_limit: host::memory_limit(),
        limits: host::limits(),
        interfaces: network::interfaces(),
        names: network::resolve(peers),
        shared_memory: space::of(&q.snapshot_dir).ok(),
        inputs: q
            .inputs
            .iter()
            .map(|p| {
                let digest = fingerprint::of(p).map_err(|e| short_reason(&e));
                (p.display().to_string(), digest)
            })
            .collect(),
        gpus: gpu::all(),
        health: program::run(&q.health_check),
        ..HostFacts::default()
    }
}

//! What one host found. It goes to rank 0 as JSON of a few kilobytes.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Slurm's name of the node where Slurm started the process, else the host's.
    pub node: String,
    /// Name of a program, library or file → version or digest.
    pub software: BTreeMap<String, String>,
    /// Cores that a rank may use.
    pub cores: usize,
    /// Ranks of the world on this host; 1 where it is examined without MPI.
    pub ranks: usize,
    /// Bytes.
    pub memory: u64,
    /// What this process may use at most by its control group, in bytes, where that is less.
    pub memory_limit: Option<u64>,
    /// Name of a limit → soft and hard; `None`: unlimited.
    pub limits: BTreeMap<String, (Option<u64>, Option<u64>)>,
    /// Sorted by name, without those that software makes for itself.
    pub interfaces: Vec<Interface>,
    /// Peer's name → its address, or why there is none.
    pub names: BTreeMap<String, Result<String, String>>,
    /// Snapshots' filesystem.
    pub shared_memory: Option<Space>,
    /// Shared directories, in the order in which they were asked for.
    pub places: Vec<PlaceFacts>,
    /// Path of an input → its digest, or why it cannot be read.
    pub inputs: BTreeMap<String, Result<String, String>>,
    /// `None`: no NVIDIA driver here. An error: the driver is there and does not answer.
    pub gpus: Option<Result<Vec<GpuFacts>, String>>,
    /// The site's own program: code, and the first line that it printed.
    pub health: Option<Result<(i32, String), String>>,
    /// From the start of the process to its first line of code: the loader and its libraries.
    pub load_s: f64,
    /// MPI_Init.
    pub mpi_s: f64,
    /// One for each time that it was measured.
    pub speeds: Vec<SpeedFacts>,
    /// `None` on the first host, which has no parent, and where clocks were not compared.
    pub clock: Option<ClockFacts>,
    /// One list for each time that it was measured.
    pub links: Vec<LinkFacts>,
}

/// A network interface or a port of a fabric.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Interface {
    /// The kernel's name; of a fabric with its port, as in `mlx5_0 port 1`.
    pub name: String,
    /// Whether the kernel does not call it down; for a port, whether it is active.
    pub up: bool,
    /// Megabits a second, where the driver says it.
    pub mbit_s: Option<u64>,
    /// Packets received and sent with errors, since the host started.
    pub errors: u64,
}

/// A filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Its type, as in `tmpfs` or `Lustre`; `type 0x…` where the number has no known name.
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// Bytes that users without privileges may still write, quotas aside.
    pub free: u64,
    /// Files that may still be made; `None` where the filesystem counts none.
    pub files_free: Option<u64>,
}

/// A directory that all hosts write to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlaceFacts {
    /// As the configuration says.
    pub path: String,
    /// The directory itself, or the nearest one above it that is there.
    pub there: String,
    /// `None` where not even that can be looked at.
    pub space: Option<Space>,
    /// Bytes that this user may still write by quota, where the filesystem told.
    pub quota_free: Option<u64>,
    /// What writing a file there came to: bytes a second, or why it failed.
    pub written: Option<Result<f64, String>>,
    /// By index of a host: whether its file was seen with its content, and how fast it was read in bytes a second.
    pub seen: BTreeMap<usize, Result<f64, String>>,
}

/// A graphics card, by nvidia-smi.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuFacts {
    /// nvidia-smi's number of the card on this host, from 0.
    pub index: u64,
    /// The product's name.
    pub name: String,
    /// MiB.
    pub memory_total: u64,
    /// MiB not in use.
    pub memory_free: u64,
    /// Uncorrected errors since the driver was loaded, where the card counts them.
    pub uncorrected: Option<u64>,
    /// Bits of the reasons why its clock is held down.
    pub throttled: u64,
    /// Watts, where it can be set.
    pub power_limit: Option<f64>,
    /// Watts that the card allows unless told otherwise, where nvidia-smi says it.
    pub power_default: Option<f64>,
    /// Persistence mode is on: the driver stays loaded between processes.
    pub persistent: bool,
}

/// Work done in a set time, by all ranks of the host together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpeedFacts {
    /// Matrix products, floating-point operations a second.
    pub flops: f64,
    /// Bytes copied a second, read and written counted once each.
    pub memory: f64,
    /// Products whose bits were not the known ones.
    pub wrong: u64,
}

/// This host's clock against its parent's in the tree of hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClockFacts {
    /// Index of the other host.
    pub parent: usize,
    /// Seconds by which the other clock is ahead.
    pub ahead_s: f64,
    /// It is off by no more than this: half of the shortest round trip (Cristian 1989).
    pub error_s: f64,
}

/// A link, measured by both of its ends at the same time; the end with the lower index keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkFacts {
    /// Index of the other host.
    pub peer: usize,
    /// Half of a round trip of one byte: the shortest (what waits for a core is not the link's).
    pub latency_s: f64,
    /// Half of the mean round trip: lost packets show in it.
    pub mean_s: f64,
    /// Bytes a second each way, both ways at once.
    pub bandwidth: f64,
}

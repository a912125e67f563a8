//! What a machine can do, as far as a step's time depends on it: the device, its links, storage, and how often it fails.
//! The table is `devices.yaml`, in the form that a user's own file has; efficiencies and costs that no data sheet gives have
//! defaults here, and each is said where it was taken from.

use crate::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One kind of device in one kind of node. Rates are of one device (of one core where `cores` is given), decimal units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Name in the table (`--gpu`) and in messages.
    pub name: String,
    /// Where the figures are from.
    pub source: String,
    /// What ranks compute on; CUDA where a file does not say.
    #[serde(default)]
    pub device: DeviceKind,
    /// Of a node, where ranks compute on a CPU: ranks beyond that many threads take turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<usize>,
    /// What one rank may use.
    pub memory_gib: f64,
    /// Dense, of matrix products in bf16.
    pub bf16_tflops: f64,
    /// Of plain fp32, no TF32: matrix products, and unfused attention in any dtype.
    pub fp32_tflops: f64,
    /// Bandwidth of its memory on the data sheet.
    pub memory_gb_s: f64,
    /// Between devices of one node, or of one NVLink domain.
    pub inside: Link,
    /// Between nodes, of one device's share of the adapters.
    pub between: Link,
    /// Devices that `inside` reaches where that is more than a node (GB200 NVL72: 72).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<usize>,
    /// Shares of the rates above that are reached; an H100's by default.
    #[serde(default)]
    pub efficiency: Efficiency,
    /// Shortest operation, cost of a step, memory kept free, rate of snapshots.
    #[serde(default)]
    pub costs: FixedCosts,
    /// Rates of shared storage, and the memory of a node.
    #[serde(default)]
    pub storage: StorageRates,
    /// How often devices fail, and how long it takes to go on.
    #[serde(default)]
    pub faults: FaultRates,
}

/// What a rank computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A GPU for each rank.
    #[default]
    Cuda,
    /// CPU cores; rates are of one of them.
    Cpu,
}

/// One direction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Bandwidth on the data sheet, 10⁹ bytes a second.
    pub gb_s: f64,
    /// What a hop takes beside its bytes.
    pub latency_us: f64,
}

/// What is reached of the data sheet's rates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Efficiency {
    /// Large matrix products.
    pub matrix: f64,
    /// Fused attention's forward pass, counted below the diagonal.
    pub attention_forward: f64,
    /// Its backward pass, counted likewise.
    pub attention_backward: f64,
    /// Unfused attention's products, of the fp32 rate.
    pub attention_unfused: f64,
    /// Streams through memory.
    pub memory: f64,
    /// Links inside a node or NVLink domain.
    pub inside: f64,
    /// Links between nodes.
    pub between: f64,
}

impl Default for Efficiency {
    /// An H100's: products 620 of 989 TFLOP/s under its power limit over a whole step (short ones reach 750), flash attention
    /// 500 and 420 (FlashAttention-2 and 3, arXiv:2407.08608), memory 3.0 of 3.35 TB/s, NVLink 370 of 450 GB/s (NCCL).
    fn default() -> Self {
        Efficiency {
            matrix: 0.70,
            attention_forward: 0.50,
            attention_backward: 0.42,
            attention_unfused: 0.75,
            memory: 0.90,
            inside: 0.82,
            between: 0.85,
        }
    }
}

/// What does not shrink with the work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FixedCosts {
    /// Shortest time of one operation.
    pub kernel_us: f64,
    /// Once a step: data, agreement with the host, launches that nothing hides.
    pub step_ms: f64,
    /// Memory that is kept free on a device: what the allocator cannot use. Context and NCCL's buffers are terms of the formula.
    pub reserve_gib: f64,
    /// Copy of the state into a snapshot, a rank. On CUDA it goes through pageable memory.
    pub snapshot_gb_s: f64,
}

impl Default for FixedCosts {
    fn default() -> Self {
        FixedCosts { kernel_us: 4.0, step_ms: 10.0, reserve_gib: 1.0, snapshot_gb_s: 5.0 }
    }
}

/// Shared storage and the memory of a node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageRates {
    /// What one node writes.
    pub node_write_gb_s: f64,
    /// What one node reads.
    pub node_read_gb_s: f64,
    /// What the filesystem takes from all nodes.
    pub write_gb_s: f64,
    /// What the filesystem gives to all nodes.
    pub read_gb_s: f64,
    /// What leaves the one node that uploads.
    pub store_gb_s: f64,
    /// Main memory of a node, which a plan shows beside what snapshots take of it.
    pub node_memory_gib: f64,
}

impl Default for StorageRates {
    fn default() -> Self {
        StorageRates {
            node_write_gb_s: 2.0,
            node_read_gb_s: 4.0,
            write_gb_s: 100.0,
            read_gb_s: 200.0,
            store_gb_s: 1.0,
            node_memory_gib: 2048.0,
        }
    }
}

/// How often devices fail and what a fault costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultRates {
    /// Unexpected interruptions per device and day.
    pub per_device_day: f64,
    /// Share of them that takes a node out.
    pub node_share: f64,
    /// From the fault to the verdict.
    pub detect_s: f64,
    /// From the verdict to the first step, with a spare or where no node was lost.
    pub restart_s: f64,
    /// The same where a node is missing and the job goes through the queue.
    pub requeue_s: f64,
    /// Until a node that was lost is back.
    pub repair_h: f64,
}

impl Default for FaultRates {
    /// Llama 3 (arXiv:2407.21783, table 5): 419 unexpected interruptions in 54 days on 16,384 H100, 78% of them of hardware.
    /// ByteRobust (arXiv:2509.16293): 65 s from a warm standby and 768 s through a requeue at 16,000 devices.
    fn default() -> Self {
        FaultRates {
            per_device_day: 4.74e-4,
            node_share: 0.78,
            detect_s: 10.0,
            restart_s: 65.0,
            requeue_s: 768.0,
            repair_h: 24.0,
        }
    }
}

const TABLE: &str = include_str!("devices.yaml");

impl Hardware {
    /// Every device of the table.
    pub fn table() -> Vec<Hardware> {
        serde_yaml::from_str(TABLE).expect("the table of devices reads")
    }

    /// A name of the table, or a file (a name with a dot or a slash).
    ///
    /// # Errors
    /// [`Exit::Usage`] for an unknown name; [`Exit::Config`] for a file that is missing, no such YAML, or holds a figure that
    /// is not above zero.
    pub fn named(name: &str) -> Result<Hardware> {
        if name.contains(['.', '/']) {
            return Hardware::read(Path::new(name));
        }
        let table = Hardware::table();
        let names: Vec<String> = table.iter().map(|h| h.name.clone()).collect();
        table.into_iter().find(|h| h.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            Error::new(Exit::Usage, format!("no device {name:?} in the table"))
                .hint(format!("one of {}, or a YAML file like those in docs/planning.md", names.join(", ")))
        })
    }

    fn read(path: &Path) -> Result<Hardware> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", &e, Exit::Config))?;
        let found: Hardware = serde_yaml::from_str(&text).map_err(|e| {
            Error::new(Exit::Config, format!("{}: {e}", path.display())).hint("docs/planning.md shows such a file")
        })?;
        found.check().map_err(|e| e.context(path.display()))?;
        Ok(found)
    }

    /// Every rate is a number above zero, every cost and share at least zero.
    fn check(&self) -> Result<()> {
        let (e, c, s, f) = (&self.efficiency, &self.costs, &self.storage, &self.faults);
        let above = [
            ("memory_gib", self.memory_gib),
            ("bf16_tflops", self.bf16_tflops),
            ("fp32_tflops", self.fp32_tflops),
            ("memory_gb_s", self.memory_gb_s),
            ("inside.gb_s", self.inside.gb_s),
            ("between.gb_s", self.between.gb_s),
            ("efficiency.matrix", e.matrix),
            ("efficiency.attention_forward", e.attention_forward),
            ("efficiency.attention_backward", e.attention_backward),
            ("efficiency.attention_unfused", e.attention_unfused),
            ("efficiency.memory", e.memory),
            ("efficiency.inside", e.inside),
            ("efficiency.between", e.between),
            ("costs.snapshot_gb_s", c.snapshot_gb_s),
            ("storage.node_write_gb_s", s.node_write_gb_s),
            ("storage.node_read_gb_s", s.node_read_gb_s),
            ("storage.write_gb_s", s.write_gb_s),
            ("storage.read_gb_s", s.read_gb_s),
            ("storage.store_gb_s", s.store_gb_s),
            ("storage.node_memory_gib", s.node_memory_gib),
            ("cores", self.cores.unwrap_or(1) as f64),
            ("domain", self.domain.unwrap_or(1) as f64),
        ];
        let at_least = [
            ("inside.latency_us", self.inside.latency_us),
            ("between.latency_us", self.between.latency_us),
            ("costs.kernel_us", c.kernel_us),
            ("costs.step_ms", c.step_ms),
            ("costs.reserve_gib", c.reserve_gib),
            ("faults.per_device_day", f.per_device_day),
            ("faults.node_share", f.node_share),
            ("faults.detect_s", f.detect_s),
            ("faults.restart_s", f.restart_s),
            ("faults.requeue_s", f.requeue_s),
            ("faults.repair_h", f.repair_h),
        ];
        let wrong = above.iter().find(|(_, x)| !(x.is_finite() && *x > 0.0)).map(|(k, x)| (k, x, "above"));
        let wrong =
            wrong.or(at_least.iter().find(|(_, x)| !(x.is_finite() && *x >= 0.0)).map(|(k, x)| (k, x, "at least")));
        match wrong {
            Some((key, x, than)) => Err(Error::new(Exit::Config, format!("{key}: {x} is no {key} of a device"))
                .hint(format!("a number {than} 0"))),
            None => Ok(()),
        }
    }

    /// FLOP/s that large matrix products reach.
    pub fn products(&self, bf16: bool) -> f64 {
        self.efficiency.matrix * self.peak(bf16)
    }

    /// FLOP/s of the data sheet.
    pub fn peak(&self, bf16: bool) -> f64 {
        1e12 * if bf16 { self.bf16_tflops } else { self.fp32_tflops }
    }

    /// Bytes a second that streams through memory reach.
    pub fn streams(&self) -> f64 {
        self.efficiency.memory * self.memory_gb_s * 1e9
    }

    /// Bytes that a rank's tensors may take.
    pub fn room(&self) -> u64 {
        ((self.memory_gib - self.costs.reserve_gib).max(0.0) * (1u64 << 30) as f64) as u64
    }
}

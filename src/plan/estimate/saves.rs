//! Bytes and times of a run's state in each tier (docs/checkpoints.md): snapshots in the memory of nodes, their second
//! copies, checkpoints on shared storage, uploads.

use super::hardware::Hardware;
use super::shape::StepShape;
use crate::config::{CheckpointSection, Partner};
use serde::Serialize;

/// Master weights and both moments, fp32.
const STATE_BYTES: f64 = 12.0;

/// What keeping the state costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SaveEstimate {
    /// Of one checkpoint.
    pub bytes: f64,
    /// The largest part of one rank.
    pub rank_bytes: f64,
    /// A rank's copy into a snapshot: the step waits for it.
    pub snapshot_s: f64,
    /// The copy to the partner, behind the steps.
    pub partner_s: f64,
    /// To shared storage, behind the steps unless `checkpoint.background` is off.
    pub write_s: f64,
    /// From shared storage, by all nodes at once.
    pub read_s: f64,
    /// To the object store, from one node.
    pub upload_s: f64,
    /// Shared memory of a node that snapshots take with these settings; 0 without snapshots.
    pub node_memory: f64,
    /// The same if every step made a snapshot with a second copy.
    pub node_memory_full: f64,
}

/// Of `parameters` in all, on `nodes`.
pub fn estimate(shape: &StepShape, c: &CheckpointSection, h: &Hardware, parameters: f64, nodes: usize) -> SaveEstimate {
    let bytes = STATE_BYTES * parameters;
    let counted = |stage: usize| shape.stage_parameters(stage) / shape.replicas() as f64;
    let rank_bytes = STATE_BYTES * (0..shape.pipeline).map(counted).fold(0.0, f64::max);
    let s = &h.storage;
    let rate = |node: f64, all: f64| (node * nodes as f64).min(all) * 1e9;
    // Two slots, a third while a save reads one; as many of another rank's where there is a partner: two.
    let slots = |saves: bool, copies: bool| 2.0 + f64::from(saves) + if copies { 2.0 } else { 0.0 };
    let saves = (c.every > 0 || c.every_minutes > 0.0) && c.background;
    let copies = match c.partner {
        Partner::Off => false,
        Partner::Node => nodes > 1,
        Partner::Rank => shape.world() > 1,
    };
    let node = |slots: f64| slots * rank_bytes * shape.local as f64;
    SaveEstimate {
        bytes,
        rank_bytes,
        snapshot_s: rank_bytes / (h.costs.snapshot_gb_s * 1e9) * shape.share(h).crowd.max(1.0),
        partner_s: rank_bytes / (h.between.gb_s * h.efficiency.between * 1e9),
        write_s: bytes / rate(s.node_write_gb_s, s.write_gb_s),
        read_s: bytes / rate(s.node_read_gb_s, s.read_gb_s),
        upload_s: bytes / (s.store_gb_s * 1e9),
        node_memory: if c.snapshot_every > 0 { node(slots(saves, copies)) } else { 0.0 },
        node_memory_full: node(slots(true, nodes > 1)),
    }
}

//! The memory formula on every pipeline stage that could need most.

use super::hardware::Hardware;
use super::shape::ChunkSize;
use crate::plan::memory::{KernelForms, Memory};
use crate::plan::Plan;
use crate::topology::Axis;
use serde::Serialize;
use std::collections::BTreeMap;

/// Memory of one rank of the stage that needs most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StageMemory {
    /// Pipeline stage, from 0.
    pub stage: usize,
    /// Bytes by what they are for.
    #[serde(flatten)]
    pub parts: Memory,
    /// Bytes of all parts.
    pub total: u64,
    /// What a rank has, less what is kept free.
    pub room: u64,
    /// Room less total; below zero it does not fit.
    pub headroom: i64,
}

impl StageMemory {
    /// Whether the rank has room for it.
    pub fn fits(&self) -> bool {
        self.headroom >= 0
    }
}

/// The largest over the stages of `plan`, which may be any rank's.
pub fn memory_of_stages(plan: &Plan, h: &Hardware, forms: KernelForms) -> StageMemory {
    let room = h.room();
    let of = |stage: usize| {
        let parts = Memory::with(&plan.of_rank(stage * plan.topology.stride(Axis::Pipeline)), forms);
        let total = parts.total();
        let headroom = (room as i128 - total as i128).clamp(i64::MIN as i128, i64::MAX as i128) as i64;
        StageMemory { stage, parts, total, room, headroom }
    };
    let all = candidates(plan).into_iter().map(of);
    all.max_by_key(|m| m.total).unwrap_or_else(|| of(0))
}

/// Of the stages with the same units the first (most micro-batches under way) and the last (most weight gradients put off).
fn candidates(plan: &Plan) -> Vec<usize> {
    let stages = plan.topology.size(Axis::Pipeline);
    let mut kinds: BTreeMap<Vec<ChunkSize>, (usize, usize)> = BTreeMap::new();
    for stage in 0..stages {
        let kind = plan.chunks.iter().skip(stage).step_by(stages).map(|units| ChunkSize::of(units)).collect();
        kinds.entry(kind).and_modify(|(_, last)| *last = stage).or_insert((stage, stage));
    }
    let mut out: Vec<usize> = kinds.into_values().flat_map(|(first, last)| [first, last]).collect();
    out.sort_unstable();
    out.dedup();
    out
}

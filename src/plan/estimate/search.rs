//! Every way to cut a run into the ranks of an allocation, ranked by the estimated time of a step.
//!
//! The axes are all that fit the world, the model and the batch (the rules of `herd config check`); for each of them the
//! fastest settings that fit in memory among ZeRO stages, pipeline schedules, chunks, micro-batches and the lightest
//! recomputation that fits. A lower bound (the busiest stage alone) orders what is tried: what cannot be among the best
//! [`KEPT`] is neither played nor measured. The global batch stays.

use super::hardware::Hardware;
use super::shape::{ChunkSize, StepShape};
use super::stages::{memory_of_stages, StageMemory};
use super::step::{self, StepEstimate};
use super::Allocation;
use crate::config::{Config, ModelConfig, ParallelSection, PipelineSchedule, Recompute};
use crate::error::Result;
use crate::layout::{stages, Unit};
use crate::plan::memory::KernelForms;
use crate::plan::numbers::divisors;
use crate::plan::shape::Shape;
use crate::plan::{axes, Plan};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tch::Device;

/// Axes that are ranked.
pub const KEPT: usize = 10;
/// Most chunks a stage that are tried, besides one block a chunk.
const CHUNKS: usize = 8;
/// Micro-batches that are tried, besides the configured one.
const MICRO: [usize; 4] = [1, 2, 4, 8];

/// One way, with what it takes.
#[derive(Clone, Debug)]
pub struct RankedLayout {
    /// The one searched from, with this layout's axes and settings.
    pub config: Config,
    /// Time of its step, by which layouts are ranked.
    pub step: StepEstimate,
    /// Of a rank of its stage that needs most.
    pub memory: StageMemory,
}

/// What a search found.
#[derive(Clone, Debug, Default)]
pub struct Ranking {
    /// Fastest first, at most [`KEPT`], each with other axes.
    pub best: Vec<RankedLayout>,
    /// Axes that fit world, model and batch.
    pub axes: usize,
    /// Axes and settings together.
    pub settings: usize,
    /// Settings that do not fit in memory, of those that were measured.
    pub too_large: usize,
    /// Bytes of a rank of the smallest of those; of state alone where nothing else was looked at.
    pub least: f64,
}

/// What is searched in.
pub struct SearchSpace<'a> {
    /// Every key but axes, schedule, chunks, ZeRO stage, shard size, micro-batch and recomputation stays.
    pub config: &'a Config,
    /// The model's sizes, which limit the axes.
    pub shape: &'a Shape,
    /// Nodes and ranks that every layout has to fill.
    pub allocation: Allocation,
    /// Machine that gives the memory and the rates.
    pub hardware: &'a Hardware,
    /// Kernels that memory and time are counted with.
    pub forms: KernelForms,
    /// The first rank's, which its plans have.
    pub device: Device,
    /// The model's chunks, by pipeline stages and chunks on each.
    pub chunks: RefCell<HashMap<(usize, usize), ModelChunks>>,
}

/// The units of each chunk, and how many of which.
#[derive(Clone)]
pub struct ModelChunks {
    units: Arc<Vec<Vec<Unit>>>,
    sizes: Arc<[ChunkSize]>,
}

/// Ranks all layouts of `space`.
///
/// # Errors
/// Those of the pipeline's simulator.
pub fn search(space: &SearchSpace) -> Result<Ranking> {
    let all = sections(space);
    let mut ranking = Ranking { axes: all.len(), least: f64::MAX, ..Ranking::default() };
    let mut tried: Vec<(f64, Config)> = Vec::new();
    let room = space.hardware.room() as f64;
    for config in all.iter().flat_map(|parallel| settings(space, parallel)) {
        ranking.settings += 1;
        let shape = space.step_shape(&config);
        let state = state(&shape);
        if state > room {
            (ranking.least, ranking.too_large) = (ranking.least.min(state), ranking.too_large + 1);
        } else {
            tried.push((step::at_least(&shape, space.hardware), config));
        }
    }
    ranking.too_large = ranking.settings - tried.len();
    tried.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (bound, config) in tried {
        let worst = ranking.best.get(KEPT - 1).map_or(f64::MAX, |r| r.step.seconds);
        if bound >= worst {
            break;
        }
        match space.lightest_that_fits(config, worst)? {
            Ok(found) => found.into_iter().for_each(|found| ranking.insert(found)),
            Err(total) => {
                ranking.too_large += 1;
                ranking.least = ranking.least.min(total as f64);
            }
        }
    }
    Ok(ranking)
}

impl Ranking {
    /// Keeps the fastest of each axes, in order.
    fn insert(&mut self, found: RankedLayout) {
        let sizes = |r: &RankedLayout| {
            let p = &r.config.parallel;
            (p.tensor, p.context, p.pipeline, p.data)
        };
        if let Some(i) = self.best.iter().position(|r| sizes(r) == sizes(&found)) {
            if self.best[i].step.seconds <= found.step.seconds {
                return;
            }
            self.best.remove(i);
        }
        let at = self.best.partition_point(|r| r.step.seconds <= found.step.seconds);
        self.best.insert(at, found);
        self.best.truncate(KEPT);
    }
}

impl SearchSpace<'_> {
    fn model(&self) -> &ModelConfig {
        &self.shape.model
    }

    /// The plan of the first rank.
    fn plan(&self, config: &Config) -> Plan {
        let (model, ranks) = (self.model().clone(), self.allocation.ranks(0, self.hardware));
        let chunks = self.model_chunks(config).units.to_vec();
        Plan::of_chunks(config.clone(), model, self.device, &ranks, chunks)
    }

    fn model_chunks(&self, config: &Config) -> ModelChunks {
        let p = &config.parallel;
        let cut = || {
            let units = stages::chunks(self.model(), p.pipeline, p.chunks, config.data.sequence_length);
            ModelChunks { sizes: units.iter().map(|u| ChunkSize::of(u)).collect(), units: Arc::new(units) }
        };
        self.chunks.borrow_mut().entry((p.pipeline, p.chunks)).or_insert_with(cut).clone()
    }

    fn step_shape(&self, config: &Config) -> StepShape {
        let (ranks, sizes) = (self.allocation.ranks(0, self.hardware), self.model_chunks(config).sizes);
        StepShape::cut(config, self.model(), &ranks, sizes, self.forms)
    }

    /// With as little recomputation as fits in memory, None where a step then cannot take less than `worst` seconds; where
    /// nothing fits, the bytes of a rank with the most recomputation.
    fn lightest_that_fits(&self, config: Config, worst: f64) -> Result<std::result::Result<Option<RankedLayout>, u64>> {
        let mut total = 0;
        for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
            let mut config = config.clone();
            (config.train.recompute, config.train.recompute_blocks) = (recompute, 0);
            let shape = self.step_shape(&config);
            if step::at_least(&shape, self.hardware) >= worst {
                return Ok(Ok(None));
            }
            let memory = memory_of_stages(&self.plan(&config), self.hardware, self.forms);
            total = memory.total;
            if memory.fits() {
                let step = step::estimate(&shape, self.hardware)?;
                return Ok(Ok(Some(RankedLayout { config, step, memory })));
            }
        }
        Ok(Err(total))
    }
}

/// Bytes of parameters, gradients and optimizer state alone, of the largest stage.
fn state(shape: &StepShape) -> f64 {
    let (e, g) = (shape.elem(), shape.shard as f64);
    let moments = if shape.bf16 { 12.0 } else { 8.0 };
    let part = |zero_from: u8, bytes: f64| if shape.zero >= zero_from { bytes / g } else { bytes };
    let most = (0..shape.pipeline).map(|s| shape.stage_parameters(s)).fold(0.0, f64::max);
    most * (part(3, e) + part(2, 4.0) + moments / g)
}

/// Axes that fit the world, the model and the batch.
fn sections(space: &SearchSpace) -> Vec<ParallelSection> {
    let (world, model) = (space.allocation.world(), space.model());
    let mut out = Vec::new();
    for tensor in divisors(world).into_iter().filter(|t| model.num_attention_heads.is_multiple_of(*t)) {
        for context in divisors(world / tensor) {
            for pipeline in divisors(world / tensor / context).into_iter().filter(|&p| p <= model.num_hidden_layers) {
                let data = world / tensor / context / pipeline;
                let parallel = ParallelSection {
                    tensor,
                    context,
                    pipeline,
                    data,
                    schedule: PipelineSchedule::OneFOneB,
                    chunks: 1,
                    shard_size: 0,
                    ..space.config.parallel.clone()
                };
                let config = Config { parallel: parallel.clone(), ..space.config.clone() };
                let mut clashes = Vec::new();
                axes::check(&config, Some(space.shape), world, &mut clashes);
                if clashes.is_empty() && space.config.batch.global.is_multiple_of(data) {
                    out.push(parallel);
                }
            }
        }
    }
    out
}

/// Configurations with these axes, before recomputation.
fn settings(space: &SearchSpace, parallel: &ParallelSection) -> Vec<Config> {
    let share = space.config.batch.global / parallel.data;
    let micro = MICRO.into_iter().chain([space.config.batch.micro]).filter(|m| share.is_multiple_of(*m));
    let micro: BTreeSet<usize> = micro.collect();
    let zeros: &[u8] = if parallel.context * parallel.data == 1 { &[0] } else { &[1, 2, 3] };
    let mut out = Vec::new();
    for &micro in &micro {
        for (schedule, chunks) in schedules(parallel.pipeline, space.model().num_hidden_layers) {
            for &zero in zeros {
                let mut config = space.config.clone();
                config.batch.micro = micro;
                config.train.recompute = Recompute::None;
                config.parallel = ParallelSection { schedule, chunks, zero, ..parallel.clone() };
                out.push(config);
            }
        }
    }
    out
}

/// Schedules of so many stages with their chunks.
fn schedules(stages: usize, layers: usize) -> Vec<(PipelineSchedule, usize)> {
    if stages == 1 {
        return vec![(PipelineSchedule::OneFOneB, 1)];
    }
    let most = layers / stages;
    let chunks = (2..=CHUNKS.min(most)).chain((most > CHUNKS).then_some(most));
    let plain = [(PipelineSchedule::OneFOneB, 1), (PipelineSchedule::ZeroBubble, 1)];
    plain.into_iter().chain(chunks.map(|c| (PipelineSchedule::Interleaved, c))).collect()
}

/// By how many seconds `b` takes longer than `a`, by what for, the largest difference first.
pub fn differences(a: &StepEstimate, b: &StepEstimate) -> Vec<(&'static str, f64)> {
    let parts = |s: &StepEstimate| {
        [
            ("matrix products", s.parts.matrix),
            ("attention", s.parts.attention),
            ("other operations", s.parts.elementwise),
            ("tensor axis", s.parts.tensor),
            ("context axis", s.parts.context),
            ("replicas", s.parts.data),
            ("pipeline bubble", s.bubble),
            ("optimizer", s.optimizer),
            ("snapshots", s.snapshot),
            ("fixed costs", s.other),
        ]
    };
    let mut out: Vec<_> = parts(a).into_iter().zip(parts(b)).map(|((name, a), (_, b))| (name, b - a)).collect();
    out.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    out
}

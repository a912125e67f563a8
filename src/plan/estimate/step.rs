//! The time of one optimizer step: passes played through the pipeline's own schedule, what replicas exchange, the update.

use super::compute::{BlockPasses, LayerTimes};
use super::hardware::Hardware;
use super::parts::StepParts;
use super::replicas::{ReplicaTraffic, UnitPass};
use super::shape::{ChunkSize, StepShape};
use crate::config::{PipelineSchedule, Recompute};
use crate::error::Result;
use crate::schedules::simulate::{self, Costs};
use crate::schedules::{self, Action};
use serde::Serialize;

/// Seconds of a step as the first pipeline stage spends them; everything but `parts.hidden` adds up to `seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepEstimate {
    /// Of the whole step, until the slowest stage is done.
    pub seconds: f64,
    /// What the first stage computes and exchanges in all micro-batches.
    pub parts: StepParts,
    /// Waiting for other stages, and for cores that other ranks have.
    pub bubble: f64,
    /// Gradient norm and AdamW.
    pub optimizer: f64,
    /// Copies into snapshots, spread over the steps between them.
    pub snapshot: f64,
    /// Agreement of all ranks and fixed costs.
    pub other: f64,
    /// Share of all stages' time in the passes in which they wait for each other.
    pub bubble_share: f64,
}

/// Costs of one chunk and micro-batch.
#[derive(Clone, Copy, Debug, Default)]
struct ChunkPasses {
    forward: StepParts,
    input: StepParts,
    weight: StepParts,
}

impl ChunkPasses {
    fn all(&self) -> StepParts {
        self.forward + self.input + self.weight
    }
}

/// The step of `shape` on `hardware`.
///
/// # Errors
/// Those of the simulator, for a schedule that cannot run.
pub fn estimate(shape: &StepShape, hardware: &Hardware) -> Result<StepEstimate> {
    let step = StepClock::new(shape, hardware);
    let played = step.play()?;
    Ok(step.assemble(&played))
}

/// As [`estimate`], with every micro-batch played.
#[cfg(test)]
pub fn estimate_whole(shape: &StepShape, hardware: &Hardware) -> Result<StepEstimate> {
    let step = StepClock::new(shape, hardware);
    let played = step.play_whole(shape.accumulation)?;
    Ok(step.assemble(&played))
}

/// No step takes less: a stage works as long as it works, begins when the first micro-batch has come to it through the
/// chunks before it, and what it finishes last has still to go back through them. Plays nothing.
pub fn at_least(shape: &StepShape, hardware: &Hardware) -> f64 {
    let step = StepClock::new(shape, hardware);
    let mut through = 0.0;
    let mut longest = 0.0f64;
    for (stage, busy) in step.busy_stages().into_iter().enumerate() {
        longest = longest.max(through + busy.total());
        let chunk = &step.chunks[stage];
        // Weight gradients hold up the stage before, but for those that are put off.
        let weight = if shape.schedule == PipelineSchedule::ZeroBubble { 0.0 } else { chunk.weight.total() };
        through += chunk.forward.total() + chunk.input.total() + weight;
    }
    longest
}

/// The passes of a step on the clock: when each stage is done.
struct PassClock {
    ends: Vec<f64>,
    bubble: f64,
}

struct StepClock<'a> {
    shape: &'a StepShape,
    hardware: &'a Hardware,
    layers: LayerTimes<'a>,
    chunks: Vec<ChunkPasses>,
    passes: BlockPasses,
}

impl<'a> StepClock<'a> {
    fn new(shape: &'a StepShape, hardware: &'a Hardware) -> StepClock<'a> {
        let layers = LayerTimes::new(shape, hardware);
        let together = shape.schedule != PipelineSchedule::ZeroBubble || shape.pipeline == 1;
        let block = |mode| layers.block(mode, together);
        let (again, kept) = (block(shape.recompute), block(Recompute::None));
        let traffic = ReplicaTraffic::new(shape, layers.fabric(), hardware);
        let units = UnitCosts::new(shape, &layers, &traffic, (&again, &kept));
        let chunks = (0..shape.chunks.len()).map(|c| units.chunk(shape, c)).collect();
        StepClock { passes: again, chunks, shape, hardware, layers }
    }

    /// What each stage does in a step's passes.
    fn busy_stages(&self) -> Vec<StepParts> {
        let mut out = vec![StepParts::default(); self.shape.pipeline];
        for (c, passes) in self.chunks.iter().enumerate() {
            out[c % self.shape.pipeline] += passes.all() * self.shape.accumulation as f64;
        }
        out
    }

    /// What one stage does in a step's passes.
    fn busy(&self, stage: usize) -> StepParts {
        let own = self.chunks.iter().skip(stage).step_by(self.shape.pipeline);
        own.map(ChunkPasses::all).sum::<StepParts>() * self.shape.accumulation as f64
    }

    fn play(&self) -> Result<PassClock> {
        let (stages, micros) = (self.shape.pipeline, self.shape.accumulation);
        if stages == 1 {
            return Ok(PassClock { ends: vec![self.busy(0).total()], bubble: 0.0 });
        }
        // Beyond the filling and draining a schedule repeats itself: with a multiple of the stages more micro-batches every
        // stage ends later by the same time.
        let enough = 4 * stages + micros % stages;
        if micros <= enough + stages {
            return self.play_whole(micros);
        }
        let (short, long) = (self.play_whole(enough)?, self.play_whole(enough + stages)?);
        let more = (micros - enough) as f64 / stages as f64;
        let ends: Vec<f64> = short.ends.iter().zip(&long.ends).map(|(a, b)| a + (b - a) * more).collect();
        let makespan = ends.iter().copied().fold(0.0, f64::max);
        let busy: f64 = (0..stages).map(|s| self.busy(s).total()).sum();
        Ok(PassClock { ends, bubble: 1.0 - busy / (makespan * stages as f64) })
    }

    fn play_whole(&self, micros: usize) -> Result<PassClock> {
        let (stages, per_stage) = (self.shape.pipeline, self.shape.per_stage());
        let list = |stage| schedules::list(self.shape.schedule, stage, stages, micros, per_stage);
        let costs = Costs {
            forward: self.chunks.iter().map(|c| c.forward.total()).collect(),
            backward_input: self.chunks.iter().map(|c| c.input.total()).collect(),
            backward_weight: self.chunks.iter().map(|c| c.weight.total()).collect(),
            transfer: self.layers.transfer(),
            kept: vec![0.0; self.chunks.len()],
        };
        let lists: Vec<Vec<Action>> = (0..stages).map(list).collect();
        let played = simulate::play(&lists, &costs)?;
        let end = |spans: &Vec<simulate::TimeSpan>| spans.last().map_or(0.0, |s| s.end);
        Ok(PassClock { ends: played.spans.iter().map(end).collect(), bubble: played.bubble() })
    }

    fn assemble(&self, played: &PassClock) -> StepEstimate {
        let (shape, h) = (self.shape, self.hardware);
        let stages = shape.pipeline;
        let traffic = ReplicaTraffic::new(shape, self.layers.fabric(), h);
        let tails: Vec<(f64, f64)> = (0..stages).map(|s| traffic.tail(&self.backward_units(s))).collect();
        let ends = played.ends.iter().zip(&tails).map(|(end, tail)| end + tail.0);
        let passes = ends.fold(0.0, f64::max);
        let (publish, publish_hidden) = traffic.publish(&self.forward_units(0));
        let owned = |s: usize| shape.stage_parameters(s) / shape.shard as f64;
        let most = (0..stages).map(owned).fold(0.0, f64::max);
        let optimizer = self.layers.optimizer(most);
        let counted = most * shape.shard as f64 / shape.replicas() as f64;
        let snapshot = match shape.snapshot_every {
            0 => 0.0,
            n => self.layers.snapshot(counted) / n as f64,
        };
        let parts = self.busy(0).over_data(tails[0].0 + publish, 0.0);
        let parts = StepParts { hidden: parts.hidden + tails[0].1 + publish_hidden, ..parts };

        // Ranks that share cores: nobody is idle while others wait for a core, but where too few stages have work.
        let crowd = shape.share(h).crowd.max(1.0);
        let work: f64 = (0..stages).map(|s| self.busy(s).total() + tails[s].0).sum::<f64>() / stages as f64;
        let passes = (passes + publish).max((work + publish) * crowd + self.filling());
        let (optimizer, snapshot) = (optimizer * crowd, snapshot * crowd);
        let other = h.costs.step_ms * 1e-3 + agreement(shape, h) + self.small_sums();
        StepEstimate {
            seconds: passes + optimizer + snapshot + other,
            bubble: passes - parts.total(),
            bubble_share: played.bubble,
            parts,
            optimizer,
            snapshot,
            other,
        }
    }

    /// Time for which cores that ranks share are idle, since the pipeline fills and drains: with k stages at work the others'
    /// cores have nothing to do for a pass forward and back through one chunk.
    fn filling(&self) -> f64 {
        let (shape, share) = (self.shape, self.shape.share(self.hardware));
        let (Some(cores), true) = (self.hardware.cores, shape.pipeline > 1 && share.crowd > 1.0) else { return 0.0 };
        let of_a_stage = (shape.local as f64 / shape.pipeline as f64) * share.speed;
        let idle = |k: usize| (1.0 - k as f64 * of_a_stage / cores as f64).max(0.0);
        let pass = self.busy(0).total() / (shape.accumulation * shape.per_stage()) as f64;
        (1..shape.pipeline).map(idle).sum::<f64>() * pass
    }

    /// Norms' gradients over the tensor axis, the tied embedding's over the first and the last stage.
    fn small_sums(&self) -> f64 {
        let (shape, fabric) = (self.shape, self.layers.fabric());
        let tensor = fabric.axis(shape, crate::topology::Axis::Tensor);
        let norms = 2.0 * shape.model.hidden_size as f64 * shape.stage(0).map(|c| c.blocks).sum::<usize>() as f64;
        let tied = match shape.model.tie_word_embeddings && shape.pipeline > 1 {
            true => shape.unit_parameters().embedding / shape.shard as f64 * 8.0,
            false => 0.0,
        };
        let pipeline = fabric.axis(shape, crate::topology::Axis::Pipeline);
        let ends = if tied > 0.0 { fabric.send(pipeline, tied) } else { 0.0 };
        fabric.all_reduce(tensor, norms / shape.shard as f64 * 4.0) + ends
    }

    /// Units of a stage in the order of the backward pass, each with its last pass.
    fn backward_units(&self, stage: usize) -> Vec<UnitPass> {
        let sizes = self.shape.unit_parameters();
        let block = (self.passes.backward_input + self.passes.backward_weight).total();
        let mut out = Vec::new();
        for c in self.shape.stage(stage).collect::<Vec<_>>().into_iter().rev() {
            if c.head {
                out.push(UnitPass { computes: self.layers.head().total(), parameters: sizes.head });
            }
            out.extend((0..c.blocks).map(|_| UnitPass { computes: block, parameters: sizes.block }));
            if c.embedding {
                out.push(UnitPass { computes: self.layers.embedding().1.total(), parameters: sizes.embedding });
            }
        }
        out
    }

    /// The same in the order of the forward pass; the head's pass is no part of it.
    fn forward_units(&self, stage: usize) -> Vec<UnitPass> {
        let sizes = self.shape.unit_parameters();
        let mut out = Vec::new();
        for c in self.shape.stage(stage) {
            if c.embedding {
                out.push(UnitPass { computes: self.layers.embedding().0.total(), parameters: sizes.embedding });
            }
            let computes = self.passes.forward.total();
            out.extend((0..c.blocks).map(|_| UnitPass { computes, parameters: sizes.block }));
        }
        out
    }
}

/// Passes of one unit of each kind with what its replicas exchange during them.
struct UnitCosts {
    /// A block that recomputes, and one that does not.
    again: ChunkPasses,
    kept: ChunkPasses,
    embedding: ChunkPasses,
    head: ChunkPasses,
}

impl UnitCosts {
    fn new(
        shape: &StepShape, layers: &LayerTimes, traffic: &ReplicaTraffic, passes: (&BlockPasses, &BlockPasses),
    ) -> UnitCosts {
        let parameters = shape.unit_parameters();
        let (fetch, reduce) = (traffic.fetch_each_pass(parameters.block), traffic.reduce_each_pass(parameters.block));
        let cover = |p: StepParts| if shape.overlap { p.compute() } else { 0.0 };
        let split = shape.schedule == PipelineSchedule::ZeroBubble && shape.pipeline > 1;
        let block = |b: &BlockPasses| {
            let (on_input, on_weight) = if split { (fetch, reduce) } else { (fetch + reduce, 0.0) };
            let whole = if split { b.backward_input } else { b.backward_input + b.backward_weight };
            ChunkPasses {
                forward: b.forward.over_data(fetch, cover(b.forward)),
                input: b.backward_input.over_data(on_input, cover(whole)),
                weight: b.backward_weight.over_data(on_weight, cover(b.backward_weight)),
            }
        };
        let (look_up, back) = layers.embedding();
        let head = layers.head();
        let exchange = traffic.fetch_each_pass(parameters.head) + traffic.reduce_each_pass(parameters.head);
        UnitCosts {
            again: block(passes.0),
            kept: block(passes.1),
            embedding: ChunkPasses { forward: look_up, weight: back, ..ChunkPasses::default() },
            head: ChunkPasses { input: head.over_data(exchange, cover(head)), ..ChunkPasses::default() },
        }
    }

    /// Chunk `c`: the first `recompute_blocks` blocks of its stage make activations again.
    fn chunk(&self, shape: &StepShape, c: usize) -> ChunkPasses {
        let size: ChunkSize = shape.chunks[c];
        let again = match shape.recompute_blocks {
            0 => size.blocks,
            n => {
                let before: usize = shape.stage(c % shape.pipeline).take(c / shape.pipeline).map(|b| b.blocks).sum();
                n.saturating_sub(before).min(size.blocks)
            }
        };
        let (embedding, head) = (f64::from(size.embedding), f64::from(size.head));
        let sum = |of: fn(&ChunkPasses) -> StepParts| {
            of(&self.again) * again as f64
                + of(&self.kept) * (size.blocks - again) as f64
                + of(&self.embedding) * embedding
                + of(&self.head) * head
        };
        ChunkPasses { forward: sum(|p| p.forward), input: sum(|p| p.input), weight: sum(|p| p.weight) }
    }
}

/// An all-reduce of a few numbers over the world on the host.
fn agreement(shape: &StepShape, h: &Hardware) -> f64 {
    let link = if shape.world() > shape.local { h.between } else { h.inside };
    2.0 * (shape.world() as f64).log2().ceil() * link.latency_us * 1e-6
}

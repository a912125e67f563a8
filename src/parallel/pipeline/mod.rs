//! The pipeline axis: the model cut into chunks of units that lie on different ranks, micro-batches passed along.
//!
//! - [`crate::schedules`]: who does what in which order, as data
//! - [`crate::schedules::simulate`]: plays the lists: deadlock, order, activation peak, time and bubble
//! - [`executor`]: runs a list, whoever computes
//! - [`passes`]: the model's chunks as what computes
//!
//! Without a pipeline there is one stage with one chunk, the whole model, and nothing is sent.

pub mod executor;
pub mod passes;

use crate::error::Result;
use crate::kernels::LossSums;
use crate::liveness::inject::Inject;
use crate::model::{Chunk, StepOptions};
use crate::plan::Plan;
use crate::schedules;
use crate::topology::Axis;
use crate::wire::Wire;
use executor::{Executor, PassReport};
pub use passes::StageWork;
use passes::{Between, Evaluation, PipelineStage, Training};
use std::sync::Arc;

/// One rank's part of the pipeline.
pub struct Pipeline {
    wire: Arc<dyn Wire>,
    /// Chunks of this stage, in forward order.
    own: Vec<Chunk>,
    per_stage: usize,
    training: Executor,
    between: Between,
}

impl Pipeline {
    /// [`Wire::sound`] of the stages' wire.
    pub fn sound(&self) -> Result<()> {
        self.wire.sound()
    }

    /// Of `plan`, over the pipeline axis's wire.
    pub fn new(plan: &Plan, wire: Arc<dyn Wire>) -> Pipeline {
        let (p, t) = (&plan.config.parallel, &plan.topology);
        let (stage, stages) = (wire.rank(), wire.size());
        let own: Vec<_> = plan.chunks.iter().skip(stage).step_by(stages).collect();
        let (schedule, micros, per_stage) = (p.schedule, plan.accumulation, p.chunks);
        let list = |stage| schedules::list(schedule, stage, stages, micros, per_stage);
        Pipeline {
            own: Chunk::list(&own),
            per_stage,
            training: Executor::new(wire.clone(), plan.chunks.len(), list),
            between: Between {
                rows: plan.config.data.sequence_length / (t.size(Axis::Context) * t.size(Axis::Tensor)),
                hidden: plan.model.hidden_size,
                dtype: plan.dtype,
                device: plan.device,
            },
            wire,
        }
    }

    /// Forward and backward passes of a step's micro-batches. Gradients go to the units; the loss is summed on the last stage
    /// and zero on the others.
    pub fn train<'a>(
        &'a self, work: StageWork<'a>, step: StepOptions, inject: &'a Inject,
    ) -> Result<(LossSums, PassReport)> {
        let mut training = Training::new(self.stage(work), step, inject);
        let report = self.training.run(&mut training)?;
        Ok((training.sums, report))
    }

    /// Forward passes of `micros` micro-batches: the loss, on the last stage.
    pub fn evaluate<'a>(&'a self, work: StageWork<'a>, micros: usize) -> Result<LossSums> {
        let stages = self.wire.size();
        let list = |stage| schedules::forward_only(stage, stages, micros, self.per_stage);
        let executor = Executor::new(self.wire.clone(), stages * self.per_stage, list);
        let mut evaluation = Evaluation { stage: self.stage(work), sums: LossSums::default() };
        executor.run(&mut evaluation)?;
        Ok(evaluation.sums)
    }

    fn stage<'a>(&'a self, work: StageWork<'a>) -> PipelineStage<'a> {
        PipelineStage { work, chunks: &self.own, stages: self.wire.size(), between: self.between }
    }
}

#[cfg(test)]
mod tests;

//! The model's chunks as the work of a stage: training passes, and forward passes alone.

use super::executor::Compute;
use crate::error::{Error, Exit, Result};
use crate::kernels::LossSums;
use crate::liveness::inject::Inject;
use crate::liveness::{Phase, Progress};
use crate::model::passes::{Activations, Deferred};
use crate::model::{Chunk, Llama, Micro, StepOptions, Units};
use crate::schedules::{Action, Parcel};
use std::collections::hash_map::{Entry, HashMap};
use tch::{Device, Kind, Tensor};

/// What lies between two chunks: the shape and place of a tensor of activations.
#[derive(Clone, Copy, Debug)]
pub struct Between {
    /// Of one sequence.
    pub rows: usize,
    /// Elements of a row: the model's hidden size.
    pub hidden: usize,
    /// Compute dtype.
    pub dtype: Kind,
    /// Device of this rank.
    pub device: Device,
}

/// What the passes of a step work on.
pub struct StageWork<'a> {
    /// Geometry and operations of the whole model.
    pub model: &'a Llama,
    /// Where this rank's parameters lie and its gradients go.
    pub units: &'a mut dyn Units,
    /// Makes a micro-batch, when a stage first needs it.
    pub load: &'a mut dyn FnMut(usize) -> Result<Micro>,
    /// Sequences of a micro-batch.
    pub sequences: &'a dyn Fn(usize) -> usize,
    /// Told what is being done.
    pub progress: &'a Progress,
}

/// The chunks of one stage at work.
pub struct PipelineStage<'a> {
    /// What its passes work on.
    pub work: StageWork<'a>,
    /// Of this stage alone, in forward order.
    pub chunks: &'a [Chunk],
    /// Stages of the whole pipeline; 1 without one.
    pub stages: usize,
    /// What any two neighbouring chunks hand to each other.
    pub between: Between,
}

impl<'a> PipelineStage<'a> {
    fn chunk(&self, action: Action) -> Result<&'a Chunk> {
        let place = action.chunk() / self.stages;
        self.chunks.get(place).ok_or_else(|| Error::new(Exit::Internal, format!("no chunk here for {action:?}")))
    }

    fn buffer(&self, parcel: Parcel) -> Tensor {
        let rows = (self.work.sequences)(parcel.micro) * self.between.rows;
        Tensor::empty([rows as i64, self.between.hidden as i64], (self.between.dtype, self.between.device))
    }
}

/// Forward and backward passes of a training step.
pub struct Training<'a> {
    stage: PipelineStage<'a>,
    step: StepOptions,
    inject: &'a Inject,
    /// Loss of the micro-batches so far; zero on stages without the head.
    pub sums: LossSums,
    /// From a micro-batch's first pass on this stage to its last.
    micros: HashMap<usize, Micro>,
    kept: HashMap<(usize, usize), Activations>,
    deferred: HashMap<(usize, usize), Deferred>,
}

impl<'a> Training<'a> {
    /// For one training step of a stage; a drill may spoil its gradients by `inject`.
    pub fn new(stage: PipelineStage<'a>, step: StepOptions, inject: &'a Inject) -> Training<'a> {
        let (micros, kept, deferred) = Default::default();
        Training { stage, step, inject, sums: LossSums::default(), micros, kept, deferred }
    }

    /// The gradient that comes in and how it starts where none does; a drill may have spoiled both.
    fn incoming(&self, dy: Option<Tensor>) -> (Option<Tensor>, StepOptions) {
        match self.inject.spoils() {
            false => (dy, self.step),
            true => (dy.map(|dy| dy * f64::NAN), StepOptions { grad_scale: f64::NAN, ..self.step }),
        }
    }
}

impl Compute for Training<'_> {
    fn run(&mut self, action: Action, input: Option<Tensor>) -> Result<Option<Tensor>> {
        let _guard = tch::no_grad_guard();
        let key = (action.chunk(), action.micro());
        let chunk = self.stage.chunk(action)?;
        if let Entry::Vacant(entry) = self.micros.entry(key.1) {
            entry.insert((self.stage.work.load)(key.1)?);
        }
        let Some(micro) = self.micros.get(&key.1) else { return Err(lost(action)) };
        let StageWork { model, progress, .. } = self.stage.work;
        progress.at(if let Action::Forward { .. } = action { Phase::Forward } else { Phase::Backward });
        let output = match action {
            Action::Forward { .. } => {
                let (y, kept) = model.forward(chunk, self.stage.work.units, micro, input)?;
                self.kept.insert(key, kept);
                return Ok(y);
            }
            Action::Backward { .. } => {
                let kept = self.kept.remove(&key).ok_or_else(|| lost(action))?;
                let (dy, step) = self.incoming(input);
                let (dx, sums) = model.backward(chunk, self.stage.work.units, micro, kept, dy, &step)?;
                self.sums += sums;
                dx
            }
            Action::BackwardInput { .. } => {
                let kept = self.kept.remove(&key).ok_or_else(|| lost(action))?;
                let (dy, step) = self.incoming(input);
                let (dx, deferred, sums) =
                    model.backward_input(chunk, self.stage.work.units, micro, kept, dy, &step)?;
                self.sums += sums;
                self.deferred.insert(key, deferred);
                return Ok(dx);
            }
            Action::BackwardWeight { .. } => {
                let deferred = self.deferred.remove(&key).ok_or_else(|| lost(action))?;
                model.backward_weight(chunk, self.stage.work.units, micro, deferred)?;
                None
            }
        };
        if chunk.before == 0 {
            self.micros.remove(&key.1);
        }
        Ok(output)
    }

    fn buffer(&self, parcel: Parcel) -> Tensor {
        self.stage.buffer(parcel)
    }

    fn waiting(&mut self) {
        self.stage.work.progress.at(Phase::Pipeline);
    }
}

/// Forward passes without gradients.
pub struct Evaluation<'a> {
    /// Whose chunks are run.
    pub stage: PipelineStage<'a>,
    /// Loss of the micro-batches so far; zero on stages without the head.
    pub sums: LossSums,
}

impl Compute for Evaluation<'_> {
    fn run(&mut self, action: Action, input: Option<Tensor>) -> Result<Option<Tensor>> {
        let _guard = tch::no_grad_guard();
        let chunk = self.stage.chunk(action)?;
        let work = &mut self.stage.work;
        work.progress.tick();
        let micro = (work.load)(action.micro())?;
        let (y, sums) = work.model.evaluate(chunk, work.units, &micro, input)?;
        self.sums += sums;
        Ok(y)
    }

    fn buffer(&self, parcel: Parcel) -> Tensor {
        self.stage.buffer(parcel)
    }

    fn waiting(&mut self) {
        self.stage.work.progress.tick();
    }
}

fn lost(action: Action) -> Error {
    Error::new(Exit::Internal, format!("{action:?} finds nothing of the pass before it"))
}

//! The model's chunks as the work of a stage: training passes, and forward passes alone.

use super::executor::Compute;
use super::schedules::{Action, Parcel};
use crate::error::{Error, Exit, Result};
use crate::kernels::LossSums;
use crate::model::chunk::{Activations, Deferred};
use crate::model::{Chunk, Llama, Micro, StepOptions, Units};
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

/// What lies between two chunks: the shape and place of a tensor of activations.
#[derive(Clone, Copy, Debug)]
pub struct Between {
    pub rows: usize,
    pub hidden: usize,
    pub dtype: Kind,
    pub device: Device,
}

impl Between {
    fn buffer(&self) -> Tensor {
        Tensor::empty([self.rows as i64, self.hidden as i64], (self.dtype, self.device))
    }
}

/// The chunks of one stage, ready for a step.
pub struct Stage<'a> {
    pub model: &'a Llama,
    /// Of this stage alone, in forward order.
    pub chunks: &'a [Chunk],
    pub stages: usize,
    pub units: &'a mut dyn Units,
    /// Makes a micro-batch; called once for each.
    pub load: &'a mut dyn FnMut(usize) -> Result<Micro>,
    pub between: Between,
}

impl Stage<'_> {
    fn chunk(&self, action: Action) -> Result<&Chunk> {
        let place = action.chunk() / self.stages;
        self.chunks.get(place).ok_or_else(|| Error::new(Exit::Internal, format!("no chunk here for {action:?}")))
    }
}

/// Forward and backward passes of a training step.
pub struct Training<'a> {
    pub stage: Stage<'a>,
    pub step: StepOptions,
    /// Loss of the micro-batches so far; zero on stages without the head.
    pub sums: LossSums,
    /// From a micro-batch's first pass on this stage to its last.
    micros: HashMap<usize, Micro>,
    kept: HashMap<(usize, usize), Activations>,
    deferred: HashMap<(usize, usize), Deferred>,
}

impl<'a> Training<'a> {
    pub fn new(stage: Stage<'a>, step: StepOptions) -> Training<'a> {
        let (micros, kept, deferred) = Default::default();
        Training { stage, step, sums: LossSums::default(), micros, kept, deferred }
    }
}

impl Compute for Training<'_> {
    fn run(&mut self, action: Action, input: Option<Tensor>) -> Result<Option<Tensor>> {
        let _guard = tch::no_grad_guard();
        let key = (action.chunk(), action.micro());
        let chunk = self.stage.chunk(action)?.clone();
        if let std::collections::hash_map::Entry::Vacant(entry) = self.micros.entry(key.1) {
            entry.insert((self.stage.load)(key.1)?);
        }
        let Some(micro) = self.micros.get(&key.1) else { return Err(lost(action)) };
        let (model, units) = (self.stage.model, &mut *self.stage.units);
        let output = match action {
            Action::Forward { .. } => {
                let (y, kept) = model.forward(&chunk, units, micro, input)?;
                self.kept.insert(key, kept);
                return Ok(y);
            }
            Action::Backward { .. } => {
                let kept = self.kept.remove(&key).ok_or_else(|| lost(action))?;
                let (dx, sums) = model.backward(&chunk, units, micro, kept, input, &self.step)?;
                self.sums += sums;
                dx
            }
            Action::BackwardInput { .. } => {
                let kept = self.kept.remove(&key).ok_or_else(|| lost(action))?;
                let (dx, deferred, sums) = model.backward_input(&chunk, units, micro, kept, input, &self.step)?;
                self.sums += sums;
                self.deferred.insert(key, deferred);
                return Ok(dx);
            }
            Action::BackwardWeight { .. } => {
                let deferred = self.deferred.remove(&key).ok_or_else(|| lost(action))?;
                model.backward_weight(&chunk, units, micro, deferred)?;
                None
            }
        };
        if chunk.before == 0 {
            self.micros.remove(&key.1);
        }
        Ok(output)
    }

    fn buffer(&self, _: Parcel) -> Tensor {
        self.stage.between.buffer()
    }
}

/// Forward passes without gradients.
pub struct Evaluation<'a> {
    pub stage: Stage<'a>,
    /// Loss of the micro-batches so far; zero on stages without the head.
    pub sums: LossSums,
}

impl Compute for Evaluation<'_> {
    fn run(&mut self, action: Action, input: Option<Tensor>) -> Result<Option<Tensor>> {
        let _guard = tch::no_grad_guard();
        let chunk = self.stage.chunk(action)?.clone();
        let micro = (self.stage.load)(action.micro())?;
        let (y, sums) = self.stage.model.evaluate(&chunk, self.stage.units, &micro, input)?;
        self.sums += sums;
        Ok(y)
    }

    fn buffer(&self, _: Parcel) -> Tensor {
        self.stage.between.buffer()
    }
}

fn lost(action: Action) -> Error {
    Error::new(Exit::Internal, format!("{action:?} finds nothing of the pass before it"))
}

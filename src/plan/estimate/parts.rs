//! Seconds of a piece of work by what they are spent on.

use serde::Serialize;
use std::ops::{Add, AddAssign, Mul};

/// Seconds of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StepParts {
    /// Matrix products of the linear layers.
    pub matrix: f64,
    /// Attention itself, without the linear layers around it.
    pub attention: f64,
    /// Everything else that computes.
    pub elementwise: f64,
    /// Collectives that the rank waits for, by axis.
    pub tensor: f64,
    /// Keys and values, and their gradients.
    pub context: f64,
    /// Gradients and parameters over the replicas (context × data).
    pub data: f64,
    /// Collectives that computation covers.
    pub hidden: f64,
}

impl StepParts {
    /// Of the rank; what is hidden is not counted.
    pub fn total(&self) -> f64 {
        self.compute() + self.exposed()
    }

    /// Seconds that the rank computes.
    pub fn compute(&self) -> f64 {
        self.matrix + self.attention + self.elementwise
    }

    /// Collectives waited for.
    pub fn exposed(&self) -> f64 {
        self.tensor + self.context + self.data
    }

    /// A collective of `took` seconds that `cover` seconds of computation may cover, on the tensor axis.
    pub fn over_tensor(mut self, took: f64, cover: f64) -> StepParts {
        let hidden = took.min(cover);
        (self.tensor, self.hidden) = (self.tensor + took - hidden, self.hidden + hidden);
        self
    }

    /// The same on the replicas.
    pub fn over_data(mut self, took: f64, cover: f64) -> StepParts {
        let hidden = took.min(cover);
        (self.data, self.hidden) = (self.data + took - hidden, self.hidden + hidden);
        self
    }
}

impl Add for StepParts {
    type Output = StepParts;
    fn add(self, o: StepParts) -> StepParts {
        StepParts {
            matrix: self.matrix + o.matrix,
            attention: self.attention + o.attention,
            elementwise: self.elementwise + o.elementwise,
            tensor: self.tensor + o.tensor,
            context: self.context + o.context,
            data: self.data + o.data,
            hidden: self.hidden + o.hidden,
        }
    }
}

impl AddAssign for StepParts {
    fn add_assign(&mut self, o: StepParts) {
        *self = *self + o;
    }
}

impl Mul<f64> for StepParts {
    type Output = StepParts;
    fn mul(self, x: f64) -> StepParts {
        StepParts {
            matrix: self.matrix * x,
            attention: self.attention * x,
            elementwise: self.elementwise * x,
            tensor: self.tensor * x,
            context: self.context * x,
            data: self.data * x,
            hidden: self.hidden * x,
        }
    }
}

impl std::iter::Sum for StepParts {
    fn sum<I: Iterator<Item = StepParts>>(all: I) -> StepParts {
        all.fold(StepParts::default(), Add::add)
    }
}

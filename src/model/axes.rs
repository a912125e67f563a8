//! The wires that layers use: the two axes that cut a layer itself.

use crate::wire::{self, Wire};
use std::sync::Arc;

/// Tensor and context axis of this rank.
#[derive(Clone)]
pub struct Axes {
    /// Heads, feed-forward columns and vocabulary rows are split over it, and between the layers the tokens.
    pub tensor: Arc<dyn Wire>,
    /// Sequences are split over it.
    pub context: Arc<dyn Wire>,
}

impl Axes {
    /// Every layer whole on one rank.
    pub fn solo() -> Axes {
        Axes { tensor: Arc::new(wire::MpiWire::solo()), context: Arc::new(wire::MpiWire::solo()) }
    }
}

impl std::fmt::Debug for Axes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "tensor {}/{}, context {}/{}",
            self.tensor.rank(),
            self.tensor.size(),
            self.context.rank(),
            self.context.size()
        )
    }
}

//! A message under way between two ranks of an axis.

use crate::error::Result;
use crate::world::leak;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// A message; it holds its tensor, so that the memory outlives it.
pub(super) struct TensorMessage {
    pub(super) tensor: Tensor,
    pub(super) send: bool,
    /// Rank on the wire.
    pub(super) peer: usize,
    pub(super) started: Instant,
    pub(super) done: Sender<Result<Duration>>,
}

impl TensorMessage {
    pub(super) fn kind(&self) -> Kind {
        self.tensor.kind()
    }

    pub(super) fn bytes(&self) -> usize {
        self.tensor.numel() * self.kind().elt_size_in_bytes()
    }

    /// After an error the tensor is leaked: somebody may still read or write it.
    pub(super) fn finish(self, result: Result<Duration>) {
        if result.is_err() {
            leak(self.tensor);
        }
        // The caller may have dropped the Work.
        let _ = self.done.send(result);
    }
}

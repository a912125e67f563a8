//! What happens in a chunk, in order, to one micro-batch.
//!
//! Everything goes through [`Units`]: a unit is held before its parameters are read or its gradients written, released
//! after, and declared complete when its gradient of the micro-batch is final. The head makes loss and gradient in one
//! pass, so it belongs to the backward pass: the last chunk's forward pass ends with its last block.

use super::chunk::{Chunk, Micro};
use super::llama::Llama;
use super::{embedding, StepOptions, Units, Use};
use crate::error::{Error, Exit, Result};
use crate::kernels::LossSums;
use crate::layout::Unit;
use crate::model::block;
use crate::model::head::Projection;
use tch::Tensor;

/// What a chunk's forward pass leaves for its backward pass.
pub struct Activations {
    blocks: Vec<block::Kept>,
    /// The head's input, [N,H] T.
    last: Option<Tensor>,
}

/// What [`Llama::backward_input`] leaves for [`Llama::backward_weight`].
pub struct Deferred {
    /// From the last block to the first.
    blocks: Vec<block::BlockPending>,
    /// Gradient of the embedding's output.
    first: Option<Tensor>,
}

impl Llama {
    /// The chunk's blocks: `x` [N,H] T, None where the chunk has the embedding → what the next chunk reads (None where this
    /// one has the head), and what the backward pass reads.
    pub fn forward(
        &self, chunk: &Chunk, units: &mut dyn Units, micro: &Micro, x: Option<Tensor>,
    ) -> Result<(Option<Tensor>, Activations)> {
        let mut x = self.enter(chunk, units, micro, x)?;
        let mut blocks = Vec::with_capacity(chunk.blocks.len());
        for (n, i) in chunk.blocks.clone().enumerate() {
            let mode = self.mode(chunk.before + n);
            let (y, kept) =
                block_of(units, i, Use::Forward, micro, |held| self.block.forward(&held.flat, &x, &micro.at, mode))?;
            blocks.push(kept);
            x = y;
        }
        Ok(match chunk.head {
            true => (None, Activations { blocks, last: Some(x) }),
            false => (Some(x), Activations { blocks, last: None }),
        })
    }

    /// Input and weight gradients in one go, half a block at a time, so that activations go as early as they can: `dy`
    /// [N,H] T, None where the chunk has the head → dx, None where it has the embedding, and the loss (zero without the
    /// head).
    pub fn backward(
        &self, chunk: &Chunk, units: &mut dyn Units, micro: &Micro, kept: Activations, dy: Option<Tensor>,
        step: &StepOptions,
    ) -> Result<(Option<Tensor>, LossSums)> {
        let Activations { mut blocks, last } = kept;
        let (mut dx, sums) = self.leave(chunk, units, micro, last, dy, step)?;
        for i in chunk.blocks.clone().rev() {
            let Some(kept) = blocks.pop() else { break };
            dx = block_of(units, i, Use::Backward, micro, |held| {
                self.block.backward(&held.flat, kept, dx, &micro.at, held.grads)
            })?;
            units.complete(Unit::Block(i))?;
        }
        match chunk.embedding {
            true => self.embedding_gradient(units, micro, &dx).map(|()| (None, sums)),
            false => Ok((Some(dx), sums)),
        }
    }

    /// [`Llama::backward`] without the weight gradients of blocks and embedding, which may follow at any later time. The
    /// head's are made here: its logits' gradient is too large to keep.
    pub fn backward_input(
        &self, chunk: &Chunk, units: &mut dyn Units, micro: &Micro, kept: Activations, dy: Option<Tensor>,
        step: &StepOptions,
    ) -> Result<(Option<Tensor>, Deferred, LossSums)> {
        let Activations { mut blocks, last } = kept;
        let (mut dx, sums) = self.leave(chunk, units, micro, last, dy, step)?;
        let mut deferred = Vec::with_capacity(blocks.len());
        for i in chunk.blocks.clone().rev() {
            let Some(kept) = blocks.pop() else { break };
            let (next, pending) = block_of(units, i, Use::BackwardInput, micro, |held| {
                self.block.backward_input(&held.flat, kept, dx, &micro.at, held.grads)
            })?;
            dx = next;
            deferred.push(pending);
        }
        Ok(match chunk.embedding {
            true => (None, Deferred { blocks: deferred, first: Some(dx) }, sums),
            false => (Some(dx), Deferred { blocks: deferred, first: None }, sums),
        })
    }

    /// The weight gradients that [`Llama::backward_input`] left.
    pub fn backward_weight(
        &self, chunk: &Chunk, units: &mut dyn Units, micro: &Micro, deferred: Deferred,
    ) -> Result<()> {
        for (i, pending) in chunk.blocks.clone().rev().zip(deferred.blocks) {
            block_of(units, i, Use::BackwardWeight, micro, |held| {
                self.block.backward_weight(&held.flat, pending, held.grads)
            })?;
            units.complete(Unit::Block(i))?;
        }
        match deferred.first {
            Some(dx) => self.embedding_gradient(units, micro, &dx),
            None => Ok(()),
        }
    }

    /// The chunk without a backward pass: what the next chunk reads, or, where this one has the head, the loss.
    pub fn evaluate(
        &self, chunk: &Chunk, units: &mut dyn Units, micro: &Micro, x: Option<Tensor>,
    ) -> Result<(Option<Tensor>, LossSums)> {
        let x = self.hidden(chunk, units, micro, x)?;
        if !chunk.head {
            return Ok((Some(x), LossSums::default()));
        }
        let sums = self.with_head(units, Use::Forward, |head, projection, _| {
            let (pairs, groups) = (micro.pairs.as_ref(), micro.groups.as_ref());
            self.head.loss(head, projection, &x, &micro.targets, pairs, groups)
        })?;
        Ok((None, sums))
    }

    /// Output of the chunk's last block, [N,H] T; nothing is kept.
    pub fn hidden(&self, chunk: &Chunk, units: &mut dyn Units, micro: &Micro, x: Option<Tensor>) -> Result<Tensor> {
        let mut x = self.enter(chunk, units, micro, x)?;
        for i in chunk.blocks.clone() {
            x = block_of(units, i, Use::Forward, micro, |held| self.block.infer(&held.flat, &x, &micro.at))?;
        }
        Ok(x)
    }

    /// What the first block reads.
    fn enter(&self, chunk: &Chunk, units: &mut dyn Units, micro: &Micro, x: Option<Tensor>) -> Result<Tensor> {
        match x {
            Some(x) if !chunk.embedding => Ok(x),
            _ => with(units, Unit::Embedding, Use::Forward, |held| {
                embedding::forward(&held.flat, &micro.ids, &self.axes)
            }),
        }
    }

    /// The gradient of the last block's output: from the head, or from the next chunk.
    fn leave(
        &self, chunk: &Chunk, units: &mut dyn Units, micro: &Micro, x: Option<Tensor>, dy: Option<Tensor>,
        step: &StepOptions,
    ) -> Result<(Tensor, LossSums)> {
        let x = match (x, dy) {
            (None, Some(dy)) => return Ok((dy, LossSums::default())),
            (Some(x), _) => x,
            (None, None) => {
                return Err(Error::new(
                    Exit::Internal,
                    "a chunk without the head was not given the gradient of its output",
                ))
            }
        };
        let (sums, dx) = self.with_head(units, Use::Backward, |head, projection, grads| {
            let step = StepOptions { grads, ..*step };
            self.head.forward_backward(head, projection, &x, &micro.targets, micro.pairs.as_ref(), &step)
        })?;
        drop(x);
        units.complete(Unit::Head)?;
        if self.tied && !chunk.embedding {
            // The first stage's copy has the gradient of the look-up; the two are added up when the step is done.
            units.complete(Unit::Embedding)?;
        }
        Ok((dx, sums))
    }

    /// Holds the head, and the embedding where the two share their matrix.
    pub fn with_head<T>(
        &self, units: &mut dyn Units, usage: Use,
        f: impl FnOnce(&super::Flat, Projection, super::Accumulate) -> Result<T>,
    ) -> Result<T> {
        if !self.tied {
            return with(units, Unit::Head, usage, |held| f(&held.flat, Projection::new(&held.flat, None), held.grads));
        }
        let matrix = units.hold(Unit::Embedding, usage)?;
        let out = with(units, Unit::Head, usage, |held| {
            let grads = if held.flat.frozen() { matrix.grads } else { held.grads };
            f(&held.flat, Projection::new(&held.flat, Some(&matrix.flat)), grads)
        })?;
        drop(matrix);
        units.release(Unit::Embedding, usage)?;
        Ok(out)
    }

    fn embedding_gradient(&self, units: &mut dyn Units, micro: &Micro, dx: &Tensor) -> Result<()> {
        with(units, Unit::Embedding, Use::BackwardWeight, |held| match held.flat.frozen() {
            true => Ok(()),
            false => embedding::backward_weight(&held.flat, dx, &micro.ids, held.grads, &self.axes),
        })?;
        units.complete(Unit::Embedding)
    }
}

/// Holds a block with its adapters for the length of `f`; these drop what the micro-batch says.
fn block_of<T>(
    units: &mut dyn Units, i: usize, usage: Use, micro: &Micro, f: impl FnOnce(&super::Held) -> Result<T>,
) -> Result<T> {
    let mut held = units.hold(Unit::Block(i), usage)?;
    if let Some(adapter) = &mut held.flat.adapter {
        adapter.tokens = micro.noise.as_ref().map(Tensor::shallow_clone);
    }
    let out = f(&held)?;
    drop(held);
    units.release(Unit::Block(i), usage)?;
    Ok(out)
}

/// Holds a unit for the length of `f`.
fn with<T>(units: &mut dyn Units, unit: Unit, usage: Use, f: impl FnOnce(&super::Held) -> Result<T>) -> Result<T> {
    let held = units.hold(unit, usage)?;
    let out = f(&held)?;
    // The views must be gone before the provider may free what they look at.
    drop(held);
    units.release(unit, usage)?;
    Ok(out)
}

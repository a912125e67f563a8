//! The whole model on one rank: what happens, in order, to one micro-batch.

use crate::config::{ModelConfig, Recompute};
use crate::error::Result;
use crate::kernels::LossSums;
use crate::layout::Unit;
use crate::model::block::Block;
use crate::model::head::{Head, Projection};
use crate::model::{embedding, Accumulate, Axes, Documents, Params, Positions, Rope};
use tch::{Device, Tensor};

/// Geometry and rotary tables; the weights are in [`Params`].
pub struct Llama {
    pub layers: usize,
    pub tied: bool,
    pub block: Block,
    pub head: Head,
    /// Positions 0 to the longest sequence.
    pub rope: Rope,
    /// What blocks keep for the backward pass, and how many of the first ones do so (0: all); the others keep everything.
    pub recompute: (Recompute, usize),
    pub axes: Axes,
}

/// How one micro-batch is turned into gradients.
#[derive(Clone, Copy, Debug)]
pub struct StepOptions {
    /// Factor on the summed loss before differentiation: 1 / tokens of the global batch for a mean.
    pub grad_scale: f64,
    /// Weight of (log Z)² in the loss; 0 turns it off.
    pub z_loss: f64,
    /// Replace in the first micro-batch of a step, Add in the others.
    pub grads: Accumulate,
}

impl Llama {
    /// For sequences of up to `sequence_length` tokens.
    pub fn new(m: &ModelConfig, sequence_length: usize, device: Device, axes: &Axes) -> Llama {
        Llama {
            layers: m.num_hidden_layers,
            tied: m.tie_word_embeddings,
            block: Block::new(m, axes),
            head: Head::new(m, axes),
            rope: Rope::new(m, 0, sequence_length, device),
            recompute: (Recompute::None, 0),
            axes: axes.clone(),
        }
    }

    /// Forward and backward pass of one micro-batch: tokens and targets [B,S] i64 (a negative target does not count).
    ///
    /// Gradients of `grad_scale·(loss + z_loss·z)` go to `p`, added or replacing (`step.grads`). `on_unit` is called as soon as a unit's
    /// gradient of this micro-batch is complete: the head, the blocks from last to first, the embedding. The gradient of a
    /// tied matrix belongs to the embedding. An error of `on_unit` ends the pass.
    pub fn forward_backward(
        &self, p: &Params, tokens: &Tensor, targets: &Tensor, step: &StepOptions,
        on_unit: &mut dyn FnMut(Unit) -> Result<()>,
    ) -> Result<LossSums> {
        let _guard = tch::no_grad_guard();
        let at = self.positions(tokens, &Documents::whole());
        let (ids, targets) = (tokens.reshape([-1]), targets.reshape([-1]));

        let mut x = embedding::forward(p.unit(Unit::Embedding), &ids, &self.axes)?;
        let mut kept = Vec::with_capacity(self.layers);
        for i in 0..self.layers {
            let w = p.unit(Unit::Block(i));
            let (y, k) = self.block.forward(w, &x, &at, self.mode(i))?;
            kept.push(k);
            x = y;
        }

        let head = p.unit(Unit::Head);
        let (sums, mut dx) = self.head.forward_backward(head, self.projection(p), &x, &targets, step)?;
        drop(x);
        on_unit(Unit::Head)?;

        for i in (0..self.layers).rev() {
            let w = p.unit(Unit::Block(i));
            let Some(kept) = kept.pop() else { break };
            dx = self.block.backward(w, kept, dx, &at, step.grads)?;
            on_unit(Unit::Block(i))?;
        }
        // A tied matrix has the head's gradient by now.
        let grads = if self.tied { Accumulate::Add } else { step.grads };
        embedding::backward_weight(p.unit(Unit::Embedding), &dx, &ids, grads, &self.axes)?;
        on_unit(Unit::Embedding)?;
        Ok(sums)
    }

    /// Loss of tokens [B,S] against targets [B,S] i64, no gradient.
    pub fn loss(&self, p: &Params, tokens: &Tensor, targets: &Tensor) -> Result<LossSums> {
        let _guard = tch::no_grad_guard();
        let x = self.hidden(p, tokens)?;
        self.head.loss(p.unit(Unit::Head), self.projection(p), &x, &targets.reshape([-1]))
    }

    /// Logits [B,S,V] T of tokens [B,S] i64: every one of them, for tests and short prompts.
    pub fn logits(&self, p: &Params, tokens: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let x = self.hidden(p, tokens)?;
        let logits = self.head.logits(p.unit(Unit::Head), self.projection(p), &x)?;
        let size = tokens.size();
        Ok(logits.view([size[0], size[1], -1]))
    }

    /// The output matrix: the head's own or the embedding's.
    pub fn projection<'a>(&self, p: &'a Params) -> Projection<'a> {
        Projection::new(p.unit(Unit::Head), self.tied.then(|| p.unit(Unit::Embedding)))
    }

    /// Output of the last block, [N,H] T.
    fn hidden(&self, p: &Params, tokens: &Tensor) -> Result<Tensor> {
        let at = self.positions(tokens, &Documents::whole());
        let mut x = embedding::forward(p.unit(Unit::Embedding), &tokens.reshape([-1]), &self.axes)?;
        for i in 0..self.layers {
            x = self.block.infer(p.unit(Unit::Block(i)), &x, &at)?;
        }
        Ok(x)
    }

    /// What block number `block` keeps for its backward pass.
    pub fn mode(&self, block: usize) -> Recompute {
        match self.recompute {
            (mode, n) if n == 0 || block < n => mode,
            _ => Recompute::None,
        }
    }

    /// The places of tokens [B,S], this rank's share of each sequence.
    pub fn positions(&self, tokens: &Tensor, _documents: &Documents) -> Positions {
        Positions::consecutive(&self.rope, 0, tokens.size()[1] as usize)
    }
}

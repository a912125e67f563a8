//! The whole model on one rank: what happens, in order, to one micro-batch.

use crate::config::{ModelConfig, Recompute};
use crate::error::Result;
use crate::kernels::LossSums;
use crate::layout::Unit;
use crate::model::block::{self, Block};
use crate::model::head::{Head, Projection};
use crate::model::{embedding, Accumulate, Axes, Params, Rope};
use tch::{Device, Tensor};

/// Geometry and rotary tables; the weights are in [`Params`].
pub struct Llama {
    pub layers: usize,
    pub tied: bool,
    pub block: Block,
    pub head: Head,
    pub rope: Rope,
    pub axes: Axes,
}

/// How one micro-batch is turned into gradients.
#[derive(Clone, Copy, Debug)]
pub struct StepOptions {
    /// Factor on the summed loss before differentiation: 1 / tokens of the global batch for a mean.
    pub grad_scale: f64,
    /// Weight of (log Z)² in the loss; 0 turns it off.
    pub z_loss: f64,
    pub recompute: Recompute,
    /// Replace in the first micro-batch of a step, Add in the others.
    pub grads: Accumulate,
}

/// What a block leaves for its backward pass.
enum Kept {
    All(block::Saved),
    Input(Tensor),
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
        let rope = self.positions(tokens);
        let (ids, targets) = (tokens.reshape([-1]), targets.reshape([-1]));

        let mut x = embedding::forward(p.unit(Unit::Embedding), &ids, &self.axes)?;
        let mut kept = Vec::with_capacity(self.layers);
        for i in 0..self.layers {
            let w = p.unit(Unit::Block(i));
            match step.recompute {
                Recompute::None => {
                    let (y, saved) = self.block.forward(w, &x, &rope)?;
                    kept.push(Kept::All(saved));
                    x = y;
                }
                Recompute::Full => {
                    let y = self.block.infer(w, &x, &rope)?;
                    kept.push(Kept::Input(std::mem::replace(&mut x, y)));
                }
            }
        }

        let head = p.unit(Unit::Head);
        let (sums, mut dx) = self.head.forward_backward(head, self.projection(p), &x, &targets, step)?;
        drop(x);
        on_unit(Unit::Head)?;

        for i in (0..self.layers).rev() {
            let w = p.unit(Unit::Block(i));
            let Some(kept) = kept.pop() else { break };
            let saved = match kept {
                Kept::All(saved) => saved,
                Kept::Input(x) => self.block.recompute(w, &x, &rope)?,
            };
            dx = self.block.backward(w, saved, dx, &rope, step.grads)?;
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
        let rope = self.positions(tokens);
        let mut x = embedding::forward(p.unit(Unit::Embedding), &tokens.reshape([-1]), &self.axes)?;
        for i in 0..self.layers {
            x = self.block.infer(p.unit(Unit::Block(i)), &x, &rope)?;
        }
        Ok(x)
    }

    /// Tables for the S positions of tokens [B,S].
    fn positions(&self, tokens: &Tensor) -> Rope {
        self.rope.slice(0, tokens.size()[1] as usize)
    }
}

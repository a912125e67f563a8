//! The model's geometry, and the whole of it on one rank: one chunk whose units are all there.

use crate::config::{ModelConfig, Recompute};
use crate::error::Result;
use crate::kernels::LossSums;
use crate::layout::Unit;
use crate::model::block::Block;
use crate::model::chunk::{Chunk, Micro};
use crate::model::head::{Head, Projection};
use crate::model::{Accumulate, Axes, Documents, Params, Positions, Resident, Rope, StepOptions};
use tch::{Device, Tensor};

/// Geometry and rotary tables; the weights are in [`Params`].
pub struct Llama {
    /// Blocks of the whole model, over all pipeline stages.
    pub layers: usize,
    /// Whether the head multiplies with the embedding's matrix.
    pub tied: bool,
    /// Geometry of every block.
    pub block: Block,
    /// Geometry of the head.
    pub head: Head,
    /// Positions 0 to the longest sequence.
    pub rope: Rope,
    /// What blocks keep for the backward pass, and how many of the first ones do so (0: all); the others keep everything.
    pub recompute: (Recompute, usize),
    /// Tensor and context axis of this rank.
    pub axes: Axes,
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

    /// Forward and backward pass of one micro-batch on one rank: tokens and targets [B,S] i64 (a negative target does not
    /// count).
    ///
    /// Gradients of `grad_scale·(loss + z_loss·z)` go to `p`, added or replacing (`step.grads`). `on_unit` is called as soon as a unit's
    /// gradient of this micro-batch is complete: the head, the blocks from last to first, the embedding. The gradient of a
    /// tied matrix belongs to the embedding. An error of `on_unit` ends the pass.
    pub fn forward_backward(
        &self, p: &Params, tokens: &Tensor, targets: &Tensor, step: &StepOptions,
        on_unit: &mut dyn FnMut(Unit) -> Result<()>,
    ) -> Result<LossSums> {
        let _guard = tch::no_grad_guard();
        let (chunk, micro) = (Chunk::whole(self.layers), self.micro(tokens, targets, &Documents::whole()));
        let mut units = Resident::new(p, step.grads, on_unit);
        let (_, kept) = self.forward(&chunk, &mut units, &micro, None)?;
        Ok(self.backward(&chunk, &mut units, &micro, kept, None, step)?.1)
    }

    /// Loss of tokens [B,S] against targets [B,S] i64, no gradient.
    pub fn loss(&self, p: &Params, tokens: &Tensor, targets: &Tensor) -> Result<LossSums> {
        let _guard = tch::no_grad_guard();
        let micro = self.micro(tokens, targets, &Documents::whole());
        let mut nothing = |_| Ok(());
        let mut units = Resident::new(p, Accumulate::Add, &mut nothing);
        Ok(self.evaluate(&Chunk::whole(self.layers), &mut units, &micro, None)?.1)
    }

    /// Logits [B,S,V] T of tokens [B,S] i64: every one of them, for tests and short prompts.
    pub fn logits(&self, p: &Params, tokens: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let micro = self.micro(tokens, tokens, &Documents::whole());
        let mut nothing = |_| Ok(());
        let mut units = Resident::new(p, Accumulate::Add, &mut nothing);
        let x = self.hidden(&Chunk::whole(self.layers), &mut units, &micro, None)?;
        let logits = self.head.logits(p.unit(Unit::Head), self.projection(p), &x)?;
        let size = tokens.size();
        Ok(logits.view([size[0], size[1], -1]))
    }

    /// The output matrix: the head's own or the embedding's.
    pub fn projection<'a>(&self, p: &'a Params) -> Projection<'a> {
        Projection::new(p.unit(Unit::Head), self.tied.then(|| p.unit(Unit::Embedding)))
    }

    /// Tokens and targets [B,S] i64, this rank's share of each sequence, as the chunks read them.
    pub fn micro(&self, tokens: &Tensor, targets: &Tensor, documents: &Documents) -> Micro {
        let at = self.positions(tokens, documents);
        Micro { ids: tokens.reshape([-1]), targets: targets.reshape([-1]), at, noise: None, pairs: None, groups: None }
    }

    /// What the `n`-th block of this rank keeps for its backward pass.
    pub fn mode(&self, n: usize) -> Recompute {
        match self.recompute {
            (mode, most) if most == 0 || n < most => mode,
            _ => Recompute::None,
        }
    }

    /// The places of tokens [B,S/c], this rank's share of each sequence ([`crate::model::positions::share`]); `documents`
    /// are those of the whole sequences.
    pub fn positions(&self, tokens: &Tensor, documents: &Documents) -> Positions {
        let (rank, size) = (self.axes.context.rank(), self.axes.context.size());
        Positions::new(&self.rope, tokens.size()[1] as usize * size, rank, size, documents)
    }
}

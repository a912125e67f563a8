//! Final norm, logits, loss and their gradient in one pass over chunks of tokens, so that the logits of all tokens never
//! exist at once: N·V values would be the largest tensor of the step by far.
//!
//! Over the tensor axis (t ranks; arXiv:1909.08053 §3.4) a rank has the logits of its rows of the output matrix, V' of V, for all
//! tokens of a chunk: N/t rows of x of every rank. What the ranks tell each other of a token's logits is two numbers.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::kernels::{self, LossSums};
use crate::model::{embedding, Accumulate, Axes, Flat, StepOptions};
use tch::{Device, Tensor};

pub(super) const NORM: &str = "model.norm.weight";
pub(super) const MATRIX: &str = "lm_head.weight";

/// Logits of one chunk take about this many bytes, unless that were fewer than [`MIN_ROWS`] tokens ([`DEVICE_ROWS`] on a device).
pub const CHUNK_BYTES: usize = 64 << 20;
/// Each chunk reads and writes the whole gradient of the matrix: with fewer tokens that traffic outweighs the products.
pub const MIN_ROWS: usize = 512;
/// The same on a device, whose products are faster against its memory; and the most, beyond which nothing is gained.
pub const DEVICE_ROWS: (usize, usize) = (2048, 4096);

/// The geometry of the head: final norm, output matrix and loss; the weights come with each call.
#[derive(Clone, Debug)]
pub struct Head {
    /// What the norm adds to the mean square.
    pub eps: f64,
    /// [`CHUNK_BYTES`]
    pub chunk_bytes: usize,
    /// Rows of the output matrix on the rank that has most.
    pub vocab: usize,
    /// Tensor and context axis of this rank.
    pub axes: Axes,
}

/// Where the output matrix lies: in the head unit, or in the embedding unit where the two are tied.
#[derive(Clone, Copy)]
pub struct Projection<'a> {
    unit: &'a Flat,
    name: &'static str,
}

impl<'a> Projection<'a> {
    /// `embedding` is the embedding unit of a tied model, None in an untied one.
    pub fn new(head: &'a Flat, embedding: Option<&'a Flat>) -> Projection<'a> {
        match embedding {
            Some(unit) => Projection { unit, name: embedding::MATRIX },
            None => Projection { unit: head, name: MATRIX },
        }
    }

    /// [V',H] T.
    pub fn weight(self) -> Tensor {
        self.unit.param(self.name)
    }

    /// [V',H] f32.
    pub fn grad(self) -> Tensor {
        self.unit.grad(self.name)
    }

    fn frozen(self) -> bool {
        self.unit.frozen()
    }

    /// The token id of the first row.
    fn first(self) -> i64 {
        embedding::first_row(self.unit, self.name)
    }
}

impl Head {
    /// Of the model `m` on a rank of `axes`, with chunks of [`CHUNK_BYTES`].
    pub fn new(m: &ModelConfig, axes: &Axes) -> Head {
        let vocab = m.vocab_size.div_ceil(axes.tensor.size());
        Head { eps: m.rms_norm_eps, chunk_bytes: CHUNK_BYTES, vocab, axes: axes.clone() }
    }

    /// Loss and gradient: x [N/t,H] T, targets [N] i64 (negative: not counted) → sums over the N tokens, the same on every
    /// rank of the tensor axis, and dx [N/t,H] T of `grad_scale·(loss + z_loss·z)`. Writes the gradients of the norm (this
    /// rank's tokens only) and of the matrix.
    ///
    /// Memory beyond x: dx, and of one chunk the logits (overwritten by their gradient), normed x and its gradient.
    pub fn forward_backward(
        &self, w: &Flat, out: Projection, x: &Tensor, targets: &Tensor, step: &StepOptions,
    ) -> Result<(LossSums, Tensor)> {
        let (weight, dweight) = (out.weight(), (!out.frozen()).then(|| out.grad()));
        let (norm, dnorm) = (w.param(NORM), w.norm_grad(NORM, step.grads));
        let alone = self.axes.tensor.size() == 1;
        let mut grads = step.grads;
        let mut sums = LossSums::default();
        let dx = x.empty_like();
        for (start, len) in self.chunks(x) {
            let x = x.narrow(0, start, len);
            let (normed, rstd) = kernels::rms_norm(&x, &norm, self.eps);
            let normed = self.axes.gather(&normed)?.rows()?;
            let logits = kernels::linear(&normed, &weight, None);
            let targets = self.chunk_targets(targets, start, len);
            add(&mut sums, self.loss_(&logits, &targets, out.first(), Some((step.grad_scale, step.z_loss)))?);
            let dlogits = logits;
            // With others to wait for, their sum is under way while the weight gradient is made.
            let coming = match alone {
                true => None,
                false => Some(self.axes.reduce(kernels::linear_backward_input(&dlogits, &weight))?),
            };
            if let Some(dweight) = &dweight {
                grads.matrix(&dlogits, &normed, dweight);
            }
            grads = Accumulate::Add;
            let dnormed = match coming {
                None => kernels::linear_backward_input(&dlogits, &weight),
                Some(coming) => coming.rows()?,
            };
            drop(dlogits);
            dx.narrow(0, start, len).copy_(&kernels::rms_norm_backward(&dnormed, &x, &norm, &rstd, None, &dnorm));
        }
        Ok((sums, dx))
    }

    /// Loss alone: x [N/t,H] T, targets [N] i64.
    pub fn loss(&self, w: &Flat, out: Projection, x: &Tensor, targets: &Tensor) -> Result<LossSums> {
        let mut sums = LossSums::default();
        for (start, len) in self.chunks(x) {
            let logits = self.logits(w, out, &x.narrow(0, start, len))?;
            let targets = self.chunk_targets(targets, start, len);
            add(&mut sums, self.loss_(&logits, &targets, out.first(), None)?);
        }
        Ok(sums)
    }

    /// x [N/t,H] T → logits [N,V'] T, not chunked.
    pub fn logits(&self, w: &Flat, out: Projection, x: &Tensor) -> Result<Tensor> {
        let (normed, _) = kernels::rms_norm(x, &w.param(NORM), self.eps);
        Ok(kernels::linear(&self.axes.gather(&normed)?.rows()?, &out.weight(), None))
    }

    /// Loss of logits [C,V'] T, whose first column is token `first`, against targets [C]; with `gradient` (scale, z-loss
    /// weight) the logits become their gradient.
    fn loss_(&self, logits: &Tensor, targets: &Tensor, first: i64, gradient: Option<(f64, f64)>) -> Result<LossSums> {
        if self.axes.tensor.size() == 1 {
            let (scale, z_loss) = gradient.unzip();
            return Ok(kernels::cross_entropy_(logits, targets, scale, z_loss.unwrap_or(0.0)));
        }
        let part = kernels::cross_entropy_part(logits, targets, first).unsqueeze(0);
        let (sums, lse) = kernels::cross_entropy_join(&self.axes.gather(&part)?.rows()?, targets);
        if let Some((scale, z_loss)) = gradient {
            kernels::cross_entropy_gradient_(logits, targets, first, &lse, scale, z_loss);
        }
        Ok(sums)
    }

    /// Of targets [N] those of the tokens in rows `start..start + len` of every rank's x, in rank order.
    fn chunk_targets(&self, targets: &Tensor, start: i64, len: i64) -> Tensor {
        targets.view([self.axes.shards(), -1]).narrow(1, start, len).reshape([-1])
    }

    /// (first row, rows) of each chunk of x [N/t,H], the same on every rank.
    fn chunks(&self, x: &Tensor) -> impl Iterator<Item = (i64, i64)> {
        let (n, t) = (x.size()[0], self.axes.tensor.size());
        let elem = x.kind().elt_size_in_bytes();
        let all = n as usize * t;
        let rows = chunk_rows(all, self.vocab, elem, self.chunk_bytes, x.device()).div_ceil(t).max(1) as i64;
        (0..n).step_by(rows as usize).map(move |start| (start, rows.min(n - start)))
    }
}

/// Tokens per chunk when `n` tokens meet a vocabulary of `vocab` at `elem` bytes a logit: chunks of equal size, a multiple
/// of 64 tokens where there is more than one.
pub fn chunk_rows(n: usize, vocab: usize, elem: usize, chunk_bytes: usize, device: Device) -> usize {
    let fit = chunk_bytes / (vocab * elem).max(1);
    let most = match device {
        Device::Cpu => fit.max(MIN_ROWS),
        _ => fit.clamp(DEVICE_ROWS.0, DEVICE_ROWS.1),
    };
    match n.div_ceil(most) {
        0 | 1 => n,
        count => n.div_ceil(count).next_multiple_of(64),
    }
}

fn add(sums: &mut LossSums, chunk: LossSums) {
    sums.loss += chunk.loss;
    sums.z += chunk.z;
    sums.tokens += chunk.tokens;
}

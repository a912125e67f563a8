//! Final norm, logits, loss and their gradient in one pass over chunks of tokens, so that the logits of all tokens never
//! exist at once: N·V values would be the largest tensor of the step by far.
//!
//! Over the tensor axis (t ranks; arXiv:1909.08053 §3.4) a rank has the logits of its rows of the output matrix, V' of V, for all
//! tokens of a chunk: N/t rows of x of every rank. What the ranks tell each other of a token's logits is two numbers.
//!
//! The loss of preference pairs is of sums over whole answers, so the gradient of a token waits for the last one of its answer: there
//! the chunks are gone through twice, and the logits made a second time.

use crate::config::ModelConfig;
use crate::error::Result;
use crate::kernels::host::floats;
use crate::kernels::{self, LossSums};
use crate::model::grouped::TokenPart;
use crate::model::{embedding, Accumulate, Axes, Flat, PairBatch, StepOptions, TokenGroups};
use tch::{Device, Kind, Tensor};

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
    /// Of `pairs` the loss is theirs, and what is summed are pairs, not tokens; without z-loss.
    ///
    /// Memory beyond x: dx, and of one chunk the logits (overwritten by their gradient), normed x and its gradient.
    pub fn forward_backward(
        &self, w: &Flat, out: Projection, x: &Tensor, targets: &Tensor, pairs: Option<&PairBatch>, step: &StepOptions,
    ) -> Result<(LossSums, Tensor)> {
        let (weight, dweight) = (out.weight(), (!out.frozen()).then(|| out.grad()));
        let (norm, dnorm) = (w.param(NORM), w.norm_grad(NORM, step.grads));
        let alone = self.axes.tensor.size() == 1;
        let mut grads = step.grads;
        let (mut sums, slopes) = match pairs {
            Some(pairs) => self.judge(w, out, x, targets, pairs).map(|(sums, slopes)| (sums, Some(slopes)))?,
            None => (LossSums::default(), None),
        };
        let dx = x.empty_like();
        for (n, (start, len)) in self.chunks(x).enumerate() {
            let x = x.narrow(0, start, len);
            let (normed, rstd) = kernels::rms_norm(&x, &norm, self.eps);
            let normed = self.axes.gather(&normed)?.rows()?;
            let logits = kernels::linear(&normed, &weight, None);
            let targets = self.chunk_targets(targets, start, len);
            match &slopes {
                None => sums += self.loss_(&logits, &targets, out.first(), Some((step.grad_scale, step.z_loss)))?,
                Some(slopes) => slopes[n].gradient_(&logits, &targets, out.first(), step.grad_scale),
            }
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

    /// Loss alone: x [N/t,H] T, targets [N] i64; of `pairs` theirs, as in [`Head::forward_backward`]. Without pairs `groups` are told
    /// how their tokens fare.
    pub fn loss(
        &self, w: &Flat, out: Projection, x: &Tensor, targets: &Tensor, pairs: Option<&PairBatch>,
        groups: Option<&TokenGroups>,
    ) -> Result<LossSums> {
        if let Some(pairs) = pairs {
            return Ok(self.judge(w, out, x, targets, pairs)?.0);
        }
        let mut sums = LossSums::default();
        for (start, len) in self.chunks(x) {
            let logits = self.logits(w, out, &x.narrow(0, start, len))?;
            let targets = self.chunk_targets(targets, start, len);
            sums += self.loss_(&logits, &targets, out.first(), None)?;
            if let Some(groups) = groups {
                self.group(&logits, &targets, out.first(), groups, &self.chunk_targets(&groups.of, start, len))?;
            }
        }
        Ok(sums)
    }

    /// Tells the groups of a chunk's tokens, `of` [C] i64, how they fare.
    fn group(&self, logits: &Tensor, targets: &Tensor, first: i64, groups: &TokenGroups, of: &Tensor) -> Result<()> {
        let part = kernels::cross_entropy_part(logits, targets, first);
        let part = TokenPart::of(logits, targets, first, &part).tensor();
        groups.add(&self.axes.gather(&part)?.rows()?, of, targets);
        Ok(())
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

    /// The first look at pairs: the log-probability of every answer, over all chunks and all ranks of the sequences, what follows from
    /// them, and of each chunk what its gradient needs. The sums are the loss and the number of pairs, on the first rank of the
    /// context axis.
    fn judge(
        &self, w: &Flat, out: Projection, x: &Tensor, targets: &Tensor, pairs: &PairBatch,
    ) -> Result<(LossSums, Vec<Slopes>)> {
        let mut policy = vec![0f64; 2 * pairs.ids.len()];
        let mut looked = Vec::new();
        for (start, len) in self.chunks(x) {
            let logits = self.logits(w, out, &x.narrow(0, start, len))?;
            let chunk = |of: &Tensor| self.chunk_targets(of, start, len);
            let (targets, documents) = (chunk(targets), chunk(&pairs.documents));
            let part = kernels::cross_entropy_part(&logits, &targets, out.first()).unsqueeze(0);
            drop(logits);
            let parts = self.axes.gather(&part)?.rows()?;
            let lse = parts.select(1, 0).logsumexp([0i64].as_slice(), false);
            let at = parts.select(1, 1).sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
            let logps = (at - &lse) * targets.ge(0).to_kind(Kind::Float);
            let host = |t: Tensor| t.to_kind(Kind::Float).to_device(Device::Cpu).contiguous();
            let (documents, logps) = (host(documents), host(logps));
            for (d, logp) in floats(&documents).iter().zip(floats(&logps)) {
                if let Some(sum) = policy.get_mut(*d as usize) {
                    *sum += *logp as f64;
                }
            }
            looked.push((lse, runs(floats(&documents))));
        }
        let policy = self.axes.sum_context(policy, x.device())?;
        let says = self.axes.context.rank() == 0;
        let (sums, slopes) = pairs.judge(&policy, says);
        let weigh = |(rows, d): (i64, usize)| (rows, slopes.get(d).map_or(0.0, |slope| -slope));
        let looked = looked.into_iter().map(|(lse, runs)| Slopes { lse, runs: runs.into_iter().map(weigh).collect() });
        let sums = LossSums { loss: sums.loss, z: 0.0, tokens: sums.pairs as u64 };
        Ok((if says { sums } else { LossSums::default() }, looked.collect()))
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

/// What the second look at a chunk of pairs needs to know of the first.
struct Slopes {
    /// [C] f32: log of the sum of exponentials of each token's logits.
    lse: Tensor,
    /// Rows of one answer after the other: how many, and the derivative of the summed loss by minus the log-probability of each.
    runs: Vec<(i64, f64)>,
}

impl Slopes {
    /// Logits [C,V'] T, whose first column is token `first`, become the gradient of `scale` times the loss.
    fn gradient_(&self, logits: &Tensor, targets: &Tensor, first: i64, scale: f64) {
        let mut at = 0;
        for &(rows, weight) in &self.runs {
            // Copies, since kernels take what begins at a whole vector.
            let part = |t: &Tensor| t.narrow(0, at, rows).copy();
            let (targets, lse) = (part(targets), part(&self.lse));
            let logits = logits.narrow(0, at, rows);
            kernels::cross_entropy_gradient_(&logits, &targets, first, &lse, scale * weight, 0.0);
            at += rows;
        }
    }
}

/// Lengths and values of the runs of equal values.
fn runs(values: &[f32]) -> Vec<(i64, usize)> {
    values.chunk_by(|a, b| a == b).map(|run| (run.len() as i64, run[0] as usize)).collect()
}

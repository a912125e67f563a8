//! Seconds of the passes of a block, of the head and of the embedding for one micro-batch on one rank: a roofline (Williams,
//! Waterman and Patterson, CACM 52:65, 2009) of every matrix product, of attention, and of the bytes that the operations
//! between them move; with the collectives that cut a layer, hidden where the code hides them (`model::block`, # Overlap).
//!
//! With N tokens of a micro-batch on the rank, t tensor ranks, e bytes an element and H, F, A, Q as in docs/memory.md, bytes
//! that pass through memory:
//!
//! | operation | fused | unfused (`kernels::reference`, bf16) |
//! | --- | --- | --- |
//! | RMSNorm forward, backward | 2, 4 · N/t·H·e | 18, 56 · N/t·H·e |
//! | rotary embedding, each way | 2 · N·(Hq+Hkv)·D·e | 20 · … |
//! | SwiGLU forward, backward | 1.5, 2.5 · N·2F/t·e | 9.5, 33.5 · … |
//! | sum of a weight's gradient | in the product | 20 bytes a weight |
//! | cross-entropy, N tokens | 3 · N·V/t·e | 34 · … |
//! | over a context axis: copies forward, backward | 2, 11 · N·c·2·Hkv·D·e, and 2 · N·Q·e | the same |
//! | attention's scores forward, backward | – | 18, 22 · Hq·N·S·4 |
//! | gradient norm and AdamW | 34 bytes an element owned | 186 |
//!
//! FLOPs of attention: fused 4·Q·N·(S+1)/2 forward and 2.5 times that backward (FlashAttention makes the scores again);
//! unfused every pair, 4·Q·N·S and 10·Q·N·S, at the fp32 rate.

use super::collectives::{Fabric, RankGroup};
use super::hardware::{DeviceKind, Hardware};
use super::parts::StepParts;
use super::shape::StepShape;
use crate::config::Recompute;
use crate::model::head::{chunk_rows, CHUNK_BYTES};
use crate::plan::memory::KernelForm;
use crate::topology::Axis;
use tch::Device;

/// Times of one rank's layers.
pub struct LayerTimes<'a> {
    shape: &'a StepShape,
    hardware: &'a Hardware,
    fabric: Fabric,
    tensor: RankGroup,
    context: RankGroup,
    speed: f64,
    e: f64,
    /// Tokens, and a tensor rank's share of them.
    n: f64,
    share: f64,
    h: f64,
    f: f64,
    q: f64,
    /// Of k, or of v.
    kv: f64,
    v: f64,
}

/// The passes of a block.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockPasses {
    /// Forward pass.
    pub forward: StepParts,
    /// Gradients of the inputs, with attention's backward pass and what is recomputed before it.
    pub backward_input: StepParts,
    /// Gradients of the matrices, summed in fp32.
    pub backward_weight: StepParts,
}

impl<'a> LayerTimes<'a> {
    /// Of one rank of `shape` on `hardware`.
    pub fn new(shape: &'a StepShape, hardware: &'a Hardware) -> LayerTimes<'a> {
        let (m, t) = (&shape.model, shape.tensor);
        let fabric = Fabric::new(hardware, shape.local);
        let d = m.head_dim();
        LayerTimes {
            tensor: fabric.axis(shape, Axis::Tensor),
            context: fabric.axis(shape, Axis::Context),
            speed: shape.share(hardware).speed,
            e: shape.elem(),
            n: shape.tokens(),
            share: shape.tokens() / t as f64,
            h: m.hidden_size as f64,
            f: m.intermediate_size.div_ceil(t) as f64,
            q: (m.num_attention_heads / t * d) as f64,
            kv: ((m.num_key_value_heads / t).max(1) * d) as f64,
            v: m.vocab_size.div_ceil(t) as f64,
            shape,
            hardware,
            fabric,
        }
    }

    /// The passes of a block with this recomputation. `together`: input and weight gradients in one action, where the second
    /// covers collectives of the first.
    pub fn block(&self, recompute: Recompute, together: bool) -> BlockPasses {
        let again = match recompute {
            Recompute::None => StepParts::default(),
            Recompute::Selective => {
                StepParts { elementwise: self.norms(false) + self.swiglu(false), ..StepParts::default() }
            }
            Recompute::Full => self.forward_again(),
        };
        let (input, weight) = self.backward(together);
        BlockPasses { forward: self.forward(), backward_input: again + input, backward_weight: weight }
    }

    fn forward(&self) -> StepParts {
        let parts = StepParts {
            matrix: self.products(false),
            attention: self.attention(false),
            elementwise: self.norms(false) + self.swiglu(false) + self.rotation() + self.segments(2.0, 2.0),
            context: self.fabric.gather(self.context, self.all_keys()),
            ..StepParts::default()
        };
        // Fetch and sum of each half: the forward pass waits for all four.
        parts.over_tensor(4.0 * self.activations(), 0.0)
    }

    /// Without the last product and its sum.
    fn forward_again(&self) -> StepParts {
        let all = self.forward();
        let matrix = all.matrix - self.product(self.n, self.f, self.h, self.e);
        StepParts { matrix, tensor: all.tensor * 0.75, ..all }
    }

    fn backward(&self, together: bool) -> (StepParts, StepParts) {
        let collective = self.activations();
        let input = StepParts {
            matrix: self.products(false),
            attention: self.attention(true),
            elementwise: self.norms(true) + self.swiglu(true) + self.rotation() + self.segments(11.0, 0.0),
            // k and v are fetched again, their gradients summed.
            context: 2.0 * self.fabric.gather(self.context, self.all_keys()),
            ..StepParts::default()
        };
        let weight = StepParts { matrix: self.products(true), elementwise: self.sums(), ..StepParts::default() };
        // A half's dy is waited for, then its normed input comes during the products, and its sum during weight gradients.
        let input = input.over_tensor(2.0 * collective, 0.0);
        match together {
            true => {
                let (covers_fetch, covers_sum) = (input.matrix, weight.matrix);
                (input.over_tensor(2.0 * collective, covers_fetch), weight.over_tensor(2.0 * collective, covers_sum))
            }
            false => (input.over_tensor(2.0 * collective, 0.0), weight.over_tensor(2.0 * collective, 0.0)),
        }
    }

    /// The head's one pass: loss and gradient.
    pub fn head(&self) -> StepParts {
        let device = match self.hardware.device {
            DeviceKind::Cuda => Device::Cuda(0),
            DeviceKind::Cpu => Device::Cpu,
        };
        let rows = chunk_rows(self.n as usize, self.v as usize, self.e as usize, CHUNK_BYTES, device) as f64;
        let chunks = (self.n / rows).max(1.0);
        let (h, v, e) = (self.h, self.v, self.e);
        let weight = self.timed(2.0 * rows * h * v, rows * (h + v) * e + 8.0 * h * v);
        let chunk = StepParts {
            matrix: 2.0 * self.product(rows, h, v, e) + weight,
            elementwise: self.stream(rows * v * e * self.pick(3.0, 34.0) + h * v * self.sum_bytes())
                + self.stream(rows / self.shape.tensor as f64 * h * e * self.pick(6.0, 74.0)),
            ..StepParts::default()
        };
        let row_bytes = rows * h * e;
        let numbers = self.fabric.gather(self.tensor, rows * 8.0 * self.shape.tensor as f64);
        let fetch = self.fabric.gather(self.tensor, row_bytes);
        chunk.over_tensor(fetch + numbers, 0.0).over_tensor(fetch, weight) * chunks
    }

    /// Look-up, and the sum of its gradient.
    pub fn embedding(&self) -> (StepParts, StepParts) {
        let of = |bytes: f64| StepParts { elementwise: self.stream(bytes), ..StepParts::default() };
        let (look_up, back) = (of(2.0 * self.n * self.h * self.e), of(self.n * self.h * (self.e + 8.0)));
        (look_up.over_tensor(self.activations(), 0.0), back.over_tensor(self.activations(), 0.0))
    }

    /// Gradient norm and update of `owned` elements. In host memory: the update's bytes at the rate of the copy into a snapshot, which
    /// goes the same way.
    pub fn optimizer(&self, owned: f64) -> f64 {
        match self.shape.offload && self.hardware.device == DeviceKind::Cuda {
            true => 34.0 * owned / (self.hardware.costs.snapshot_gb_s * 1e9),
            false => self.stream(owned * self.pick(34.0, 186.0)),
        }
    }

    /// The copy of `owned` elements of state into a snapshot.
    pub fn snapshot(&self, owned: f64) -> f64 {
        12.0 * owned / (self.hardware.costs.snapshot_gb_s * 1e9)
    }

    /// Activations of one micro-batch to the next stage.
    pub fn transfer(&self) -> f64 {
        let pipeline = self.fabric.axis(self.shape, Axis::Pipeline);
        if pipeline.size == 1 {
            return 0.0;
        }
        self.fabric.send(pipeline, self.share * self.h * self.e)
    }

    /// The machine's links as the ranks of this shape reach them.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// A collective of all tokens' activations over the tensor axis.
    fn activations(&self) -> f64 {
        self.fabric.gather(self.tensor, self.n * self.h * self.e)
    }

    /// k and v of the whole sequences.
    fn all_keys(&self) -> f64 {
        self.n * self.shape.context as f64 * 2.0 * self.kv * self.e
    }

    /// The four products of a block; `weight`: their weight gradients, summed in fp32.
    fn products(&self, weight: bool) -> f64 {
        let sizes = [(self.h, self.q + 2.0 * self.kv), (self.q, self.h), (self.h, 2.0 * self.f), (self.f, self.h)];
        let one = |&(i, o): &(f64, f64)| match weight {
            true => self.timed(2.0 * self.n * i * o, self.n * (i + o) * self.e + 8.0 * i * o),
            false => self.product(self.n, i, o, self.e),
        };
        sizes.iter().map(one).sum()
    }

    fn product(&self, n: f64, i: f64, o: f64, e: f64) -> f64 {
        self.timed(2.0 * n * i * o, (n * i + i * o + n * o) * e)
    }

    fn timed(&self, flops: f64, bytes: f64) -> f64 {
        let compute = flops / (self.hardware.products(self.shape.bf16) * self.speed);
        compute.max(self.stream(bytes))
    }

    fn stream(&self, bytes: f64) -> f64 {
        let floor = if bytes > 0.0 { self.hardware.costs.kernel_us * 1e-6 } else { 0.0 };
        (bytes / (self.hardware.streams() * self.speed)).max(floor)
    }

    fn norms(&self, backward: bool) -> f64 {
        let times = if backward { self.pick(4.0, 56.0) } else { self.pick(2.0, 18.0) };
        2.0 * self.stream(times * self.share * self.h * self.e)
    }

    fn rotation(&self) -> f64 {
        self.stream(self.pick(2.0, 20.0) * self.n * (self.q + self.kv) * self.e)
    }

    fn swiglu(&self, backward: bool) -> f64 {
        let times = if backward { self.pick(2.5, 33.5) } else { self.pick(1.5, 9.5) };
        self.stream(times * self.n * 2.0 * self.f * self.e)
    }

    /// Copies of a context axis, in passes over k and v of the whole sequences and over the output: their order in the
    /// sequence; backward also the sums of segments that share keys, and the order of ranks.
    fn segments(&self, keys: f64, output: f64) -> f64 {
        if self.shape.context == 1 {
            return 0.0;
        }
        self.stream(keys * self.all_keys() + output * self.n * self.q * self.e)
    }

    /// Weight gradients that are products of their own before they are summed.
    fn sums(&self) -> f64 {
        self.stream(self.sum_bytes() * self.shape.unit_parameters().block)
    }

    /// A weight, where the product does not add its gradient itself.
    fn sum_bytes(&self) -> f64 {
        match self.shape.forms.weight_gradients {
            KernelForm::Fused => 0.0,
            KernelForm::Unfused => 20.0,
        }
    }

    fn attention(&self, backward: bool) -> f64 {
        let (s, eff) = (self.shape.sequence as f64, &self.hardware.efficiency);
        let pairs = 4.0 * self.q * self.n;
        match self.shape.forms.attention {
            KernelForm::Fused => {
                let (times, reached) =
                    if backward { (2.5, eff.attention_backward) } else { (1.0, eff.attention_forward) };
                let rate = self.hardware.peak(self.shape.bf16) * reached * self.speed;
                (times * pairs * (s + 1.0) / 2.0 / rate).max(self.hardware.costs.kernel_us * 1e-6)
            }
            KernelForm::Unfused => {
                let (times, passes) = if backward { (2.5, 22.0) } else { (1.0, 18.0) };
                // Keys that a call has: all, or with a context axis those up to the chunk's own, half of them on average.
                let keys = if self.shape.context > 1 { (s + s / (2.0 * self.shape.context as f64)) / 2.0 } else { s };
                let rate = self.hardware.peak(false) * eff.attention_unfused * self.speed;
                let heads = self.q / self.shape.model.head_dim() as f64;
                times * pairs * keys / rate + self.stream(passes * heads * self.n * keys * 4.0)
            }
        }
    }

    fn pick(&self, fused: f64, unfused: f64) -> f64 {
        match self.shape.forms.elementwise {
            KernelForm::Fused => fused,
            KernelForm::Unfused => unfused,
        }
    }
}

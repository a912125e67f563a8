//! A model cut over axes beside the same model whole on every rank: what the tests of the layers' axes share.

use herd::config::{ModelConfig, Recompute};
use herd::kernels::LossSums;
use herd::layout::{Kind as ParamKind, Layout, Param, Unit};
use herd::model::chunk::Chunk;
use herd::model::{init, positions, Accumulate, Axes, Documents, Llama, Params, Resident, StepOptions};
use herd::topology::{Axis, Topology};
use herd::wire::MakeWires;
use herd::wire::Route;
use herd::world::{Op, World};
use tch::{Device, Kind, Tensor};

/// Runs `body` with all ranks on the tensor axis.
pub fn on_axes(body: impl Fn(&Axes, &Topology)) {
    on_grid(|n| [n, 1, 1, 1], body)
}

/// Runs `body` with the ranks on the grid that `sizes` makes of their number, over every way to move bytes.
pub fn on_grid(sizes: impl Fn(usize) -> [usize; 4], body: impl Fn(&Axes, &Topology)) {
    tch::set_num_threads(1);
    let _guard = tch::no_grad_guard();
    let world = World::init().unwrap();
    let topo = Topology::new(world.rank(), sizes(world.size()));
    for via in [Route::Fastest, Route::Messages] {
        let wire = |axis| world.wire_by(&topo, axis, via).unwrap().into();
        body(&Axes::new(wire(Axis::Tensor), wire(Axis::Context)), &topo);
    }
    world.barrier().unwrap();
    world.finalize().unwrap();
}

/// One model twice: `whole` on this rank alone and `local`, this rank's part. The gradients of `whole` are the oracle.
pub struct Grid {
    pub model: ModelConfig,
    pub axes: Axes,
    pub solo: Axes,
    pub whole: Params,
    pub local: Params,
}

impl Grid {
    pub fn new(model: &ModelConfig, axes: &Axes, topo: &Topology, dtype: Kind) -> Grid {
        let params = |topo: &Topology| filled(model, &Layout::new(model, topo), dtype);
        let (whole, local) = (params(&Topology::solo()), params(topo));
        Grid { model: model.clone(), axes: axes.clone(), solo: Axes::solo(), whole, local }
    }

    pub fn tensor(&self) -> usize {
        self.axes.tensor.size()
    }

    /// This rank's share of rows [N,..] over the tensor axis.
    pub fn rows(&self, x: &Tensor) -> Tensor {
        let n = x.size()[0] / self.tensor() as i64;
        x.narrow(0, n * self.axes.tensor.rank() as i64, n).contiguous()
    }

    pub fn llama(&self, longest: usize) -> Llama {
        Llama::new(&self.model, longest, Device::Cpu, &self.axes)
    }

    pub fn llama_alone(&self, longest: usize) -> Llama {
        Llama::new(&self.model, longest, Device::Cpu, &self.solo)
    }

    /// (name, this rank's gradient summed over those who hold the same slice and over the context axis, the oracle's slice).
    fn gradients(&self, unit: Unit) -> Vec<(String, Tensor, Tensor)> {
        let (mine, one) = (self.local.unit(unit), self.whole.unit(unit));
        let mut out = Vec::new();
        for p in &mine.layout.params {
            let own = mine.grad(&p.name).contiguous();
            // Shares of different size: padded.
            let longest = own.numel().max(p.global_len());
            let padded = Tensor::zeros([longest as i64], (Kind::Float, Device::Cpu));
            padded.narrow(0, 0, own.numel() as i64).copy_(&own.reshape([-1]));
            let all = Tensor::zeros([self.tensor() as i64, longest as i64], (Kind::Float, Device::Cpu));
            self.axes.tensor.all_gather(&padded, &all).unwrap().wait().unwrap();
            let first = self.axes.tensor.rank() / p.copies * p.copies;
            let sum =
                all.narrow(0, first as i64, p.copies as i64).sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
            let sum = sum.narrow(0, 0, own.numel() as i64).contiguous();
            self.axes.context.all_reduce(&sum, Op::Sum).unwrap().wait().unwrap();
            let mut want = one.grad(&p.name);
            for (dim, (&offset, &extent)) in p.offset.iter().zip(&p.extent).enumerate() {
                want = want.narrow(dim as i64, offset as i64, extent as i64);
            }
            out.push((p.name.clone(), sum.view_as(&own), want.contiguous()));
        }
        out
    }

    pub fn same_gradients(&self, unit: Unit, tolerance: f64) {
        for (name, got, want) in self.gradients(unit) {
            if want.numel() > 0 {
                close(&name, &got, &want, tolerance);
            }
        }
    }

    pub fn equal_gradients(&self, unit: Unit) {
        for (name, got, want) in self.gradients(unit) {
            assert!(got.equal(&want), "{name}: other bits");
        }
    }
}

/// Loss and every gradient of the whole model in each mode of recompute: `b` sequences of `s` tokens. The bits are the same
/// in every mode.
pub fn whole_model(g: &Grid, b: i64, s: i64, documents: &Documents, tolerance: f64) {
    let (tokens, targets) = batch(&g.model, b, s);
    let step = StepOptions { grad_scale: 1.0 / (b * s) as f64, z_loss: 1e-3, grads: Accumulate::Replace };
    let alone = g.llama_alone(s as usize);
    let run = |l: &Llama, p: &Params, tokens: &Tensor, targets: &Tensor| -> LossSums {
        let (chunk, micro) = (Chunk::whole(l.layers), l.micro(tokens, targets, documents));
        let mut nothing = |_| Ok(());
        let mut units = Resident::new(p, step.grads, &mut nothing);
        let (_, kept) = l.forward(&chunk, &mut units, &micro, None).unwrap();
        l.backward(&chunk, &mut units, &micro, kept, None, &step).unwrap().1
    };
    let sums = run(&alone, &g.whole, &tokens, &targets);
    let slice = |t: &Tensor| positions::share(t, g.axes.context.rank(), g.axes.context.size());
    let (tokens, targets) = (slice(&tokens), slice(&targets));
    let mut first: Option<Vec<Tensor>> = None;
    for mode in [Recompute::None, Recompute::Selective, Recompute::Full] {
        let ours = Llama { recompute: (mode, 2), ..g.llama(s as usize) };
        let part = run(&ours, &g.local, &tokens, &targets);
        let all = Tensor::from_slice(&[part.loss, part.z, part.tokens as f64]);
        g.axes.context.all_reduce(&all, Op::Sum).unwrap().wait().unwrap();
        let all = Vec::<f64>::try_from(&all).unwrap();
        let band = tolerance / 5.0;
        assert!((all[0] / sums.loss - 1.0).abs() < band && (all[1] / sums.z - 1.0).abs() < band, "{all:?} {sums:?}");
        assert_eq!(all[2] as u64, sums.tokens);
        for unit in &g.local.units {
            g.same_gradients(unit.layout.unit, tolerance);
        }
        let bits: Vec<Tensor> = g.local.units.iter().map(|u| u.grad.copy()).collect();
        match &first {
            None => first = Some(bits),
            Some(first) => assert!(first.iter().zip(&bits).all(|(a, b)| a.equal(b)), "{mode:?}: other bits"),
        }
    }
}

/// Fresh weights, the norms' disturbed so that they are not all one: the same values on every grid.
fn filled(model: &ModelConfig, layout: &Layout, dtype: Kind) -> Params {
    let p = Params::zeros(layout, dtype, Device::Cpu);
    for unit in &p.units {
        for param in &unit.layout.params {
            let mut values = vec![0f32; param.len()];
            init::fill(param, &mut values, 17, model.initializer_range);
            let mut view = unit.param(&param.name);
            view.copy_(&Tensor::from_slice(&values).view_as(&view));
            if param.extent.len() == 1 {
                view += noise(&[param.len() as i64], 18) * 0.3;
            }
        }
    }
    p
}

/// Standard normal values that depend on shape and `seed` alone.
pub fn noise(shape: &[i64], seed: u64) -> Tensor {
    let n = shape.iter().product::<i64>() as usize;
    let param = Param {
        name: format!("{shape:?}"),
        kind: ParamKind::Matrix,
        shape: vec![1, n],
        offset: vec![0, 0],
        extent: vec![1, n],
        start: 0,
        copies: 1,
        owner: true,
    };
    let mut values = vec![0f32; n];
    init::fill(&param, &mut values, seed, 1.0);
    Tensor::from_slice(&values).view(shape)
}

/// Token ids in `0..vocab`.
pub fn ids(shape: &[i64], vocab: usize, seed: u64) -> Tensor {
    (noise(shape, seed).abs() * 1e4).to_kind(Kind::Int64).remainder(vocab as i64)
}

/// Tokens and targets [b,s]; some targets do not count.
pub fn batch(m: &ModelConfig, b: i64, s: i64) -> (Tensor, Tensor) {
    let targets = ids(&[b, s], m.vocab_size, 12);
    let targets = targets.where_self(&targets.remainder(7).ne(0), &Tensor::from(-1i64));
    (ids(&[b, s], m.vocab_size, 11), targets)
}

/// Fails unless `got` equals `want` to `tolerance` of the largest value of `want`.
pub fn close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), want.size(), "{what}");
    let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
    let scale = want.abs().max().double_value(&[]);
    assert!(scale > 0.0, "{what}: nothing to compare");
    let error = (got - want).abs().max().double_value(&[]) / scale;
    assert!(error < tolerance, "{what}: relative error {error:.2e}, allowed {tolerance:.0e}");
}

//! Adapters and frozen layers against autograd: `W + s·B·A` in the place of W, in double precision.

use super::oracle::{self, leaf, Leaves};
use super::{close, config, ids, init, noise};
use crate::config::{FreezeSection, LoraSection, LoraTarget, ModelConfig, Recompute};
use crate::layout::{Layout, Unit};
use crate::model::lora::{BaseCut, Branch};
use crate::model::{
    dropout, Accumulate, Adapter, Axes, Chunk, Documents, Llama, LoraNumbers, Params, Resident, StepOptions,
};
use crate::topology::Topology;
use tch::{Device, Kind, Tensor};

const S: usize = 17;
const STEP: StepOptions = StepOptions { grad_scale: 1.0 / 34.0, z_loss: 1e-3, grads: Accumulate::Replace };

fn filled(layout: &Layout, seed: u64) -> Params {
    let p = Params::zeros(layout, Kind::Float, Device::Cpu);
    for unit in &p.units {
        for param in &unit.layout.params {
            let mut values = vec![0f32; param.len()];
            init::fill(param, &mut values, seed, 0.2);
            let mut view = unit.param(&param.name);
            view.copy_(&Tensor::from_slice(&values).view_as(&view));
        }
        let _ = unit.grad.shallow_clone().fill_(f64::NAN);
    }
    p
}

fn adapted(m: &ModelConfig, lora: &LoraSection) -> (Llama, Params) {
    let topo = Topology::solo();
    let layout = Layout::new(m, &topo).with_adapters(m, &topo, lora);
    let mut model = Llama::new(m, S, Device::Cpu, &Axes::solo());
    model.block.set_lora(LoraNumbers { scale: lora.scale(), dropout: lora.dropout });
    (model, filled(&layout, 31))
}

fn batch(m: &ModelConfig) -> (Tensor, Tensor) {
    (ids(2, S as i64, m.vocab_size, 1), ids(2, S as i64, m.vocab_size, 2))
}

#[test]
fn gradients_of_adapters_equal_autograd() {
    use LoraTarget::*;
    for (tied, targets) in
        [(false, LoraTarget::ALL.to_vec()), (true, vec![QProj, VProj, DownProj]), (false, vec![UpProj])]
    {
        let (m, lora) = (config(tied), LoraSection { rslora: tied, targets, ..LoraSection::new(3, 5.0) });
        let (model, p) = adapted(&m, &lora);
        let (tokens, targets) = batch(&m);
        let sums = model.forward_backward(&p, &tokens, &targets, &STEP, &mut |_| Ok(())).unwrap();

        let base = |unit: Unit| Leaves::new(p.unit(unit));
        let mut factors = Vec::new();
        let embedding = base(Unit::Embedding);
        let mut x = embedding.get("embed_tokens.weight").index_select(0, &tokens.reshape([-1])).view([2, S as i64, -1]);
        for i in 0..m.num_hidden_layers {
            let (mut w, a) = (base(Unit::Block(i)), Leaves::new(p.unit(Unit::Adapter(i))));
            for t in &lora.targets {
                let side = |s: &str| a.get(&format!("{}.lora_{s}.weight", t.name()));
                let name = format!("{}.weight", t.name());
                let whole = w.get(&name) + side("B").matmul(side("A")) * lora.scale();
                w.0.iter_mut().find(|(n, _)| n.ends_with(&name)).unwrap().1 = whole;
            }
            x = oracle::mlp(&m, &w, &oracle::attention(&m, &w, &x));
            factors.push((i, a));
        }
        let head = base(Unit::Head);
        let matrix = if tied { embedding.get("embed_tokens.weight") } else { head.get("lm_head.weight") };
        let norm = head.get("norm.weight");
        let (scale, z) = (STEP.grad_scale, STEP.z_loss);
        let out = oracle::head(norm, matrix, m.rms_norm_eps, &x, &targets.reshape([-1]), scale, z);
        assert!((sums.loss / out.loss.double_value(&[]) - 1.0).abs() < 1e-6);
        let leaves: Vec<_> = factors.iter().flat_map(|(i, l)| l.0.iter().map(move |(n, t)| (*i, n, t))).collect();
        assert_eq!(leaves.len(), 2 * lora.targets.len() * m.num_hidden_layers);
        let inputs: Vec<&Tensor> = leaves.iter().map(|l| l.2).collect();
        let want = Tensor::run_backward(&[out.objective], &inputs, false, false);
        for ((i, name, _), want) in leaves.iter().zip(&want) {
            close(name, &p.unit(Unit::Adapter(*i)).grad(name), want, 1e-5);
        }
        assert!(p.units.iter().filter(|u| u.frozen()).all(|u| u.grad.numel() == 0));
    }
}

/// With dropout: recomputation and the split passes give the same bits, other tokens other gradients.
#[test]
fn every_way_of_the_passes_has_the_same_bits() {
    let (m, lora) = (config(false), LoraSection { dropout: 0.3, ..LoraSection::new(4, 8.0) });
    let (mut model, p) = adapted(&m, &lora);
    let (tokens, targets) = batch(&m);
    let chunk = Chunk::whole(m.num_hidden_layers);
    let mut run = |mode: Recompute, split: bool, seed: Option<u64>| {
        let _guard = tch::no_grad_guard();
        model.recompute = (mode, 0);
        let words =
            |seed| (0..2 * S as u64).map(|i| dropout::token(seed, i / S as u64, i % S as u64)).collect::<Vec<_>>();
        let mut micro = model.micro(&tokens, &targets, &Documents::whole());
        micro.noise = seed.map(|seed| Tensor::from_slice(&words(seed)));
        let mut nothing = |_| Ok(());
        let mut units = Resident::new(&p, Accumulate::Replace, &mut nothing);
        let kept = model.forward(&chunk, &mut units, &micro, None).unwrap().1;
        match split {
            false => drop(model.backward(&chunk, &mut units, &micro, kept, None, &STEP).unwrap()),
            true => {
                let later = model.backward_input(&chunk, &mut units, &micro, kept, None, &STEP).unwrap().1;
                model.backward_weight(&chunk, &mut units, &micro, later).unwrap();
            }
        }
        let trained = p.units.iter().filter(|u| !u.frozen());
        Tensor::cat(&trained.map(|u| u.grad.narrow(0, 0, u.layout.used as i64)).collect::<Vec<_>>(), 0)
    };
    let one = run(Recompute::None, false, Some(5));
    assert!(one.isfinite().all().int64_value(&[]) == 1);
    for mode in [Recompute::None, Recompute::Selective, Recompute::Full] {
        for split in [false, true] {
            assert!(run(mode, split, Some(5)).equal(&one), "{mode:?} {split}");
        }
    }
    assert!(!run(Recompute::None, false, Some(6)).equal(&one));
    assert!(!run(Recompute::None, false, None).equal(&one));
}

/// A branch alone, with dropout, against autograd.
#[test]
fn a_branch_with_dropout_equals_autograd() {
    let m = config(false);
    let lora = LoraSection { dropout: 0.25, ..LoraSection::new(4, 2.0) };
    let (model, p) = adapted(&m, &lora);
    let n = 2 * S as i64;
    let tokens = Tensor::from_slice(&(0..n as u64).map(|i| dropout::token(3, 0, i)).collect::<Vec<_>>());
    let mut w = p.unit(Unit::Block(1)).share();
    let beside = p.unit(Unit::Adapter(1));
    w.adapter = Some(Box::new(Adapter { flat: beside.share(), tokens: Some(tokens.shallow_clone()) }));
    let numbers = model.block.mlp.lora;
    let axes = Axes::solo();
    let b = Branch::new(&w, numbers, &axes, BaseCut::Rows, &["gate_proj", "up_proj"]).unwrap();
    let f = m.intermediate_size as i64;
    let (x, y, dy) = (noise(&[n, 36], 1), noise(&[n, 2 * f], 2), noise(&[n, 2 * f], 3));
    let (sum, dx) = (y.copy(), Tensor::zeros([n, 36], (Kind::Float, Device::Cpu)));
    let low = b.low_added(&x, &sum).unwrap();
    let du = b.back(&dy, &dx).unwrap();
    b.backward_weight(Accumulate::Replace, &dy, &low, &du, &x);

    let a_name = beside.layout.params.iter().find(|p| p.name.ends_with("gate_proj.lora_A.weight")).unwrap();
    let salt = xxhash_rust::xxh3::xxh3_64(a_name.name.as_bytes());
    let mask = dropout::mask(&tokens, salt, 0, 36, 0.25, Kind::Double);
    let (leaves, xr) = (Leaves::new(beside), leaf(&x));
    let of = |module: &str| {
        let side = |s: &str| leaves.get(&format!("{module}.lora_{s}.weight"));
        (&xr * &mask).matmul(&side("A").tr()).matmul(&side("B").tr()) * lora.scale()
    };
    let yr = y.to_kind(Kind::Double) + Tensor::cat(&[of("gate_proj"), of("up_proj")], 1);
    close("y", &sum, &yr, 1e-5);
    let names =
        ["gate_proj.lora_A.weight", "up_proj.lora_A.weight", "gate_proj.lora_B.weight", "up_proj.lora_B.weight"];
    let mut inputs = vec![&xr];
    inputs.extend(names.iter().map(|n| leaves.get(n)));
    let want = Tensor::run_backward(&[(yr * dy.to_kind(Kind::Double)).sum(Kind::Double)], &inputs, false, false);
    close("dx", &dx, &want[0], 1e-5);
    for (name, want) in names.iter().zip(&want[1..]) {
        close(name, &beside.grad(name), want, 1e-5);
    }
}

/// What is not frozen has the bits that it has when all is trained.
#[test]
fn frozen_layers_change_no_other_gradient() {
    for (tied, embedding, blocks, head) in
        [(false, true, 1, false), (false, false, 2, true), (true, false, 1, true), (true, true, 3, false)]
    {
        let m = config(tied);
        let all = Layout::new(&m, &Topology::solo());
        let some = all.clone().with_frozen(&FreezeSection { embedding, blocks, head });
        let (whole, part) = (filled(&all, 9), filled(&some, 9));
        let model = Llama::new(&m, S, Device::Cpu, &Axes::solo());
        let (tokens, targets) = batch(&m);
        for p in [&whole, &part] {
            model.forward_backward(p, &tokens, &targets, &STEP, &mut |_| Ok(())).unwrap();
        }
        let mut trained = 0;
        for u in &part.units {
            let used = u.layout.used as i64;
            match u.frozen() {
                true => assert_eq!(u.grad.numel(), 0),
                false => {
                    let want = whole.unit(u.layout.unit).grad.narrow(0, 0, used);
                    assert!(u.grad.narrow(0, 0, used).equal(&want), "{:?} of {tied} {blocks}", u.layout.unit);
                    trained += 1;
                }
            }
        }
        assert_eq!(trained, 5 - embedding as usize - blocks - head as usize);
    }
}

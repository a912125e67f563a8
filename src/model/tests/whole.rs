//! The whole model: gradients against autograd, recompute, accumulation, the order in which units complete.

use super::oracle::Out;
use super::{close, config, ids, oracle, params};
use crate::config::{ModelConfig, Recompute};
use crate::error::{Error, Exit};
use crate::kernels::LossSums;
use crate::layout::Unit;
use crate::model::Axes;
use crate::model::{Accumulate, Llama, Params, StepOptions};
use tch::{Device, Kind, Tensor};

const S: usize = 19;

fn step() -> StepOptions {
    StepOptions { grad_scale: 1.0 / 57.0, z_loss: 1e-3, grads: Accumulate::Add }
}

fn model(m: &ModelConfig) -> Llama {
    Llama::new(m, S, Device::Cpu, &Axes::solo())
}

fn run(m: &ModelConfig, p: &Params, tokens: &Tensor, targets: &Tensor, recompute: Recompute) -> LossSums {
    let model = Llama { recompute: (recompute, 0), ..model(m) };
    model.forward_backward(p, tokens, targets, &step(), &mut |_| Ok(())).unwrap()
}

/// Tokens and targets [3,S]; some targets do not count.
fn batch(m: &ModelConfig) -> (Tensor, Tensor) {
    let targets = ids(3, S as i64, m.vocab_size, 12);
    let targets = targets.where_self(&targets.remainder(7).ne(0), &Tensor::from(-1i64));
    (ids(3, S as i64, m.vocab_size, 11), targets)
}

fn gradients(p: &Params) -> Vec<Tensor> {
    p.units.iter().map(|u| u.grad.copy()).collect()
}

fn clear(p: &Params) {
    p.units.iter().for_each(|u| drop(u.grad.shallow_clone().zero_()));
}

#[test]
fn every_gradient_equals_autograd() {
    for tied in [false, true] {
        let m = config(tied);
        let p = params(&m, 21);
        let (tokens, targets) = batch(&m);
        let sums = run(&m, &p, &tokens, &targets, Recompute::None);

        let s = step();
        let (units, Out { logits, loss, z, objective }) =
            oracle::model(&m, &p, &tokens, &targets, s.grad_scale, s.z_loss);
        let leaves: Vec<_> =
            units.iter().flat_map(|(unit, l)| l.0.iter().map(move |(name, t)| (*unit, name, t))).collect();
        let inputs: Vec<&Tensor> = leaves.iter().map(|l| l.2).collect();
        let want = Tensor::run_backward(&[objective], &inputs, false, false);
        for ((unit, name, _), want) in leaves.iter().zip(&want) {
            close(name, &p.unit(*unit).grad(name), want, 1e-5);
        }
        let relative = |a: f64, b: &Tensor| (a / b.double_value(&[]) - 1.0).abs();
        assert!(relative(sums.loss, &loss) < 1e-6 && relative(sums.z, &z) < 1e-6);
        close("logits", &model(&m).logits(&p, &tokens).unwrap(), &logits, 1e-5);

        let alone = model(&m).loss(&p, &tokens, &targets).unwrap();
        assert_eq!(alone.tokens, sums.tokens);
        assert!((alone.loss / sums.loss - 1.0).abs() < 1e-6);
    }
}

#[test]
fn recompute_changes_no_bit() {
    for (tied, dtype) in [(false, Kind::Float), (true, Kind::Float), (false, Kind::BFloat16)] {
        let m = config(tied);
        let mut p = params(&m, 22);
        p.units.iter_mut().for_each(|u| u.param = u.param.to_kind(dtype));
        let (tokens, targets) = batch(&m);
        let none = run(&m, &p, &tokens, &targets, Recompute::None);
        let kept = gradients(&p);
        for mode in [Recompute::Selective, Recompute::Full] {
            for blocks in [0, 1, 2] {
                clear(&p);
                let model = Llama { recompute: (mode, blocks), ..model(&m) };
                let sums = model.forward_backward(&p, &tokens, &targets, &step(), &mut |_| Ok(())).unwrap();
                assert_eq!(sums, none);
                assert_eq!(gradients(&p), kept, "{mode:?} {blocks}");
            }
        }
        assert!(kept.iter().all(|g| g.abs().max().double_value(&[]) > 0.0));
    }
}

#[test]
fn micro_batches_add_up() {
    for tied in [false, true] {
        let m = config(tied);
        let p = params(&m, 23);
        let (tokens, targets) = batch(&m);
        let whole = run(&m, &p, &tokens, &targets, Recompute::None);
        let want = gradients(&p);
        clear(&p);
        let part = |from, n| run(&m, &p, &tokens.narrow(0, from, n), &targets.narrow(0, from, n), Recompute::None);
        let (a, b) = (part(0, 1), part(1, 2));
        assert_eq!(a.tokens + b.tokens, whole.tokens);
        assert!(((a.loss + b.loss) / whole.loss - 1.0).abs() < 1e-6);
        for (unit, want) in p.units.iter().zip(&want) {
            close(&format!("{:?}", unit.layout.unit), &unit.grad, want, 1e-5);
        }
    }
}

#[test]
fn the_first_micro_batch_may_replace_what_the_buffers_hold() {
    for tied in [false, true] {
        let m = config(tied);
        let p = params(&m, 27);
        let (tokens, targets) = batch(&m);
        run(&m, &p, &tokens, &targets, Recompute::None);
        let want = gradients(&p);
        for u in &p.units {
            // Rubbish, but not in the padding, which nobody writes.
            let _ = u.grad.narrow(0, 0, u.layout.used as i64).fill_(f64::NAN);
        }
        let step = StepOptions { grads: Accumulate::Replace, ..step() };
        model(&m).forward_backward(&p, &tokens, &targets, &step, &mut |_| Ok(())).unwrap();
        assert_eq!(gradients(&p), want);
    }
}

#[test]
fn units_complete_in_backward_order_and_are_complete_then() {
    for tied in [false, true] {
        let m = config(tied);
        let p = params(&m, 24);
        let (tokens, targets) = batch(&m);
        run(&m, &p, &tokens, &targets, Recompute::None);
        let want: Vec<(Unit, Tensor)> = p.units.iter().map(|u| (u.layout.unit, u.grad.copy())).collect();
        clear(&p);
        let mut order = vec![];
        let mut seen = |unit: Unit| {
            order.push(unit);
            let (_, want) = want.iter().find(|(u, _)| *u == unit).unwrap();
            assert_eq!(&p.unit(unit).grad, want, "{unit:?} was not complete");
            Ok(())
        };
        model(&m).forward_backward(&p, &tokens, &targets, &step(), &mut seen).unwrap();
        assert_eq!(order, [Unit::Head, Unit::Block(2), Unit::Block(1), Unit::Block(0), Unit::Embedding]);
    }
}

#[test]
fn a_failing_hook_ends_the_pass() {
    let m = config(false);
    let p = params(&m, 25);
    let (tokens, targets) = batch(&m);
    let mut calls = 0;
    let result = model(&m).forward_backward(&p, &tokens, &targets, &step(), &mut |_| {
        calls += 1;
        Err(Error::new(Exit::Peer, "rank 3 is gone"))
    });
    assert_eq!((result.unwrap_err().exit, calls), (Exit::Peer, 1));
}

#[test]
fn bf16_follows_fp32() {
    let m = config(false);
    let mut p = params(&m, 26);
    // The same weights in both: rounded once.
    p.units.iter_mut().for_each(|u| u.param = u.param.to_kind(Kind::BFloat16).to_kind(Kind::Float));
    let (tokens, targets) = batch(&m);
    let exact = run(&m, &p, &tokens, &targets, Recompute::None);
    let want = gradients(&p);
    clear(&p);
    p.units.iter_mut().for_each(|u| u.param = u.param.to_kind(Kind::BFloat16));
    let sums = run(&m, &p, &tokens, &targets, Recompute::None);
    assert!((sums.loss / exact.loss - 1.0).abs() < 2e-2, "{sums:?} {exact:?}");
    for (unit, want) in p.units.iter().zip(&want) {
        close(&format!("{:?}", unit.layout.unit), &unit.grad, want, 5e-2);
    }
}

//! Each layer's forward pass, input gradient and weight gradients.

use super::oracle::{self, leaf, Leaves, Out};
use super::{close, config, ids, noise, params};
use crate::config::{ModelConfig, Recompute};
use crate::layout::Unit;
use crate::model::block::{self, Block};
use crate::model::head::{self, Head, Projection};
use crate::model::Axes;
use crate::model::{embedding, Accumulate, Flat, Positions, Rope, StepOptions};
use tch::{Device, Kind, Tensor};

pub const TOLERANCE: f64 = 1e-5;
const B: i64 = 2;
const S: i64 = 13;

/// Gradients of Σ y·dy with respect to x and to every leaf, from autograd.
fn differentiate(y: &Tensor, dy: &Tensor, x: &Tensor, leaves: &Leaves, names: &[&str]) -> Vec<Tensor> {
    let objective = (y * dy.view_as(y).to_kind(Kind::Double)).sum(Kind::Double);
    let mut inputs = vec![x];
    inputs.extend(names.iter().map(|n| leaves.get(n)));
    Tensor::run_backward(&[objective], &inputs, false, false)
}

/// Compares the unit's accumulated gradients; they started from ones, so that adding (not overwriting) is seen.
pub fn same_grads(w: &Flat, names: &[&str], want: &[Tensor]) {
    for (name, want) in names.iter().zip(want) {
        close(name, &(w.grad(name) - 1.0), want, TOLERANCE);
    }
}

fn positions(m: &ModelConfig) -> Positions {
    Positions::consecutive(&Rope::new(m, 0, S as usize, Device::Cpu), 0, S as usize)
}

pub fn ones(w: &Flat) {
    let _ = w.grad.shallow_clone().fill_(1.0);
}

const ATTENTION: [&str; 5] =
    ["input_layernorm.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"];
const MLP: [&str; 4] = ["post_attention_layernorm.weight", "gate_proj.weight", "up_proj.weight", "down_proj.weight"];

#[test]
fn attention_equals_autograd() {
    let m = config(false);
    let p = params(&m, 1);
    let w = p.unit(Unit::Block(1));
    ones(w);
    let (block, at) = (Block::new(&m, &Axes::solo()), positions(&m));
    let (x, dy) = (noise(&[B * S, 36], 2), noise(&[B * S, 36], 3));
    let (y, saved) = block.attention.forward(w, &x, &at).unwrap();
    let (back, pending) = block.attention.backward_products(w, saved, dy.copy(), &at, true).unwrap();
    let dx = block.attention.backward_norm(w, back, Accumulate::Add).unwrap();
    block.attention.backward_weight(w, pending, Accumulate::Add).unwrap();

    let (leaves, xr) = (Leaves::new(w), leaf(&x.view([B, S, 36])));
    let yr = oracle::attention(&m, &leaves, &xr);
    let want = differentiate(&yr, &dy, &xr, &leaves, &ATTENTION);
    close("y", &y.view_as(&yr), &yr, TOLERANCE);
    close("dx", &dx.view_as(&yr), &want[0], TOLERANCE);
    same_grads(w, &ATTENTION, &want[1..]);
}

#[test]
fn mlp_equals_autograd() {
    let m = config(false);
    let p = params(&m, 1);
    let w = p.unit(Unit::Block(2));
    ones(w);
    let block = Block::new(&m, &Axes::solo());
    let (x, dy) = (noise(&[B * S, 36], 2), noise(&[B * S, 36], 3));
    let (y, saved) = block.mlp.forward(w, &x).unwrap();
    let (back, pending) = block.mlp.backward_products(w, saved, dy.copy(), true).unwrap();
    let dx = block.mlp.backward_norm(w, back, Accumulate::Add).unwrap();
    block.mlp.backward_weight(w, pending, Accumulate::Add).unwrap();

    let (leaves, xr) = (Leaves::new(w), leaf(&x));
    let yr = oracle::mlp(&m, &leaves, &xr);
    let want = differentiate(&yr, &dy, &xr, &leaves, &MLP);
    close("y", &y, &yr, TOLERANCE);
    close("dx", &dx, &want[0], TOLERANCE);
    same_grads(w, &MLP, &want[1..]);
}

#[test]
fn block_equals_autograd_and_its_passes_split() {
    let m = config(false);
    let p = params(&m, 4);
    let w = p.unit(Unit::Block(0));
    ones(w);
    let (block, at) = (Block::new(&m, &Axes::solo()), positions(&m));
    let (x, dy) = (noise(&[B * S, 36], 5), noise(&[B * S, 36], 6));
    let (y, saved) = block.forward(w, &x, &at, Recompute::None).unwrap();
    let dx = block.backward(w, saved, dy.shallow_clone(), &at, Accumulate::Add).unwrap();

    let (leaves, xr) = (Leaves::new(w), leaf(&x.view([B, S, 36])));
    let yr = oracle::mlp(&m, &leaves, &oracle::attention(&m, &leaves, &xr));
    let names = [&ATTENTION[..], &MLP[..]].concat();
    let want = differentiate(&yr, &dy, &xr, &leaves, &names);
    close("y", &y.view_as(&yr), &yr, TOLERANCE);
    close("dx", &dx.view_as(&yr), &want[0], TOLERANCE);
    same_grads(w, &names, &want[1..]);

    // The split passes, the recomputing one and the one that keeps nothing: the same bits.
    let fused = w.grad.copy();
    for mode in [Recompute::None, Recompute::Selective, Recompute::Full] {
        let (_, saved) = block.forward(w, &x, &at, mode).unwrap();
        ones(w);
        let (split, pending) = block.backward_input(w, saved, dy.shallow_clone(), &at, Accumulate::Add).unwrap();
        block.backward_weight(w, pending, Accumulate::Add).unwrap();
        assert_eq!(split, dx);
        assert_eq!(w.grad, fused);
    }
    assert_eq!(block.infer(w, &x, &at).unwrap(), y);
}

#[test]
fn a_block_keeps_what_its_formula_says() {
    let m = config(false);
    for dtype in [Kind::Float, Kind::BFloat16] {
        let mut p = params(&m, 4);
        p.units.iter_mut().for_each(|u| u.param = u.param.to_kind(dtype));
        let x = noise(&[B * S, 36], 5).to_kind(dtype);
        let at = positions(&m);
        for mode in [Recompute::None, Recompute::Selective, Recompute::Full] {
            let (_, kept) = Block::new(&m, &Axes::solo()).forward(p.unit(Unit::Block(0)), &x, &at, mode).unwrap();
            let formula = block::kept_bytes(&m, dtype.elt_size_in_bytes(), mode, 1);
            assert_eq!(kept.bytes(), (B * S) as usize * formula, "{mode:?}");
        }
    }
}

#[test]
fn embedding_equals_autograd() {
    let m = config(false);
    let p = params(&m, 1);
    let w = p.unit(Unit::Embedding);
    ones(w);
    // Ids repeat.
    let (ids, dy) = (ids(B, S, 7, 8).reshape([-1]), noise(&[B * S, 36], 3));
    let x = embedding::forward(w, &ids, &Axes::solo()).unwrap();
    embedding::backward_weight(w, &dy, &ids, Accumulate::Add, &Axes::solo()).unwrap();
    let leaves = Leaves::new(w);
    let matrix = leaves.get(embedding::MATRIX);
    let xr = matrix.index_select(0, &ids);
    let want = differentiate(&xr, &dy, matrix, &leaves, &[]);
    close("x", &x, &xr, TOLERANCE);
    close("gradient", &(w.grad(embedding::MATRIX) - 1.0), &want[0], TOLERANCE);
}

#[test]
fn head_equals_autograd_over_several_chunks() {
    let m = config(false);
    let p = params(&m, 1);
    let w = p.unit(Unit::Head);
    ones(w);
    // More tokens than two chunks hold, the last chunk shorter.
    let n = 2 * head::MIN_ROWS as i64 + 77;

    let mut head = Head::new(&m, &Axes::solo());
    head.chunk_bytes = 1;
    assert_eq!(head::chunk_rows(n as usize, 101, 4, head.chunk_bytes, Device::Cpu), 384);
    let out = Projection::new(w, None);
    let x = noise(&[n, 36], 2);
    let targets = ids(1, n, 101, 4).view([n]);
    // Some do not count.
    let targets = targets.where_self(&targets.remainder(5).ne(0), &Tensor::from(-100i64));
    let (scale, z_loss) = (1.0 / 64.0, 3e-3);
    let step = StepOptions { grad_scale: scale, z_loss, grads: Accumulate::Add };
    let (sums, dx) = head.forward_backward(w, out, &x, &targets, None, &step).unwrap();

    let (leaves, xr) = (Leaves::new(w), leaf(&x));
    let (norm, matrix) = (leaves.get("norm.weight"), leaves.get("lm_head.weight"));
    let Out { logits, loss, z, objective } = oracle::head(norm, matrix, m.rms_norm_eps, &xr, &targets, scale, z_loss);
    let want = Tensor::run_backward(&[objective], &[&xr, norm, matrix], false, false);
    let relative = |a: f64, b: &Tensor| (a / b.double_value(&[]) - 1.0).abs();
    assert!(relative(sums.loss, &loss) < 1e-6 && relative(sums.z, &z) < 1e-6, "{sums:?}");
    assert_eq!(sums.tokens as i64, targets.ge(0).sum(Kind::Int64).int64_value(&[]));
    close("logits", &head.logits(w, out, &x).unwrap(), &logits, TOLERANCE);
    close("dx", &dx, &want[0], TOLERANCE);
    same_grads(w, &["norm.weight", "lm_head.weight"], &want[1..]);

    // Replacing holds over all chunks, not for each.
    let _ = w.grad.shallow_clone().fill_(f64::NAN);
    let _ =
        head.forward_backward(w, out, &x, &targets, None, &StepOptions { grads: Accumulate::Replace, ..step }).unwrap();
    close("norm.weight", &w.grad("norm.weight"), &want[1], TOLERANCE);
    close("lm_head.weight", &w.grad("lm_head.weight"), &want[2], TOLERANCE);

    // Rows that do not count get no gradient at all.
    let skipped = targets.lt(0).nonzero().squeeze_dim(-1);
    assert!(skipped.size()[0] > 0);
    assert_eq!(dx.index_select(0, &skipped).abs().max().double_value(&[]), 0.0);

    let alone = head.loss(w, out, &x, &targets, None, None).unwrap();
    assert!((alone.loss / sums.loss - 1.0).abs() < 1e-6 && alone.tokens == sums.tokens);
}

#[test]
fn chunks_are_even_and_bounded() {
    // The whole batch where it fits.
    assert_eq!(head::chunk_rows(100, 32_000, 2, head::CHUNK_BYTES, Device::Cpu), 100);
    assert_eq!(head::chunk_rows(0, 32_000, 2, head::CHUNK_BYTES, Device::Cpu), 0);
    for (n, vocab, elem) in [(8192, 128_256, 2), (8192, 32_000, 4), (5000, 32_000, 2), (1_000_003, 256, 4)] {
        let rows = head::chunk_rows(n, vocab, elem, head::CHUNK_BYTES, Device::Cpu);
        let most = (head::CHUNK_BYTES / (vocab * elem)).max(head::MIN_ROWS);
        assert!(rows <= most.next_multiple_of(64) && rows.is_multiple_of(64), "{n} {vocab}: {rows}");
        assert!(n.div_ceil(rows) * rows - n < rows, "{n} {vocab}: {rows}");
        // Larger on a device, whatever the vocabulary.
        let rows = head::chunk_rows(n, vocab, elem, head::CHUNK_BYTES, Device::Cuda(0));
        assert!((1024.min(n)..=4096).contains(&rows) && n.div_ceil(rows) <= n.div_ceil(2048), "{n} {vocab}: {rows}");
    }
}

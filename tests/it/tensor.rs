//! The tensor axis (with sequence parallelism) on real ranks, against the same model on one.

use super::shard::{self, Grid};
use super::support::ranks;
use herd::config::{ModelConfig, Recompute};
use herd::layout::Unit;
use herd::model::block::{self, Block};
use herd::model::{embedding, Accumulate, Documents, StepOptions};
use serde_json::json;
use tch::{Kind, Tensor};

/// 7 tokens a sequence of 4: neither divides by the ranks, their product does. The vocabulary does not divide by 2 or 4.
fn model(kv_heads: usize, tied: bool) -> ModelConfig {
    serde_json::from_value(json!({
        "vocab_size": 101, "hidden_size": 36, "intermediate_size": 56, "num_hidden_layers": 3,
        "num_attention_heads": 12, "num_key_value_heads": kv_heads, "head_dim": 10, "tie_word_embeddings": tied,
        "initializer_range": 0.2
    }))
    .unwrap()
}

fn layers_and_model() {
    shard::on_axes(|axes, topo| {
        for (kv_heads, tied) in [(1, false), (4, true), (12, false), (2, true)] {
            let m = model(kv_heads, tied);
            let grid = Grid::new(&m, axes, topo, Kind::Float);
            one_block(&grid);
            ends(&grid);
            shard::whole_model(&grid, 4, 7, &Documents::whole(), 1e-5);
        }
    });
}

/// One block: output, input gradient, every weight gradient, in one go and split.
fn one_block(g: &Grid) {
    let (unit, n) = (Unit::Block(1), 28);
    let (x, dy) = (shard::noise(&[n, 36], 3), shard::noise(&[n, 36], 4));
    let (alone, ours) = (Block::new(&g.model, &g.solo), Block::new(&g.model, &g.axes));
    let (one, mine) = (g.whole.unit(unit), g.local.unit(unit));
    let at = g.llama(7).positions(&Tensor::zeros([4, 7], (Kind::Int64, tch::Device::Cpu)), &Documents::whole());
    let (y, kept) = alone.forward(one, &x, &at, Recompute::None).unwrap();
    let dx = alone.backward(one, kept, dy.copy(), &at, Accumulate::Replace).unwrap();

    for mode in [Recompute::None, Recompute::Selective, Recompute::Full] {
        let (part, kept) = ours.forward(mine, &g.rows(&x), &at, mode).unwrap();
        shard::close("y", &part, &g.rows(&y), 1e-5);
        let formula = block::kept_bytes(&g.model, 4, mode, g.tensor());
        let per_token = kept.bytes() as f64 / n as f64;
        assert!((per_token - formula as f64).abs() < 1.0, "{mode:?}: {per_token} bytes a token, formula {formula}");
        let part = ours.backward(mine, kept, g.rows(&dy), &at, Accumulate::Replace).unwrap();
        shard::close("dx", &part, &g.rows(&dx), 1e-5);
        g.same_gradients(unit, 1e-5);
        let fused = mine.grad.copy();

        let _ = mine.grad.shallow_clone().zero_();
        let (_, kept) = ours.forward(mine, &g.rows(&x), &at, mode).unwrap();
        let (split, pending) = ours.backward_input(mine, kept, g.rows(&dy), &at, Accumulate::Add).unwrap();
        ours.backward_weight(mine, pending, Accumulate::Add).unwrap();
        assert!(split.equal(&part) && mine.grad.equal(&fused), "{mode:?}: the split passes give other bits");
    }
}

/// Embedding and head: no sum crosses ranks in the forward pass of the embedding, so it is exact.
fn ends(g: &Grid) {
    let n = 28;
    let (tokens, targets) = shard::batch(&g.model, 4, 7);
    let (ids, targets) = (tokens.reshape([-1]), targets.reshape([-1]));
    let (one, mine) = (g.whole.unit(Unit::Embedding), g.local.unit(Unit::Embedding));
    let x = embedding::forward(one, &ids, &g.solo).unwrap();
    let part = embedding::forward(mine, &ids, &g.axes).unwrap();
    assert!(part.equal(&g.rows(&x)), "the embedding differs");
    let dx = shard::noise(&[n, 36], 5);
    embedding::backward_weight(one, &dx, &ids, Accumulate::Replace, &g.solo).unwrap();
    embedding::backward_weight(mine, &g.rows(&dx), &ids, Accumulate::Replace, &g.axes).unwrap();
    g.equal_gradients(Unit::Embedding);

    let step = StepOptions { grad_scale: 1.0 / 28.0, z_loss: 1e-3, grads: Accumulate::Replace };
    let x = shard::noise(&[n, 36], 6);
    let (alone, mut ours) = (g.llama_alone(7), g.llama(7));
    let run = |l: &herd::model::Llama, p: &herd::model::Params, x: &Tensor| {
        l.head.forward_backward(p.unit(Unit::Head), l.projection(p), x, &targets, None, &step).unwrap()
    };
    let (sums, dx) = run(&alone, &g.whole, &x);
    let (part, dpart) = run(&ours, &g.local, &g.rows(&x));
    assert_eq!(part.tokens, sums.tokens);
    assert!((part.loss / sums.loss - 1.0).abs() < 1e-6 && (part.z / sums.z - 1.0).abs() < 1e-6, "{part:?} {sums:?}");
    shard::close("dx of the head", &dpart, &g.rows(&dx), 1e-5);
    g.same_gradients(Unit::Head, 1e-5);
    ours.head.chunk_bytes = 1;
    let alone =
        ours.head.loss(g.local.unit(Unit::Head), ours.projection(&g.local), &g.rows(&x), &targets, None, None).unwrap();
    assert!((alone.loss / sums.loss - 1.0).abs() < 1e-6);
}

#[test]
fn layers_and_model_on_2_ranks() {
    if ranks(2, "tensor::layers_and_model_on_2_ranks") {
        layers_and_model();
    }
}

#[test]
fn layers_and_model_on_4_ranks() {
    if ranks(4, "tensor::layers_and_model_on_4_ranks") {
        layers_and_model();
    }
}

/// Many chunks of the head, uneven over the ranks: the loss and the gradients are those of one.
#[test]
fn head_in_chunks_on_3_ranks() {
    if !ranks(3, "tensor::head_in_chunks_on_3_ranks") {
        return;
    }
    shard::on_axes(|axes, topo| {
        for vocab in [100, 4] {
            // With 4 rows on 3 ranks the shares are 2, 2 and none.
            let m = ModelConfig { vocab_size: vocab, ..model(3, false) };
            let g = Grid::new(&m, axes, topo, Kind::Float);
            let n = 3 * 811;
            let x = shard::noise(&[n, 36], 6);
            let targets = shard::ids(&[n], vocab, 9);
            let targets = targets.where_self(&targets.remainder(7).ne(0), &Tensor::from(-1i64));
            let step = StepOptions { grad_scale: 1.0 / n as f64, z_loss: 1e-2, grads: Accumulate::Replace };
            let (mut alone, mut ours) = (g.llama_alone(7), g.llama(7));
            (alone.head.chunk_bytes, ours.head.chunk_bytes) = (1, 1);
            let run = |l: &herd::model::Llama, p: &herd::model::Params, x: &Tensor| {
                l.head.forward_backward(p.unit(Unit::Head), l.projection(p), x, &targets, None, &step).unwrap()
            };
            let (sums, dx) = run(&alone, &g.whole, &x);
            let (part, dpart) = run(&ours, &g.local, &g.rows(&x));
            assert!((part.loss / sums.loss - 1.0).abs() < 1e-6 && part.tokens == sums.tokens, "{part:?} {sums:?}");
            shard::close("dx of the head", &dpart, &g.rows(&dx), 1e-5);
            g.same_gradients(Unit::Head, 1e-5);
        }
    });
}

/// Half precision: the wire sums bf16 in fp32, so the axis costs about one more rounding a
/// sum; two runs that are each within 5e-2 of fp32 (as one rank is, in the model's own tests) may differ by this much.
#[test]
fn bf16_on_2_ranks() {
    if !ranks(2, "tensor::bf16_on_2_ranks") {
        return;
    }
    shard::on_axes(|axes, topo| {
        let grid = Grid::new(&model(4, false), axes, topo, Kind::BFloat16);
        shard::whole_model(&grid, 4, 7, &Documents::whole(), 8e-2);
    });
}

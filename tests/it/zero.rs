//! Tests of `parallel::zero`: every stage and hybrid sharding against one rank, and against each other.

use super::support::{ranks, text};
use super::train::Run;
use herd::config::{ModelConfig, OptimSection, ParallelSection};
use herd::layout::{Layout, Sharding};
use herd::model::{Accumulate, Axes, Chunk, Documents, Llama, StepOptions, Units, Use};
use herd::optim::Optimizer;
use herd::parallel::{sync, Groups, Sharded, ZeroOptions};
use herd::topology::{Axis, Topology};
use herd::wire::MakeWires;
use herd::wire::{Backend, CommTiming, Route, Wire};
use herd::world::{Op, World};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tch::{Device, Kind, Tensor};

const BATCH: usize = 24;
const SEQUENCE: usize = 16;
const STEPS: u64 = 5;
const LR: f64 = 1e-3;

/// Units of four lengths, none of which is a multiple of the padding.
fn model(tied: bool) -> ModelConfig {
    serde_json::from_value(serde_json::json!({
        "vocab_size": 101, "hidden_size": 36, "intermediate_size": 70, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": tied
    }))
    .unwrap()
}

/// What one run left.
struct Result_ {
    losses: Vec<f64>,
    norms: Vec<f64>,
    /// All parameters after the last step.
    weights: Tensor,
    /// Of the last step.
    spent: CommTiming,
}

/// How a run is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    stage: u8,
    /// Replicas that share one copy; 0 all.
    size: usize,
    micro_batches: usize,
    via: Route,
    overlap: bool,
    /// All input gradients of a step before its weight gradients.
    split: bool,
}

const PLAIN: Cut = Cut { stage: 0, size: 0, micro_batches: 1, via: Route::Fastest, overlap: true, split: false };

type Wires = HashMap<(usize, bool), Groups>;

fn groups(world: &World, sharding: &Sharding, topo: &Topology, via: Route, made: &mut Wires) -> Groups {
    let wire = |ranks: Vec<usize>| -> Arc<dyn Wire> { world.wire_group_on(&ranks, Backend::Host(via)).unwrap().into() };
    let make = || Groups {
        shard: wire(sharding.shard_ranks(topo)),
        gather: wire(sharding.shard_ranks(topo)),
        across: wire(sharding.across_ranks(topo)),
        ..Groups::solo()
    };
    made.entry((sharding.group, via == Route::Messages)).or_insert_with(make).clone()
}

fn train(world: &World, tied: bool, dtype: Kind, cut: Cut, replicas: usize, made: &mut Wires) -> Result_ {
    let model_config = model(tied);
    let topo = if replicas == 1 { Topology::solo() } else { Topology::data(world.rank(), replicas) };
    let layout = Layout::new(&model_config, &topo);
    let parallel = ParallelSection { zero: cut.stage, shard_size: cut.size, ..ParallelSection::default() };
    let sharding = Sharding::new(&parallel, &topo);
    let groups = if replicas == 1 { Groups::solo() } else { groups(world, &sharding, &topo, cut.via, made) };
    let how = ZeroOptions { sharding, dtype, device: Device::Cpu, bucket_mib: 1, overlap: cut.overlap, quantize: None };
    let mut units = Sharded::new(&layout, how, groups).unwrap();
    let mut optimizer = Optimizer::new(units.owned(), &OptimSection::default());
    for s in &optimizer.slots {
        for (p, r) in s.owned.layout.pieces(&s.owned.range) {
            let mut values = vec![0f32; r.len()];
            herd::model::init::fill_range(p, r.start, &mut values, 5, 0.05);
            let flat = p.start + r.start..p.start + r.end;
            s.owned.part(&s.master, &flat).copy_(&Tensor::from_slice(&values));
        }
    }
    optimizer.publish();
    units.publish().unwrap();

    let llama = Llama::new(&model_config, SEQUENCE, Device::Cpu, &Axes::solo());
    let chunk = Chunk::whole(llama.layers);
    let options = StepOptions { grad_scale: 1.0 / (BATCH * SEQUENCE) as f64, z_loss: 1e-4, grads: Accumulate::Replace };
    let rows = BATCH / replicas / cut.micro_batches;
    let _guard = tch::no_grad_guard();
    let (mut losses, mut norms, mut spent) = (Vec::new(), Vec::new(), CommTiming::default());
    for step in 1..=STEPS {
        units.begin(cut.micro_batches);
        let mut loss = 0.0;
        let mut deferred = Vec::new();
        for m in 0..cut.micro_batches {
            let first = (topo.coord(Axis::Data) * cut.micro_batches + m) * rows;
            let (tokens, targets) = batch(step, first, rows);
            let micro = llama.micro(&tokens, &targets, &Documents::whole());
            let (_, kept) = llama.forward(&chunk, &mut units, &micro, None).unwrap();
            loss += if cut.split {
                let (_, later, sums) = llama.backward_input(&chunk, &mut units, &micro, kept, None, &options).unwrap();
                deferred.push((micro, later));
                sums.loss
            } else {
                llama.backward(&chunk, &mut units, &micro, kept, None, &options).unwrap().1.loss
            };
        }
        for (micro, later) in deferred {
            llama.backward_weight(&chunk, &mut units, &micro, later).unwrap();
        }
        units.finish().unwrap();
        let mine = [loss, optimizer.grad_sum_squares()];
        let all = if replicas == 1 { mine.to_vec() } else { world.all_reduce_f64(&mine, Op::Sum).unwrap() };
        let norm = all[1].sqrt();
        losses.push(all[0] / (BATCH * SEQUENCE) as f64);
        norms.push(norm);
        optimizer.step(LR, step, herd::optim::clip_factor(norm, 1.0));
        units.publish().unwrap();
        spent = units.spent();
    }
    if replicas > 1 {
        sync::sync_check(&mut units, world).unwrap();
    }
    let whole = |u: &herd::layout::UnitLayout| {
        let held = units.hold(u.unit, Use::Forward).unwrap();
        let used = held.flat.param.narrow(0, 0, u.used as i64).copy();
        drop(held);
        units.release(u.unit, Use::Forward).unwrap();
        used
    };
    let weights = Tensor::cat(&layout.units.iter().map(whole).collect::<Vec<_>>(), 0);
    Result_ { losses, norms, weights, spent }
}

/// Rows `first..first + rows` of the global batch of a step: tokens and targets [rows, SEQUENCE].
fn batch(step: u64, first: usize, rows: usize) -> (Tensor, Tensor) {
    let ids = |shift: usize| {
        let at =
            |i: usize| ((first * SEQUENCE + i + shift) * 31 + step as usize * 17 + (first + i / SEQUENCE) * 7) % 101;
        Tensor::from_slice(&(0..rows * SEQUENCE).map(|i| at(i) as i64).collect::<Vec<_>>())
            .view([rows as i64, SEQUENCE as i64])
    };
    (ids(0), ids(1))
}

/// Root mean square of the differences of weights, in units of what a weight can have moved.
fn apart(a: &Result_, b: &Result_) -> f64 {
    let d = a.weights.to_kind(Kind::Double) - b.weights.to_kind(Kind::Double);
    (&d * &d).mean(Kind::Double).double_value(&[]).sqrt() / (LR * STEPS as f64)
}

fn same_bits(a: &Result_, b: &Result_) -> bool {
    a.weights.equal(&b.weights) && a.losses == b.losses
}

/// All stages with 1, 2 and 3 micro-batches over both ways to move bytes.
fn stages(sizes: &[usize]) {
    tch::set_num_threads(1);
    let world = World::init().unwrap();
    let replicas = world.size();
    let mut made = Wires::new();
    for tied in [false, true] {
        let alone = train(&world, tied, Kind::Float, PLAIN, 1, &mut made);
        for micro_batches in 1..=3 {
            // What a tied matrix adds shows with one number of them.
            if tied && micro_batches != 2 {
                continue;
            }
            let mut by_stage: HashMap<(u8, usize), Result_> = HashMap::new();
            for via in [Route::Fastest, Route::Messages] {
                let hybrid = sizes.iter().flat_map(|&s| (1..=3).map(move |stage| (stage, s)));
                for (stage, size) in (0..=3).map(|stage| (stage, 0)).chain(hybrid) {
                    let cut = Cut { stage, size, micro_batches, via, ..PLAIN };
                    let got = train(&world, tied, Kind::Float, cut, replicas, &mut made);
                    let off = |a: &[f64], b: &[f64]| (a[0] / b[0] - 1.0).abs();
                    let (loss, norm) = (off(&got.losses, &alone.losses), off(&got.norms, &alone.norms));
                    let apart = apart(&got, &alone);
                    if world.rank() == 0 {
                        println!("tied {tied} {cut:?}: loss {loss:.1e} norm {norm:.1e} weights {apart:.1e}");
                    }
                    assert!(loss < 1e-6 && norm < 1e-6 && apart < 2e-3, "{cut:?}: {loss} {norm} {apart}");
                    // Sums are in rank order on both.
                    let before = by_stage.get(&(stage, size));
                    assert!(before.is_none_or(|b| same_bits(b, &got)), "{cut:?} depends on the wire");
                    by_stage.insert((stage, size), got);
                }
            }
            let at = |stage, size| &by_stage[&(stage, size)];
            assert!(same_bits(at(0, 0), at(1, 0)), "stages 0 and 1, {micro_batches} micro-batches");
            assert!(same_bits(at(2, 0), at(3, 0)), "stages 2 and 3, {micro_batches} micro-batches");
            // With more micro-batches stage 2 sums ranks first, stage 1 micro-batches first.
            assert!(micro_batches > 1 || same_bits(at(1, 0), at(2, 0)), "stages 1 and 2");
            for &s in sizes {
                assert!(same_bits(at(2, s), at(3, s)), "hybrid stages 2 and 3");
            }
        }
    }
    world.barrier().unwrap();
    world.finalize().unwrap();
}

#[test]
fn stages_on_2_ranks() {
    if ranks(2, "zero::stages_on_2_ranks") {
        stages(&[]);
    }
}

#[test]
fn stages_on_4_ranks() {
    if ranks(4, "zero::stages_on_4_ranks") {
        stages(&[2]);
    }
}

/// Schedules that leave weight gradients for later, no overlap, bf16.
#[test]
fn split_backward_and_other_cuts() {
    if !ranks(2, "zero::split_backward_and_other_cuts") {
        return;
    }
    tch::set_num_threads(1);
    let world = World::init().unwrap();
    let mut made = Wires::new();
    let alone = train(&world, false, Kind::Float, PLAIN, 1, &mut made);
    let rounded = train(&world, false, Kind::BFloat16, PLAIN, 1, &mut made);
    assert!(rounded.losses[4] < rounded.losses[0]);
    for stage in 0..=3 {
        for via in [Route::Fastest, Route::Messages] {
            let cut = Cut { stage, micro_batches: 3, via, ..PLAIN };
            let split = train(&world, false, Kind::Float, Cut { split: true, ..cut }, 2, &mut made);
            assert!(apart(&split, &alone) < 2e-3, "{cut:?}: {}", apart(&split, &alone));
            let plain = train(&world, false, Kind::Float, cut, 2, &mut made);
            let waiting = train(&world, false, Kind::Float, Cut { overlap: false, ..cut }, 2, &mut made);
            assert!(same_bits(&plain, &waiting), "{cut:?} with and without overlap");
            let bf16 = train(&world, false, Kind::BFloat16, cut, 2, &mut made);
            for (a, b) in bf16.losses.iter().zip(&rounded.losses) {
                assert!((a / b - 1.0).abs() < 2e-3, "{cut:?}: {:?} {:?}", bf16.losses, rounded.losses);
            }
        }
    }
    world.barrier().unwrap();
    world.finalize().unwrap();
}

/// The bytes of a step are those of the table in docs/axes/data.md.
#[test]
fn a_step_moves_what_theory_says() {
    if !ranks(2, "zero::a_step_moves_what_theory_says") {
        return;
    }
    tch::set_num_threads(1);
    let world = World::init().unwrap();
    let mut made = Wires::new();
    let layout = Layout::new(&model(false), &Topology::data(world.rank(), 2));
    let all: u64 = layout.units.iter().map(|u| u.len as u64).sum();
    let len = |unit| layout.unit(unit).len as u64;
    let head = len(herd::layout::Unit::Head);
    let embedding = len(herd::layout::Unit::Embedding);
    let micro_batches = 3;
    let m = micro_batches as u64;
    for (via, gathers) in [(Route::Fastest, 0), (Route::Messages, m * (2 * all - head - embedding) * 2)] {
        for (stage, want) in
            [(0, all * 4), (1, all * 4 + all * 2), (2, m * all * 4 + all * 2), (3, m * all * 4 + gathers)]
        {
            let cut = Cut { stage, micro_batches, via, ..PLAIN };
            let spent = train(&world, false, Kind::BFloat16, cut, 2, &mut made).spent;
            // Neither reads the embedding nor makes the head's logits a second time; the last block is kept between its
            // passes where nothing comes in between.
            assert_eq!(spent.bytes, want, "{cut:?}");
            assert!(
                spent.busy > Duration::ZERO && spent.hidden == spent.busy.saturating_sub(spent.exposed),
                "{spent:?}"
            );
            assert!(spent.buckets > 0);
        }
    }
    world.barrier().unwrap();
    world.finalize().unwrap();
}

/// Copies over the tensor axis are summed and compared.
#[test]
fn copies_over_the_tensor_axis() {
    if !ranks(4, "zero::copies_over_the_tensor_axis") {
        return;
    }
    tch::set_num_threads(1);
    let world = World::init().unwrap();
    let mut config = model(false);
    config.num_attention_heads = 4;
    // Tensor 4 with 2 KV heads: norms on four ranks, each KV head on two.
    let topo = Topology::new(world.rank(), [4, 1, 1, 1]);
    let layout = Layout::new(&config, &topo);
    let lens: Vec<u8> = layout.units.iter().flat_map(|u| u.len.to_le_bytes()).collect();
    assert!(world.all_gather_bytes(&lens).unwrap().iter().all(|l| *l == lens), "ranges lie alike on all tensor ranks");
    let tensor: Arc<dyn Wire> = world.wire(&topo, Axis::Tensor).unwrap().into();
    let pair = world.rank() / 2 * 2;
    let pair: Arc<dyn Wire> = world.wire_group(&[pair, pair + 1]).unwrap().into();
    let groups = Groups { copies: vec![(4, tensor), (2, pair)], ..Groups::solo() };
    let how = ZeroOptions {
        sharding: Sharding::solo(),
        dtype: Kind::Float,
        device: Device::Cpu,
        bucket_mib: 25,
        overlap: true,
        quantize: None,
    };
    let mut units = Sharded::new(&layout, how, groups).unwrap();
    units.begin(1);
    for u in layout.units.iter().rev() {
        let held = units.hold(u.unit, Use::Backward).unwrap();
        let _ = held.flat.grad.narrow(0, 0, u.used as i64).fill_(1.0 + world.rank() as f64);
        units.release(u.unit, Use::Backward).unwrap();
        units.complete(u.unit).unwrap();
    }
    units.finish().unwrap();
    let mut counted = 0.0;
    for o in units.owned() {
        for p in &o.layout.params {
            let sum = match p.copies {
                1 => 1 + world.rank(),
                2 => 2 * (world.rank() / 2 * 2) + 3,
                _ => 10,
            };
            let grad = o.part(&o.grad, &(p.start..p.start + p.len()));
            assert!(grad.eq(sum as f64).all().int64_value(&[]) == 1, "{} {grad:?}", p.name);
            counted += if p.owner { (p.len() * sum * sum) as f64 } else { 0.0 };
        }
    }
    let optimizer = Optimizer::new(units.owned(), &OptimSection::default());
    assert_eq!(optimizer.grad_sum_squares(), counted);
    let total = world.all_reduce_f64(&[optimizer.grad_sum_squares()], Op::Sum).unwrap()[0];
    assert!(total > 0.0);

    sync::sync_check(&mut units, &world).unwrap();
    let o = &units.owned()[2];
    let norm = o.layout.params.iter().find(|p| p.name.ends_with("post_attention_layernorm.weight")).unwrap();
    if world.rank() == 2 {
        let _ = o.part(&o.param, &(norm.start + 3..norm.start + 4)).fill_(0.5);
    }
    let e = sync::sync_check(&mut units, &world).unwrap_err();
    let who = format!("rank 2 ({}) against all others", world.host());
    assert!(e.fact.contains("post_attention_layernorm") && e.fact.contains(&who), "{e}");
    world.barrier().unwrap();
    world.finalize().unwrap();
}

/// A run goes on from a checkpoint of another stage on another number of ranks; each checkpoint holds every element once.
#[test]
fn resume_with_another_stage_and_size() {
    let run = Run::new();
    let straight = run.losses(2, "straight", &["parallel.zero=1", "train.steps=12", "checkpoint.every=4"]);
    for (name, stages) in [
        ("a", [(4, "parallel.zero=0", "parallel.shard_size=0"), (2, "parallel.zero=3", "parallel.shard_size=0")]),
        ("b", [(2, "parallel.zero=3", "parallel.shard_size=0"), (4, "parallel.zero=2", "parallel.shard_size=2")]),
    ] {
        let dir = format!("run_dir={}", run.path(name).display());
        for ((ranks, zero, shard), stop) in stages.into_iter().zip(["train.stop_at=8", "train.stop_at=12"]) {
            let out = run.train(ranks, &["train.steps=12", "checkpoint.every=4", stop, &dir, zero, shard]);
            assert!(matches!(out.status.code(), Some(0 | 75)), "{}", text(&out));
        }
        let got = super::train::losses(&run.path(name));
        for (a, b) in got.iter().zip(&straight) {
            assert!((a / b - 1.0).abs() < 1e-4, "{name}: {got:?} {straight:?}");
        }
    }
}

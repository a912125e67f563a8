//! The estimates against values that were computed elsewhere.

use super::collectives::{Fabric, RankGroup};
use super::compute::LayerTimes;
use super::faults::{best_interval, goodput, rate, spares};
use super::hardware::{FaultRates, Link};
use super::published;
use super::search::{differences, KEPT};
use super::*;
use crate::config::{load, Draft, PipelineSchedule, Recompute};
use crate::plan::memory::KernelForm;

fn h100() -> Hardware {
    Hardware::named("h100").unwrap()
}

/// One of the repository's configurations with overrides.
fn draft(name: &str, sets: &[&str]) -> Draft {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    load::draft(&path, &sets).unwrap()
}

fn plan(name: &str, sets: &[&str], allocation: Allocation) -> Plan {
    Plan::from_draft(draft(name, sets), &allocation.ranks(0, &h100())).unwrap()
}

fn shape(name: &str, sets: &[&str], nodes: usize) -> StepShape {
    StepShape::of(&plan(name, sets, Allocation { nodes, per_node: 8 }), KernelForms::FUSED)
}

fn near(a: f64, b: f64, within: f64) {
    assert!((a / b - 1.0).abs() < within, "{a} against {b}");
}

#[test]
fn rings_take_what_bytes_and_hops_take() {
    let fabric = Fabric::new(&h100(), 8);
    // 1 GB over 8 devices of a node at 450·0.82 GB/s and 7 hops of 6 µs; over 8 nodes at 8·50·0.85 GB/s.
    near(fabric.gather(RankGroup { size: 8, near: 8 }, 1e9), 0.002413273712737127, 1e-9);
    near(fabric.gather(RankGroup { size: 64, near: 8 }, 1e9), 0.003315220588235294, 1e-9);
    assert_eq!(fabric.gather(RankGroup { size: 1, near: 1 }, 1e9), 0.0);
    // A few bytes over 1,024 devices: a tree of 10 levels there and back.
    near(fabric.all_reduce(RankGroup { size: 1024, near: 8 }, 4.0), 20.0 * 12e-6, 1e-3);
    let far = RankGroup { size: 2, near: 1 };
    near(fabric.send(far, 1e9), 1e9 / 42.5e9 + 12e-6, 1e-9);
}

#[test]
fn groups_know_how_many_of_them_share_a_node() {
    let s = shape("llama3_70b.yaml", &["parallel.schedule=1f1b", "parallel.chunks=1"], 16);
    let of = |fabric: &Fabric, axis| fabric.axis(&s, axis);
    use crate::topology::Axis;
    let fabric = Fabric::new(&h100(), 8);
    assert_eq!(of(&fabric, Axis::Tensor), RankGroup { size: 8, near: 8 });
    assert_eq!(of(&fabric, Axis::Pipeline), RankGroup { size: 4, near: 1 });
    assert_eq!(fabric.replicas(&s, 4), RankGroup { size: 4, near: 1 });
    let wide = Fabric::new(&Hardware::named("gb200").unwrap(), 4);
    assert_eq!(of(&wide, Axis::Pipeline), RankGroup { size: 4, near: 4 });
    // Eight replicas of an 8B model are one node, sixteen two.
    let s = shape("llama3_8b.yaml", &["parallel.data=16"], 2);
    assert_eq!(fabric.replicas(&s, 16), RankGroup { size: 16, near: 8 });
    let copies = shape("llama3_8b.yaml", &["parallel.data=16", "parallel.shard_size=8"], 2);
    assert_eq!((fabric.replicas(&copies, 8), fabric.across(&copies, 8).near), (RankGroup { size: 8, near: 8 }, 1));
}

/// An 8B step of one sequence of 8,192 tokens on an H100 that reaches 750 TFLOP/s and 3.0 TB/s: the parts of an independent
/// roofline (6·N·(L·block + V·H) FLOPs of products; 4·Hq·D·S·(S+1)/2 of attention at 500, 2.5 times that at 420 TFLOP/s).
#[test]
fn an_8b_step_is_the_sum_of_its_parts() {
    let mut h = h100();
    h.efficiency.matrix = 750.0 / 989.0;
    h.efficiency.memory = 3000.0 / 3350.0;
    h.efficiency.attention_forward = 500.0 / 989.0;
    h.efficiency.attention_backward = 420.0 / 989.0;
    let s = StepShape { data: 1, shard: 1, zero: 0, accumulation: 1, ..shape("llama3_8b.yaml", &[], 1) };
    let e = step::estimate(&s, &h).unwrap();
    // The head's weight gradient comes in chunks of 2,048 tokens, which are bound by their products: 2.9 ms against 1.6 for bytes.
    near(e.parts.matrix, 0.491825, 0.001);
    near(e.parts.attention, 0.139917, 0.001);
    // Norms 11.4, rotation 3.6, SwiGLU 27.5, cross-entropy 2.1 and the embedding: about 46 ms.
    assert!((0.042..0.052).contains(&e.parts.elementwise), "{e:?}");
    assert_eq!(e.parts.exposed() + e.bubble, 0.0);
    near(e.seconds, e.parts.total() + e.optimizer + e.snapshot + e.other, 1e-12);
    // Unfused attention: 2,353 + 3,775 ms there; operations between products about 560 ms.
    let unfused = KernelForms::UNFUSED;
    let slow = step::estimate(&StepShape { forms: unfused, ..s }, &h).unwrap();
    near(slow.parts.attention, 2.353 + 3.775, 0.02);
    near(slow.parts.elementwise, 0.0573 + 0.0802 + 0.0358 + 0.0952 + 0.1679 + 0.0465 + 0.014 + 0.0238, 0.06);
}

#[test]
fn one_term_holds_attention_without_a_kernel() {
    let plan = plan("llama3_8b.yaml", &[], Allocation { nodes: 1, per_node: 8 });
    let of = |attention| {
        let forms = KernelForms { attention, ..KernelForms::FUSED };
        Memory::with(&plan, forms)
    };
    use crate::plan::memory::Memory;
    let (fused, unfused) = (of(KernelForm::Fused), of(KernelForm::Unfused));
    // 3·32·8192²·4 bytes of scores, and copies of 8,192 tokens.
    let scores = 25_769_803_776u64;
    let more = unfused.working - fused.working;
    assert!(more > scores * 9 / 10 && more < scores * 11 / 10, "{more}");
    assert_eq!((fused.activations, fused.parameters), (unfused.activations, unfused.parameters));
}

/// With equal stages the idle share is (P−1)/(M+P−1) (arXiv:1811.06965 §2.3), and playing a part of a long schedule gives
/// what playing all of it does.
#[test]
fn the_bubble_is_the_schedules() {
    let sets = ["model.shape.num_hidden_layers=128", "parallel.data=1", "parallel.pipeline=16", "batch.global=32"];
    let mut s = shape("llama3_405b.yaml", &sets, 16);
    s.chunks = vec![ChunkSize { blocks: 8, ..ChunkSize::default() }; 16].into();
    let e = step::estimate(&s, &Hardware { between: Link { gb_s: 1e9, latency_us: 0.0 }, ..h100() }).unwrap();
    near(e.bubble_share, 15.0 / 47.0, 1e-6);
    for schedule in [PipelineSchedule::OneFOneB, PipelineSchedule::ZeroBubble, PipelineSchedule::GPipe] {
        for accumulation in [85, 100, 300] {
            let long = StepShape { schedule, accumulation, ..s.clone() };
            let whole = step::estimate_whole(&long, &h100()).unwrap();
            near(step::estimate(&long, &h100()).unwrap().seconds, whole.seconds, 1e-9);
        }
    }
    let s = shape("llama3_70b.yaml", &[], 16);
    for accumulation in [24, 37, 128, 131] {
        let long = StepShape { accumulation, ..s.clone() };
        let whole = step::estimate_whole(&long, &h100()).unwrap();
        near(step::estimate(&long, &h100()).unwrap().seconds, whole.seconds, 0.002);
    }
}

#[test]
fn exchange_is_hidden_where_the_code_hides_it() {
    let h = h100();
    let of = |sets: &[&str]| step::estimate(&shape("llama3_8b.yaml", sets, 8), &h).unwrap();
    let base = ["parallel.data=64", "parallel.zero=1", "batch.global=128"];
    let with = |more: &[&'static str]| of(&[&base[..], more].concat());
    let (over, not) = (with(&[]), with(&["parallel.overlap=false"]));
    assert!(over.parts.data < not.parts.data && over.seconds < not.seconds, "{over:?} {not:?}");
    assert_eq!(not.parts.hidden, 0.0);
    near(over.parts.data + over.parts.hidden, not.parts.data, 1e-9);
    // The tensor axis waits in the forward pass, whatever the setting.
    let tensor = with(&["parallel.tensor=8", "parallel.data=8"]);
    assert!(tensor.parts.tensor > 0.0 && tensor.parts.hidden > 0.0, "{tensor:?}");
    let layers = shape("llama3_8b.yaml", &["parallel.tensor=8", "parallel.data=1"], 1);
    let block = LayerTimes::new(&layers, &h).block(Recompute::None, true);
    near(block.forward.tensor, 4.0 * (8192.0 * 4096.0 * 2.0 * 7.0 / 8.0 / 369e9 + 7.0 * 6e-6), 1e-9);
    // Stage 3 fetches what stage 1 does not.
    let three = with(&["parallel.zero=3"]);
    assert!(three.parts.hidden + three.parts.data > over.parts.hidden + over.parts.data, "{three:?}");
}

#[test]
fn faults_are_those_of_the_paper() {
    let f = FaultRates::default();
    near(54.0 * 86_400.0 * rate(&f, 16_384), 419.0, 0.002);
    let lambda = rate(&f, 16_384);
    near(best_interval(60.0, lambda), 1115.7887299157908, 1e-9);
    near(goodput(lambda, 1200.0, 60.0, 768.0), 0.8352743619047618, 1e-9);
    // The best interval is the best.
    let at = |tau: f64| goodput(lambda, tau, 60.0, 768.0);
    let best = best_interval(60.0, lambda);
    assert!([0.3, 0.7, 1.6, 3.0].iter().all(|x| at(best * x) < at(best)), "{best}");
    assert_eq!((goodput(1.0, 10.0, 1.0, 100.0), best_interval(5.0, 0.0)), (0.0, f64::MAX));
}

#[test]
fn spares_pay_where_nodes_are_lost() {
    let f = FaultRates::default();
    // 6.05 nodes a day are away for a day: 6 on average; one node of 2,048 costs 0.05%, a wait without one about 5% of a day.
    let many = spares(&f, 16_384, 2048);
    assert!((7..=16).contains(&many), "{many}");
    assert_eq!(spares(&f, 8, 1), 0);
    assert_eq!(spares(&FaultRates { per_device_day: 0.0, ..f }, 16_384, 2048), 0);
    assert!(spares(&FaultRates { repair_h: 96.0, ..f }, 16_384, 2048) > many);
    // No rate makes it run away, and there are never more than nodes.
    assert!(spares(&FaultRates { per_device_day: 1e12, ..f }, 16_384, 2048) <= 2048);
}

fn question(draft: Draft, nodes: usize, h: &Hardware) -> advice::Question<'_> {
    let allocation = Allocation { nodes, per_node: 8 };
    let config = draft.finish().unwrap();
    advice::Question { place: "x.yaml".into(), config, allocation, hardware: h, forms: KernelForms::FUSED }
}

/// What a search ranks is what planning each layout by itself gives, and nothing that it left out is faster.
#[test]
fn the_search_finds_the_fastest_of_all() {
    let h = h100();
    let q = question(draft("llama3_8b.yaml", &["parallel.data=0"]), 2, &h);
    let found = q.search().unwrap();
    assert!(found.best.len() <= KEPT && found.best.len() > 3, "{found:?}");
    assert!(found.best.windows(2).all(|w| w[0].step.seconds <= w[1].step.seconds));
    for r in &found.best {
        let plan = q.checked(r.config.clone()).unwrap();
        let again = estimate(&plan, q.allocation, &h, q.forms, None).unwrap();
        assert_eq!((again.step, again.memory), (r.step, r.memory));
        assert!(again.memory.fits());
        let shape = StepShape::of(&plan, q.forms);
        assert!(step::at_least(&shape, &h) <= again.step.seconds);
    }
    let best = found.best[0].step.seconds;
    let mut tried = 0;
    for tensor in [1, 2, 4, 8] {
        for pipeline in [1, 2, 4] {
            for zero in 1..=3 {
                for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
                    let mut config = q.config.clone();
                    (config.parallel.tensor, config.parallel.pipeline, config.parallel.zero) = (tensor, pipeline, zero);
                    config.train.recompute = recompute;
                    let Ok(plan) = q.checked(config) else { continue };
                    let e = estimate(&plan, q.allocation, &h, q.forms, None).unwrap();
                    tried += 1;
                    assert!(!e.memory.fits() || e.step.seconds >= best * (1.0 - 1e-9), "{:?}", plan.config.parallel);
                }
            }
        }
    }
    assert!(tried > 50, "{tried}");
    let why = differences(&found.best[0].step, &found.best[1].step);
    near(why.iter().map(|(_, d)| d).sum::<f64>() + 1.0, found.best[1].step.seconds - best + 1.0, 1e-9);
}

#[test]
fn what_cannot_fit_is_refused_with_what_would() {
    let h = h100();
    let q = question(draft("llama3_8b.yaml", &["parallel.zero=0", "train.recompute=none"]), 1, &h);
    let plan = q.plan().unwrap();
    let memory = memory_of_stages(&plan, &h, q.forms);
    assert!(!memory.fits());
    let said = q.refusal(&plan, &memory).to_string();
    for words in
        ["x.yaml: 1", "parameters", "do not fit h100", "79.6 GiB less 1.00 GiB", "the fastest that fits", "tensor "]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(said.lines().count(), 1, "{said}");
    // So would state in host memory, at the price of its copies.
    let (_, price) = said.split_once("optim.offload true").unwrap_or_else(|| panic!("{said}"));
    let times: f64 = price.split(" a step ").nth(1).and_then(|t| t.split(' ').next()?.parse().ok()).unwrap();
    assert!(times > 1.05, "{said}");
    // Nothing holds 405B on one node.
    let q = question(draft("llama3_405b.yaml", &["parallel.data=0", "batch.global=2048"]), 1, &h);
    let e = q.search().unwrap_err();
    assert!(e.exit == crate::error::Exit::Config && e.to_string().contains("none fits 1 node(s) × 8 h100"), "{e}");
    // And nothing makes a prime number of ranks above the model's 126 blocks.
    let q = advice::Question { allocation: Allocation { nodes: 127, per_node: 1 }, ..q };
    assert!(q.search().unwrap_err().to_string().contains("no axes cut"));
}

#[test]
fn a_file_of_a_site_is_checked_key_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("site.yaml");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Hardware::named(path.to_str().unwrap())
    };
    let good = serde_yaml::to_string(&h100()).unwrap();
    assert_eq!(read(&good).unwrap(), h100());
    for (text, words) in [
        (good.replace("memory_gib: 79.6", "memory_gib: -1"), "memory_gib: -1"),
        (good.replace("latency_us: 6.0", "latency_us: .nan"), "inside.latency_us: NaN"),
        (good.replace("memory_gib", "memory_gb"), "memory_gb"),
        ("- 1".into(), "site.yaml"),
        (String::new(), "site.yaml"),
    ] {
        let e = read(&text).unwrap_err();
        assert!(e.exit == crate::error::Exit::Config && e.to_string().contains(words), "{words}: {e}");
        assert_eq!(e.to_string().lines().count(), 1, "{e}");
    }
    let e = Hardware::named("h1000").unwrap_err();
    assert!(
        e.exit == crate::error::Exit::Usage && e.to_string().contains("h100, h200, b200, gb200, a100, mi300x"),
        "{e}"
    );
    assert!(Hardware::named("no/such.yaml").unwrap_err().to_string().contains("no/such.yaml"));
}

#[test]
fn the_documented_file_is_the_table_with_its_defaults() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/planning.md");
    let text = std::fs::read_to_string(page).unwrap();
    let block = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mut read: Hardware = serde_yaml::from_str(block).unwrap();
    assert_eq!((read.between.gb_s, read.name.as_str()), (12.5, "our-h100"));
    (read.between, read.name, read.source) = (h100().between, h100().name, h100().source);
    assert_eq!(read, h100());
}

#[test]
fn no_published_row_is_fitted_to_itself() {
    let rows = published::rows().unwrap();
    assert!(rows.len() >= 8);
    let ratio = |r: &published::PublishedRow| r.published_mfu / r.roofline_mfu;
    for (i, r) in rows.iter().enumerate() {
        let alike = rows.iter().enumerate().filter(|(j, o)| *j != i && o.machine == r.machine);
        let others: Vec<f64> = alike.map(|(_, o)| ratio(o).ln()).collect();
        assert!(!others.is_empty(), "{}", r.name);
        let mean = (others.iter().sum::<f64>() / others.len() as f64).exp();
        near(r.factor, mean, 1e-9);
        near(r.predicted_mfu, r.roofline_mfu * mean, 1e-9);
    }
    // The published tokens a second are the MFU that others have computed from them (33 to 39% for torchtitan's 8B).
    let eager = rows.iter().find(|r| r.name == "8B on 8 H100, FSDP, eager").unwrap();
    near(eager.published_mfu, 0.300, 0.01);
}

#[test]
fn state_and_its_ways_are_counted_once() {
    let allocation = Allocation { nodes: 16, per_node: 8 };
    let plan = plan("llama3_70b.yaml", &["checkpoint.snapshot_every=1"], allocation);
    let e = estimate(&plan, allocation, &h100(), KernelForms::FUSED, None).unwrap();
    // 70.55 G parameters at 12 bytes.
    near(e.saves.bytes, 12.0 * 70_553_706_496.0, 1e-9);
    // 128 ranks hold it once, the largest part within a third of the mean; five slots on each of 8 ranks.
    let mean = e.saves.bytes / 128.0;
    assert!(e.saves.rank_bytes >= mean && e.saves.rank_bytes < mean * 1.34, "{:?}", e.saves);
    near(e.saves.node_memory, 5.0 * 8.0 * e.saves.rank_bytes, 1e-9);
    near(e.saves.write_s, e.saves.bytes / 32e9, 1e-9);
    assert!(e.step.snapshot > 0.0 && e.run.days_with_faults > e.run.days * 0.99);
    near(e.run.device_hours, e.run.days_with_faults * 24.0 * 128.0, 1e-9);
    // More tokens take longer.
    let more = estimate(&plan, allocation, &h100(), KernelForms::FUSED, Some(2.0 * e.run.tokens)).unwrap();
    near(more.run.days, 2.0 * e.run.days, 1e-9);
}

#[test]
fn checkpoints_are_as_far_apart_as_the_nearer_key_says() {
    for (every, every_minutes, steps) in
        [(0, 0.0, 0), (500, 0.0, 500), (0, 30.0, 180), (100, 30.0, 100), (500, 30.0, 180)]
    {
        let c = CheckpointSection { every, every_minutes, ..CheckpointSection::default() };
        assert_eq!(checkpoint_steps(&c, 10.0), steps, "{every} {every_minutes}");
    }
}

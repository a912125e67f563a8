//! The pipeline axis: every schedule makes the gradients of one rank, bit for bit; parcels arrive where they should,
//! whatever the stages' pace; a dead neighbour does not hold a stage. Whole runs are in `parity`.

use super::support::{ranks, text};
use super::wire::{on_wires, outcome};
use herd::config::{ModelConfig, PipelineSchedule as Kind, Recompute};
use herd::error::{Exit, Result};
use herd::kernels::LossSums;
use herd::layout::{stages, Layout, Unit};
use herd::liveness::{inject::Inject, Progress};
use herd::model::{init, Accumulate, Axes, Chunk, Documents, Llama, Params, Resident, StepOptions};
use herd::parallel::pipeline::executor::{Compute, Executor};
use herd::parallel::pipeline::passes::{Between, Evaluation, PipelineStage, StageWork, Training};
use herd::schedules::{self, Action, Parcel};
use herd::topology::{Axis, Topology};
use herd::wire::MakeWires;
use herd::wire::Wire;
use herd::world::World;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::{Device, Kind as Dtype, Tensor};

const SCHEDULES: [(Kind, usize); 5] =
    [(Kind::GPipe, 1), (Kind::OneFOneB, 1), (Kind::Interleaved, 2), (Kind::Interleaved, 3), (Kind::ZeroBubble, 1)];

/// Checks that every parcel is the one that was asked for, and works at an uneven pace.
struct Postman {
    chunks: usize,
    done: usize,
}

impl Postman {
    fn parcel(&self, p: Parcel) -> Tensor {
        let code = (p.micro * 1000 + p.from * 10 + usize::from(p.to > p.from)) as f64;
        Tensor::full([(17 + 9000 * (p.micro % 3)) as i64], code, (Dtype::Float, Device::Cpu))
    }
}

impl Compute for Postman {
    fn run(&mut self, action: Action, input: Option<Tensor>) -> Result<Option<Tensor>> {
        match (action.input(self.chunks), input) {
            (Some(p), Some(t)) => assert_eq!(t, self.parcel(p), "{action:?}"),
            (None, None) => {}
            (p, t) => panic!("{action:?} wants {p:?} and got {:?}", t.map(|t| t.size())),
        }
        self.done += 1;
        if (self.done + 3 * action.chunk()).is_multiple_of(5) {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(action.output(self.chunks).map(|p| self.parcel(p)))
    }

    fn buffer(&self, p: Parcel) -> Tensor {
        self.parcel(p).empty_like()
    }
}

fn parcels() {
    on_wires(|_, wire| {
        let stages = wire.size();
        for (kind, per_stage) in SCHEDULES {
            for micros in [1, 2, 7] {
                let chunks = stages * per_stage;
                let list = |s| schedules::list(kind, s, stages, micros, per_stage);
                let mut postman = Postman { chunks, done: 0 };
                let report = Executor::new(wire.clone(), chunks, list).run(&mut postman).unwrap();
                assert_eq!((postman.done, report.ran.len()), (list(wire.rank()).len(), postman.done));
                assert_eq!(report.bytes > 0, stages > 1);
                assert!(report.ran.windows(2).all(|w| w[0].end <= w[1].start));
            }
        }
    });
}

#[test]
fn parcels_on_1_stage() {
    if ranks(1, "pipeline::parcels_on_1_stage") {
        parcels();
    }
}

#[test]
fn parcels_on_2_stages() {
    if ranks(2, "pipeline::parcels_on_2_stages") {
        parcels();
    }
}

#[test]
fn parcels_on_3_stages() {
    if ranks(3, "pipeline::parcels_on_3_stages") {
        parcels();
    }
}

const S: usize = 12;

/// 13 layers: uneven over 2 and 4 stages, and enough for three chunks on each of four.
fn config(tied: bool) -> ModelConfig {
    serde_json::from_value(serde_json::json!({
        "vocab_size": 67, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 13,
        "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": tied, "initializer_range": 0.2
    }))
    .unwrap()
}

fn params(m: &ModelConfig, layout: &Layout) -> Params {
    let p = Params::zeros(layout, Dtype::Float, Device::Cpu);
    for unit in &p.units {
        for param in &unit.layout.params {
            let mut values = vec![0f32; param.len()];
            init::fill(param, &mut values, 5, m.initializer_range);
            let mut view = unit.param(&param.name);
            view.copy_(&Tensor::from_slice(&values).view_as(&view));
        }
    }
    p
}

/// Tokens and targets [2,S] of a micro-batch; some targets do not count, in the second micro-batch none does.
fn batch(micro: usize) -> (Tensor, Tensor) {
    let ids = |from: usize| {
        let values: Vec<i64> = (0..2 * S).map(|i| ((i * i + 31 * micro + from) % 67) as i64).collect();
        Tensor::from_slice(&values).view([2, S as i64])
    };
    let targets = ids(5);
    let counts = if micro == 1 { targets.lt(0) } else { targets.remainder(5).ne(0) };
    (ids(0), targets.where_self(&counts, &Tensor::from(-1i64)))
}

const STEP: StepOptions = StepOptions { grad_scale: 1.0 / 100.0, z_loss: 1e-3, grads: Accumulate::Replace };

/// One rank: loss of training, loss of evaluation, gradients.
fn alone(m: &ModelConfig, micros: usize) -> (LossSums, LossSums, Params) {
    let p = params(m, &Layout::new(m, &Topology::solo()));
    let model = Llama::new(m, S, Device::Cpu, &Axes::solo());
    let (mut trained, mut evaluated) = (LossSums::default(), LossSums::default());
    for micro in 0..micros {
        let (tokens, targets) = batch(micro);
        let grads = if micro == 0 { Accumulate::Replace } else { Accumulate::Add };
        let step = StepOptions { grads, ..STEP };
        trained += model.forward_backward(&p, &tokens, &targets, &step, &mut |_| Ok(())).unwrap();
        evaluated += model.loss(&p, &tokens, &targets).unwrap();
    }
    (trained, evaluated, p)
}

/// Every schedule against one rank, for models with and without a tied embedding.
fn gradients(n: usize) {
    tch::set_num_threads(1);
    let world = World::init().unwrap();
    let topo = Topology::new(world.rank(), [1, 1, n, 1]);
    let wire: Arc<dyn Wire> = world.wire(&topo, Axis::Pipeline).unwrap().into();
    for (tied, micros) in [(false, 1), (false, 7), (true, 3)] {
        let m = config(tied);
        let want = alone(&m, micros);
        for (kind, per_stage) in SCHEDULES {
            for recompute in [Recompute::None, Recompute::Full] {
                let what =
                    format!("{n} stages, {kind:?} {per_stage}, {micros} micro-batches, {recompute:?}, tied {tied}");
                equals_one_rank(&what, &m, &topo, &wire, (kind, per_stage, micros, recompute), &want);
            }
        }
    }
    drop(wire);
    world.barrier().unwrap();
    world.finalize().unwrap();
}

fn equals_one_rank(
    what: &str, m: &ModelConfig, topo: &Topology, wire: &Arc<dyn Wire>,
    (kind, per_stage, micros, recompute): (Kind, usize, usize, Recompute), want: &(LossSums, LossSums, Params),
) {
    let (stage, n) = (wire.rank(), wire.size());
    let cut = stages::chunks(m, n, per_stage, S);
    let own: Vec<&Vec<Unit>> = cut.iter().skip(stage).step_by(n).collect();
    let p = params(m, &Layout::of(m, topo, &own));
    for unit in &p.units {
        // Rubbish, which the first micro-batch replaces; not in the padding, which nobody writes.
        let _ = unit.grad.narrow(0, 0, unit.layout.used as i64).fill_(f64::NAN);
    }
    let mut model = Llama::new(m, S, Device::Cpu, &Axes::solo());
    model.recompute = (recompute, 0);
    let own = Chunk::list(&own);
    let (progress, inject) =
        (Progress::default(), Inject::new(std::path::Path::new("/nowhere"), stage, Arc::default()));
    let between = Between { rows: S, hidden: m.hidden_size, dtype: Dtype::Float, device: Device::Cpu };
    let mut completed = Vec::new();
    let mut on_complete = |unit| {
        completed.push(unit);
        Ok(())
    };
    let mut units = Resident::new(&p, Accumulate::Replace, &mut on_complete);
    let mut load = |micro| {
        let (tokens, targets) = batch(micro);
        Ok(model.micro(&tokens, &targets, &Documents::whole()))
    };
    let sequences = |_| 2;
    let list = |s| schedules::list(kind, s, n, micros, per_stage);
    let forward = |s| schedules::forward_only(s, n, micros, per_stage);
    let (training, evaluation) =
        (Executor::new(wire.clone(), cut.len(), list), Executor::new(wire.clone(), cut.len(), forward));

    let work =
        StageWork { model: &model, units: &mut units, load: &mut load, sequences: &sequences, progress: &progress };
    let mut passes = Training::new(PipelineStage { work, chunks: &own, stages: n, between }, STEP, &inject);
    training.run(&mut passes).unwrap();
    let last = stage + 1 == n;
    assert_eq!(passes.sums, if last { want.0 } else { LossSums::default() }, "{what}");
    let work =
        StageWork { model: &model, units: &mut units, load: &mut load, sequences: &sequences, progress: &progress };
    let mut passes =
        Evaluation { stage: PipelineStage { work, chunks: &own, stages: n, between }, sums: LossSums::default() };
    evaluation.run(&mut passes).unwrap();
    assert_eq!(passes.sums, if last { want.1 } else { LossSums::default() }, "{what}");
    drop(units);

    assert_eq!(completed.len(), micros * p.units.len(), "{what}: {completed:?}");
    for unit in &p.units {
        let (used, whole) = (unit.layout.used as i64, want.2.unit(unit.layout.unit));
        let grad = unit.grad.narrow(0, 0, used);
        let want = whole.grad.narrow(0, 0, used);
        if !(m.tie_word_embeddings && unit.layout.unit == Unit::Embedding) {
            assert_eq!(grad, want, "{what}: {:?}", unit.layout.unit);
        } else if stage == 0 {
            let other = grad.empty_like();
            wire.recv(&other, n - 1).unwrap().wait().unwrap();
            let error = (&grad + &other - &want).abs().max().double_value(&[]) / want.abs().max().double_value(&[]);
            assert!(error < 1e-6 && other.abs().max().double_value(&[]) > 0.0, "{what}: {error:.1e}");
        } else {
            wire.send(&grad.contiguous(), 0).unwrap().wait().unwrap();
        }
    }
}

#[test]
fn gradients_on_2_stages() {
    if ranks(2, "pipeline::gradients_on_2_stages") {
        gradients(2);
    }
}

#[test]
fn gradients_on_4_stages() {
    if ranks(4, "pipeline::gradients_on_4_stages") {
        gradients(4);
    }
}

/// The stop flag ends a stage that waits for a neighbour that never sends.
#[test]
fn a_dead_stage_does_not_hold_its_neighbour() {
    if let Some(out) = outcome(2, "pipeline::a_dead_stage_does_not_hold_its_neighbour") {
        assert_eq!(text(&out).matches("left in time").count(), 1, "{}", text(&out));
        return;
    }
    let world = World::init().unwrap();
    let topo = Topology::new(world.rank(), [1, 1, 2, 1]);
    let wire: Arc<dyn Wire> = world.wire(&topo, Axis::Pipeline).unwrap().into();
    if world.rank() == 0 {
        let flag = world.stop_flag();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            flag.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        let began = Instant::now();
        let list = |s| schedules::list(Kind::OneFOneB, s, 2, 4, 1);
        let e = Executor::new(wire, 2, list).run(&mut Postman { chunks: 2, done: 0 }).unwrap_err();
        let took = began.elapsed();
        assert!(
            e.exit == Exit::Peer && took > Duration::from_millis(150) && took < Duration::from_secs(5),
            "{e} {took:?}"
        );
        eprintln!("left in time");
    } else {
        std::thread::sleep(Duration::from_secs(8));
    }
    herd::world::leave(0);
}

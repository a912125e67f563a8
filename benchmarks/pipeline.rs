//! The bubble of every pipeline schedule, measured on the real executor beside the simulator's: `cargo bench --bench pipeline`.
//!
//! Two stages compute for real, one core each. Four and eight stages sleep for what an average stage of the two took, since few
//! machines have a core for each; transfers, waiting and order are real. One JSON line a case; the bubble is the time in
//! which a stage does nothing, the mean over the stages.
//!
//! `-- --quick` uses a tiny model and short sleeps: whether it works, not how well.

use herd::config::PipelineSchedule as Kind;
use herd::error::{Error, Exit, Result};
use herd::layout::stages;
use herd::liveness::{inject::Inject, Progress};
use herd::model::{init, Axes, Chunk, Documents, Llama, Params, Resident};
use herd::model::{Accumulate, StepOptions};
use herd::parallel::pipeline::executor::{Compute, Executor, PassReport};
use herd::parallel::pipeline::passes::{Between, PipelineStage, StageWork, Training};
use herd::schedules::simulate::{play, Costs};
use herd::schedules::{self, Action, Parcel};
use herd::topology::{Axis, Topology};
use herd::wire::MakeWires;
use herd::wire::Wire;
use herd::world::World;
use serde_json::{json, Value};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tch::{Device, Kind as Dtype, Tensor};

const SCHEDULES: [(&str, Kind, usize); 4] = [
    ("gpipe", Kind::GPipe, 1),
    ("1f1b", Kind::OneFOneB, 1),
    ("interleaved", Kind::Interleaved, 2),
    ("zero_bubble", Kind::ZeroBubble, 1),
];
const MICROS: [usize; 2] = [8, 16];
const ROLE: &str = "HERD_BENCH_PIPELINE";

fn main() -> Result<()> {
    match std::env::var(ROLE) {
        Ok(role) => inside(&role),
        Err(_) => outside(std::env::args().any(|a| a == "--quick")),
    }
}

/// Starts the ranks: real stages first, then sleeping ones with their costs.
fn outside(quick: bool) -> Result<()> {
    let real = start(2, &format!("real {quick}"))?;
    let of = |what: &str| {
        let zero_bubble =
            real.iter().filter(|r| r["schedule"] == "zero_bubble").map(|r| r[what].as_f64().unwrap_or(0.0));
        let all: Vec<f64> = zero_bubble.collect();
        all.iter().sum::<f64>() / all.len().max(1) as f64
    };
    let costs = [of("forward"), of("backward_input"), of("backward_weight")].map(|c| c.to_string()).join(" ");
    for stages in [4, 8] {
        start(stages, &format!("sleep {costs}"))?;
    }
    Ok(())
}

/// Runs this program on `n` ranks, passes its lines on, and returns those that are JSON.
fn start(n: usize, role: &str) -> Result<Vec<Value>> {
    let broken = |e: String| Error::new(Exit::Internal, e);
    let out = Command::new("mpirun")
        .args(["-n", &n.to_string(), "--oversubscribe", "--bind-to", "none"])
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
        .env(ROLE, role)
        .env("OMP_NUM_THREADS", "1")
        .arg(std::env::current_exe().map_err(|e| broken(e.to_string()))?)
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|e| broken(format!("mpirun does not start: {e}")))?;
    if !out.status.success() {
        return Err(broken(format!("{n} ranks ({role}): {}", out.status)));
    }
    let text = String::from_utf8_lossy(&out.stdout);
    print!("{text}");
    Ok(text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect())
}

/// One rank: every case in turn.
fn inside(role: &str) -> Result<()> {
    tch::set_num_threads(1);
    let world = World::init()?;
    let topo = Topology::new(world.rank(), [1, 1, world.size(), 1]);
    let wire: Arc<dyn Wire> = world.wire(&topo, Axis::Pipeline)?.into();
    let words: Vec<&str> = role.split(' ').collect();
    for micros in MICROS {
        for schedule in SCHEDULES {
            match words[0] {
                "real" => real(&world, &wire, schedule, micros, words[1] == "true")?,
                _ => {
                    let costs: Vec<f64> = words[1..].iter().filter_map(|w| w.parse().ok()).collect();
                    sleeping(&world, &wire, schedule, micros, &costs)?
                }
            }
        }
    }
    drop(wire);
    world.finalize()
}

/// Sleeps instead of computing, and hands on a tensor of an ordinary size.
struct Sleeper {
    costs: Costs,
    parcel: Tensor,
    chunks: usize,
}

impl Compute for Sleeper {
    fn run(&mut self, action: Action, _: Option<Tensor>) -> Result<Option<Tensor>> {
        std::thread::sleep(Duration::from_secs_f64(self.costs.time(action)));
        Ok(action.output(self.chunks).map(|_| self.parcel.copy()))
    }

    fn buffer(&self, _: Parcel) -> Tensor {
        self.parcel.empty_like()
    }
}

fn sleeping(
    world: &World, wire: &Arc<dyn Wire>, (name, kind, per_stage): (&str, Kind, usize), micros: usize, costs: &[f64],
) -> Result<()> {
    let chunks = world.size() * per_stage;
    let part = |i: usize| costs[i] / per_stage as f64;
    let costs = Costs::even(chunks, part(0), part(1), part(2));
    let parcel = Tensor::zeros([512, 768], (Dtype::BFloat16, Device::Cpu));
    let executor = executor(wire, kind, micros, per_stage);
    let mut sleeper = Sleeper { costs: costs.clone(), parcel, chunks };
    let (origin, report) = timed(world, || executor.run(&mut sleeper))?;
    tell(world, ("sleep", name), micros, chunks, Some(costs), (origin, &report))
}

fn real(
    world: &World, wire: &Arc<dyn Wire>, (name, kind, per_stage): (&str, Kind, usize), micros: usize, quick: bool,
) -> Result<()> {
    let (hidden, sequence) = if quick { (64, 32) } else { (768, 256) };
    let config = serde_json::from_value(json!({
        "vocab_size": if quick { 256 } else { 8192 }, "hidden_size": hidden, "intermediate_size": hidden * 8 / 3,
        "num_hidden_layers": 8, "num_attention_heads": hidden / 32, "num_key_value_heads": hidden / 64
    }))
    .map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
    let (stage, stages) = (world.rank(), world.size());
    let cut = stages::chunks(&config, stages, per_stage, sequence);
    let own: Vec<_> = cut.iter().skip(stage).step_by(stages).collect();
    let topo = Topology::new(stage, [1, 1, stages, 1]);
    let layout = herd::layout::Layout::of(&config, &topo, &own);
    let params = Params::zeros(&layout, Dtype::BFloat16, Device::Cpu);
    for unit in &params.units {
        for param in &unit.layout.params {
            let mut values = vec![0f32; param.len()];
            init::fill(param, &mut values, 1, config.initializer_range);
            let mut view = unit.param(&param.name);
            view.copy_(&Tensor::from_slice(&values).view_as(&view));
        }
    }
    let model = Llama::new(&config, sequence, Device::Cpu, &Axes::solo());
    let own = Chunk::list(&own);
    let (progress, inject) = (Progress::default(), Inject::new(std::path::Path::new("."), stage, world.meters()));
    let executor = executor(wire, kind, micros, per_stage);
    let between = Between { rows: sequence, hidden, dtype: Dtype::BFloat16, device: Device::Cpu };
    let once = || {
        let (mut complete, sequences) = (|_| Ok(()), |_| 1);
        let mut units = Resident::new(&params, Accumulate::Replace, &mut complete);
        let mut load = |micro: usize| {
            let ids = Tensor::arange(sequence as i64, (Dtype::Int64, Device::Cpu)).unsqueeze(0) * 7 + micro as i64;
            let ids = ids.remainder(config.vocab_size as i64);
            Ok(model.micro(&ids, &ids, &Documents::whole()))
        };
        let work =
            StageWork { model: &model, units: &mut units, load: &mut load, sequences: &sequences, progress: &progress };
        let stage = PipelineStage { work, chunks: &own, stages, between };
        let step = StepOptions { grad_scale: 1.0 / sequence as f64, z_loss: 0.0, grads: Accumulate::Replace };
        executor.run(&mut Training::new(stage, step, &inject))
    };
    once()?;
    let (origin, report) = timed(world, once)?;
    tell(world, ("real", name), micros, cut.len(), None, (origin, &report))
}

fn executor(wire: &Arc<dyn Wire>, kind: Kind, micros: usize, per_stage: usize) -> Executor {
    let stages = wire.size();
    Executor::new(wire.clone(), stages * per_stage, |s| schedules::list(kind, s, stages, micros, per_stage))
}

/// Runs `f` on all ranks at once; when it began on the clock that all processes of a host share.
fn timed(world: &World, f: impl FnOnce() -> Result<PassReport>) -> Result<(f64, PassReport)> {
    world.barrier()?;
    let began = clock();
    Ok((began, f()?))
}

fn clock() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: out parameter. CLOCK_MONOTONIC counts from the host's start for every process (clock_gettime(2)).
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

/// Rank 0 compares with the simulator, given `costs`, or what the actions took on average, and prints a line.
fn tell(
    world: &World, (compute, name): (&str, &str), micros: usize, chunks: usize, costs: Option<Costs>,
    (origin, report): (f64, &PassReport),
) -> Result<()> {
    let mine: Vec<(Action, f64, f64)> =
        report.ran.iter().map(|r| (r.action, origin + r.start.as_secs_f64(), origin + r.end.as_secs_f64())).collect();
    let broken = |e: serde_json::Error| Error::new(Exit::Internal, e.to_string());
    let all = world.all_gather_bytes(&serde_json::to_vec(&mine).map_err(broken)?)?;
    if world.rank() > 0 {
        return Ok(());
    }
    let ran: Vec<Vec<(Action, f64, f64)>> =
        all.iter().map(|b| serde_json::from_slice(b)).collect::<std::result::Result<_, _>>().map_err(broken)?;
    let spans = || ran.iter().flatten();
    let makespan = spans().map(|s| s.2).fold(0.0, f64::max) - spans().map(|s| s.1).fold(f64::MAX, f64::min);
    let busy = spans().map(|s| s.2 - s.1).sum::<f64>() / ran.len() as f64;
    let costs = costs.unwrap_or_else(|| averages(&ran, chunks));
    let lists: Vec<Vec<Action>> = ran.iter().map(|l| l.iter().map(|s| s.0).collect()).collect();
    let played = play(&lists, &costs)?;
    let mean = |c: &[f64]| c.iter().sum::<f64>() / ran.len() as f64;
    println!(
        "{}",
        json!({
            "schedule": name, "compute": compute, "stages": ran.len(), "micro_batches": micros,
            "chunks": chunks / ran.len(), "measured": makespan - busy, "simulated": played.makespan * played.bubble(),
            "makespan_measured": makespan, "makespan_simulated": played.makespan,
            "forward": mean(&costs.forward), "backward_input": mean(&costs.backward_input),
            "backward_weight": mean(&costs.backward_weight),
        })
    );
    Ok(())
}

/// What each chunk's actions took on average. A joint backward pass counts as input gradient alone.
fn averages(ran: &[Vec<(Action, f64, f64)>], chunks: usize) -> Costs {
    let mut costs = Costs::even(chunks, 0.0, 0.0, 0.0);
    let micros = ran.iter().flatten().map(|s| s.0.micro() + 1).max().unwrap_or(1) as f64;
    for (action, start, end) in ran.iter().flatten() {
        let part = match action {
            Action::Forward { chunk, .. } => &mut costs.forward[*chunk],
            Action::Backward { chunk, .. } | Action::BackwardInput { chunk, .. } => &mut costs.backward_input[*chunk],
            Action::BackwardWeight { chunk, .. } => &mut costs.backward_weight[*chunk],
        };
        *part += (end - start) / micros;
    }
    costs
}

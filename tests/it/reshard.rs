//! Every topology's checkpoint loaded on every other: the same state to the last bit, the next losses within a band, each
//! sample read once.
//!
//! Each topology trains [`STEPS`] steps without a pause and keeps the checkpoint of step [`SAVED`]. A cell is one of these
//! checkpoints and a topology that goes on from it. `make test` runs a cell for each topology on either side,
//! `make checkpoint-faults` (`HERD_RESHARD=full`) all 64, and all 64 of a model with tied embeddings.

mod topologies;

use crate::support::{mpirun, text, INSIDE};
use crate::train::Run;
use herd::checkpoint::{Checkpoint, Group};
use herd::plan::{Plan, Ranks};
use herd::topology::Axis;
use herd::world::World;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;
use topologies::{Topology, TOPOLOGIES};
use tracing_subscriber::prelude::*;

const SAVED: u64 = 4;
const STEPS: u64 = 14;
/// Samples of a step.
const GLOBAL: u64 = 8;
/// Largest relative difference of a loss from the run that was not moved (fp32): the sums are the same, in another order.
const BAND: f64 = 1e-6;

/// A checkpoint of `from`, loaded on `to` (places in [`TOPOLOGIES`]), of the model `model`.
#[derive(Clone, Copy)]
struct Cell {
    from: usize,
    to: usize,
    model: usize,
}

impl Cell {
    fn name(&self) -> String {
        let tied = if self.model == 1 { ", tied" } else { "" };
        format!("{} -> {}{tied}", TOPOLOGIES[self.from].name, TOPOLOGIES[self.to].name)
    }
}

fn cells() -> Vec<Cell> {
    let n = TOPOLOGIES.len();
    let all = |model| (0..n * n).map(move |i| Cell { from: i / n, to: i % n, model });
    match std::env::var("HERD_RESHARD").as_deref() {
        Ok("full") => all(0).chain(all(1)).collect(),
        Ok(part) => all(0).chain(all(1)).filter(|c| c.name().contains(part)).collect(),
        // Each topology once as source and once as target, and one that stays as it is.
        Err(_) => (0..n)
            .map(|i| Cell { from: i, to: (3 * i + 5) % n, model: i % 2 })
            .chain([Cell { from: 3, to: 3, model: 0 }])
            .collect(),
    }
}

#[test]
fn any_topology_goes_on_from_any_other() {
    if let Some(dir) = std::env::var_os("HERD_RESHARD_DIR") {
        return inside(Path::new(&dir), &std::env::var("HERD_RESHARD_PHASE").unwrap());
    }
    let began = Instant::now();
    let run = Run::new();
    let wanted = cells();
    let mut rows: Vec<Value> = Vec::new();
    for phase in ["save", "load"] {
        for n in [1, 2, 4, 8] {
            let expected = if phase == "save" { sources(n).len() } else { targets(n).len() };
            if expected == 0 {
                continue;
            }
            let out = mpirun(n)
                .env(INSIDE, "1")
                .env("HERD_RESHARD_DIR", run.dir.path())
                .env("HERD_RESHARD_PHASE", phase)
                .env("OMP_NUM_THREADS", "1")
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "reshard::any_topology_goes_on_from_any_other", "--nocapture", "--test-threads=1"])
                .output()
                .expect("mpirun starts");
            let found: Vec<Value> =
                text(&out).lines().filter_map(|l| serde_json::from_str(l.split_once("RESHARD ")?.1).ok()).collect();
            let complete = out.status.success() && (phase == "save" || found.len() == expected);
            assert!(complete, "{phase} on {n} ranks: {} of {expected}\n{}", found.len(), text(&out));
            rows.extend(found);
        }
    }
    assert_eq!(rows.len(), wanted.len());
    if let Some(path) = std::env::var_os("HERD_RESHARD_OUT") {
        fs::write(path, serde_json::to_vec(&rows).unwrap()).unwrap();
    }
    let failed: Vec<&Value> = rows.iter().filter(|r| r["ok"] != true).collect();
    eprintln!("reshard: {} cells, {} failed, {:.0} s", rows.len(), failed.len(), began.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{} of {} cells failed: {failed:#?}", failed.len(), rows.len());
}

/// Runs of `n` ranks that the cells start from.
fn sources(n: usize) -> Vec<(usize, usize)> {
    let mut all: Vec<(usize, usize)> =
        cells().iter().filter(|c| TOPOLOGIES[c.from].ranks() == n).map(|c| (c.from, c.model)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn targets(n: usize) -> Vec<Cell> {
    cells().into_iter().filter(|c| TOPOLOGIES[c.to].ranks() == n).collect()
}

/// On the ranks: the runs, or the cells, of this world's size.
fn inside(dir: &Path, phase: &str) {
    let world = World::init().unwrap();
    tch::set_num_threads(1);
    let ranks = Ranks::of(&world, 0, 1);
    let read = Reads::install();
    let plan = |t: &Topology, model, at: &Path, more: &[&str]| {
        let mut sets = t.sets(model, at, STEPS, GLOBAL);
        sets.extend(more.iter().map(|s| s.to_string()));
        Plan::read(&dir.join("run.yaml"), &sets, &ranks).unwrap()
    };
    if phase == "save" {
        for (from, model) in sources(world.size()) {
            let at = source(dir, from, model);
            let plan = plan(&TOPOLOGIES[from], model, &at, &[&format!("checkpoint.every={SAVED}")]);
            herd::train::run(&plan, &world).unwrap();
            read.write(&at, &plan, &world);
        }
        return world.finalize().unwrap();
    }
    for cell in targets(world.size()) {
        let began = Instant::now();
        let from = source(dir, cell.from, cell.model);
        let at = dir.join(format!("cell-{}-{}-{}", cell.from, cell.to, cell.model));
        if world.rank() == 0 {
            link(&step(&from, SAVED), &step(&at, SAVED));
        }
        world.barrier().unwrap();
        let plan = plan(&TOPOLOGIES[cell.to], cell.model, &at, &["checkpoint.every=0"]);
        let again = at.join("again");
        let done = herd::train::resave(&plan, &world, &again).and_then(|_| herd::train::run(&plan, &world));
        read.write(&at, &plan, &world);
        world.barrier().unwrap();
        if world.rank() == 0 {
            let mut row = match done {
                Ok(_) => compare(&cell, &from, &at),
                Err(e) => json!({ "ok": false, "error": e.to_string() }),
            };
            row["cell"] = json!(cell.name());
            row["seconds"] = json!(began.elapsed().as_secs_f64());
            println!("RESHARD {row}");
            let _ = fs::remove_dir_all(&at);
        }
        world.barrier().unwrap();
    }
    world.finalize().unwrap();
}

fn source(dir: &Path, from: usize, model: usize) -> PathBuf {
    dir.join(format!("source-{from}-{model}"))
}

fn step(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

/// `to` has the files of `from`: readers change none.
fn link(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        fs::hard_link(file.path(), to.join(file.file_name())).unwrap();
    }
}

fn compare(cell: &Cell, from: &Path, at: &Path) -> Value {
    let open = |path: PathBuf| Checkpoint::open(&path).unwrap();
    let (saved, again) = (open(step(from, SAVED)), open(at.join(format!("again/step-{SAVED:08}"))));
    let different = different_elements(&saved, &again);
    let (a, b) = (saved.meta(), again.meta());
    let counters = (a.step, a.updates, a.tokens, a.next_sample) == (b.step, b.updates, b.tokens, b.next_sample);

    let (want, got) = (losses(from), losses(at));
    let after: Vec<(f64, f64)> = (SAVED + 1..=STEPS).map(|s| (want[&s], got[&s])).collect();
    let loss_error = after.iter().map(|(a, b)| (b / a - 1.0).abs()).fold(0.0, f64::max);
    let stays = cell.from == cell.to;
    let ends_alike = different_elements(&open(step(from, STEPS)), &open(step(at, STEPS))) == 0;
    let bitwise = ends_alike && after.iter().all(|(a, b)| a.to_bits() == b.to_bits());

    // Until the checkpoint the samples that the source read, then those of the target.
    let samples = Reads::problem(from, 0..SAVED).or_else(|| Reads::problem(at, SAVED..STEPS));
    let steps = got.len() as u64 == STEPS - SAVED;
    let ok = different == 0 && counters && steps && loss_error <= BAND && samples.is_none() && (!stays || bitwise);
    json!({
        "ok": ok, "different_elements": different, "counters": counters, "steps": steps, "loss_error": loss_error,
        "samples": samples, "bitwise": bitwise, "bitwise_wanted": stays,
    })
}

/// Elements of all tensors of all groups that differ in any bit; tensors that one of them lacks count whole.
fn different_elements(a: &Checkpoint, b: &Checkpoint) -> usize {
    let shapes = |c: &Checkpoint| -> BTreeMap<(String, String), (Group, Vec<usize>)> {
        c.tensors().map(|(g, name, shape)| ((g.to_string(), name.to_string()), (g, shape.to_vec()))).collect()
    };
    let (in_a, in_b) = (shapes(a), shapes(b));
    let mut different = in_b.keys().filter(|k| !in_a.contains_key(*k)).count();
    for ((_, name), (group, shape)) in &in_a {
        let read = |c: &Checkpoint| {
            let mut out = vec![0f32; shape.iter().product()];
            c.read(*group, name, &vec![0; shape.len()], shape, 0, &mut out).map(|()| out)
        };
        different += match (read(a), read(b)) {
            (Ok(a), Ok(b)) => a.iter().zip(&b).filter(|(x, y)| x.to_bits() != y.to_bits()).count(),
            _ => shape.iter().product(),
        };
    }
    different
}

fn losses(run: &Path) -> BTreeMap<u64, f64> {
    let lines = crate::train::lines(run, "metrics.jsonl");
    lines.iter().filter_map(|l| Some((l["step"].as_u64()?, l["loss"].as_f64()?))).collect()
}

/// The samples that this rank reads, as the training step says them.
#[derive(Clone, Copy)]
struct Reads;

static READ: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

impl Reads {
    fn install() -> Reads {
        let here = tracing_subscriber::filter::Targets::new().with_target("herd::train::batch", tracing::Level::TRACE);
        tracing_subscriber::registry().with(Reads.with_filter(here)).init();
        Reads
    }

    /// Hands over what this rank has read since the last call, with its place on the data axis.
    fn write(&self, run: &Path, plan: &Plan, world: &World) {
        let all = std::mem::take(&mut *READ.lock().unwrap());
        let text = json!({ "data": plan.topology.coord(Axis::Data), "read": all });
        fs::write(run.join(format!("read-{}.json", world.rank())), text.to_string()).unwrap();
    }

    /// Why the ranks of a run did not read each sample of `steps` once, on one replica; `None` if they did.
    fn problem(run: &Path, steps: std::ops::Range<u64>) -> Option<String> {
        let mut readers: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for file in fs::read_dir(run).unwrap().map(|e| e.unwrap().path()) {
            if !file.file_name().unwrap().to_string_lossy().starts_with("read-") {
                continue;
            }
            let all: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            let mut own: Vec<(u64, u64)> = serde_json::from_value(all["read"].clone()).unwrap();
            own.retain(|(step, _)| steps.contains(step));
            let reads = own.len();
            own.sort_unstable();
            own.dedup();
            if own.len() != reads {
                return Some(format!("{}: a rank read {} samples twice", file.display(), reads - own.len()));
            }
            for (step, sample) in own {
                if sample / GLOBAL != step {
                    return Some(format!("sample {sample} was read in step {step}"));
                }
                readers.entry(sample).or_default().push(all["data"].as_u64().unwrap());
            }
        }
        let expected: Vec<u64> = (steps.start * GLOBAL..steps.end * GLOBAL).collect();
        if !readers.keys().copied().eq(expected.iter().copied()) {
            return Some(format!("{} samples were read, not the {} of these steps", readers.len(), expected.len()));
        }
        // The ranks of one replica read the same; two replicas must not.
        let shared = readers.iter().find(|(_, by)| by.iter().any(|r| r != &by[0]));
        shared.map(|(sample, by)| format!("sample {sample} was read by the replicas {by:?}"))
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Reads {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        #[derive(Default)]
        struct Found(Option<u64>, Option<u64>);
        impl tracing::field::Visit for Found {
            fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
                match field.name() {
                    "step" => self.0 = Some(value),
                    "sample" => self.1 = Some(value),
                    _ => {}
                }
            }
            fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
        }
        let mut found = Found::default();
        event.record(&mut found);
        if let Found(Some(step), Some(sample)) = found {
            READ.lock().unwrap().push((step, sample));
        }
    }
}

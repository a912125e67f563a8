//! Every cell of the axes against one rank: the same losses, the same gradient norm, the same weights.
//!
//! A cell is a whole run through [`herd::train::run`] — plan, data, wires, steps, final checkpoint — on its own grid. All
//! cells of one world size share one set of MPI processes; the reference is the same run on one rank. `make test` runs a
//! selection, `make parity` (`HERD_PARITY=full`) all of them and keeps the table.

use crate::support::{mpirun, text, INSIDE};
use crate::train::Run;
use herd::checkpoint::{Checkpoint, Group};
use herd::plan::{Plan, Ranks};
use herd::world::World;
use serde_json::{json, Value};
use std::path::Path;
use std::time::Instant;

const STEPS: u64 = 5;
const LR: f64 = 1e-3;
/// Relative difference of loss and gradient norm of step 1 (fp32).
const FIRST_STEP: f64 = 1e-5;
/// Root mean square of the weights' differences after [`STEPS`] steps, in units of lr·steps, the most a weight can have moved.
/// AdamW divides the gradient by its own size, so rounding in a gradient near zero moves that weight by a visible part of
/// a step; docs/parity.md has what was measured.
const WEIGHTS: f64 = 1e-4;

/// One grid.
#[derive(Clone, Debug)]
struct Cell {
    tensor: usize,
    context: usize,
    pipeline: usize,
    data: usize,
    schedule: &'static str,
    zero: usize,
    recompute: &'static str,
    /// Index into [`MODELS`].
    model: usize,
}

/// Uneven on purpose: 9 layers over 2 and 4 stages, 263 rows over 2 and 4 tensor ranks, 2 KV heads for 4 tensor ranks.
const MODELS: [&str; 2] = [
    "{vocab_size: 263, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 9, num_attention_heads: 4, \
      num_key_value_heads: 2, head_dim: 8, max_position_embeddings: 64, rope_theta: 10000.0}",
    "{vocab_size: 263, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 5, num_attention_heads: 4, \
      num_key_value_heads: 2, max_position_embeddings: 64, rope_theta: 10000.0, tie_word_embeddings: true}",
];
const SCHEDULES: [&str; 4] = ["gpipe", "1f1b", "interleaved", "zero_bubble"];
const RECOMPUTE: [&str; 3] = ["none", "selective", "full"];

impl Cell {
    fn world(&self) -> usize {
        self.tensor * self.context * self.pipeline * self.data
    }

    fn name(&self) -> String {
        let Cell { tensor, context, pipeline, data, schedule, zero, recompute, model } = self;
        let schedule = if *pipeline > 1 { format!(" {schedule}") } else { String::new() };
        let tied = if *model == 1 { " tied" } else { "" };
        format!("tp{tensor} cp{context} pp{pipeline}{schedule} dp{data} zero{zero} {recompute}{tied}")
    }

    /// Whether nothing that is summed crosses ranks but the gradient norm, which only clipping would use. (A tied matrix has
    /// gradients from two stages.)
    fn exact(&self) -> bool {
        self.tensor * self.context * self.data == 1 && self.model == 0
    }

    fn sets(&self, dir: &Path) -> Vec<String> {
        let mut sets = vec![
            format!("run_dir={}", dir.join(self.name().replace(' ', "-")).display()),
            format!("model.shape={}", MODELS[self.model]),
            "data.sequence_length=32".into(),
            "data.validation=[]".into(),
            "validation.every=0".into(),
            "batch.global=8".into(),
            "batch.micro=1".into(),
            format!("train.steps={STEPS}"),
            "train.precision=fp32".into(),
            "train.clip_norm=0".into(),
            "train.threads=1".into(),
            "train.z_loss=0.001".into(),
            format!("train.recompute={}", self.recompute),
            format!("optim.lr={LR}"),
            "optim.warmup_steps=0".into(),
            "optim.schedule=constant".into(),
            format!("parallel.tensor={}", self.tensor),
            format!("parallel.context={}", self.context),
            format!("parallel.pipeline={}", self.pipeline),
            format!("parallel.data={}", self.data),
            format!("parallel.zero={}", self.zero),
            "checkpoint.every=0".into(),
            "log.sync_check_every=2".into(),
            "log.tensorboard=false".into(),
        ];
        if self.pipeline > 1 {
            sets.push(format!("parallel.schedule={}", self.schedule));
            if self.schedule == "interleaved" {
                sets.push("parallel.chunks=2".into());
            }
        }
        sets
    }
}

/// All cells that fit 8 ranks.
fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (tensor, pipeline, data, context) in grids() {
        if tensor * pipeline * data * context == 1 {
            continue; // the reference
        }
        let schedules: &[&str] = if pipeline > 1 { &SCHEDULES } else { &SCHEDULES[1..2] };
        for &schedule in schedules {
            for zero in 0..4 {
                for recompute in RECOMPUTE {
                    cells.push(Cell { tensor, context, pipeline, data, schedule, zero, recompute, model: 0 });
                }
            }
        }
        // a tied embedding, with the output matrix on another stage than the input matrix
        for zero in [1, 3] {
            cells.push(Cell { tensor, context, pipeline, data, schedule: "1f1b", zero, recompute: "none", model: 1 });
        }
    }
    cells
}

fn grids() -> Vec<(usize, usize, usize, usize)> {
    let mut out = Vec::new();
    for tensor in [1, 2, 4] {
        for pipeline in [1, 2, 4] {
            for data in [1, 2, 4] {
                for context in [1, 2] {
                    if tensor * pipeline * data * context <= 8 {
                        out.push((tensor, pipeline, data, context));
                    }
                }
            }
        }
    }
    out
}

/// What `make test` runs: every grid of up to 4 ranks and some of 8, with schedules, stages and recomputation taking turns
/// so that each pair of options meets.
fn selection() -> Vec<Cell> {
    let all = all();
    let turn = |i: usize, c: &Cell| {
        let zero = (c.tensor + c.pipeline + c.data + i) % 4;
        c.zero == zero && c.recompute == RECOMPUTE[i % 3]
    };
    let mut out: Vec<Cell> = Vec::new();
    for (i, (tensor, pipeline, data, context)) in grids().into_iter().enumerate() {
        if tensor * pipeline * data * context == 8 && i % 3 != 0 {
            continue;
        }
        let of = |c: &&Cell| (c.tensor, c.pipeline, c.data, c.context) == (tensor, pipeline, data, context);
        for (k, schedule) in SCHEDULES.iter().enumerate() {
            let fits = |c: &&Cell| c.model == 0 && c.schedule == *schedule && turn(i + k, c);
            out.extend(all.iter().filter(of).find(fits).cloned());
        }
        if i % 2 == 0 {
            out.extend(all.iter().filter(of).find(|c| c.model == 1).cloned());
        }
    }
    out
}

fn chosen() -> Vec<Cell> {
    match std::env::var("HERD_PARITY").as_deref() {
        Ok("full") => all(),
        Ok(part) => all().into_iter().filter(|c| c.name().contains(part)).collect(),
        Err(_) => selection(),
    }
}

#[test]
fn every_cell_equals_one_rank() {
    if let Some(dir) = std::env::var_os("HERD_PARITY_DIR") {
        return inside(Path::new(&dir));
    }
    let began = Instant::now();
    let run = Run::new();
    let mut rows: Vec<Value> = Vec::new();
    for n in [1, 2, 4, 8] {
        let expected = if n == 1 { MODELS.len() } else { chosen().iter().filter(|c| c.world() == n).count() };
        if expected == 0 {
            continue;
        }
        let out = mpirun(n)
            .env(INSIDE, "1")
            .env("HERD_PARITY_DIR", run.dir.path())
            .env("OMP_NUM_THREADS", "1")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "parity::every_cell_equals_one_rank", "--nocapture", "--test-threads=1"])
            .output()
            .expect("mpirun starts");
        let found: Vec<Value> =
            text(&out).lines().filter_map(|l| serde_json::from_str(l.split_once("PARITY ")?.1).ok()).collect();
        assert!(
            out.status.success() && found.len() == expected,
            "{n} ranks: {} of {expected} cells\n{}",
            found.len(),
            text(&out)
        );
        rows.extend(found);
    }
    let failed: Vec<&Value> = rows.iter().filter(|r| r["ok"] != true).collect();
    if let Some(path) = std::env::var_os("HERD_PARITY_OUT") {
        std::fs::write(path, serde_json::to_vec(&rows).unwrap()).unwrap();
    }
    eprintln!("parity: {} cells, {} failed, {:.0} s", rows.len(), failed.len(), began.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{} of {} cells failed: {failed:#?}", failed.len(), rows.len());
}

/// On the ranks: each cell in turn, rank 0 compares.
fn inside(dir: &Path) {
    let world = World::init().unwrap();
    tch::set_num_threads(1);
    let alone = |model| Cell {
        tensor: 1,
        context: 1,
        pipeline: 1,
        data: 1,
        schedule: "1f1b",
        zero: 1,
        recompute: "none",
        model,
    };
    let cells: Vec<Cell> = match world.size() {
        1 => (0..MODELS.len()).map(alone).collect(),
        n => chosen().into_iter().filter(|c| c.world() == n).collect(),
    };
    let ranks = Ranks::of(&world, 0, 1);
    for cell in cells {
        let began = Instant::now();
        let result =
            Plan::read(&dir.join("run.yaml"), &cell.sets(dir), &ranks).and_then(|p| herd::train::run(&p, &world));
        if world.rank() == 0 {
            let mut row = match result {
                Ok(_) => compare(&cell, &alone(cell.model), dir),
                Err(e) => json!({ "ok": false, "error": e.to_string() }),
            };
            row["cell"] = json!(cell.name());
            row["ranks"] = json!(cell.world());
            row["seconds"] = json!(began.elapsed().as_secs_f64());
            println!("PARITY {row}");
        }
        world.barrier().unwrap();
    }
    world.finalize().unwrap();
}

fn compare(cell: &Cell, alone: &Cell, dir: &Path) -> Value {
    let at = |c: &Cell| dir.join(c.name().replace(' ', "-"));
    let first = |c: &Cell| -> (f64, f64) {
        let lines = std::fs::read_to_string(at(c).join("metrics.jsonl")).unwrap();
        let line: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        (line["loss"].as_f64().unwrap(), line["grad_norm"].as_f64().unwrap())
    };
    let ((loss, norm), (want_loss, want_norm)) = (first(cell), first(alone));
    let open = |c: &Cell| Checkpoint::open(&at(c).join(format!("checkpoints/step-{STEPS:08}"))).unwrap();
    let (got, want) = (open(cell), open(alone));
    let (mut squares, mut count, mut same) = (0.0, 0, true);
    for group in Group::ALL {
        for (_, name, shape) in want.tensors().filter(|t| t.0 == group) {
            let read = |c: &Checkpoint| {
                let mut out = vec![0f32; shape.iter().product()];
                c.read(group, name, &vec![0; shape.len()], shape, 0, &mut out).unwrap();
                out
            };
            let (a, b) = (read(&got), read(&want));
            same &= a.iter().zip(&b).all(|(x, y)| x.to_bits() == y.to_bits());
            if group == Group::Param {
                squares += a.iter().zip(&b).map(|(x, y)| ((x - y) as f64).powi(2)).sum::<f64>();
                count += a.len();
            }
        }
    }
    let relative = |a: f64, b: f64| (a / b - 1.0).abs();
    let weights = (squares / count as f64).sqrt() / (LR * STEPS as f64);
    let (loss_error, norm_error) = (relative(loss, want_loss), relative(norm, want_norm));
    let ok = loss_error <= FIRST_STEP
        && norm_error <= FIRST_STEP
        && weights <= WEIGHTS
        && (!cell.exact() || (same && loss == want_loss));
    if cell.world() > 1 {
        let _ = std::fs::remove_dir_all(at(cell));
    }
    json!({ "ok": ok, "loss_error": loss_error, "norm_error": norm_error, "weights": weights, "bitwise": same, "exact_wanted": cell.exact() })
}

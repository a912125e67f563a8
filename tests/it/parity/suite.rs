//! Running cells on sets of MPI processes, and comparing what they wrote.

use super::{Cell, LR, STEPS};
use crate::support::{herd, mpirun, said, text, INSIDE};
use crate::train::Run;
use herd::checkpoint::{Checkpoint, Group};
use herd::plan::{Plan, Ranks};
use herd::world::World;
use serde_json::{json, Value};
use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

/// Cells, and what they are compared with; all of one world size share one set of processes.
pub struct Suite {
    /// Which starts itself again on the ranks.
    pub test: &'static str,
    pub references: Vec<Cell>,
    pub cells: Vec<Cell>,
    /// Of the ranks.
    pub environment: Vec<(&'static str, OsString)>,
}

impl Suite {
    /// A row for each reference and cell; on the ranks, where they are run, none.
    pub fn run(&self) -> Vec<Value> {
        if let Some(dir) = std::env::var_os("HERD_PARITY_DIR") {
            self.inside(Path::new(&dir));
            return Vec::new();
        }
        let began = Instant::now();
        let run = Run::new();
        if self.cells.iter().any(|c| c.documents) {
            documents(&run);
        }
        let mut rows: Vec<Value> = Vec::new();
        for n in [1, 2, 4, 8] {
            let expected = self.of(n).len();
            if expected == 0 {
                continue;
            }
            let out = mpirun(n)
                .env(INSIDE, "1")
                .env("HERD_PARITY_DIR", run.dir.path())
                .env("OMP_NUM_THREADS", "1")
                .envs(self.environment.iter().map(|(k, v)| (k, v)))
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", self.test, "--nocapture", "--test-threads=1"])
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
        eprintln!("{}: {} cells, {:.0} s", self.test, rows.len(), began.elapsed().as_secs_f64());
        rows
    }

    /// What `n` ranks run, in order.
    fn of(&self, n: usize) -> Vec<Cell> {
        self.references.iter().chain(&self.cells).filter(|c| c.world() == n).cloned().collect()
    }

    /// On the ranks: each cell in turn, rank 0 compares.
    fn inside(&self, dir: &Path) {
        // Before anything else asks libtorch for CUDA, and only where it is wanted.
        let devices = match self.cells.iter().any(|c| c.device == "cuda") {
            true => herd::kernels::device::cuda_device_count(),
            false => 0,
        };
        let world = World::init().unwrap();
        tch::set_num_threads(1);
        let ranks = Ranks::of(&world, devices, 1);
        for cell in self.of(world.size()) {
            let began = Instant::now();
            let result =
                Plan::read(&dir.join("run.yaml"), &cell.sets(dir), &ranks).and_then(|p| herd::train::run(&p, &world));
            if world.rank() == 0 {
                let mut row = match result {
                    Ok(_) => compare(&cell, &cell.reference(), dir),
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
}

pub fn assert_good(what: &str, rows: &[Value]) {
    let failed: Vec<&Value> = rows.iter().filter(|r| r["ok"] != true).collect();
    eprintln!("{what}: {} cells, {} failed", rows.len(), failed.len());
    assert!(failed.is_empty(), "{} of {} cells failed: {failed:#?}", failed.len(), rows.len());
}

/// A corpus of short documents beside the run's own.
fn documents(run: &Run) {
    let words = std::fs::read_to_string(run.path("text.txt")).unwrap();
    let mut lines = String::new();
    for (i, part) in words.as_bytes().chunks(23).enumerate().take(4000) {
        lines += &format!("{}\n", json!({ "text": String::from_utf8_lossy(&part[..part.len().min(5 + i % 18)]) }));
    }
    let file = run.path("documents.jsonl");
    std::fs::write(&file, lines).unwrap();
    let at = run.path("documents");
    said(herd().args(["data", "tokenize", "--tokenizer", "bytes", "--holdout", "0.1", "--output"]).arg(at).arg(file));
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
    let [loss_bound, norm_bound, weights_bound] = cell.bounds();
    let ok = loss_error <= loss_bound
        && norm_error <= norm_bound
        && weights <= weights_bound
        && (!cell.exact() || (same && loss == want_loss));
    if at(cell) != at(alone) {
        let _ = std::fs::remove_dir_all(at(cell));
    }
    json!({ "ok": ok, "loss_error": loss_error, "norm_error": norm_error, "weights": weights, "bitwise": same, "exact_wanted": cell.exact() })
}

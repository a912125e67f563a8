//! The CUDA column of the memory formula against what tensors asked of the stand-in in real steps.

use super::{environment, inside};
use crate::support::{mpirun, text, INSIDE};
use crate::train::Run;
use herd::kernels::device::{reset_peak, DeviceMemory};
use herd::plan::{memory::Memory, Plan, Ranks};
use herd::world::World;
use std::path::Path;
use tch::Device;

/// What the formula promises.
const BAND: f64 = 0.10;

/// Shapes of the 8B model scaled down, so that each term is the large one somewhere.
const CELLS: [&[&str]; 9] = [
    &[],
    &["train.recompute=full"],
    &["batch.micro=4"],
    &["batch.micro=2", "train.recompute=selective"],
    &["data.sequence_length=512", "batch.micro=2", "train.recompute=selective"],
    &["data.document_mask=true"],
    &["train.precision=fp32"],
    &["optim.offload=true"],
    &["optim.offload=true", "train.precision=fp32"],
];

const TWO: [&[&str]; 7] = [
    &["parallel.zero=1"],
    &["parallel.zero=2", "train.recompute=selective"],
    &["parallel.zero=3"],
    &["parallel.zero=2", "optim.offload=true"],
    &["parallel.tensor=2"],
    &["parallel.context=2"],
    &["parallel.pipeline=2", "train.recompute=selective"],
];

fn config(dir: &Path) -> String {
    let at = dir.display();
    format!(
        "name: memory
run_dir: {at}/run
model:
  shape: {{vocab_size: 4003, hidden_size: 256, intermediate_size: 896, num_hidden_layers: 6, num_attention_heads: 8,
          num_key_value_heads: 2, max_position_embeddings: 1024}}
data: {{tokenizer: bytes, sequence_length: 256, train: [{{path: {at}/corpus_train}}]}}
batch: {{global: 4, micro: 1}}
train: {{steps: 2, precision: bf16, device: cuda, threads: 1}}
optim: {{warmup_steps: 1}}
checkpoint: {{every: 0}}
log: {{every: 1, tensorboard: false, sync_check_every: 0}}
liveness: {{enabled: false}}
"
    )
}

#[test]
fn the_formula_holds_on_the_stand_in() {
    const NAME: &str = "standin::memory::the_formula_holds_on_the_stand_in";
    if let Some(dir) = std::env::var_os("HERD_STANDIN_MEMORY_DIR") {
        assert!(inside(NAME, &[]));
        return measured(Path::new(&dir));
    }
    let Some(environment) = environment() else { return };
    let run = Run::new();
    std::fs::write(run.config(), config(run.dir.path())).unwrap();
    let mut worst = 0f64;
    for n in [1, 2] {
        let mut ranks = mpirun(n);
        ranks.env(INSIDE, "1").env("OMP_NUM_THREADS", "1").env("HERD_STANDIN_MEMORY_DIR", run.dir.path());
        ranks.envs(environment.iter().map(|(k, v)| (k, v))).arg(std::env::current_exe().unwrap());
        let out = ranks.args(["--exact", NAME, "--nocapture", "--test-threads=1"]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let lines: Vec<String> =
            text(&out).lines().filter_map(|l| Some(l.split_once("MEMORY ")?.1.to_string())).collect();
        assert_eq!(lines.len(), if n == 1 { CELLS.len() } else { TWO.len() }, "{}", text(&out));
        for line in lines {
            println!("{line}");
            let off: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
            worst = worst.max(off.abs());
        }
    }
    if let Some(path) = std::env::var_os("HERD_STANDIN_MEMORY_OUT") {
        std::fs::write(path, format!("{{\"cells\": {}, \"worst\": {worst}}}", CELLS.len() + TWO.len())).unwrap();
    }
    assert!(worst < BAND, "{worst}");
}

/// On the ranks.
fn measured(dir: &Path) {
    let world = World::init().unwrap();
    tch::set_num_threads(1);
    let cells: &[&[&str]] = if world.size() == 1 { &CELLS } else { &TWO };
    for cell in cells {
        let run_dir = format!("run_dir={}/{}", dir.display(), cell.join("+").replace(' ', ""));
        let sets: Vec<String> = cell.iter().map(|s| s.to_string()).chain([run_dir]).collect();
        let plan = Plan::read(&dir.join("run.yaml"), &sets, &Ranks::of(&world, 1, 1)).unwrap();
        let card = Device::Cuda(0);
        let before = DeviceMemory::of(card).map_or(0, |m| m.tensors.live);
        reset_peak(card);
        herd::train::run(&plan, &world).unwrap();
        let seen = DeviceMemory::of(card).unwrap().tensors.peak - before;
        let formula = Memory::peak(&plan);
        let off = seen as f64 / formula.tensors() as f64 - 1.0;
        let all = world.all_gather_bytes(&off.to_le_bytes()).unwrap();
        let worst = all.iter().map(|b| f64::from_le_bytes(b[..].try_into().unwrap())).fold(0f64, |a, b| {
            if b.abs() > a.abs() {
                b
            } else {
                a
            }
        });
        if world.rank() == 0 {
            println!("MEMORY {worst:+.4} {} seen {seen} {formula:?}", cell.join(" "));
        }
    }
    world.barrier().unwrap();
    world.finalize().unwrap();
}

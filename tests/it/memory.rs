//! Memory of real steps on several ranks against the planner's formula, and falling from stage to stage as theory says.

use super::support::ranks;
use super::train::Run;
use herd::kernels::memory;
use herd::plan::{memory::Memory, Plan, Ranks};
use herd::world::World;
use std::path::{Path, PathBuf};

const LORA: &str = "lora={rank: 16, alpha: 16}";
const QLORA: &str = "lora={rank: 16, alpha: 16, quantize: nf4}";

/// What the formula promises.
const BAND: f64 = 0.10;
/// Zero-bubble schedules have some 1 MB of this model that the formula lacks (docs/limits.md): beside weights in few bits that is more.
const ZERO_BUBBLE_BAND: f64 = 0.12;

fn config(dir: &Path) -> String {
    let at = dir.display();
    format!(
        "name: memory
run_dir: {at}/run
model:
  shape: {{vocab_size: 1003, hidden_size: 256, intermediate_size: 640, num_hidden_layers: 6, num_attention_heads: 8,
          num_key_value_heads: 4, max_position_embeddings: 256}}
data: {{tokenizer: bytes, sequence_length: 128, train: [{{path: {at}/corpus_train}}]}}
batch: {{global: 8, micro: 1}}
train: {{steps: 3, precision: bf16, device: cpu, threads: 1}}
optim: {{warmup_steps: 1}}
checkpoint: {{every: 0}}
log: {{every: 1, tensorboard: false, sync_check_every: 0}}
liveness: {{enabled: false}}
"
    )
}

/// Peak of a run's last steps on this rank, as its formula has it and as it was.
fn run(dir: &Path, name: &str, sets: &[&str], world: &World) -> (Memory, u64) {
    let ranks = Ranks::of(world, 0, 1);
    let run_dir = format!("run_dir={}/{}", dir.display(), name.replace([' ', '/', '{', '}', ':', ','], "-"));
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).chain([run_dir]).collect();
    let plan = Plan::read(&dir.join("run.yaml"), &sets, &ranks).unwrap();
    // Windows of earlier runs stay mapped.
    let before = memory::live() + herd::wire::shared_bytes();
    herd::train::run(&plan, world).unwrap();
    (Memory::peak(&plan), herd::train::metrics::memory_peak(plan.device) - before)
}

#[test]
fn memory_of_every_stage_and_recompute_on_4_ranks() {
    if !ranks(4, "memory::memory_of_every_stage_and_recompute_on_4_ranks") {
        return;
    }
    memory::install();
    tch::set_num_threads(1);
    let world = World::init().unwrap();
    let corpus = (world.rank() == 0).then(Run::new);
    let path = corpus.as_ref().map(|c| c.dir.path().to_string_lossy().into_owned().into_bytes()).unwrap_or_default();
    let dir = PathBuf::from(String::from_utf8(world.broadcast_bytes(path, 0).unwrap()).unwrap());
    if world.rank() == 0 {
        std::fs::write(dir.join("run.yaml"), config(&dir)).unwrap();
    }
    world.barrier().unwrap();
    // What adapters lie beside.
    run(&dir, "base", &["checkpoint.every=3"], &world);
    let weights = format!("model.weights={}/base", dir.display());
    let mut stages = Vec::new();
    for recompute in ["none", "selective", "full"] {
        let recompute = format!("train.recompute={recompute}");
        let cells: &[&[&str]] = &[
            &["parallel.zero=0"],
            &["parallel.zero=1"],
            &["parallel.zero=2"],
            &["parallel.zero=3"],
            &["parallel.zero=3", "parallel.shard_size=2"],
            &["parallel.zero=1", "optim.moments=8bit"],
            &["parallel.tensor=2", "parallel.zero=1"],
            &["parallel.tensor=2", "parallel.zero=3"],
            &["parallel.pipeline=2", "parallel.zero=1"],
            &["parallel.pipeline=2", "parallel.zero=3", "parallel.schedule=zero_bubble"],
            &["parallel.pipeline=2", "parallel.zero=2", "parallel.schedule=gpipe"],
            &[LORA, &weights, "parallel.zero=1"],
            &[LORA, &weights, "parallel.tensor=2", "parallel.zero=3"],
            &[QLORA, &weights, "parallel.tensor=2", "parallel.zero=2"],
            &[QLORA, &weights, "parallel.pipeline=2", "parallel.zero=1", "parallel.schedule=zero_bubble"],
            &["model.freeze.blocks=4", &weights, "parallel.zero=1"],
        ];
        for cell in cells {
            let sets: Vec<&str> = cell.iter().copied().chain([recompute.as_str()]).collect();
            let (formula, seen) = run(&dir, &sets.join(" "), &sets, &world);
            let off = seen as f64 / formula.total() as f64 - 1.0;
            let all = world.all_reduce_f64(&[off.abs()], herd::world::Op::Max).unwrap()[0];
            for rank in 0..world.size() {
                if rank == world.rank() {
                    println!("{:60} rank {rank}: {seen:9} {:+.1}% {formula:?}", sets.join(" "), off * 100.0);
                }
                world.barrier().unwrap();
            }
            let most = match cell.contains(&QLORA) && cell.contains(&"parallel.schedule=zero_bubble") {
                true => ZERO_BUBBLE_BAND,
                false => BAND,
            };
            assert!(all < most, "{sets:?}: seen {seen}, {formula:?}");
            if cell.len() == 1 && recompute.ends_with("none") {
                stages.push(seen);
            }
        }
    }
    // P parameters in bf16 over 4 replicas: 2 + 4 + 12 bytes each, then the 12, the 4 and the 2 are shared out.
    let [zero, one, two, three] = stages[..] else { panic!("{stages:?}") };
    assert!(one < zero * 7 / 10 && two < one && three < two, "{stages:?}");
    world.barrier().unwrap();
    world.finalize().unwrap();
}

//! `herd train` as a user runs it: alone and on MPI ranks, stopped, killed, resumed, on damaged and full storage.

use crate::support::{herd, mpirun, text};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A run of its own: a directory with a corpus, a configuration and the run directory.
pub struct Run {
    pub dir: tempfile::TempDir,
}

impl Run {
    /// Tokenizes a real text as bytes and writes a configuration of a tiny model. The text is a package's, so that what a test
    /// computes does not change with each edit of this repository.
    pub fn new() -> Run {
        let dir = tempfile::tempdir().unwrap();
        let text_file = dir.path().join("text.txt");
        let bible = Command::new("bible")
            .args(["-l79", "gen1:1-rev22:21"])
            .output()
            .expect("bible-kjv is installed by make deps");
        assert!(bible.status.success() && bible.stdout.len() > 4_000_000, "{}", text(&bible));
        fs::write(&text_file, bible.stdout).unwrap();
        let out = herd()
            .args(["data", "tokenize", "--tokenizer", "bytes", "--holdout", "0.1", "--output"])
            .arg(dir.path().join("corpus"))
            .arg(&text_file)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let run = Run { dir };
        fs::write(run.config(), run.yaml()).unwrap();
        run
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("run.yaml")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn yaml(&self) -> String {
        let at = self.dir.path().display();
        format!(
            "name: tiny
seed: 7
run_dir: {at}/run
model:
  shape: {{vocab_size: 258, hidden_size: 48, intermediate_size: 96, num_hidden_layers: 3, num_attention_heads: 4,
          num_key_value_heads: 2, head_dim: 16, max_position_embeddings: 256, rope_theta: 10000.0,
          rope_scaling: {{rope_type: llama3, factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 32}}}}
data:
  tokenizer: bytes
  sequence_length: 64
  train: [{{path: {at}/corpus_train}}]
  validation: [{{path: {at}/corpus_validation}}]
batch: {{global: 8, micro: 2}}
train: {{steps: 20, precision: fp32, device: cpu, threads: 1}}
optim: {{lr: 3.0e-3, min_lr: 3.0e-4, warmup_steps: 4}}
validation: {{every: 10, sequences: 16}}
checkpoint: {{every: 4, keep: 0, background: false}}
log: {{every: 5, sync_check_every: 5}}
"
        )
    }

    /// `herd train` on `ranks` ranks (0: alone, without mpirun) with keys overridden.
    pub fn command(&self, ranks: usize, set: &[&str]) -> Command {
        let mut c = match ranks {
            0 => herd(),
            n => {
                let mut c = mpirun(n);
                c.arg(env!("CARGO_BIN_EXE_herd"));
                c
            }
        };
        c.arg("train").arg(self.config());
        for s in set {
            c.args(["--set", s]);
        }
        c
    }

    pub fn train(&self, ranks: usize, set: &[&str]) -> Output {
        self.command(ranks, set).output().unwrap()
    }

    /// Trains into `run_dir` = `name`, expects success, and returns the losses of all steps.
    pub fn losses(&self, ranks: usize, name: &str, set: &[&str]) -> Vec<f64> {
        let dir = format!("run_dir={}", self.path(name).display());
        let all: Vec<&str> = set.iter().copied().chain([dir.as_str()]).collect();
        let out = self.train(ranks, &all);
        assert!(out.status.success(), "{}", text(&out));
        losses(&self.path(name))
    }
}

pub fn lines(run: &Path, file: &str) -> Vec<Value> {
    let all = fs::read_to_string(run.join(file)).unwrap_or_default();
    all.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Loss of each step; where a step was run twice (before a kill and after the resume) the later one.
pub fn losses(run: &Path) -> Vec<f64> {
    let mut by_step = std::collections::BTreeMap::new();
    for line in lines(run, "metrics.jsonl") {
        if let (Some(step), Some(loss)) = (line["step"].as_u64(), line["loss"].as_f64()) {
            by_step.insert(step, loss);
        }
    }
    assert_eq!(by_step.keys().copied().collect::<Vec<_>>(), (1..=by_step.len() as u64).collect::<Vec<_>>());
    by_step.into_values().collect()
}

/// The largest relative difference of two curves.
pub fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max)
}

pub fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Waits until the run has finished `step` steps.
pub fn wait_for_step(run: &Path, step: u64, child: &mut Child) {
    let start = Instant::now();
    loop {
        let done = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        let newest =
            done.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).filter_map(|v| v["step"].as_u64());
        if newest.max().is_some_and(|s| s >= step) {
            return;
        }
        assert!(child.try_wait().unwrap().is_none(), "the run ended before step {step}");
        assert!(start.elapsed() < Duration::from_secs(60), "no step {step} within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The herd processes below `pid` (or `pid` itself when it is herd).
pub fn herd_pids(pid: u32) -> Vec<i32> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim() == "herd" {
        return vec![pid as i32];
    }
    let mut out = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        out.extend(children.split_whitespace().flat_map(|c| herd_pids(c.parse().unwrap())));
    }
    out
}

/// 1, 2 and 4 ranks with the same global batch give the same curve, whatever the accumulation.
#[test]
fn ranks_and_accumulation_do_not_change_the_curve() {
    let run = Run::new();
    let alone = run.losses(0, "alone", &["batch.micro=8"]);
    assert!(alone[19] < 0.8 * alone[0], "it learns: {alone:?}");
    for (ranks, micro) in [(0, 1), (0, 2), (1, 4), (2, 4), (2, 1), (4, 2), (4, 1)] {
        let other = run.losses(ranks, &format!("run-{ranks}-{micro}"), &[&format!("batch.micro={micro}")]);
        assert!(
            (alone[0] - other[0]).abs() < 1e-6 * alone[0],
            "{ranks} ranks, micro {micro}: {} {}",
            alone[0],
            other[0]
        );
        for (step, (a, b)) in alone.iter().zip(&other).enumerate() {
            assert!((a - b).abs() < 1e-4, "{ranks} ranks, micro {micro}, step {}: {a} {b}", step + 1);
        }
    }
}

/// The losses after a kill -9 and resume equal the uninterrupted run's to the last bit.
#[test]
fn kill_and_resume_is_bitwise() {
    let run = Run::new();
    for (precision, ranks) in [("fp32", 0), ("bf16", 0), ("bf16", 2), ("fp32", 2)] {
        let set = format!("train.precision={precision}");
        let whole = run.losses(ranks, &format!("whole-{precision}-{ranks}"), &[&set]);
        let name = format!("killed-{precision}-{ranks}");
        let dir = format!("run_dir={}", run.path(&name).display());
        let mut child = run.command(ranks, &[&set, &dir]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        wait_for_step(&run.path(&name), 6, &mut child);
        let pids = herd_pids(child.id());
        assert!(!pids.is_empty());
        // SAFETY: signals one process this test started.
        assert_eq!(unsafe { libc::kill(pids[0], libc::SIGKILL) }, 0);
        assert!(!child.wait().unwrap().success());
        let resumed = run.losses(ranks, &name, &[&set]);
        assert!(lines(&run.path(&name), "events.jsonl").iter().any(|e| e["kind"] == "resume"));
        assert_eq!(bits(&whole), bits(&resumed), "{precision} on {ranks} ranks");
    }
}

/// A run stopped and resumed equals one that was not, and a resume on another number of ranks stays within the band.
#[test]
fn stop_and_resume() {
    let run = Run::new();
    let whole = run.losses(0, "whole", &[]);
    for (name, second) in [("same", 0), ("wider", 2)] {
        let dir = format!("run_dir={}", run.path(name).display());
        let out = run.train(0, &[&dir, "train.stop_at=7"]);
        assert_eq!(out.status.code(), Some(75), "{}", text(&out));
        let resumed = run.losses(second, name, &[]);
        match second {
            0 => assert_eq!(bits(&whole), bits(&resumed)),
            _ => whole.iter().zip(&resumed).for_each(|(a, b)| assert!((a - b).abs() < 1e-4, "{a} {b}")),
        }
    }
}

/// SIGUSR1 (sbatch --signal) and SIGTERM save at the next step boundary and leave with 75.
#[test]
fn signals_save_and_stop() {
    let run = Run::new();
    for (signal, ranks) in [(libc::SIGUSR1, 0), (libc::SIGTERM, 0), (libc::SIGUSR1, 2)] {
        let name = format!("signal-{signal}-{ranks}");
        let dir = format!("run_dir={}", run.path(&name).display());
        let set = ["train.steps=100000", "checkpoint.every=0", "validation.every=0", "log.sync_check_every=0", &dir];
        let mut child = run.command(ranks, &set).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        wait_for_step(&run.path(&name), 3, &mut child);
        // SAFETY: signals one process this test started.
        assert_eq!(unsafe { libc::kill(herd_pids(child.id())[0], signal) }, 0);
        assert_eq!(child.wait().unwrap().code(), Some(75));
        let saved: Vec<_> = fs::read_dir(run.path(&name).join("checkpoints")).unwrap().collect();
        assert_eq!(saved.len(), 1);
    }
}

#[test]
fn a_flipped_byte_in_the_newest_checkpoint_falls_back_to_the_older_one() {
    let run = Run::new();
    let whole = run.losses(0, "run", &[]);
    let newest = run.path("run/checkpoints/step-00000020");
    let file = fs::read_dir(&newest)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "h5"))
        .unwrap();
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let out = run.train(0, &[]);
    assert!(out.status.success(), "{}", text(&out));
    assert!(text(&out).contains("step-00000020") && text(&out).contains("step-00000016"), "{}", text(&out));
    assert!(lines(&run.path("run"), "events.jsonl").iter().any(|e| e["kind"] == "checkpoint_rejected"));
    assert_eq!(bits(&whole), bits(&losses(&run.path("run"))));
}

/// Losses that stop being finite are skipped by all ranks together, counted, and end the run after the configured number.
#[test]
fn non_finite_steps_are_skipped_and_then_stop_the_run() {
    let run = Run::new();
    for ranks in [0, 2] {
        let dir = format!("run_dir={}", run.path(&format!("nan-{ranks}")).display());
        let set = ["optim.lr=1e30", "optim.min_lr=0", "optim.warmup_steps=0", "train.max_skipped_steps=4", &dir];
        let out = run.train(ranks, &set);
        assert_eq!(out.status.code(), Some(30), "{}", text(&out));
        let skipped = lines(&run.path(&format!("nan-{ranks}")), "events.jsonl")
            .iter()
            .filter(|e| e["kind"] == "skipped_step")
            .count();
        assert_eq!(skipped, 4);
    }
}

/// bf16 and fp32, recompute full and none: recompute changes no bit; bf16 stays near fp32.
#[test]
fn precision_and_recompute() {
    let run = Run::new();
    for precision in ["fp32", "bf16"] {
        let p = format!("train.precision={precision}");
        let none = run.losses(0, &format!("none-{precision}"), &[&p]);
        let full = run.losses(0, &format!("full-{precision}"), &[&p, "train.recompute=full"]);
        assert_eq!(bits(&none), bits(&full), "{precision}");
    }
    let (fp32, bf16) = (losses(&run.path("none-fp32")), losses(&run.path("none-bf16")));
    for (a, b) in fp32.iter().zip(&bf16) {
        assert!((a - b).abs() < 0.05, "{a} {b}");
    }
}

/// A save that does not fit leaves the older checkpoint whole, training goes on, and the exit code tells of a lost last save.
#[test]
fn a_full_disk_keeps_the_older_checkpoint() {
    let run = Run::new();
    let disk = run.path("disk");
    fs::create_dir(&disk).unwrap();
    let Some(_mount) = SmallDisk::mount(&disk, "2000k") else {
        eprintln!("SKIPPED: mounting a small tmpfs needs root");
        return;
    };
    let dir = format!("run_dir={}", disk.join("run").display());
    let out = run.train(0, &[&dir, "checkpoint.every=8", "log.tensorboard=false"]);
    assert_eq!(out.status.code(), Some(21), "{}", text(&out));
    assert!(text(&out).contains("no space"), "{}", text(&out));
    let names: Vec<_> = fs::read_dir(disk.join("run/checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["step-00000008"]);
    let verify =
        herd().args(["checkpoint", "verify"]).arg(disk.join("run/checkpoints/step-00000008")).output().unwrap();
    assert!(verify.status.success(), "{}", text(&verify));
    assert!(lines(&disk.join("run"), "events.jsonl").iter().any(|e| e["kind"] == "checkpoint_failed"));
}

/// A tmpfs of a given size, unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Option<SmallDisk> {
        let out = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .output()
            .ok()?;
        out.status.success().then(|| SmallDisk(at.to_path_buf()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

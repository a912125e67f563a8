//! SIGKILL, and a disk that refuses, at every operation of everything that writes a checkpoint, with the real binary.
//!
//! Whatever the point: what is listed as a checkpoint is whole to the last byte, there is one, and the next
//! start goes on from it to the losses of a run that nothing happened to. `make test` takes some of the points,
//! `make checkpoint-faults` (`HERD_CRASH=full`) all.

mod commands;
mod damage;
pub mod drive;

use crate::support::herd;
use crate::train::{bits, losses, Run};
use drive::{copy, good, must, Case, Checked, Drive};
use herd::checkpoint::FileReport;
use herd::error::Exit;
use herd::store::{self, Remote};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const STEPS: usize = 8;
/// One block, so that a checkpoint is few operations.
const TINY: &str = "model.shape={vocab_size: 258, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, \
                    num_attention_heads: 2, num_key_value_heads: 1, head_dim: 8, max_position_embeddings: 64, rope_theta: 10000.0}";

/// A run of two ranks that saved steps 2, 4, 6 and 8; another that stopped after step 4 and has that alone.
struct Base {
    run: Run,
    losses: Vec<f64>,
}

impl Base {
    fn new() -> Base {
        let run = Run::new();
        let mut base = Base { run, losses: Vec::new() };
        let whole = base.run.path("whole");
        good(&mut base.train(&whole, &["checkpoint.keep=0"])).unwrap();
        base.losses = losses(&whole);
        let half = base.run.path("half");
        let out = base.train(&half, &["train.stop_at=4"]).output().unwrap();
        assert_eq!(out.status.code(), Some(Exit::Requeue.code()));
        base
    }

    /// `herd train` on two ranks in `dir`, one checkpoint kept.
    fn train(&self, dir: &Path, more: &[&str]) -> Command {
        let dir = format!("run_dir={}", dir.display());
        let steps = format!("train.steps={STEPS}");
        let own = [TINY, &dir, &steps, "validation.every=0", "checkpoint.every=2", "checkpoint.keep=1"];
        self.run.command(2, &[&own[..], &["log.tensorboard=false"], more].concat())
    }

    fn whole(&self) -> PathBuf {
        self.run.path("whole")
    }

    fn half(&self) -> PathBuf {
        self.run.path("half")
    }

    /// What is there is whole, and the run comes to the end that it would have had.
    fn goes_on(&self, dir: &Path, more: &[&str]) -> Checked {
        let steps = whole_steps(dir)?;
        must(steps.first() >= Some(&4), || format!("whole are {steps:?}"))?;
        good(&mut self.train(dir, more))?;
        must(whole_steps(dir)?.first() == Some(&(STEPS as u64)), || "the last step is not there".into())?;
        must(bits(&losses(dir)) == bits(&self.losses), || "the losses differ".into())
    }
}

/// Steps that `herd checkpoint list` calls valid in a run directory or a store, newest first. Every byte of each must be right,
/// as `herd checkpoint verify` sees it (both by the functions behind them: there are thousands of calls).
fn whole_steps(place: impl AsRef<OsStr>) -> Result<Vec<u64>, String> {
    let place = place.as_ref().to_string_lossy();
    let whole = |step: u64, files: Vec<FileReport>| match files.into_iter().find_map(|f| f.problem) {
        None => Ok(step),
        Some(problem) => Err(format!("step {step} of {place} is listed, but {problem}")),
    };
    let said = |e: herd::error::Error| e.to_string();
    if place.contains("://") {
        let remote = Remote::open(&place).map_err(said)?;
        let steps = remote.steps().map_err(said)?;
        return steps
            .into_iter()
            .map(|s| whole(s, store::verify(&remote, s, &Default::default()).map_err(said)?))
            .collect();
    }
    let listed = herd::checkpoint::list(&Path::new(&*place).join("checkpoints")).map_err(said)?;
    listed.into_iter().filter_map(|(_, c)| c.ok()).map(|c| whole(c.meta().step, c.verify())).collect()
}

/// Events of one kind, of a run that may be at work or have been killed in the middle of a line.
pub fn events(run: &Path, kind: &str) -> Vec<Value> {
    let all = fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
    all.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).filter(|e| e["kind"] == kind).collect()
}

const FOREGROUND: &[&str] = &["checkpoint.background=false"];
const BACKGROUND: &[&str] = &["checkpoint.background=true"];

/// Either rank of a run that saves twice and removes the older checkpoints, between the steps and behind them.
#[test]
fn a_run_killed_while_it_saves() {
    let (base, mut drive) = (Base::new(), Drive::on_disk());
    for (name, more, rank) in [
        ("save, rank 0", FOREGROUND, 0),
        ("save, rank 1", FOREGROUND, 1),
        ("save behind the steps, rank 0", BACKGROUND, 0),
        ("save behind the steps, rank 1", BACKGROUND, 1),
    ] {
        drive.run(&Case {
            name,
            faults: &["kill"],
            rank: Some(rank),
            writes: 8,
            stride: 19,
            prepare: &|at| copy(&base.half(), &at.join("run")),
            command: &|at| base.train(&at.join("run"), more),
            watch: &|at| at.join("run/checkpoints"),
            after: &|at, _| base.goes_on(&at.join("run"), more),
        });
    }
    drive.finish();
}

/// The uploader's thread in rank 0 sends each checkpoint to a store and removes older ones there.
#[test]
fn a_run_killed_while_it_uploads() {
    let (base, mut drive) = (Base::new(), Drive::new());
    let store = |at: &Path| format!("checkpoint.store.url=file://{}", at.join("store").display());
    let more = ["checkpoint.background=false", "checkpoint.store.keep=1"];
    drive.run(&Case {
        name: "upload behind the steps",
        faults: &["kill"],
        rank: Some(0),
        writes: 1,
        stride: 13,
        prepare: &|at| copy(&base.half(), &at.join("run")),
        command: &|at| base.train(&at.join("run"), &[&more[..], &[&store(at)]].concat()),
        watch: &|at| at.join("store"),
        after: &|at, _| {
            let url = format!("file://{}", at.join("store").display());
            whole_steps(&url)?;
            base.goes_on(&at.join("run"), &[&more[..], &[&store(at)]].concat())?;
            let there = whole_steps(&url)?;
            must(there == [STEPS as u64], || format!("the store has {there:?}"))
        },
    });
    drive.finish();
}

/// A disk that is full, over quota, failing or read-only at any operation, for once or from then on.
#[test]
fn a_disk_that_refuses_does_not_stop_training() {
    let (base, mut drive) = (Base::new(), Drive::on_disk());
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let snapshots = format!("checkpoint.snapshot_dir={}", memory.path().display());
    let from_memory =
        ["checkpoint.background=true", "checkpoint.snapshot_every=1", "checkpoint.partner=off", &snapshots];
    let faults = ["ENOSPC", "EIO+", "EDQUOT", "EROFS+", "EIO", "ENOSPC+", "EROFS", "EDQUOT+"];
    for (name, more, rank) in [
        ("refused save, rank 0", FOREGROUND, 0),
        ("refused save, rank 1", FOREGROUND, 1),
        ("refused save behind the steps, rank 0", &from_memory[..], 0),
        ("refused save behind the steps, rank 1", &from_memory[..], 1),
    ] {
        drive.run(&Case {
            name,
            faults: &faults,
            rank: Some(rank),
            writes: 8,
            stride: 9,
            prepare: &|at| copy(&base.half(), &at.join("run")),
            command: &|at| base.train(&at.join("run"), more),
            watch: &|at| at.join("run/checkpoints"),
            after: &|at, out| {
                let run = at.join("run");
                refused(&run, out)?;
                must(bits(&losses(&run)) == bits(&base.losses), || "training did not go on".into())?;
                base.goes_on(&run, more)
            },
        });
    }
    drive.finish();
}

/// A refusal was loud; a run whose last checkpoint is lost ended with its exit code.
fn refused(run: &Path, out: &Output) -> Checked {
    let said = crate::support::text(out);
    let last = run.join(format!("checkpoints/step-{STEPS:08}"));
    match out.status.code() {
        Some(0) => {
            let loud = events(run, "checkpoint_failed").len() + events(run, "prune_failed").len();
            must(loud > 0 && said.contains("WARNING"), || "nothing was said".into())?;
            good(herd().args(["checkpoint", "verify"]).arg(&last)).map(drop)
        }
        Some(code) if code == Exit::Storage.code() => {
            must(said.contains(&format!("the last checkpoint, of step {STEPS}, is lost")), || said)
        }
        code => Err(format!("it ended with {code:?}")),
    }
}

/// The real thing: the directory becomes read-only while the run trains. What is in memory survives the ranks.
#[test]
fn a_directory_that_becomes_read_only() {
    let kept = crate::tiers::Kept::new("read-only");
    let checkpoints = kept.dir().join("checkpoints");
    let Some(_disk) = crate::tiers::small_disk(&checkpoints, 64 << 20) else { return };
    let set = ["train.steps=100000", "checkpoint.every=10", "checkpoint.background=true", "checkpoint.partner=off"];
    let quiet = std::process::Stdio::null;
    let mut child = kept.command(2, &set).stdout(quiet()).stderr(quiet()).spawn().unwrap();
    let ends = Instant::now() + Duration::from_secs(120);
    let mut wait_for = |kind: &str| {
        while events(&kept.dir(), kind).is_empty() {
            assert!(Instant::now() < ends && child.try_wait().unwrap().is_none(), "no {kind}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for("checkpoint");
    let mount = |how: &str| Command::new("mount").args(["-o", how]).arg(&checkpoints).output().unwrap();
    // Busy while a file is being written.
    while !mount("remount,ro").status.success() {
        assert!(Instant::now() < ends, "{}", crate::support::text(&mount("remount,ro")));
    }
    wait_for("checkpoint_failed");
    let last = events(&kept.dir(), "checkpoint_failed")[0]["step"].as_u64().unwrap();
    crate::train::wait_for_step(&kept.dir(), last + 5, &mut child);
    // SAFETY: signals a process that this test started.
    assert_eq!(unsafe { libc::kill(crate::train::herd_pids(child.id())[0], libc::SIGKILL) }, 0);
    assert!(!child.wait().unwrap().success());
    assert!(!whole_steps(kept.dir()).unwrap().is_empty());
    // The next start finds what is newer in memory; its last checkpoint is lost, and that is its exit code.
    let end = format!("train.steps={}", last + 200);
    let out = kept.command(2, &[&end, "checkpoint.partner=off"]).output().unwrap();
    assert_eq!(out.status.code(), Some(Exit::Storage.code()), "{}", crate::support::text(&out));
    let resumed = events(&kept.dir(), "resume").pop().unwrap();
    assert!(resumed["step"].as_u64().unwrap() > last && resumed["path"].is_null(), "{resumed}");
    assert!(mount("remount,rw").status.success());
    // Nothing is lost yet: the state of that last step is still in memory.
    let out = kept.command(2, &[&end, "checkpoint.partner=off"]).output().unwrap();
    assert!(out.status.success(), "{}", crate::support::text(&out));
    fs::metadata(checkpoints.join(format!("step-{:08}", last + 200))).unwrap();
}

//! The tiers of a run's state, with the real binary: killed ranks, lost memory, damaged snapshots, slow and full disks.

use crate::support::{herd, text};
use crate::train::{bits, herd_pids, lines, losses, wait_for_step, Run};
use herd::error::Exit;
use herd::tiers::snapshot::place::{known_run_id, SnapshotDir};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A run directory whose snapshots lie in a directory of the test's own, so that tests leave no shared memory.
pub struct Kept {
    run: Run,
    name: String,
    memory: tempfile::TempDir,
}

impl Kept {
    pub fn new(name: &str) -> Kept {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        Kept { run: Run::new(), name: name.into(), memory }
    }

    pub fn dir(&self) -> PathBuf {
        self.run.path(&self.name)
    }

    fn set(&self, more: &[&str]) -> Vec<String> {
        let mut all = vec![
            format!("run_dir={}", self.dir().display()),
            format!("checkpoint.snapshot_dir={}", self.memory.path().display()),
        ];
        // No disk but at the end: what is found was in memory.
        all.extend(["checkpoint.snapshot_every=1", "checkpoint.every=0", "validation.every=0"].map(String::from));
        all.extend(more.iter().map(|s| s.to_string()));
        all
    }

    pub fn command(&self, ranks: usize, more: &[&str]) -> Command {
        let set = self.set(more);
        self.run.command(ranks, &set.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs to the end; the losses of all steps.
    fn finish(&self, ranks: usize, more: &[&str]) -> Vec<f64> {
        let out = self.command(ranks, more).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        losses(&self.dir())
    }

    /// Kills one rank after `step`; the last step that was reported.
    pub fn kill_after(&self, ranks: usize, step: u64, more: &[&str]) -> u64 {
        let mut child = self.command(ranks, more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_step(&self.dir(), step, &mut child);
        let pids = herd_pids(child.id());
        // SAFETY: signals a process that this test started.
        assert_eq!(unsafe { libc::kill(pids[pids.len() - 1], libc::SIGKILL) }, 0);
        assert!(!child.wait().unwrap().success());
        let whole = fs::read_to_string(self.dir().join("metrics.jsonl")).unwrap();
        let last = whole.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).next_back().unwrap();
        last["step"].as_u64().unwrap()
    }

    fn place(&self) -> SnapshotDir {
        SnapshotDir::of(self.memory.path(), &self.dir(), known_run_id(&self.dir()).unwrap().unwrap()).unwrap()
    }

    /// Snapshot files whose name starts so.
    fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(self.place().dir).unwrap().map(|e| e.unwrap().path());
        all.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with(prefix)).collect()
    }

    fn resumed(&self) -> Value {
        events(&self.dir(), "resume").pop().expect("a resume")
    }
}

fn events(run: &Path, kind: &str) -> Vec<Value> {
    lines(run, "events.jsonl").into_iter().filter(|e| e["kind"] == kind).collect()
}

const STEPS: &str = "train.steps=60";

/// Killed ranks go on from memory with the losses of a run that nobody disturbed, to the last bit, and lose at most
/// the step under way; on another number of ranks within the band.
#[test]
fn a_killed_run_goes_on_from_memory() {
    let whole = Kept::new("whole").finish(2, &[STEPS, "checkpoint.snapshot_every=0"]);
    for (before, after) in [(2, 2), (2, 1), (1, 2), (2, 4)] {
        let kept = Kept::new(&format!("killed-{before}-{after}"));
        let last = kept.kill_after(before, 20, &[STEPS, "checkpoint.partner=off"]);
        let got = kept.finish(after, &[STEPS, "checkpoint.partner=off"]);
        let resumed = kept.resumed();
        let step = resumed["step"].as_u64().unwrap();
        assert!(step + 1 >= last, "{before} to {after} ranks: step {last} was done, {step} was found: {resumed}");
        assert!(resumed["path"].is_null() && resumed["tiers"]["node"].as_u64() > Some(0), "{resumed}");
        match before == after {
            true => assert_eq!(bits(&whole), bits(&got), "{before} ranks"),
            false => {
                // State that was restored wrongly shows in the next steps; rounding on another number of ranks grows with the steps.
                let bound = |n: usize| if n < step as usize + 6 { 1e-4 } else { 2e-2 };
                let near = |(n, (a, b)): (usize, (&f64, &f64))| (a - b).abs() < bound(n);
                assert!(whole.iter().zip(&got).enumerate().all(near), "{before} to {after} ranks: {whole:?} {got:?}");
            }
        }
        // The run is done: its memory is free again.
        assert!(fs::read_dir(kept.memory.path()).unwrap().next().is_none());
    }
}

/// A rank finds what it needs in its own snapshot and, for norms, that of the first rank of its tensor axis; replicas that keep the
/// same state read a share each.
#[test]
fn a_rank_opens_few_snapshots() {
    for (axes, most) in [(&["parallel.tensor=2"][..], 2), (&["parallel.pipeline=2", "parallel.zero=0"], 1)] {
        let kept = Kept::new(&format!("few-{}", most));
        let sets = [&["train.steps=20", "checkpoint.partner=off"], axes].concat();
        kept.kill_after(4, 8, &sets);
        kept.finish(4, &sets);
        let resumed = kept.resumed();
        assert!(resumed["path"].is_null() && resumed["snapshots_opened"] == most, "{resumed}");
    }
}

/// The second copy stands in for a rank whose memory is gone, or damaged; when both are, an older step does.
#[test]
fn the_second_copy_stands_in_for_what_is_lost() {
    let whole = Kept::new("whole").finish(2, &[STEPS, "checkpoint.snapshot_every=0"]);
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let at = bytes.len() - 5000;
        bytes[at] ^= 4;
        fs::write(path, bytes).unwrap();
    };
    for case in ["lost", "damaged", "both damaged", "all lost"] {
        let kept = Kept::new(case.split(' ').next_back().unwrap());
        let extra = [STEPS, "checkpoint.partner=rank"];
        let last = match case {
            "all lost" => kept.kill_after(2, 30, &[STEPS, "checkpoint.partner=rank", "checkpoint.every=10"]),
            _ => kept.kill_after(2, 30, &extra),
        };
        // of the steps that both ranks have: one may have been killed ahead of the other
        let found = kept.place().scan().unwrap();
        let newest_of = |rank| found.iter().filter(|f| f.header.rank == rank).map(|f| f.header.step).max().unwrap();
        let newest = newest_of(0).min(newest_of(1));
        match case {
            "lost" => kept.files("rank-00001").iter().for_each(|f| fs::remove_file(f).unwrap()),
            "damaged" => kept.files("rank-00001").iter().for_each(|f| flip(f)),
            "all lost" => fs::remove_dir_all(kept.place().dir).unwrap(),
            _ => {
                let of_newest = kept.place().scan().unwrap().into_iter().filter(|f| f.header.step == newest);
                of_newest.filter(|f| f.header.rank == 1).for_each(|f| flip(&f.path));
            }
        }
        let got = kept.finish(2, &extra);
        let resumed = kept.resumed();
        let (step, tiers) = (resumed["step"].as_u64().unwrap(), &resumed["tiers"]);
        match case {
            "all lost" => {
                assert!(tiers["disk"].as_u64() > Some(0) && !resumed["path"].is_null(), "{resumed}");
                assert_eq!(step % 10, 0);
            }
            "both damaged" => assert!(step < newest && step + 3 >= last, "{step} of {newest} {last}: {resumed}"),
            _ => {
                assert!(tiers["node_partner"].as_u64() > Some(0) && tiers["node"].as_u64() > Some(0), "{resumed}");
                assert!(step + 2 >= last, "{step} of {last}");
            }
        }
        let rejected = events(&kept.dir(), "snapshot_rejected");
        assert_eq!(rejected.is_empty(), !case.contains("damaged"), "{case}: {rejected:?}");
        assert_eq!(bits(&whole), bits(&got), "{case}");
    }
}

/// `herd checkpoint flush` brings the newest whole step to disk, from where the run goes on as if from memory.
#[test]
fn flush_writes_what_the_dead_have_left() {
    let whole = Kept::new("whole").finish(2, &[STEPS, "checkpoint.snapshot_every=0"]);
    let kept = Kept::new("flushed");
    let run_dir = kept.dir();
    let flush = |more: &[&str]| herd().args(["checkpoint", "flush"]).arg(&run_dir).args(more).output().unwrap();
    let last = kept.kill_after(2, 20, &[STEPS, "checkpoint.partner=rank"]);
    // Rank 0's own are gone: its part comes from the second copy.
    kept.files("rank-00000").iter().for_each(|f| fs::remove_file(f).unwrap());
    let out = flush(&["--json"]);
    assert!(out.status.success(), "{}", text(&out));
    let done: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((done["written"].as_bool(), done["from_partners"].as_u64()), (Some(true), Some(1)), "{done}");
    assert!(done["step"].as_u64().unwrap() + 2 >= last, "{done}, last {last}");
    let verify = herd().args(["checkpoint", "verify"]).arg(&run_dir).output().unwrap();
    assert!(verify.status.success(), "{}", text(&verify));

    let out = flush(&["--json", "--remove"]);
    assert!(out.status.success() && text(&out).contains("\"written\":false"), "{}", text(&out));
    assert!(fs::read_dir(kept.memory.path()).unwrap().next().is_none());
    let out = flush(&[]);
    assert_eq!(out.status.code(), Some(Exit::NoSnapshot.code()), "{}", text(&out));
    let got = kept.finish(2, &[STEPS, "checkpoint.partner=rank"]);
    assert_eq!(kept.resumed()["step"], done["step"]);
    assert_eq!(bits(&whole), bits(&got));
}

/// A background save holds what one that stops the ranks holds, and training is the same beside it.
#[test]
fn saving_behind_the_steps_changes_nothing() {
    let mut dirs = Vec::new();
    let mut all = Vec::new();
    for (name, background) in [("waits", "false"), ("behind", "true")] {
        let kept = Kept::new(name);
        let background = format!("checkpoint.background={background}");
        all.push(
            kept.finish(2, &["train.steps=24", "checkpoint.every=12", "checkpoint.snapshot_every=0", &background]),
        );
        assert_eq!(events(&kept.dir(), "checkpoint").len(), 2);
        dirs.push(kept);
    }
    assert_eq!(bits(&all[0]), bits(&all[1]));
    for step in ["step-00000012", "step-00000024"] {
        let at = |k: &Kept| k.dir().join("checkpoints").join(step);
        let out = herd().args(["checkpoint", "diff"]).args([at(&dirs[0]), at(&dirs[1])]).output().unwrap();
        assert!(out.status.success(), "{step}: {}", text(&out));
        let read = |k: &Kept, rank: usize| fs::read(at(k).join(format!("rank-{rank:05}.h5"))).unwrap();
        for rank in 0..2 {
            assert_eq!(read(&dirs[0], rank).len(), read(&dirs[1], rank).len(), "the files are laid out alike");
        }
    }
}

/// A library that makes every sync of a checkpoint's file last as long as a slow disk's.
fn slow_disk(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("slow.c"), dir.join("slow.so"));
    let text = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int fsync(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path);
    if (n > 3 && !memcmp(path + n - 3, ".h5", 3)) usleep(400000);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}
"#;
    fs::write(&source, text).unwrap();
    let cc = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    assert!(cc.unwrap().success(), "cc builds the slow disk");
    library
}

/// One that is due while the last is being written is left out and told of; nothing queues up.
#[test]
fn a_save_that_is_slower_than_its_interval_is_reported() {
    let kept = Kept::new("slow");
    let set = ["train.steps=40", "checkpoint.every=1", "checkpoint.snapshot_every=0", "checkpoint.background=true"];
    let library = slow_disk(kept.memory.path());
    let out = kept.command(2, &set).env("LD_PRELOAD", library).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let (saved, slow) = (events(&kept.dir(), "checkpoint"), events(&kept.dir(), "checkpoint_slow"));
    assert_eq!(saved.len() + slow.len(), 40, "each that was due was either written or reported");
    assert!(!slow.is_empty(), "no save was slower than a step: {saved:?}");
    assert!(slow.iter().all(|e| e["save_s"].is_f64() && e["interval_s"].is_f64() && e["running"].is_u64()));
    assert_eq!(saved.last().unwrap()["step"], 40);
}

/// A small tmpfs at `path`, or `None`, said aloud.
pub fn small_disk(path: &Path, bytes: usize) -> Option<Unmount> {
    fs::create_dir_all(path).unwrap();
    let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(path).output();
    match done {
        Ok(out) if out.status.success() => Some(Unmount(path.into())),
        _ => {
            eprintln!("SKIPPED: a full disk needs a small tmpfs, and this user may not mount one");
            None
        }
    }
}

pub struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A full disk behind the steps: loud, training goes on, older checkpoints stay; the loss of the last save is the exit code.
#[test]
fn a_full_disk_behind_the_steps_is_loud_and_only_the_last_save_counts() {
    let kept = Kept::new("full");
    let Some(_disk) = small_disk(&kept.dir().join("checkpoints"), 2 << 20) else { return };
    let set = [
        "train.steps=60",
        "checkpoint.every=6",
        "checkpoint.keep=0",
        "checkpoint.snapshot_every=0",
        "checkpoint.background=true",
    ];
    let out = kept.command(2, &set).output().unwrap();
    assert_eq!(out.status.code(), Some(Exit::Storage.code()), "{}", text(&out));
    let (saved, failed) = (events(&kept.dir(), "checkpoint"), events(&kept.dir(), "checkpoint_failed"));
    assert!(!saved.is_empty() && !failed.is_empty(), "{saved:?} {failed:?}");
    assert!(failed[0]["error"].as_str().unwrap().contains("no space left"), "{failed:?}");
    assert!(text(&out).contains("WARNING: the checkpoint of step"), "{}", text(&out));
    assert!(text(&out).contains("the last checkpoint, of step 60, is lost"), "{}", text(&out));
    assert_eq!(lines(&kept.dir(), "metrics.jsonl").len(), 60);
    let verify = herd().args(["checkpoint", "verify"]).arg(kept.dir()).output().unwrap();
    assert!(verify.status.success(), "{}", text(&verify));
}

/// Too little memory on some node costs what it is short of, and is said: first the second copies, then snapshots as a whole.
#[test]
fn memory_that_is_too_small_costs_copies_and_not_the_run() {
    let run = |bytes: usize, event: &str, words: &str| -> Option<usize> {
        let kept = Kept::new("small");
        let _disk = small_disk(kept.memory.path(), bytes)?;
        let out = kept.command(2, &["train.steps=5", "checkpoint.partner=rank"]).output().unwrap();
        let said = text(&out);
        assert!(out.status.success() && said.contains(words), "{said}");
        assert_eq!(lines(&kept.dir(), "metrics.jsonl").len(), 5);
        let found = events(&kept.dir(), event);
        assert_eq!(found.len(), 1, "{found:?}");
        let error = found[0]["error"].as_str().unwrap().to_string();
        assert!(error.contains("bytes free") && error.contains("checkpoint.partner=off"), "{error}");
        let (_, need) = error.split_once("snapshots of 2 ranks need ").expect("how much is needed");
        need.split(' ').next().unwrap().parse().ok()
    };
    let Some(own) = run(1 << 20, "no_snapshots", "WARNING: no snapshots in memory, only checkpoints count") else {
        return;
    };
    let both = run(own + own / 4, "no_second_copy", "WARNING: snapshots have no second copy, the run goes on").unwrap();
    assert!(both > own + own / 4, "{both} with second copies, {own} without");
}

/// A run directory that was emptied and begun anew does not take its predecessor's memory; the predecessor's is reported.
#[test]
fn a_new_run_under_an_old_name_starts_afresh() {
    let kept = Kept::new("again");
    kept.kill_after(1, 10, &[STEPS]);
    fs::remove_dir_all(kept.dir()).unwrap();
    let got = kept.finish(1, &["train.steps=12"]);
    assert!(events(&kept.dir(), "resume").is_empty() && events(&kept.dir(), "start").len() == 1);
    assert_eq!(got.len(), 12);
}

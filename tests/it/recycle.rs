//! A run writes over the files of the checkpoint that it no longer keeps.

use crate::support::{herd, names, text};
use crate::train::{bits, herd_pids, losses, Run};
use herd::error::Exit;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const BEHIND: &str = "checkpoint.background=true";
const BETWEEN: &str = "checkpoint.background=false";

/// ext4 or XFS: where a run does so.
fn on_a_disk(path: &Path) -> bool {
    let disk = herd::checkpoint::on_local_disk(path);
    if !disk {
        eprintln!("SKIPPED: {} is neither on ext4 nor on XFS", path.display());
    }
    disk
}

#[test]
fn a_run_keeps_old_files_for_its_next_save_and_leaves_none_at_its_end() {
    let run = Run::new();
    if !on_a_disk(&run.path("")) {
        return;
    }
    for how in [BEHIND, BETWEEN] {
        let dir = run.path(how);
        let (place, checkpoints) = (format!("run_dir={}", dir.display()), dir.join("checkpoints"));
        let with = |more: &[&str]| run.command(2, &[&[place.as_str(), how, "checkpoint.keep=1"], more].concat());

        let out = with(&["checkpoint.every=2", "checkpoint.recycle=false"]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let plain = losses(&dir);
        fs::remove_dir_all(&dir).unwrap();
        let out = with(&["checkpoint.every=2"]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        assert_eq!(names(&checkpoints), ["step-00000020"]);
        assert_eq!(bits(&losses(&dir)), bits(&plain));
        fs::remove_dir_all(&dir).unwrap();

        // One that is killed leaves them; how soon after a save they are there is of no interest.
        let mut command = with(&["checkpoint.every=10", "train.steps=100000"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !checkpoints.join("recycled").is_dir() {
            assert!(Instant::now() < end && child.try_wait().unwrap().is_none(), "nothing was kept");
        }
        // SAFETY: signals processes that this test started.
        herd_pids(child.id()).iter().for_each(|&pid| assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0));
        assert!(!child.wait().unwrap().success());
    }
}

#[test]
fn the_next_start_writes_over_what_one_that_died_kept() {
    let run = Run::new();
    let dir = run.path("run");
    let checkpoints = dir.join("checkpoints");
    if !on_a_disk(&run.path("")) {
        return;
    }
    let to = |stop: &str| {
        let out = run.command(2, &["checkpoint.every=2", "checkpoint.keep=1", stop]).output().unwrap();
        assert_eq!(out.status.code(), Some(Exit::Requeue.code()), "{}", text(&out));
    };
    to("train.stop_at=2");
    let kept = checkpoints.join("recycled");
    fs::create_dir(&kept).unwrap();
    let files = ["rank-00000.h5", "rank-00001.h5"];
    fs::write(kept.join(files[0]), vec![0xAB; 1 << 20]).unwrap();
    fs::write(kept.join(files[1]), "short").unwrap();
    fs::write(kept.join("rank-00002.h5"), "of a larger world").unwrap();
    let inode = |dir: &Path, file| fs::metadata(dir.join(file)).unwrap().ino();
    let held = files.map(|f| inode(&kept, f));
    to("train.stop_at=4");
    let last = checkpoints.join("step-00000004");
    assert_eq!(files.map(|f| inode(&last, f)), held);
    assert_eq!(names(&last), ["manifest.json", files[0], files[1]]);
    assert_eq!(names(&checkpoints), ["step-00000004"]);
    let out = herd().args(["checkpoint", "verify"]).arg(&last).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
}

//! A save that is killed, or refused by the filesystem, at every one of its operations in turn.
//!
//! A small library preloaded into a child counts the child's operations on the checkpoint directory and kills it, or
//! fails the operation, at the n-th; n goes up until the child ends by itself. So every point is met, not a lucky few.

use super::recycling::{put_one_aside, ONE};
use super::*;
use crate::error::Exit;
use std::process::Command;

const FAULTS: &str = include_str!("faults.c");
const STEP: &str = "HERD_TEST_CRASH_STEP";

/// Compiles the library that injects faults.
fn library(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("faults.c"), dir.join("faults.so"));
    fs::write(&source, FAULTS).unwrap();
    let done =
        Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).args(["-ldl"]).status();
    assert!(done.unwrap().success(), "cc builds the fault injector");
    library
}

/// Runs `test` of this binary again as a child that works on `checkpoints` and meets `fault` at operation `n`. Returns
/// its exit code (None: killed) and whether the fault came.
fn child(test: &str, library: &Path, checkpoints: &Path, fault: &str, n: usize) -> (Option<i32>, bool) {
    let (fault, no_exchange) = fault.strip_suffix(" without exchange").map_or((fault, false), |f| (f, true));
    let mark = checkpoints.with_extension("hit");
    let _ = fs::remove_file(&mark);
    let name = format!("checkpoint::tests::crash::{test}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    if no_exchange {
        command.env("FAULT_NO_EXCHANGE", "1");
    }
    let status = command
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(STEP, checkpoints)
        .env("LD_PRELOAD", library)
        .env("FAULT_PATH", checkpoints)
        .env("FAULT_KIND", fault)
        .env("FAULT_AT", n.to_string())
        .env("FAULT_MARK", &mark)
        .output()
        .unwrap()
        .status;
    (status.code(), mark.exists())
}

/// What the child does: acts, and leaves with the exit code of what came of it.
fn in_child(act: impl Fn(&Path) -> crate::error::Result<()>) -> bool {
    let Some(checkpoints) = std::env::var_os(STEP) else { return false };
    let code = act(Path::new(&checkpoints)).map_or_else(|e| e.exit.code(), |()| 0);
    std::process::exit(code)
}

/// Runs the child with a fault at every operation, the faults in turn; `after` looks at what is left each time. Returns the operations.
fn at_every_point(test: &str, faults: &[&str], prepare: &dyn Fn(&Path), after: &dyn Fn(&Path, Option<i32>)) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let library = library(dir.path());
    for n in 1..1000 {
        let checkpoints = dir.path().join(format!("checkpoints-{n}"));
        prepare(&checkpoints);
        let (code, hit) = child(test, &library, &checkpoints, faults[n % faults.len()], n);
        if !hit {
            assert_eq!(code, Some(0), "a child without a fault does its work");
            return n - 1;
        }
        after(&checkpoints, code);
        fs::remove_dir_all(&checkpoints).unwrap();
    }
    panic!("the child never came to its end");
}

/// One of `steps` must be the newest whole one, and saving must still work.
fn assert_alive(checkpoints: &Path, steps: &[u64]) {
    let found = newest(checkpoints).0.expect("a whole checkpoint");
    assert!(steps.contains(&found.meta().step));
    assert_whole(&found);
    let last = steps[steps.len() - 1];
    save_step(checkpoints, last);
    assert_eq!(newest(checkpoints).0.unwrap().meta().step, last);
    assert!(!names(checkpoints).iter().any(|n| n.contains(".tmp-")), "{:?}", names(checkpoints));
}

/// Step 1.
fn one(dir: &Path) {
    save_step(dir, 1);
}

/// Steps 1 and 2; the files of step 1 are there to be written over.
fn one_aside(dir: &Path) {
    put_one_aside(dir);
}

/// The test `test`: a save of `step` is killed at every point, after `prepare` has made the step before it.
fn killed_saving(test: &str, step: u64, prepare: &dyn Fn(&Path)) {
    if in_child(|dir| try_save_step(dir, step).map(drop)) {
        return;
    }
    let points = at_every_point(test, &["kill"], prepare, &|dir, code| {
        assert_eq!(code, None, "killed");
        assert_alive(dir, &[step - 1, step]);
    });
    assert!(points >= 15, "{points} points");
}

#[test]
fn killed_while_saving() {
    killed_saving("killed_while_saving", 2, &one);
}

#[test]
fn killed_while_saving_over_old_files() {
    killed_saving("killed_while_saving_over_old_files", 3, &one_aside);
}

#[test]
fn killed_while_replacing_a_step() {
    if in_child(|dir| try_save_step(dir, 2).map(drop)) {
        return;
    }
    at_every_point("killed_while_replacing_a_step", &["kill"], &|dir| drop(save_step(dir, 2)), &|dir, _| {
        assert_alive(dir, &[2]);
    });
}

/// A filesystem that cannot exchange two names: for a moment only the name aside leads to the checkpoint.
#[test]
fn killed_while_replacing_a_step_in_two_renames() {
    const NAME: &str = "killed_while_replacing_a_step_in_two_renames";
    if in_child(|dir| try_save_step(dir, 2).map(drop)) {
        return;
    }
    let points = at_every_point(NAME, &["kill without exchange"], &|dir| drop(save_step(dir, 2)), &|dir, _| {
        assert_alive(dir, &[2]);
    });
    assert!(points >= 15, "{points} points");
}

fn killed_pruning(test: &str, keep: Keep) {
    if in_child(|dir| prune(dir, keep, &|_| true).map(drop)) {
        return;
    }
    let three = |dir: &Path| (1..4).for_each(|s| drop(save_step(dir, s)));
    let points = at_every_point(test, &["kill"], &three, &|dir, _| {
        let (found, events) = newest(dir);
        assert_eq!(found.unwrap().meta().step, 3);
        assert_eq!(events.len(), 1);
        // Whatever is left of the others is a whole checkpoint or none at all.
        for (_, c) in list(dir).unwrap() {
            assert!(c.is_err() || c.unwrap().verify().iter().all(|f| f.problem.is_none()));
        }
        // The next save may find old files to write over.
        save_step(dir, 4);
        prune(dir, 2, &|_| true).unwrap();
        assert_eq!(names(dir), ["step-00000003", "step-00000004"]);
        prune(dir, 1, &|_| true).unwrap();
        assert_eq!(names(dir), ["step-00000004"]);
    });
    assert!(points >= 6, "{points} points");
}

#[test]
fn killed_while_pruning() {
    killed_pruning("killed_while_pruning", 1.into());
}

#[test]
fn killed_while_keeping_old_files() {
    killed_pruning("killed_while_keeping_old_files", ONE);
}

/// As [`killed_saving`], but the filesystem refuses.
fn refused_saving(test: &str, step: u64, prepare: &dyn Fn(&Path)) {
    if in_child(|dir| try_save_step(dir, step).map(drop)) {
        return;
    }
    let faults = ["ENOSPC", "EIO", "EDQUOT", "EROFS", "ENOSPC"];
    at_every_point(test, &faults, prepare, &|dir, code| {
        assert_eq!(code, Some(Exit::Storage.code()));
        let left = names(dir);
        assert!(left.iter().all(|n| !n.contains(".tmp-")), "{left:?}");
        assert_alive(dir, &[step - 1, step]);
    });
}

#[test]
fn refused_while_saving() {
    refused_saving("refused_while_saving", 2, &one);
}

#[test]
fn refused_while_saving_over_old_files() {
    refused_saving("refused_while_saving_over_old_files", 3, &one_aside);
}

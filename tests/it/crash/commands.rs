//! The commands that write or remove checkpoints, killed at every operation.

use super::{copy, good, must, whole_steps, Base, Case, Drive};
use crate::support::{herd, names};
use crate::tiers::Kept;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn checkpoint(verb: &str) -> Command {
    let mut c = herd();
    c.args(["checkpoint", verb]);
    c
}

fn url(at: &Path) -> String {
    format!("file://{}", at.join("store").display())
}

fn killed<'a>(name: &'a str, stride: usize) -> Case<'a> {
    Case {
        name,
        faults: &["kill"],
        rank: None,
        writes: 1,
        stride,
        prepare: &|_| (),
        command: &|_| unreachable!(),
        watch: &|at| at.join("store"),
        after: &|_, _| Ok(()),
    }
}

#[test]
fn uploads_downloads_and_prunes_killed() {
    let (base, mut drive) = (Base::new(), Drive::new());
    // Another run with the same steps.
    let other = base.run.path("other");
    good(&mut base.train(&other, &["checkpoint.keep=0", "seed=8"])).unwrap();
    let (whole, half) = (base.whole(), base.half());
    let send = |run: &Path, at: &Path| good(checkpoint("upload").arg("--all").arg(run).arg(url(at)));

    drive.run(&Case {
        command: &|at| {
            let mut c = checkpoint("upload");
            c.arg(&half).arg(url(at));
            c
        },
        after: &|at, _| {
            whole_steps(url(at))?;
            send(&half, at)?;
            must(whole_steps(url(at))? == [4], || "step 4 is not there".into())
        },
        ..killed("upload to a path", 5)
    });
    drive.run(&Case {
        prepare: &|at| drop(send(&other, at).unwrap()),
        command: &|at| {
            let mut c = checkpoint("upload");
            c.arg(&whole).arg(url(at));
            c
        },
        after: &|at, _| {
            must(whole_steps(url(at))? == [8, 6, 4, 2], || "a step is gone".into())?;
            send(&whole, at)?;
            must(whole_steps(url(at))? == [8, 6, 4, 2], || "a step is gone".into())
        },
        ..killed("upload over another content", 5)
    });
    drive.run(&Case {
        prepare: &|at| drop(send(&whole, at).unwrap()),
        command: &|at| {
            let mut c = checkpoint("prune");
            c.arg(url(at)).args(["--keep", "1"]);
            c
        },
        after: &|at, _| {
            must(whole_steps(url(at))?.first() == Some(&8), || "the newest is gone".into())?;
            good(checkpoint("prune").arg(url(at)).args(["--keep", "1"]))?;
            must(whole_steps(url(at))? == [8], || "more than the newest is left".into())
        },
        ..killed("prune of a store", 4)
    });
    let run = |at: &Path| at.join("run");
    drive.run(&Case {
        prepare: &|at| copy(&whole, &run(at)),
        command: &|at| {
            let mut c = checkpoint("prune");
            c.arg(run(at)).args(["--keep", "1"]);
            c
        },
        watch: &run,
        after: &|at, _| {
            must(whole_steps(run(at))?.first() == Some(&8), || "the newest is gone".into())?;
            good(checkpoint("prune").arg(run(at)).args(["--keep", "1"]))?;
            must(whole_steps(run(at))? == [8], || "more than the newest is left".into())
        },
        ..killed("prune of a run", 4)
    });
    drive.run(&Case {
        prepare: &|at| {
            copy(&other, &run(at));
            send(&half, at).unwrap();
        },
        command: &|at| {
            let mut c = checkpoint("download");
            c.arg(url(at)).arg(run(at)).arg("--replace");
            c
        },
        watch: &run,
        after: &|at, _| {
            must(whole_steps(run(at))? == [8, 6, 4, 2], || "a step is gone".into())?;
            good(checkpoint("download").arg(url(at)).arg(run(at)).arg("--replace"))?;
            let step = "checkpoints/step-00000004";
            good(checkpoint("diff").arg(half.join(step)).arg(run(at).join(step))).map(drop)
        },
        ..killed("download over another content", 4)
    });
    drive.finish();
}

#[test]
fn flush_import_and_export_killed() {
    let (base, mut drive) = (Base::new(), Drive::new());
    let kept = Kept::new("flushed");
    kept.kill_after(2, 5, &["train.steps=100000", "checkpoint.partner=off", super::TINY]);
    let (there, checkpoints): (PathBuf, PathBuf) = (kept.dir(), kept.dir().join("checkpoints"));
    drive.run(&Case {
        prepare: &|_| drop(fs::remove_dir_all(&checkpoints)),
        command: &|_| {
            let mut c = checkpoint("flush");
            c.arg(&there);
            c
        },
        watch: &|_| checkpoints.clone(),
        after: &|_, _| {
            let _ = fs::create_dir(&checkpoints);
            whole_steps(&there)?;
            good(checkpoint("flush").arg(&there))?;
            must(whole_steps(&there)?.len() == 1, || "nothing was flushed".into())
        },
        ..killed("flush", 9)
    });
    let (hf, half) = (base.run.path("hf"), base.half());
    good(checkpoint("export").arg(&half).arg(&hf)).unwrap();
    let run = |at: &Path| at.join("run");
    drive.run(&Case {
        command: &|at| {
            let mut c = checkpoint("import");
            c.arg(&hf).arg(run(at));
            c
        },
        watch: &run,
        after: &|at, _| {
            let _ = fs::create_dir_all(run(at).join("checkpoints"));
            if whole_steps(run(at))?.is_empty() {
                good(checkpoint("import").arg(&hf).arg(run(at)))?;
            }
            good(checkpoint("diff").arg(&hf).arg(run(at))).map(drop)
        },
        ..killed("import", 9)
    });
    let out = |at: &Path| at.join("out");
    drive.run(&Case {
        command: &|at| {
            let mut c = checkpoint("export");
            c.arg(&half).arg(out(at));
            c
        },
        watch: &out,
        after: &|at, _| {
            // Under its name it is there whole, or not at all.
            if !out(at).exists() {
                good(checkpoint("export").arg(&half).arg(out(at)))?;
            }
            must(names(&out(at)) == names(&hf), || format!("{:?}", names(&out(at))))?;
            good(checkpoint("diff").arg(&hf).arg(out(at))).map(drop)
        },
        ..killed("export", 3)
    });
    drive.finish();
}

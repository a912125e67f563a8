//! `herd init` on a real Slurm: what it writes is accepted by herd and by Slurm, and trains without an edited line.

use super::cluster::*;
use super::training::ended;
use crate::support::{herd, text};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// herd in the folder `at`, where Slurm's commands find the cluster.
fn herd_in(cluster: &Cluster, at: &Path, args: &[&str]) -> Output {
    let mut c: Command = cluster.command("run", &["env", "-C"]);
    c.arg(at).arg(PathBuf::from(herd().get_program())).args(args);
    c.output().unwrap()
}

fn ok(out: Output) -> String {
    assert!(out.status.success(), "{}", text(&out));
    text(&out)
}

#[test]
fn a_model_for_nodes_that_slurm_declares() {
    let cluster = Cluster::up(&["--nodes", "1", "--declare", "gpu[001-004]", "--set", "PrivateData=cloud"]);
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let asked = ["init", "--model", "llama3.1-8b", "--nodes", "4"];
    let said = ok(herd_in(&cluster, at, &asked));
    for words in [
        "partition batch: 4 of 4 usable nodes, each 8 × gpu",
        "planned as h100",
        "no herd",
        "sbatch llama3.1-8b.sbatch",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let plan = ["plan", "llama3.1-8b.yaml", "--nodes", "4", "--gpus-per-node", "8", "--json"];
    let plan: serde_json::Value = serde_json::from_slice(&herd_in(&cluster, at, &plan).stdout).unwrap();
    let p = &plan["layout"];
    let axes = ["tensor", "context", "pipeline", "data"].map(|a| p[a].as_u64().unwrap());
    assert_eq!(axes.iter().product::<u64>(), 32, "{p}");
    ok(herd_in(&cluster, at, &["config", "check", "llama3.1-8b.yaml", "--ranks", "32", "--no-data"]));
    let script = at.join("llama3.1-8b.sbatch");
    ok(cluster.output("run", &["sbatch", "--test-only", script.to_str().unwrap()]));
    let lint = Command::new("shellcheck").arg(&script).output();
    assert!(lint.as_ref().is_ok_and(|out| out.status.success()), "{lint:?}");

    // what is there stays
    std::fs::write(&script, "mine").unwrap();
    let out = herd_in(&cluster, at, &asked);
    assert!(out.status.code() == Some(2) && text(&out).contains("not written over"), "{}", text(&out));
    assert_eq!(std::fs::read_to_string(&script).unwrap(), "mine");
    ok(herd_in(&cluster, at, &[&asked[..], &["--force"]].concat()));
    assert!(std::fs::read_to_string(&script).unwrap().starts_with("#!/bin/bash\n# Written by `herd init`"));

    // what Slurm does not have, and what does not fit
    for (args, words) in [
        (["--model", "llama3.1-8b", "--nodes", "5"], "Slurm has: batch"),
        (["--model", "llama3.1-405b", "--nodes", "1"], "none fits 1 node"),
    ] {
        let out = herd_in(&cluster, at, &[&["init"], &args[..], &["-o", "other.yaml"]].concat());
        assert!(!out.status.success() && text(&out).contains(words), "{words}: {}", text(&out));
        assert!(!at.join("other.yaml").exists() && !at.join("other.sbatch").exists());
    }
}

/// `herd init` and `sbatch`: two commands, no edited line.
#[test]
fn two_commands_to_a_finished_run() {
    let cluster = Cluster::up(&["--nodes", "2", "--cpus", "2"]);
    let run = crate::train::Run::new();
    let at = run.dir.path();
    let corpora = [at.join("corpus_train"), at.join("corpus_validation")];
    let [train, validation] = [corpora[0].to_str().unwrap(), corpora[1].to_str().unwrap()];
    let init = ["init", "--model", "demo", "--nodes", "2", "--train", train, "--validation", validation];
    let said = ok(herd_in(&cluster, at, &init));
    assert!(said.contains("has no GPUs") && !said.contains("is not there yet"), "{said}");
    ok(herd_in(&cluster, at, &["config", "check", "demo.yaml", "--ranks", "4"]));
    let mut submit = cluster.command("run", &["env", "-C"]);
    submit.arg(at).args([
        "sbatch",
        "--parsable",
        "demo.sbatch",
        "--set",
        "train.steps=3",
        "--set",
        "optim.warmup_steps=1",
        "--set",
        "validation.sequences=8",
    ]);
    let job = ok(submit.output().unwrap()).trim().to_string();
    wait_until("the run has ended", Duration::from_secs(120), || ended(&cluster, &job));
    let log = std::fs::read_to_string(at.join(format!("demo-{job}.log"))).unwrap_or_default();
    let status = ok(herd_in(&cluster, at, &["status", "runs/demo"]));
    assert!(status.contains("finished") && status.contains("3 of 3"), "{status}\n{log}");
    ok(herd_in(&cluster, at, &["report", "runs/demo"]));
    assert!(at.join("runs/demo/report.html").exists());
}

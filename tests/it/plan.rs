//! `herd plan` through the real binary: the shipped configurations, refusals, the search, what it writes, what it learns from
//! a run.

use super::support::{herd, root, said, text};
use super::train::Run;
use serde_json::Value;
use std::process::Output;

fn plan(config: &str, more: &[&str]) -> Output {
    herd().current_dir(root()).args(["plan", config]).args(more).output().unwrap()
}

fn json(config: &str, more: &[&str]) -> Value {
    let out = plan(config, &[more, &["--json"]].concat());
    assert!(out.status.success(), "{config} {more:?}: {}", text(&out));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Status 10 and one line on stderr, which has these words.
fn refused(out: Output, code: i32, words: &[&str]) {
    let said = text(&out);
    assert_eq!(out.status.code(), Some(code), "{said}");
    assert!(out.stdout.is_empty() && said.lines().count() == 1, "{said}");
    words.iter().for_each(|w| assert!(said.contains(w), "{w}: {said}"));
}

const NODES: [(&str, &str); 3] =
    [("configs/llama3_8b.yaml", "1"), ("configs/llama3_70b.yaml", "16"), ("configs/llama3_405b.yaml", "2048")];

#[test]
fn shipped_configurations_fit_the_nodes_they_are_for() {
    for (config, nodes) in NODES {
        let v = json(config, &["--nodes", nodes, "--gpus-per-node", "8", "--gpu", "h200", "--attention", "fused"]);
        let e = &v["estimate"];
        let f = |path: &str| e.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {e:#}"));
        assert!(f("/memory/headroom") > 0.0 && f("/memory/total") < f("/memory/room"));
        // Parts add up to the step, and MFU follows from tokens a second.
        let parts = ["matrix", "attention", "elementwise", "tensor", "context", "data"];
        let sum: f64 = parts.iter().map(|p| f(&format!("/step/parts/{p}"))).sum();
        let rest = f("/step/bubble") + f("/step/optimizer") + f("/step/snapshot") + f("/step/other");
        assert!((sum + rest - f("/step/seconds")).abs() < 1e-6 * f("/step/seconds"), "{config}");
        let mfu = f("/speed/mfu_causal");
        assert!((0.05..0.7).contains(&mfu) && f("/speed/mfu_full") > mfu, "{config}: {mfu}");
        assert!((f("/tokens_per_step") / f("/step/seconds") / f("/speed/tokens_per_s") - 1.0).abs() < 1e-9);
        assert!(f("/faults/goodput_snapshots") >= f("/faults/goodput_checkpoints"), "{config}");
        assert!(f("/faults/goodput_checkpoints") >= f("/faults/goodput_no_spares"), "{config}");
        // Without second copies a lost node's snapshots are lost.
        if nodes != "1" {
            let sets = ["--gpu", "h200", "--attention", "fused", "--set", "checkpoint.partner=off"];
            let alone = json(config, &[&["--nodes", nodes, "--gpus-per-node", "8"][..], &sets].concat());
            assert!(alone["estimate"]["faults"]["goodput"].as_f64().unwrap() < f("/faults/goodput"), "{config}");
        }
        // The same formula as `herd config check`.
        let ranks = format!("{}", 8 * nodes.parse::<usize>().unwrap());
        if f("/memory/stage") == 0.0 {
            let on_device = json(config, &["--nodes", nodes, "--gpus-per-node", "8", "--gpu", "b200"]);
            let check = said(herd().current_dir(root()).args([
                "config",
                "check",
                config,
                "--ranks",
                &ranks,
                "--json",
                "--no-data",
            ]));
            let check: Value = serde_json::from_str(&check).unwrap();
            if on_device["estimate"]["memory"]["stage"] == 0 {
                assert_eq!(on_device["estimate"]["memory"]["total"], check["memory"]["peak"], "{config}");
            }
        }
    }
}

#[test]
fn people_get_lines_and_programs_get_the_same_numbers() {
    let base = ["--nodes", "16", "--gpus-per-node", "8", "--attention", "fused"];
    let v = json("configs/llama3_70b.yaml", &base);
    let out = plan("configs/llama3_70b.yaml", &base);
    let lines = String::from_utf8(out.stdout).unwrap();
    let tokens = v["estimate"]["speed"]["tokens_per_s_device"].as_f64().unwrap();
    for words in [
        &format!("{tokens:.0} a device"),
        "70.6 G parameters",
        "4,194,304 tokens a step",
        "interleaved with 5 chunks",
        "attention fused",
    ] {
        assert!(lines.contains(words), "{words}: {lines}");
    }
    // Twice the tokens, twice the days.
    let days = |v: &Value| v["estimate"]["run"]["days"].as_f64().unwrap();
    let more = json("configs/llama3_70b.yaml", &[&base[..], &["--tokens", "2.097152T"]].concat());
    assert!((days(&more) / days(&v) - 2.0).abs() < 1e-6);
}

#[test]
fn what_does_not_fit_or_cannot_be_is_one_line() {
    let small = ["--nodes", "1", "--gpus-per-node", "8"];
    refused(
        plan("configs/llama3_8b.yaml", &[&small[..], &["--attention", "unfused"]].concat()),
        10,
        &["do not fit h100", "79.6 GiB", "activations", "(hint: ", "has room for it as it is"],
    );
    refused(plan("configs/llama3_70b.yaml", &small), 10, &["tensor 8 × context 1 × pipeline 4", "world has 8"]);
    refused(
        plan("configs/llama3_70b.yaml", &[&small[..], &["--search", "--set", "parallel.data=0"]].concat()),
        10,
        &["none fits 1 node(s) × 8 h100", "the smallest needs"],
    );
    refused(
        plan("configs/llama3_8b.yaml", &[&small[..], &["--gpu", "h300"]].concat()),
        2,
        &["no device \"h300\"", "b200"],
    );
    refused(
        plan("configs/llama3_demo.yaml", &[&small[..], &["--set", "train.device=cpu"]].concat()),
        10,
        &["train.device is cpu", "--gpu"],
    );
    refused(plan("nosuch.yaml", &small), 10, &["nosuch.yaml"]);
    refused(
        plan("configs/llama3_8b.yaml", &[&small[..], &["--calibrate", "nosuch"]].concat()),
        10,
        &["nosuch/plan.json"],
    );
    let many = ["--nodes", "1048576", "--gpus-per-node", "8"];
    refused(plan("configs/llama3_8b.yaml", &many), 2, &["8388608 ranks", "at most 1048576"]);
    assert_eq!(plan("configs/llama3_8b.yaml", &["--nodes", "0", "--gpus-per-node", "8"]).status.code(), Some(2));
    assert_eq!(herd().args(["plan", "--nodes", "1"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn a_search_writes_a_configuration_that_passes_the_check_and_keeps_its_comments() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my run.yaml");
    let name = file.to_str().unwrap();
    let base = ["--nodes", "4", "--gpus-per-node", "8", "--attention", "fused", "--search", "--set", "parallel.data=0"];
    let v = json("configs/llama3_70b.yaml", &[&base[..], &["--write", name]].concat());
    let seconds = v["search"]["seconds"].as_f64().unwrap();
    assert!(seconds < 20.0 && v["search"]["best"].as_array().unwrap().len() > 1, "{seconds}");
    assert_eq!(v["written"]["comments_kept"], true);
    let old = std::fs::read_to_string(root().join("configs/llama3_70b.yaml")).unwrap();
    let new = std::fs::read_to_string(&file).unwrap();
    let comments = |text: &str| text.lines().filter(|l| l.starts_with('#')).map(String::from).collect::<Vec<_>>();
    assert_eq!(comments(&new), comments(&old));
    let check = herd().args(["config", "check", name, "--ranks", "32", "--no-data"]).output().unwrap();
    assert!(check.status.success(), "{}", text(&check));
    // Planned again without a search it is the same plan.
    let again = json(name, &base[..6]);
    assert_eq!((&again["layout"], &again["estimate"]["step"]), (&v["layout"], &v["estimate"]["step"]));
    let script = std::fs::read_to_string(dir.path().join("my run.sbatch")).unwrap();
    assert!(script.contains("#SBATCH --ntasks-per-node=8") && script.contains("my run.yaml' \"$@\""), "{script}");
    let syntax = std::process::Command::new("bash").arg("-n").arg(dir.path().join("my run.sbatch")).status().unwrap();
    assert!(syntax.success());
    // Neither a configuration nor a batch script of somebody else is written over.
    let args = [&base[..], &["--write", name]].concat();
    refused(plan("configs/llama3_70b.yaml", &args), 2, &["my run.yaml exists and is not overwritten"]);
    let other = dir.path().join("other.yaml");
    std::fs::write(dir.path().join("other.sbatch"), "mine\n").unwrap();
    let args = [&base[..], &["--write", other.to_str().unwrap()]].concat();
    refused(plan("configs/llama3_70b.yaml", &args), 2, &["other.sbatch exists"]);
    assert!(!other.exists());
    // In place.
    let mut in_place = plan(name, &[&base[..], &["--set", "batch.global=256", "--write", name]].concat());
    assert!(in_place.status.success(), "{}", text(&in_place));
    in_place = herd().args(["config", "show", name]).output().unwrap();
    assert!(text(&in_place).contains("global: 256"));
}

#[test]
fn published_runs_are_listed_with_what_was_assumed() {
    let v: Value = serde_json::from_str(&said(herd().args(["plan", "--published", "--json"]))).unwrap();
    let rows = v["rows"].as_array().unwrap();
    let largest = rows.iter().map(|r| r["error"].as_f64().unwrap().abs()).fold(0.0, f64::max);
    assert!((v["error_max"].as_f64().unwrap() - largest).abs() < 1e-12 && rows.len() >= 8);
    let lines = said(herd().args(["plan", "--published"]));
    assert!(rows.iter().all(|r| lines.contains(r["assumed"].as_str().unwrap())), "{lines}");
}

/// A machine as in docs/planning.md.
const MACHINE: &str = "name: this machine
source: a guess
device: cpu
cores: 2
memory_gib: 8
bf16_tflops: 0.2
fp32_tflops: 0.1
memory_gb_s: 10
inside: {gb_s: 5, latency_us: 5}
between: {gb_s: 1, latency_us: 50}
costs: {kernel_us: 1, step_ms: 1, reserve_gib: 0.3, snapshot_gb_s: 5}
";

#[test]
fn a_run_corrects_the_guess() {
    let run = Run::new();
    let out = run.train(0, &["train.steps=12", "validation.every=0", "checkpoint.every=0", "log.sync_check_every=0"]);
    assert!(out.status.success(), "{}", text(&out));
    let machine = run.dir.path().join("machine.yaml");
    std::fs::write(&machine, MACHINE).unwrap();
    let (config, run_dir) = (run.config(), run.path("run"));
    let base = ["--nodes", "1", "--gpus-per-node", "1", "--gpu", machine.to_str().unwrap()];
    let before = json(config.to_str().unwrap(), &base);
    let after = json(config.to_str().unwrap(), &[&base[..], &["--calibrate", run_dir.to_str().unwrap()]].concat());
    let seconds = |v: &Value| v["estimate"]["step"]["seconds"].as_f64().unwrap();
    let fitted = &after["calibration"]["runs"][0];
    let measured = fitted["measured_s"].as_f64().unwrap();
    let off = |s: f64| (s / measured - 1.0).abs();
    assert!(off(fitted["after_s"].as_f64().unwrap()) < 0.25, "{fitted:#}");
    assert!(off(seconds(&after)) < 0.25 && off(seconds(&after)) <= off(seconds(&before)), "{fitted:#}");
    assert_eq!(after["calibration"]["links"], Value::Null);
}

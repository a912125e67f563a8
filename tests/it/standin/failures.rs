//! What a run says and how it ends when its device fails: injected at an operation of the stand-in in the middle of a step.

use super::environment;
use crate::support::text;
use crate::train::Run;
use std::process::Output;

/// `herd train` of a tiny model on the stand-in with more variables.
fn train(run: &Run, name: &str, variables: &[(&str, &str)], set: &[&str]) -> Option<Output> {
    let environment = environment()?;
    let dir = format!("run_dir={}", run.path(name).display());
    let sets: Vec<&str> =
        ["train.device=cuda", "validation.every=0", dir.as_str()].into_iter().chain(set.iter().copied()).collect();
    Some(run.command(0, &sets).envs(environment).envs(variables.iter().copied()).output().unwrap())
}

/// One line of error with all these words, that exit code, and no talk of a bug.
#[track_caller]
fn says(out: &Output, code: i32, words: &[&str]) {
    let said = text(out);
    assert_eq!(out.status.code(), Some(code), "{said}");
    let errors: Vec<&str> = said.lines().filter(|l| l.starts_with("herd: error:")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    words.iter().for_each(|w| assert!(errors[0].contains(w), "no '{w}' in: {said}"));
    assert!(!said.contains("bug") && !said.contains("Exception raised") && !said.contains("frame #"), "{said}");
}

#[test]
fn a_device_that_fails_is_the_node_s_fault() {
    let run = Run::new();
    for (kind, words) in [
        ("assert", "device-side assert triggered"),
        ("ecc", "uncorrectable ECC error"),
        ("launch", "unspecified launch failure"),
        ("cublas", "CUBLAS_STATUS_EXECUTION_FAILED"),
        ("cudnn", "CUDNN_STATUS_EXECUTION_FAILED"),
    ] {
        let fault = format!("6000:{kind}");
        let Some(out) = train(&run, kind, &[("STANDIN_FAULT", &fault)], &[]) else { return };
        says(&out, 14, &["the device failed", words, "Xid"]);
        // the file of the only node
        let folder = run.path(kind).join("verdicts/attempt-0000");
        let file = std::fs::read_dir(folder).expect("the rank confesses").next().unwrap().unwrap().path();
        let verdict = std::fs::read_to_string(file).unwrap();
        assert!(verdict.contains("device_error") && verdict.contains(words), "{verdict}");
    }
}

#[test]
fn memory_that_runs_out_names_the_terms() {
    let run = Run::new();
    let terms = ["parameters ", "gradients ", "optimizer ", "activations ", "working ", "cuBLAS ", "CUDA context "];
    // A card that is too small: nothing mends that but another configuration.
    let Some(out) = train(&run, "small", &[("STANDIN_MEMORY", "1500000")], &[]) else { return };
    says(
        &out,
        10,
        &[&["out of device memory after 0 steps", "Tried to allocate", "batch.micro"][..], &terms[..]].concat(),
    );
    // A card that others fill: that node's fault.
    let others = [("STANDIN_MEMORY", "9000000000"), ("STANDIN_OTHERS", "8999000000")];
    let out = train(&run, "filled", &others, &[]).unwrap();
    says(&out, 14, &["out of device memory", "held by other processes"]);
    // One that was enough until now.
    let out = train(&run, "late", &[("STANDIN_FAULT", "20000:oom")], &["train.steps=200"]).unwrap();
    says(&out, 14, &["out of device memory after", "fragmented"]);
}

#[test]
fn a_driver_without_a_device_is_never_passed_over_in_silence() {
    let run = Run::new();
    let Some(environment) = environment() else { return };
    // The driver's node is there, libtorch_cuda.so is not.
    let driver: Vec<_> = environment.into_iter().filter(|(name, _)| *name == "LD_PRELOAD").collect();
    let dir = |name: &str| format!("run_dir={}", run.path(name).display());
    let train = |set: &[&str]| run.command(0, set).envs(driver.iter().map(|(k, v)| (k, v))).output().unwrap();
    let out = train(&["train.device=auto", "train.steps=4", "validation.every=0", &dir("auto")]);
    assert!(out.status.success(), "{}", text(&out));
    let line = text(&out).lines().find(|l| l.contains("device auto")).map(str::to_string).expect("it is said");
    assert!(line.contains("libtorch_cuda.so") && line.contains("cannot open shared object file"), "{line}");
    let out = train(&["train.device=cuda", &dir("cuda")]);
    assert_eq!(out.status.code(), Some(14), "{}", text(&out));
    assert!(text(&out).contains("cannot open shared object file"), "{}", text(&out));
}

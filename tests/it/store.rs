//! The object store tier against a real S3 server on loopback, through a proxy that makes faults, and on a local path.

mod commands;
mod kills;
mod proxy;
mod server;
mod training;

use crate::support::{herd, text};
use herd::error::Exit;
use serde_json::{json, Value};
use server::{credentials, SECRET};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A run directory with one checkpoint of step 0: 21 MB in one file, so three parts.
pub fn imported(dir: &Path) -> PathBuf {
    let hf = dir.join("hf");
    fs::create_dir(&hf).unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": 10000, "hidden_size": 512, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": true, "head_dim": 8
    });
    fs::write(hf.join("config.json"), config.to_string()).unwrap();
    let model = herd::convert::hf::config::parse(&config).unwrap().model;
    let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = herd::layout::units(&model)
        .into_iter()
        .flat_map(|(_, p)| p)
        .map(|(name, shape)| {
            let n: usize = shape.iter().product();
            (name, (shape, (0..n as u32).flat_map(|i| (i as f32 * 1.25e-4).sin().to_le_bytes()).collect()))
        })
        .collect();
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &hf.join("model.safetensors")).unwrap();
    let run = dir.join("run");
    good(herd().args(["checkpoint", "import"]).arg(&hf).arg(&run));
    run
}

fn good(c: &mut Command) -> String {
    let out = c.output().unwrap();
    assert!(out.status.success(), "{c:?}: {}", text(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// `herd checkpoint …` with credentials for the server at `port`.
fn command(port: u16, args: &[&str]) -> Command {
    let mut c = herd();
    c.arg("checkpoint").args(args);
    credentials(&mut c, port);
    c
}

fn json_of(port: u16, args: &[&str]) -> Value {
    serde_json::from_str(&good(command(port, args).arg("--json"))).unwrap()
}

fn fails(c: &mut Command, exit: Exit, words: &str) -> Output {
    let out = c.output().unwrap();
    assert_eq!(out.status.code(), Some(exit.code()), "{c:?}: {}", text(&out));
    assert!(text(&out).contains(words), "{c:?} does not say {words}: {}", text(&out));
    assert!(!text(&out).contains(SECRET), "{}", text(&out));
    out
}

/// A directory that is not there has no names.
fn names(dir: &Path) -> Vec<String> {
    if dir.is_dir() {
        crate::support::names(dir)
    } else {
        Vec::new()
    }
}

fn s(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Events of a run of one kind.
fn events(run: &Path, kind: &str) -> Vec<Value> {
    let all = fs::read_to_string(run.join("events.jsonl")).unwrap();
    all.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).filter(|e| e["kind"] == kind).collect()
}

fn losses(run: &Path) -> Vec<f64> {
    let all = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    all.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64()).collect()
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] })
        .collect()
}

//! A run of eight steps that has stopped after four, and what has become of its data since.

use super::table::{case, put, Case};
use crate::support::{herd, text};
use std::path::Path;

const GO_ON: &str = "train run.yaml --set train.stop_at=";

fn tokenize(dir: &Path, name: &str, word: &str) {
    let lines: String = (0..200).map(|i| format!("{word} {}\n", i * 7919 % 1000)).collect();
    put(dir, &format!("{name}.txt"), lines);
    let args = ["data", "tokenize", "-t", "bytes", "--force", "-o", name, &format!("{name}.txt")].map(String::from);
    let made = herd().args(args).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", text(&made));
}

fn stopped(dir: &Path) {
    configured(dir);
    half(dir);
}

/// A run with corpora `a` and `b`.
fn configured(dir: &Path) {
    tokenize(dir, "a", "owl");
    tokenize(dir, "b", "elk");
    put(
        dir,
        "run.yaml",
        "name: t\nrun_dir: run\nmodel:\n  shape: {vocab_size: 258, hidden_size: 16, intermediate_size: 32, \
         num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1}\ndata: {sequence_length: 16, \
         train: [{path: a, weight: 1}, {path: b, weight: 1}]}\nbatch: {global: 4, micro: 4}\n\
         train: {steps: 8, stop_at: 4, device: cpu, precision: fp32, threads: 1}\noptim: {warmup_steps: 1}\n",
    );
}

fn half(dir: &Path) {
    let half = herd().args(["train", "run.yaml"]).current_dir(dir).env_remove("SLURM_JOB_ID").output().unwrap();
    assert_eq!(half.status.code(), Some(75), "{}", text(&half));
}

/// The first corpus is made anew of another text of the same length.
fn made_anew(dir: &Path) {
    stopped(dir);
    tokenize(dir, "a", "ewe");
}

/// The same without herd's sidecar, as Megatron's files are.
fn made_anew_bare(dir: &Path) {
    configured(dir);
    std::fs::remove_file(dir.join("a.json")).unwrap();
    half(dir);
    tokenize(dir, "a", "ewe");
    std::fs::remove_file(dir.join("a.json")).unwrap();
}

fn moved(dir: &Path) {
    stopped(dir);
    for ending in ["bin", "idx", "json"] {
        put(dir, &format!("there/a.{ending}"), std::fs::read(dir.join(format!("a.{ending}"))).unwrap());
    }
}

/// The newest checkpoint, without what herd writes about data.
fn of_old(dir: &Path) {
    use xxhash_rust::xxh3::xxh3_64;
    stopped(dir);
    let path = dir.join("run/checkpoints/step-00000004/manifest.json");
    let old = std::fs::read_to_string(&path).unwrap();
    let (_, rest) = old.split_once('\n').unwrap();
    let mut body: serde_json::Value = serde_json::from_str(rest.strip_suffix("\n}\n").unwrap()).unwrap();
    assert!(body["meta"].as_object_mut().unwrap().remove("data").is_some(), "a checkpoint says which data it had");
    let body = body.to_string();
    let head = format!("{{\"herd_checkpoint\": 1, \"xxh3\": \"{:016x}\", \"manifest\":", xxh3_64(body.as_bytes()));
    std::fs::write(path, format!("{head}\n{body}\n}}\n")).unwrap();
}

pub fn rows() -> Vec<Case> {
    let goes_on = |case: Case| case.but("run").says(&["step 4"]);
    let refused = |case: Case| {
        case.but("run")
            .fails(10)
            .says(&["run: cannot go on from its checkpoint of step 4 with other data", "data.on_change: accept"])
    };
    vec![
        goes_on(case("nothing has changed", stopped, GO_ON)).never(&["data.train", "WARNING"]),
        refused(case("another weight", stopped, "train run.yaml --set train.stop_at= --set data.train.0.weight=3"))
            .says(&["data.train.0.weight: is 3 (75.00% of draws), but the checkpoint's run had 1 (50.00% of draws)"]),
        refused(case("a corpus for another", stopped, "train run.yaml --set train.stop_at= --set data.train.1.path=a"))
            .says(&["data.train.1.path: is a ("]),
        refused(case("one corpus less", stopped, "train run.yaml --set train.stop_at= --set data.train.1="))
            .says(&["data.train: has 1 corpora (a), but the checkpoint's run had 2 (a, b)"]),
        refused(case(
            "another order",
            stopped,
            "train run.yaml --set train.stop_at= --set data.train.0.path=b --set data.train.1.path=a",
        ))
        .says(&["in another order: b, a; it had a, b"]),
        refused(case("a corpus made anew", made_anew, GO_ON)).says(&["data.train.0.path: a was made anew"]),
        refused(case("a corpus without a sidecar made anew", made_anew_bare, GO_ON))
            .says(&["data.train.0.path: a was made anew"]),
        goes_on(case(
            "another weight that is accepted",
            stopped,
            "train run.yaml --set train.stop_at= --set data.train.0.weight=3 --set data.on_change=accept",
        ))
        .says(&["WARNING: other samples than before", "data.train.0.weight: is 3"]),
        goes_on(case(
            "weights by one factor",
            stopped,
            "train run.yaml --set train.stop_at= --set data.train.0.weight=3 --set data.train.1.weight=3",
        ))
        .never(&["data.train"]),
        goes_on(case(
            "a corpus that has moved",
            moved,
            "train run.yaml --set train.stop_at= --set data.train.0.path=there/a",
        ))
        .says(&["data.train.0.path: there/a holds what a held"]),
        goes_on(case("a checkpoint of an older herd", of_old, GO_ON)).says(&["could not be compared"]),
        case("another batch", stopped, "train run.yaml --set train.stop_at= --set batch.global=8")
            .but("run")
            .fails(10)
            .says(&["batch.global: is 8, but the checkpoint's run had 4"]),
        case("another sequence length", stopped, "train run.yaml --set train.stop_at= --set data.sequence_length=8")
            .but("run")
            .fails(10)
            .says(&["data.sequence_length: is 8, but the checkpoint's run had 16"]),
    ]
}

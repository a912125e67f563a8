//! Fine-tuning on conversations from end to end: what is refused before anything is queued, and a run that is stopped in the middle
//! of an epoch and goes on over other ranks.

use crate::conversations::{corpus, SEQUENCE, SHAPE};
use crate::support::{herd, mpirun, text};
use crate::train::{bits, herd_pids, losses, wait_for_step};
use herd::config::{ChatPacking, ChatSection, Corpus, TooLong};
use herd::data::{Cutting, Mixture};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A configuration on conversations in `corpus`, to start from the weights in `weights` if there are any.
fn config(d: &Path, name: &str, weights: Option<&Path>) -> Value {
    let model = match weights {
        Some(at) => json!({ "weights": at }),
        None => json!({}),
    };
    json!({
        "name": name, "run_dir": d.join(name), "model": model, "seed": 1234,
        "data": {"sequence_length": SEQUENCE, "train": [{"path": d.join("corpus")}], "chat": {}},
        "batch": {"global": 4, "micro": 1},
        "train": {"steps": 10, "precision": "fp32", "device": "cpu", "threads": 1},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "checkpoint": {"every": 0},
        "log": {"tensorboard": false, "sync_check_every": 0},
    })
}

fn train(d: &Path, name: &str, ranks: usize, sets: &[&str]) -> Output {
    command(d, name, ranks, sets).output().unwrap()
}

fn command(d: &Path, name: &str, ranks: usize, sets: &[&str]) -> Command {
    let file = d.join(format!("{name}.yaml"));
    fs::write(&file, config(d, name, None).to_string()).unwrap();
    let mut c = mpirun(ranks);
    c.arg(env!("CARGO_BIN_EXE_herd")).arg("train").arg(&file).args(["--set", SHAPE]).env("HERD_LOG", "trace");
    sets.iter().for_each(|set| _ = c.args(["--set", set]));
    c
}

/// Samples that the ranks of a run say they read, by step, each with how often, from the log of every rank.
fn read(run: &Path) -> BTreeMap<(u64, u64), usize> {
    let mut all = BTreeMap::new();
    let nodes = fs::read_dir(run.join("logs")).unwrap().map(|e| e.unwrap().path());
    for log in nodes.filter(|p| p.is_dir()).flat_map(|node| fs::read_dir(node).unwrap()) {
        for line in fs::read_to_string(log.unwrap().path()).unwrap().lines().filter(|l| l.contains("TRACE")) {
            let field = |key: &str| -> Option<u64> {
                let rest = line.split(key).nth(1)?;
                rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
            };
            if let (true, Some(step), Some(sample)) = (line.contains("read"), field("step="), field("sample=")) {
                *all.entry((step, sample)).or_default() += 1;
            }
        }
    }
    all
}

#[test]
fn stopped_in_mid_epoch_every_token_is_trained_on_once() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    corpus(&d.join("corpus"), 60, 40);
    let chat = ChatSection { packing: ChatPacking::FirstFit, too_long: TooLong::Refuse };
    let how = Cutting {
        sequence_length: SEQUENCE,
        seed: 1234,
        vocab_size: 263,
        documents: false,
        chat: Some(chat),
        pairs: false,
    };
    let mixture = Mixture::open(&[Corpus { path: d.join("corpus"), weight: None }], how, None).unwrap();
    let epoch = mixture.epoch_len();
    assert!(epoch > 20 && epoch < 40, "ten steps of four are more than one epoch and less than two: {epoch}");

    let whole = train(d, "whole", 1, &[]);
    assert!(whole.status.success(), "{}", text(&whole));
    let undisturbed = losses(&d.join("whole"));
    let want = read(&d.join("whole"));
    assert_eq!(want.keys().map(|k| k.1).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>(), "{want:?}");

    // The samples of the first epoch have every counting token once; those of a run are told by their numbers.
    let tokens = |samples: &[u64]| {
        let of = |i: &u64| mixture.sample(*i).unwrap().targets.unwrap();
        let mut all: Vec<i64> = samples.iter().flat_map(of).filter(|t| *t >= 0).collect();
        all.sort_unstable();
        all
    };
    let first: Vec<u64> = (0..epoch).collect();
    let second: Vec<u64> = (epoch..2 * epoch).collect();
    assert_eq!(tokens(&first), tokens(&second));

    // The last three where figures are asked for.
    let cells: [(&str, usize, &[&str]); 7] = [
        ("same", 1, &[]),
        ("zero3", 4, &["parallel.data=4", "parallel.zero=3"]),
        ("tensor", 2, &["parallel.tensor=2"]),
        ("pipeline", 2, &["parallel.pipeline=2"]),
        ("context", 2, &["parallel.context=2"]),
        ("zero1", 2, &["parallel.data=2", "parallel.zero=1"]),
        ("micro", 1, &["batch.micro=2"]),
    ];
    let file = std::env::var_os("HERD_RESUME_CELLS");
    let cells = &cells[..if file.is_some() { 7 } else { 4 }];
    let mut failed = Vec::new();
    for (name, ranks, sets) in cells {
        if let Err(why) = resumed(d, name, *ranks, sets, &undisturbed) {
            failed.push(format!("{name}: {why}"));
        }
    }
    if let Some(file) = file {
        let found = json!({ "cells": cells.len(), "failed": failed.len(), "steps": 10, "samples": 40 });
        fs::write(file, found.to_string()).unwrap();
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// The run of ten steps, stopped after the fourth, alone, and after the seventh, over the cell's ranks, as is the rest: once within the
/// first epoch, and once in the step that the second begins in. What is wrong with it, if anything.
fn resumed(d: &Path, name: &str, ranks: usize, sets: &[&str], undisturbed: &[f64]) -> Result<(), String> {
    let parts = [
        (train(d, name, 1, &["train.stop_at=4"]), 75),
        (train(d, name, ranks, &[&["train.stop_at=7"], sets].concat()), 75),
        (train(d, name, ranks, sets), 0),
    ];
    if let Some((out, _)) = parts.iter().find(|(out, code)| out.status.code() != Some(*code)) {
        return Err(text(out));
    }
    let found = read(&d.join(name));
    let samples: Vec<u64> = found.keys().map(|(_, sample)| *sample).collect();
    if samples != (0..40).collect::<Vec<_>>() {
        return Err(format!("not each sample once and in its order: {samples:?}"));
    }
    // Every rank of a replica reads what the replica trains on, once, and no other replica does.
    let replicas = sets.iter().find_map(|s| s.strip_prefix("parallel.data=")).map_or(1, |n| n.parse().unwrap());
    if found.iter().any(|((step, _), times)| if *step < 4 { *times != 1 } else { times * replicas != ranks }) {
        return Err(format!("read by others, or twice: {found:?}"));
    }
    let got = losses(&d.join(name));
    let same = match name {
        "same" => bits(&got) == bits(undisturbed),
        _ => got.len() == undisturbed.len() && got.iter().zip(undisturbed).all(|(a, b)| (a / b - 1.0).abs() < 1e-5),
    };
    if same {
        Ok(())
    } else {
        Err(format!("losses {got:?}, undisturbed {undisturbed:?}"))
    }
}

/// Killed twice without a word, in the middle of an epoch each time, the second time over other ranks: what was not saved is done again, with
/// the same samples in the same steps.
#[test]
fn killed_in_mid_epoch_every_step_has_its_samples() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    corpus(&d.join("corpus"), 60, 40);
    let long = ["train.steps=200", "train.stop_at=60", "checkpoint.every=3", "checkpoint.background=false"];
    let whole = train(d, "whole", 1, &long);
    assert_eq!(whole.status.code(), Some(75), "{}", text(&whole));
    let (undisturbed, want) = (losses(&d.join("whole")), read(&d.join("whole")));
    let run = d.join("killed");
    let replicas = ["parallel.data=2", "parallel.zero=1"];
    for (step, ranks, sets) in [(5, 1, &[][..]), (25, 2, &replicas)] {
        let mut child = command(d, "killed", ranks, &[&long[..], sets].concat());
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_step(&run, step, &mut child);
        // SAFETY: signals a process that this test started.
        assert_eq!(unsafe { libc::kill(herd_pids(child.id())[0], libc::SIGKILL) }, 0);
        let ended = child.wait().unwrap().code();
        assert!(!matches!(ended, Some(0 | 75)), "it was over before it was killed: {ended:?}");
    }
    let out = train(d, "killed", 2, &[&long[..], &["parallel.tensor=2"]].concat());
    assert_eq!(out.status.code(), Some(75), "{}", text(&out));
    assert_eq!(read(&run).into_keys().collect::<Vec<_>>(), want.into_keys().collect::<Vec<_>>());
    let got = losses(&run);
    assert_eq!(bits(&got[..3]), bits(&undisturbed[..3]));
    let apart = got.iter().zip(&undisturbed).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    assert!(got.len() == 60 && apart < 1e-4, "{apart:e}: {got:?} {undisturbed:?}");
}

fn check(d: &Path, config: &Value, sets: &[&str]) -> (Option<i32>, String) {
    fs::write(d.join("check.yaml"), config.to_string()).unwrap();
    let sets = sets.iter().flat_map(|s| ["--set", s]);
    let out = herd().current_dir(d).args(["config", "check", "check.yaml"]).args(sets).output().unwrap();
    (out.status.code(), text(&out))
}

#[test]
fn held_out_conversations_that_are_trained_on_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    corpus(&d.join("corpus"), 40, 40);
    // The first twelve are the same conversations.
    corpus(&d.join("leaked"), 12, 40);
    let mut c = config(d, "run", None);
    c["data"]["validation"] = json!([{ "path": d.join("leaked") }]);
    c["validation"] = json!({ "every": 5, "sequences": 4 });
    let (code, said) = check(d, &c, &[SHAPE]);
    assert!(code == Some(11) && said.contains("12 of 12 held-out conversations are in data.train too"), "{said}");
    assert!(said.contains("trap held-out-in-training") && said.contains("train.allow"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    // So does the start of a run, before it makes anything; one that goes on does not look again.
    let file = d.join("run.yaml");
    fs::write(&file, c.to_string()).unwrap();
    let start = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|s| ["--set", s]);
        herd().arg("train").arg(&file).args(["--set", SHAPE]).args(sets).output().unwrap()
    };
    let out = start(&[]);
    assert!(out.status.code() == Some(11) && text(&out).contains("trap held-out-in-training"), "{}", text(&out));
    assert!(!d.join("run/checkpoints").exists());
    let allow = "train.allow=[held-out-in-training]";
    let (code, said) = check(d, &c, &[SHAPE, allow]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(start(&[allow, "train.stop_at=3"]).status.code(), Some(75));
    // Other conversations are let pass without a word.
    fs::rename(d.join("corpus.bin"), d.join("x")).unwrap();
    let bin = fs::read(d.join("x")).unwrap();
    let other: Vec<u8> = bin.chunks(2).flat_map(|id| [id[0] ^ (id[1] == 0) as u8, id[1]]).collect();
    fs::write(d.join("corpus.bin"), other).unwrap();
    fs::remove_file(d.join("corpus.json")).unwrap();
    let (code, said) = check(d, &c, &[SHAPE]);
    assert!(code == Some(0) && !said.contains("held-out"), "{said}");
}

#[test]
fn a_learning_rate_of_another_method_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    corpus(&d.join("corpus"), 8, 40);
    let shape = "{vocab_size: 128256, hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: 32, \
        num_attention_heads: 32, num_key_value_heads: 8, max_position_embeddings: 8192, rope_theta: 500000.0}";
    let weights = d.join("weights");
    let mut c = config(d, "run", Some(&weights));
    let (lora, dpo) = (json!({ "rank": 16, "alpha": 32 }), json!({ "loss": "sigmoid" }));
    let shape = format!("model.shape={shape}");
    // method, rates that pass, rates that do not
    let table: [(&str, &[&str], &[&str]); 4] = [
        ("full fine-tuning", &["5e-6", "2e-5", "1e-4"], &["2e-4", "1e-2"]),
        ("adapters", &["5e-5", "2e-4", "1e-3"], &["5e-6", "1e-2"]),
        ("DPO", &["5e-7", "5e-6"], &["2e-5", "2e-4"]),
        ("DPO on adapters", &["5e-6", "5e-5"], &["2e-4"]),
    ];
    for (method, good, bad) in table {
        let both = c.as_object_mut().unwrap();
        both.remove("lora");
        both.remove("dpo");
        if method.contains("adapters") {
            both.insert("lora".into(), lora.clone());
        }
        if method.contains("DPO") {
            both.insert("dpo".into(), dpo.clone());
        }
        // The rule is of the configuration: neither weights nor corpora are looked at.
        let seen = |lr: &str, more: &[&str]| {
            let lr = format!("optim.lr={lr}");
            let sets = [&[shape.as_str(), &lr, "optim.min_lr=0"], more].concat();
            let (code, said) = check(d, &c, &[&sets[..], &["data.validation=[]"]].concat());
            (code, said)
        };
        for lr in good {
            let (_, said) = seen(lr, &[]);
            assert!(!said.contains("learning-rate"), "{method} {lr}: {said}");
        }
        for lr in bad {
            let (code, said) = seen(lr, &[]);
            let words = format!("than {method} of a model of 8.03 G");
            assert!(code == Some(10) && said.contains("trap learning-rate"), "{method} {lr}: {said}");
            assert!(said.replace("8.03G", "8.03 G").contains(&words), "{method} {lr}: {said}");
            assert!(!seen(lr, &["train.allow=[learning-rate]"]).1.contains("learning-rate"), "{method} {lr}");
        }
    }
    // Pretraining from weights is not judged.
    let c = c.as_object_mut().unwrap();
    c.remove("lora");
    c.remove("dpo");
    c["data"].as_object_mut().unwrap().remove("chat");
    let (_, said) = check(d, &Value::Object(c.clone()), &[&shape, "optim.lr=3e-4", "optim.min_lr=0"]);
    assert!(!said.contains("learning-rate"), "{said}");
}

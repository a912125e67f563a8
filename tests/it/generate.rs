//! The command that continues prompts, against transformers' `generate`.

use crate::model::{ask_oracle, Case};
use crate::support::{herd, text};
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

/// Prompt and greedy continuation as transformers has it.
fn ids(case: &Case) -> Vec<u32> {
    let ids: Vec<i64> = Vec::try_from(case.tensor("greedy")).unwrap();
    ids.iter().map(|&t| t as u32).collect()
}

fn generate(model: &Path, more: &[&str]) -> Output {
    herd().arg("generate").arg("--model").arg(model).args(more).output().unwrap()
}

/// Standard output of a run that must succeed.
fn said(model: &Path, more: &[&str]) -> String {
    let out = generate(model, more);
    assert!(out.status.success(), "{}", text(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// A run that must fail with `exit` and one line that holds all of `words`.
fn fails(model: &Path, more: &[&str], exit: i32, words: &[&str]) {
    let out = generate(model, more);
    let line = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(exit), "{line}");
    assert!(line.trim_end().lines().count() == 1 && words.iter().all(|w| line.contains(w)), "{line}");
}

#[test]
fn the_command_continues_prompts_from_every_source() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = "The herd é";
    let cases = json!({"bytes": {
        "model": {"vocab_size": 258, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2,
                  "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
                  "rope_theta": 10000.0, "tie_word_embeddings": true, "initializer_range": 0.15},
        "batch": 1, "sequence": 8, "prompt": 1, "new": 60, "text": prompt,
    }});
    ask_oracle(&cases, dir.path());
    let case = Case::new(&cases["bytes"], &std::fs::read(dir.path().join("bytes.safetensors")).unwrap());
    let continuation = &ids(&case)[prompt.len()..];
    let bytes = herd::data::tokenizer::Tokenizer::open("bytes").unwrap();
    let want = format!("{prompt}{}\n", bytes.decode(continuation));

    let hf = dir.path().join("bytes");
    let common = ["--tokenizer", "bytes", "--ignore-eos", "-n", "60"];
    let with = |more: &[&'static str]| [&common[..], more].concat();
    let greedy = ["--tokenizer", "bytes", "--ignore-eos", "-n", "60", "-p", prompt];
    assert_eq!(said(&hf, &greedy), want);

    // From standard input; several prompts, each as if alone.
    let mut child = herd()
        .arg("generate")
        .arg("--model")
        .arg(&hf)
        .args(with(&["-p", "-", "-p", "x"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{prompt}\n").as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let alone = said(&hf, &with(&["-p", "x"]));
    assert_eq!(String::from_utf8(out.stdout).unwrap(), format!("{want}\n{alone}"));

    // A run directory and its checkpoint, imported from the same weights.
    let run = dir.path().join("run");
    let imported = herd().args(["checkpoint", "import"]).arg(&hf).arg(&run).output().unwrap();
    assert!(imported.status.success(), "{}", text(&imported));
    assert_eq!(said(&run, &greedy), want);
    assert_eq!(said(&run.join("checkpoints/step-00000000"), &greedy), want);

    // Draws follow the seed.
    let drawn =
        |seed: &'static str| said(&hf, &with(&["-p", "x", "--temperature", "1", "--top-p", "0.9", "--seed", seed]));
    assert_eq!(drawn("3"), drawn("3"));
    assert_ne!(drawn("3"), drawn("4"));

    // The end-of-text token ends the text and is not shown: make it of a token that comes.
    let config = hf.join("config.json");
    let mut edited: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    edited["eos_token_id"] = json!(continuation[20]);
    std::fs::write(&config, edited.to_string()).unwrap();
    let end = continuation.iter().position(|t| *t == continuation[20] || *t == 257).unwrap();
    let stopped = said(&hf, &["--tokenizer", "bytes", "-n", "60", "-p", prompt]);
    assert_eq!(stopped, format!("{prompt}{}\n", bytes.decode(&continuation[..end])));

    // What cannot work.
    let long = "x".repeat(128);
    fails(&hf, &["--tokenizer", "bytes", "-p", &long], 11, &["128 tokens"]);
    fails(&hf, &["--tokenizer", "bytes", "-p", ""], 11, &["no tokens"]);
    fails(&hf, &["-p", "x"], 11, &["names no tokenizer", "--tokenizer"]);
    fails(&hf, &["-p", "x", "--top-p", "1.5", "--temperature", "-1"], 2, &["top-p is 1.5", "temperature is -1"]);
    fails(&dir.path().join("absent"), &["-p", "x"], 12, &["absent"]);
    if !tch::Cuda::is_available() {
        fails(&hf, &["-p", "x", "--device", "cuda"], 14, &["no CUDA device"]);
    }
    edited["vocab_size"] = json!(257);
    std::fs::write(&config, edited.to_string()).unwrap();
    fails(&hf, &["--tokenizer", "bytes", "-p", "x"], 12, &["257", "258"]);
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cases = json!({"small": {
        "model": {"vocab_size": 200, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.1},
        "batch": 1, "sequence": 2, "prompt": 1, "new": 1, "text": "x",
    }});
    ask_oracle(&cases, dir.path());
    fails(&dir.path().join("small"), &["--tokenizer", "bytes", "-p", "x"], 11, &["258", "200", "tokenizer"]);
}

//! `--quantize`: near the model in fp32, the same over every topology, in any company; bad options; GGUF's blocks kept as they are.

use crate::batch::{fails, ok};
use crate::model::ask_oracle;
use crate::models_in_out::{json_file, put};
use crate::support::{herd, python, text};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Answers by their ids.
fn answers(path: &Path) -> BTreeMap<String, Value> {
    let all = fs::read_to_string(path).unwrap();
    let of = |line: &str| {
        let v: Value = serde_json::from_str(line).unwrap();
        (v["custom_id"].to_string(), v["response"]["body"]["choices"][0].clone())
    };
    all.lines().map(of).collect()
}

fn logprobs(choice: &Value) -> Vec<f64> {
    choice["logprobs"]["token_logprobs"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// A model whose columns, cut in two, are multiples of 128; its prompts.
fn wide(dir: &Path) -> Vec<Vec<usize>> {
    let prompts: Vec<Vec<usize>> =
        (0..24).map(|i| (0..1 + i * 7 % 50).map(|k| (i * 31 + k * 17) % 256).collect()).collect();
    ask_oracle(
        &json!({"m": {
            "model": {"vocab_size": 258, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
                      "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
                      "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
                      "initializer_range": 0.06},
            "batch": 1, "sequence": 2, "prompt": 1, "new": 12, "prompts": prompts,
        }}),
        dir,
    );
    let body = |(i, p): (usize, &Vec<usize>)| {
        let line = json!({"id": i, "prompt": p, "temperature": 0, "max_tokens": 12, "ignore_eos": true, "logprobs": 1,
                          "return_token_ids": true});
        format!("{line}\n")
    };
    fs::write(dir.join("in.jsonl"), prompts.iter().enumerate().map(body).collect::<String>()).unwrap();
    prompts
}

#[test]
fn quantized_texts_are_near_and_the_same_over_every_topology() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    wide(d);
    let want = json_file(&d.join("m/greedy.json"));
    for (format, near) in [("int8", 0.35), ("int4", 1.0)] {
        let mut bits = BTreeMap::new();
        let mut alone: Option<BTreeMap<String, Value>> = None;
        for (ranks, how, more) in [
            (1, "alone", &["--max-sequences", "1"][..]),
            (1, "alone", &["--max-batch-tokens", "17"]),
            (2, "alone", &[]),
            (2, "tensor", &["--tensor", "2", "--max-sequences", "1"]),
            (2, "tensor", &["--tensor", "2"]),
            (2, "pipeline", &["--pipeline", "2"]),
            (4, "both", &["--tensor", "2", "--pipeline", "2", "--max-batch-tokens", "33"]),
        ] {
            let out = format!("{format}-{ranks}-{}.jsonl", more.join("-"));
            let args = ["--model", "m", "--tokenizer", "bytes", "--quantize", format, "in.jsonl", &out];
            let told = ok(d, ranks, &[&args[..], more].concat());
            let line = format!("matrices of the blocks {format}, head int8");
            assert!(told.contains(&line) && !told.contains("no multiple of 128"), "{told}");
            let got = answers(&d.join(&out));
            // In any company, over any number of replicas: the same bits on the same topology.
            assert_eq!(bits.entry(how).or_insert(got.clone()), &got, "{format} {more:?}");
            let alone = alone.get_or_insert(got.clone());
            let mut compared = 0;
            for (id, choice) in &got {
                // The order in which ranks' sums are added moves an activation by its last bit, and one that lies between two
                // integers by a whole step: as long as the tokens are alike, the scores are near.
                let whole = &alone[id];
                let same = (choice["token_ids"].as_array().unwrap().iter())
                    .zip(whole["token_ids"].as_array().unwrap())
                    .take_while(|(a, b)| a == b)
                    .count();
                for (a, b) in logprobs(choice).iter().zip(logprobs(whole)).take(same) {
                    assert!((a - b).abs() < near / 4.0, "{format} {more:?} {id}: {a} {b}");
                }
                // Four bits of random weights are too few to be near anything; perplexity is the benchmark's.
                if format == "int4" {
                    continue;
                }
                // As long as the tokens are those of the model in fp32.
                let (tokens, theirs) = (choice["token_ids"].as_array().unwrap(), &want[id.parse::<usize>().unwrap()]);
                let same = tokens.iter().zip(theirs["tokens"].as_array().unwrap()).take_while(|(a, b)| a == b).count();
                for (a, b) in logprobs(choice).iter().zip(theirs["logprobs"].as_array().unwrap()).take(same) {
                    assert!((a - b.as_f64().unwrap()).abs() < near, "{format} {more:?} {id}: {a} {b}");
                    compared += 1;
                }
            }
            assert!(format == "int4" || compared > 24 * 3, "{format}: only {compared} tokens alike");
        }
    }
}

#[test]
fn options_that_cannot_be_are_refused_and_another_format_is_another_file() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    crate::batch::small(d);
    put(&d.join("in.jsonl"), &json!({"id": 1, "prompt": "abc", "max_tokens": 3}));
    fails(d, &["--model", "m", "--quantize", "int5", "in.jsonl", "o.jsonl"], 2, &["int5", "int8", "int4"]);
    let out = herd().current_dir(d).args(["generate", "--model", "m", "--quantize", "q8", "-p", "x"]).output().unwrap();
    assert!(out.status.code() == Some(2) && text(&out).contains("int8"), "{}", text(&out));
    ok(d, 1, &["--model", "m", "in.jsonl", "o.jsonl"]);
    let words = ["quantize was null, now \"int8\"", "name another file"];
    fails(d, &["--model", "m", "--quantize", "int8", "in.jsonl", "o.jsonl"], 11, &words);
    // 64 and 160 columns cut in two: said, not refused.
    let told = ok(d, 2, &["--model", "m", "--tensor", "2", "--quantize", "int4", "in.jsonl", "two.jsonl"]);
    assert!(told.contains("32 of 64 columns a rank are no multiple of 128"), "{told}");
    let args = ["generate", "--model", "m", "--quantize", "int8", "-p", "x", "-n", "4", "--ignore-eos"];
    let out = herd().current_dir(d).args(args).output().unwrap();
    assert!(out.status.success() && text(&out).contains("matrices of the blocks int8"), "{}", text(&out));
}

#[test]
fn blocks_of_a_gguf_file_stay_as_they_are_in_int4() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let out = python().arg("tests/oracle/gguf_model.py").arg(d).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let args = ["generate", "--model", "m.gguf", "--tokenizer", "bytes", "-p", "x", "-n", "2", "--quantize"];
    let told = |format: &str| {
        let out = herd().current_dir(d).args(args).arg(format).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        text(&out)
    };
    // The file has a tensor in eight as Q4_0.
    let int4 = told("int4");
    assert!(int4.contains("tensors without loss"), "{int4}");
    let int8 = told("int8");
    assert!(!int8.contains("without loss"), "{int8}");
}

//! A GGUF file becomes a directory: weights, tokenizer, template and greedy text are those that transformers finds in it.

use crate::models_in_out::{json_file, ok, refused};
use crate::support::{python, text};
use herd::data::chat::ChatTemplate;
use herd::data::tokenizer::Tokenizer;
use safetensors::SafeTensors;
use serde_json::{json, Value};
use std::fs;

#[test]
fn a_gguf_file_becomes_what_transformers_reads_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let out = python().arg("tests/oracle/gguf_model.py").arg(d).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let told = ok(d, &["checkpoint", "import", "m.gguf", "hf"]);
    assert!(told.contains("tokenizer.json, tokenizer_config.json"), "{told}");

    // The same floats, of every kind of tensor, in the same order of rows.
    let (ours, theirs) =
        (fs::read(d.join("hf/model.safetensors")).unwrap(), fs::read(d.join("weights.safetensors")).unwrap());
    let (ours, theirs) = (SafeTensors::deserialize(&ours).unwrap(), SafeTensors::deserialize(&theirs).unwrap());
    let sorted = |t: &SafeTensors| {
        let mut names: Vec<String> = t.names().into_iter().map(String::from).collect();
        names.sort();
        names
    };
    assert_eq!(sorted(&ours), sorted(&theirs));
    for name in sorted(&ours) {
        let (a, b) = (ours.tensor(&name).unwrap(), theirs.tensor(&name).unwrap());
        assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "{name}");
        assert!(a.data() == b.data(), "{name} differs");
    }

    // The same ids and conversations, and the same text, from the directory and from the file itself.
    let want = json_file(&d.join("greedy.json"));
    let t = Tokenizer::open(d.join("hf").to_str().unwrap()).unwrap();
    for case in want["texts"].as_array().unwrap() {
        assert_eq!(json!(t.encode_special(case["text"].as_str().unwrap()).unwrap()), case["ids"], "{case}");
    }
    let messages = [json!({"role": "user", "content": "Hi"})];
    assert_eq!(ChatTemplate::of(&t).unwrap().render(&messages).unwrap(), want["chat"].as_str().unwrap());
    assert_eq!(t.decode(&t.encode("1234 über 𝄞").unwrap()), "1234 über 𝄞");
    assert_eq!(json_file(&d.join("hf/generation_config.json"))["eos_token_id"], 2);
    let cases = want["greedy"].as_array().unwrap();
    let lines = cases.iter().enumerate().map(|(i, c)| {
        format!("{}\n", json!({"id": i, "prompt": c["prompt"], "temperature": 0, "max_tokens": 16, "ignore_eos": true, "return_token_ids": true}))
    });
    fs::write(d.join("in.jsonl"), lines.collect::<String>()).unwrap();
    for model in ["hf", "m.gguf"] {
        ok(
            d,
            &["batch", "--model", model, "--tokenizer", "hf", "--cache-gb", "0.1", "in.jsonl", &format!("{model}.out")],
        );
        for line in fs::read_to_string(d.join(format!("{model}.out"))).unwrap().lines() {
            let v: Value = serde_json::from_str(line).unwrap();
            let i = v["custom_id"].as_u64().unwrap() as usize;
            assert_eq!(v["response"]["body"]["choices"][0]["token_ids"], cases[i]["tokens"], "{model} {i}");
        }
    }

    refused(d, &["checkpoint", "import", "m.gguf", "hf"], 2, &["hf exists", "not an empty directory"]);
    refused(
        d,
        &["generate", "--model", "m.gguf", "-p", "x"],
        11,
        &["m.gguf names no tokenizer", "herd checkpoint import"],
    );
    let whole = fs::read(d.join("m.gguf")).unwrap();
    fs::write(d.join("cut.gguf"), &whole[..whole.len() / 2]).unwrap();
    refused(d, &["checkpoint", "import", "cut.gguf", "cut"], 12, &["cut.gguf", "download is incomplete"]);
    assert!(!d.join("cut").exists());
}

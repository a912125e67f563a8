//! `--num-speculative-tokens`: the same bytes with proposed tokens and without, over ranks, in a small cache, from every command.

use crate::batch::{ok, small_model};
use crate::http::client::serve;
use crate::models_in_out::tokenizer;
use crate::support::{herd, text};
use serde_json::{json, Value};
use std::fs;
use std::path::Path;

/// A model on disk whose likeliest token is often the last one again, by its tied embedding; with a chat template.
pub fn stammerer(dir: &Path) {
    small_model(dir, 259, true, 0.07);
    tokenizer(&dir.join("m"));
    fs::write(dir.join("m/chat_template.jinja"), "{{ messages[-1].content + '\n' }}").unwrap();
}

/// Requests of every kind behind prompts that repeat.
fn requests() -> String {
    let line = |i: usize| {
        let prompt = "the cow and the goat and the "[..10 + i % 19].repeat(1 + i % 4);
        let more = match i % 5 {
            0 => json!({"temperature": 0, "logprobs": 2}),
            1 => json!({"seed": i, "top_p": 0.9, "n": 3, "temperature": 0.6}),
            2 => json!({"temperature": 0.7, "stop": ["eee", "zz"], "repetition_penalty": 1.05, "logprobs": 0}),
            3 => json!({"min_p": 0.1, "presence_penalty": 0.4, "ignore_eos": true, "temperature": 0.5}),
            _ => json!({"temperature": 0, "structured_outputs": {"regex": "(the |cow |and ){3,20}"}, "logprobs": 1}),
        };
        let mut body = json!({"prompt": prompt, "max_tokens": 20 + i % 50, "return_token_ids": true, "id": i});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("{body}\n")
    };
    (0..100).map(line).collect()
}

#[test]
fn proposed_tokens_change_no_byte_over_any_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    stammerer(d);
    fs::write(d.join("in.jsonl"), requests()).unwrap();
    for (ranks, how) in [(1, &[][..]), (2, &["--tensor", "2"]), (2, &["--pipeline", "2"]), (3, &[])] {
        let mut answers: Option<Vec<String>> = None;
        for more in [
            &["--max-sequences", "1"][..],
            &["--num-speculative-tokens", "6"],
            // 520 places for 32 texts of up to 150: they give way to each other.
            &["--num-speculative-tokens", "20", "--max-batch-tokens", "50", "--cache-gb", "0.00055"],
        ] {
            let out = format!("{ranks}{}{}.jsonl", how.join(""), more.concat());
            let told = ok(d, ranks, &[&["--model", "m"], how, more, &["in.jsonl", &out]].concat());
            let mut got: Vec<String> = fs::read_to_string(d.join(&out)).unwrap().lines().map(str::to_string).collect();
            got.sort();
            assert_eq!(got.len(), 100);
            assert_eq!(answers.get_or_insert(got.clone()), &got, "{ranks} {how:?} {more:?}");
            match told.split(" proposed tokens accepted").next().filter(|t| t.len() < told.len()) {
                Some(before) => {
                    let words: Vec<&str> = before.rsplit(' ').take(3).collect();
                    let number = |n: &str| n.replace(',', "").parse::<u64>().unwrap();
                    let (proposed, accepted) = (number(words[0]), number(words[2]));
                    assert!(accepted > 100 && proposed > accepted, "{told}");
                }
                None => assert_eq!(more[0], "--max-sequences", "{told}"),
            }
        }
    }
}

#[test]
fn the_other_commands_propose_too() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    stammerer(d);
    let generate = |more: &[&str]| {
        let args =
            ["generate", "--model", "m", "-p", "the cow and the cow", "-n", "80", "--ignore-eos", "--threads", "1"];
        herd().current_dir(d).args(args).args(more).output().unwrap()
    };
    let (plain, ahead) = (generate(&[]), generate(&["--num-speculative-tokens", "8"]));
    assert!(plain.status.success() && ahead.status.success(), "{}{}", text(&plain), text(&ahead));
    assert_eq!(plain.stdout, ahead.stdout);
    assert!(
        text(&ahead).contains("proposed tokens accepted") && !text(&plain).contains("proposed"),
        "{}",
        text(&ahead)
    );
    let out = generate(&["--num-speculative-tokens", "65"]);
    assert!(out.status.code() == Some(2) && text(&out).contains("from 0 to 64"), "{}", text(&out));

    let body =
        json!({"prompt": "the cow and the cow", "max_tokens": 80, "temperature": 0, "ignore_eos": true, "logprobs": 1});
    let answer = |args: &[&str]| -> (Value, f64, f64) {
        let s = serve(d, 1, &format!("run{}", args.len()), &[&["--model", "m"], args].concat());
        let choices = s.post("/v1/completions", &body)["choices"].clone();
        (choices, s.figure("herd_proposed_tokens_total"), s.figure("herd_accepted_tokens_total"))
    };
    let (plain, none, _) = answer(&[]);
    let (ahead, proposed, accepted) = answer(&["--num-speculative-tokens", "8"]);
    assert_eq!((plain, none), (ahead, 0.0));
    assert!(accepted > 5.0 && proposed >= accepted, "{proposed} {accepted}");
}

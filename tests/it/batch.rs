//! `herd batch`: against transformers, alone and in company, over ranks, over kills, over bad input.

use crate::model::ask_oracle;
use crate::models_in_out::{json_file, put, tokenizer};
use crate::support::{herd_on, text};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The command over `n` ranks.
fn batch(dir: &Path, n: usize, args: &[&str]) -> Command {
    let mut c = herd_on(n);
    c.current_dir(dir).args(["batch", "--threads", "1"]).args(args);
    if !args.contains(&"--cache-gb") {
        c.args(["--cache-gb", "0.1"]);
    }
    c
}

fn run(dir: &Path, n: usize, args: &[&str]) -> Output {
    batch(dir, n, args).output().unwrap()
}

pub fn ok(dir: &Path, n: usize, args: &[&str]) -> String {
    let out = run(dir, n, args);
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    text(&out)
}

pub fn fails(dir: &Path, args: &[&str], exit: i32, words: &[&str]) {
    let out = run(dir, 1, args);
    let told = text(&out);
    assert_eq!(out.status.code(), Some(exit), "{told}");
    assert!(words.iter().all(|w| told.contains(w)), "{words:?}: {told}");
}

/// The lines of a file, sorted: the order of the answers is nobody's promise.
fn sorted(path: &Path) -> Vec<String> {
    let mut lines: Vec<String> = fs::read_to_string(path).unwrap().lines().map(str::to_string).collect();
    lines.sort();
    lines
}

fn lines(values: impl IntoIterator<Item = Value>) -> String {
    values.into_iter().map(|v| format!("{v}\n")).collect()
}

/// Repeatable numbers below `n`.
fn random(seed: &mut u64, n: usize) -> usize {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*seed >> 33) as usize % n
}

/// A small model on disk, with the tokenizer `bytes`.
pub fn small(dir: &Path) {
    small_model(dir, 258, false, 0.2);
    put(&dir.join("m/herd_tokenizer.json"), &json_file_of_bytes());
}

/// The same without a tokenizer: `vocab` ids, output matrix `tied` to the embedding or not, initial values of deviation `range`.
pub fn small_model(dir: &Path, vocab: usize, tied: bool, range: f64) {
    let cases = json!({"m": {
        "model": {"vocab_size": vocab, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
                  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
                  "rope_theta": 10000.0, "tie_word_embeddings": tied, "initializer_range": range},
        "batch": 1, "sequence": 2, "prompt": 1, "new": 1, "text": "x",
    }});
    ask_oracle(&cases, dir);
}

fn json_file_of_bytes() -> Value {
    let files = herd::data::tokenizer::Tokenizer::open("bytes").unwrap().files();
    let (_, content) = files.iter().find(|(name, _)| name == "herd_tokenizer.json").unwrap();
    serde_json::from_slice(content).unwrap()
}

const REQUESTS: usize = 300;

/// Requests of every kind.
fn requests(n: usize) -> String {
    let mut seed = 5;
    lines((0..n).map(|i| {
        let prompt: String = (0..1 + random(&mut seed, 60)).map(|_| (b'a' + random(&mut seed, 26) as u8) as char).collect();
        let body = match i % 4 {
            0 => json!({"prompt": prompt, "max_tokens": 24, "temperature": 0, "logprobs": 2}),
            1 => json!({"prompt": prompt, "max_tokens": 40, "seed": i, "top_p": 0.9, "n": 2}),
            2 => json!({"prompt": prompt, "max_tokens": 9, "temperature": 0.7, "stop": ["e", "zz"], "repetition_penalty": 1.2}),
            _ => json!({"prompt": prompt, "max_tokens": 30, "min_p": 0.1, "frequency_penalty": 0.4, "ignore_eos": true}),
        };
        json!({"custom_id": format!("r{i}"), "method": "POST", "url": "/v1/completions", "body": body})
    }))
}

/// Grouped queries; tied; frequencies scaled; head width ≠ hidden / heads: each with its prompts, the longest beyond the original
/// context.
fn shapes() -> Value {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32});
    let mut seed = 9;
    let mut case = |change: Value| {
        let mut model = json!({
            "vocab_size": 258, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 3,
            "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": false, "initializer_range": 0.15,
        });
        model.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let prompt = |seed: &mut u64| (0..1 + random(seed, 70)).map(|_| random(seed, 258)).collect::<Vec<usize>>();
        let prompts: Vec<Vec<usize>> = (0..50).map(|_| prompt(&mut seed)).collect();
        json!({"model": model, "batch": 1, "sequence": 2, "prompt": 1, "new": 12, "prompts": prompts})
    };
    json!({
        "grouped": case(json!({})),
        "tied": case(json!({"tie_word_embeddings": true, "num_key_value_heads": 6})),
        "scaled": case(json!({"rope_scaling": scaling})),
        "wide_heads": case(json!({"head_dim": 20, "rope_scaling": scaling, "tie_word_embeddings": true})),
    })
}

#[test]
fn greedy_tokens_and_logprobs_equal_transformers_over_every_topology() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let cases = shapes();
    ask_oracle(&cases, d);
    for (name, case) in cases.as_object().unwrap() {
        let want = json_file(&d.join(name).join("greedy.json"));
        let body = |(i, p): (usize, &Value)| {
            json!({"id": i, "prompt": p, "temperature": 0, "max_tokens": 12, "ignore_eos": true, "logprobs": 0,
                   "return_token_ids": true})
        };
        let prompts = case["prompts"].as_array().unwrap();
        fs::write(d.join("in.jsonl"), lines(prompts.iter().enumerate().map(body))).unwrap();
        let mut bits = BTreeMap::new();
        for (ranks, how, more) in [
            (1, "alone", &["--max-sequences", "1"][..]),
            (1, "alone", &["--max-batch-tokens", "17"]),
            (2, "tensor", &["--tensor", "2", "--max-sequences", "1"]),
            (2, "tensor", &["--tensor", "2"]),
            (2, "pipeline", &["--pipeline", "2"]),
            (4, "both", &["--tensor", "2", "--pipeline", "2", "--max-batch-tokens", "33"]),
            (2, "alone", &[]),
        ] {
            let out = format!("{name}-{ranks}-{}.jsonl", more.join("-"));
            let args = ["--model", name, "--tokenizer", "bytes", "in.jsonl", &out];
            ok(d, ranks, &[&args[..], more].concat());
            let got = sorted(&d.join(&out));
            assert_eq!(got.len(), 50);
            for line in &got {
                let v: Value = serde_json::from_str(line).unwrap();
                let i = v["custom_id"].as_u64().unwrap() as usize;
                let choice = &v["response"]["body"]["choices"][0];
                assert_eq!(choice["token_ids"], want[i]["tokens"], "{name} {more:?} {i}");
                for (g, w) in choice["logprobs"]["token_logprobs"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .zip(want[i]["logprobs"].as_array().unwrap())
                {
                    let (g, w) = (g.as_f64().unwrap(), w.as_f64().unwrap());
                    assert!((g - w).abs() < 1e-4, "{name} {more:?} {i}: {g} {w}");
                }
            }
            // In any company, over any number of replicas: the same bits on the same topology.
            assert_eq!(bits.entry(how).or_insert(got.clone()), &got, "{name} {more:?}");
        }
    }
}

/// Waits until the file of answers has so many bytes; false where the process ended before.
fn grown(path: &Path, bytes: u64, child: &mut std::process::Child) -> bool {
    let began = Instant::now();
    loop {
        if fs::metadata(path).is_ok_and(|m| m.len() >= bytes) {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "no answer came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The children of a process (proc(5), stat), in order.
pub fn ranks_of(parent: u32) -> Vec<u32> {
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let all = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    let mut own: Vec<u32> = all.filter(|&pid| parent_of(pid) == Some(parent)).collect();
    own.sort();
    own
}

#[test]
fn a_batch_that_is_killed_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    small(d);
    fs::write(d.join("in.jsonl"), requests(REQUESTS)).unwrap();
    ok(d, 1, &["--model", "m", "in.jsonl", "whole.jsonl"]);
    let whole = sorted(&d.join("whole.jsonl"));
    let size = fs::metadata(d.join("whole.jsonl")).unwrap().len();
    assert_eq!(whole.len(), REQUESTS);
    let mut seed = 3;
    for (ranks, name) in [(1, "one.jsonl"), (2, "two.jsonl")] {
        let out = d.join(name);
        let (mut kills, mut done) = (0, false);
        while !done {
            // One text at a time, so that it takes long enough to be killed often.
            let args = ["--model", "m", "--max-sequences", "1", "in.jsonl", name];
            let mut child = batch(d, ranks, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let before = fs::metadata(&out).map_or(0, |m| m.len());
            // Answers of the second replica come in heaps.
            let most = size as usize / if ranks == 1 { 12 } else { 60 };
            let more = 1 + random(&mut seed, most) as u64;
            if kills < 8 && grown(&out, before + more, &mut child) {
                // mpirun ends the other rank, and has to be waited for.
                let victim = if ranks == 1 { child.id() } else { *ranks_of(child.id()).last().unwrap_or(&child.id()) };
                // SAFETY: a child that has not been waited for, or its own.
                unsafe { libc::kill(victim as i32, libc::SIGKILL) };
                kills += 1;
                child.wait().unwrap();
            } else {
                done = child.wait().unwrap().success();
                assert!(done, "it ended badly by itself");
            }
        }
        assert!(kills > 2, "it was killed {kills} times on its way, on {ranks} ranks");
        assert_eq!(sorted(&out), whole, "{ranks} ranks");
        let again = ok(d, ranks, &["--model", "m", "in.jsonl", name]);
        assert!(
            again.contains(&format!("{REQUESTS} answered before")) && again.contains("0 of 0 requests answered"),
            "{again}"
        );
        assert_eq!(sorted(&out), whole);
    }
    // A signal: what is done is kept, the exit code says that there is more.
    let args = ["--model", "m", "--max-sequences", "2", "in.jsonl", "asked.jsonl"];
    let mut child = batch(d, 1, &args).stderr(Stdio::piped()).spawn().unwrap();
    assert!(grown(&d.join("asked.jsonl"), 1, &mut child));
    // SAFETY: a child that has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    let out = child.wait_with_output().unwrap();
    assert!(out.status.code() == Some(75) && text(&out).contains("start again to go on"), "{}", text(&out));
    assert!(sorted(&d.join("asked.jsonl")).len() < REQUESTS);
    ok(d, 1, &args);
    assert_eq!(sorted(&d.join("asked.jsonl")), whole);
}

#[test]
fn bad_lines_are_answered_and_bad_files_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    small(d);
    let many: Vec<String> = (0..10_000).map(|i| i.to_string()).collect();
    let input = [
        json!({"custom_id": "good", "prompt": "abc", "max_tokens": 3, "user": "me"}).to_string(),
        "{\"custom_id\": \"nan\", \"prompt\": \"x\", \"temperature\": NaN}".into(),
        json!({"custom_id": "stops", "prompt": "x", "stop": many}).to_string(),
        json!({"custom_id": "long", "prompt": "x".repeat(1 << 20)}).to_string(),
        json!({"custom_id": "who", "prompt": "x", "model": "gpt-4"}).to_string(),
        json!({"custom_id": "chat", "messages": [{"role": "user", "content": "x"}]}).to_string(),
        "not JSON".into(),
        json!({"prompt": [0, 255], "max_tokens": 2, "model": "m"}).to_string(),
        json!({"custom_id": "penalty", "prompt": "abc", "max_tokens": 3, "repetition_penalty": 1e300}).to_string(),
    ]
    .join("\n");
    fs::write(d.join("in.jsonl"), input).unwrap();
    let told = ok(d, 1, &["--model", "m", "in.jsonl", "out.jsonl"]);
    assert!(told.contains("9 of 9 requests answered, 6 refused") && told.contains("user of requests"), "{told}");
    let answers: Vec<Value> = sorted(&d.join("out.jsonl")).iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    for (i, (code, param)) in [
        ("", ""),
        ("invalid_json", ""),
        ("invalid_value", "stop"),
        ("context_length_exceeded", "prompt"),
        ("model_not_found", "model"),
        ("not_supported", "messages"),
        ("invalid_json", ""),
        ("", ""),
        ("", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let v = &answers[i];
        assert_eq!(v["error"]["code"].as_str().unwrap_or(""), code, "{v}");
        assert_eq!(v["error"]["param"].as_str().unwrap_or(""), param, "{v}");
        match code {
            "" => assert_eq!(v["response"]["status_code"], 200),
            _ => assert_eq!((&v["error"]["line"], &v["response"]), (&json!(i + 1), &Value::Null)),
        }
    }
    assert_eq!(answers[0]["custom_id"], "good");
    assert_eq!(answers[0]["response"]["body"]["usage"]["total_tokens"], 6);
    assert_eq!(answers[7]["custom_id"], Value::Null);

    // Another input, other settings, another's file, names that are shared, ranks that do not fit.
    fails(
        d,
        &["--model", "m", "--seed", "1", "in.jsonl", "out.jsonl"],
        11,
        &["seed was 0, now 1", "name another file"],
    );
    fs::write(d.join("other.jsonl"), json!({"prompt": "x"}).to_string()).unwrap();
    fails(d, &["--model", "m", "other.jsonl", "out.jsonl"], 11, &["input was"]);
    fails(d, &["--model", "m", "other.jsonl", "in.jsonl"], 11, &["in.jsonl is not empty"]);
    fs::write(d.join("twice.jsonl"), lines([json!({"id": 1, "prompt": "x"}), json!({"id": 1, "prompt": "y"})]))
        .unwrap();
    fails(d, &["--model", "m", "twice.jsonl", "t.jsonl"], 11, &["custom_id 1 is that of lines 1, 2"]);
    assert!(!d.join("t.jsonl").exists());
    fails(d, &["--model", "m", "absent.jsonl", "t.jsonl"], 11, &["absent.jsonl"]);
    fails(d, &["--model", "absent", "other.jsonl", "t.jsonl"], 12, &["absent"]);
    fails(d, &["--model", "m", "--tensor", "2", "other.jsonl", "t.jsonl"], 2, &["1 ranks are no multiple of tensor 2"]);
    fails(d, &["--model", "m", "--max-length", "1000", "other.jsonl", "t.jsonl"], 2, &["1000", "256"]);
    fails(d, &["--model", "m", "--cache-gb", "0.000001", "other.jsonl", "t.jsonl"], 2, &["--max-length", "--cache-gb"]);
    fails(d, &["--model", "m", "--temperature", "-1", "other.jsonl", "t.jsonl"], 2, &["temperature is -1"]);
    let out = run(d, 2, &["--model", "m", "--tensor", "2", "--pipeline", "2", "other.jsonl", "t.jsonl"]);
    assert!(out.status.code() == Some(2) && text(&out).contains("2 ranks are no multiple"), "{}", text(&out));
}

#[test]
fn conversations_and_several_replicas_give_what_the_command_for_one_gives() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let c = |c: char| c as u32;
    let m = crate::models_in_out::model(&d.join("m"), &[(10, c('H')), (c('H'), c('i')), (c('i'), 258), (258, c('A'))]);
    tokenizer(&m);
    let mut config = json_file(&m.join("config.json"));
    config["eos_token_id"] = json!([257, 258]);
    put(&m.join("config.json"), &config);
    fs::write(m.join("chat_template.jinja"), "{{ messages[-1].content + '\n' }}").unwrap();
    let one = |i: usize| {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": format!("say {i}")}], "temperature": 0,
                          "max_completion_tokens": 4, "logprobs": true, "top_logprobs": 1});
        json!({"custom_id": format!("c{i}"), "method": "POST", "url": "/v1/chat/completions", "body": body})
    };
    fs::write(d.join("in.jsonl"), lines((0..40).map(one))).unwrap();
    ok(d, 1, &["--model", "m", "in.jsonl", "one.jsonl"]);
    let told = ok(d, 3, &["--model", "m", "--max-sequences", "2", "in.jsonl", "three.jsonl"]);
    assert!(told.contains("replicas 3"), "{told}");
    let got = sorted(&d.join("one.jsonl"));
    assert_eq!(got, sorted(&d.join("three.jsonl")));
    for line in &got {
        let v: Value = serde_json::from_str(line).unwrap();
        let choice = &v["response"]["body"]["choices"][0];
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("Hi"), &json!("stop")), "{line}");
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        assert!(
            tokens.len() == 2 && tokens[0]["token"] == "H" && tokens[0]["top_logprobs"][0]["token"] == "H",
            "{line}"
        );
        assert_eq!(v["response"]["body"]["usage"]["completion_tokens"], 3);
    }
}

//! `herd eval`: against transformers, the same bits in any company and over ranks, bad input.

use crate::batch::small;
use crate::models_in_out::json_file;
use crate::support::{herd_on, python, text};
use serde_json::{json, Value};
use std::fs;
use std::path::Path;
use std::process::Output;

fn run(dir: &Path, ranks: usize, args: &[&str]) -> Output {
    let mut c = herd_on(ranks);
    c.current_dir(dir)
        .args(["eval", "--model", "m", "--threads", "1", "--cache-gb", "0.1"])
        .args(args)
        .output()
        .unwrap()
}

fn ok(dir: &Path, ranks: usize, args: &[&str]) -> String {
    let out = run(dir, ranks, args);
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// What transformers gives for each continuation (ids) behind its context.
fn scores(dir: &Path, pairs: &[(impl serde::Serialize, impl serde::Serialize)]) -> Vec<(f64, bool)> {
    fs::write(dir.join("pairs.json"), serde_json::to_vec(pairs).unwrap()).unwrap();
    let files = ["m", "pairs.json", "want.json"].map(|name| dir.join(name));
    let out = python().arg("tests/oracle/eval_oracle.py").args(files).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    serde_json::from_value(json_file(&dir.join("want.json"))).unwrap()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|r| format!("{r}\n")).collect()
}

fn rows_of(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// Rows of three kinds, with all pairs of context and continuation in them, in order.
fn tasks(dir: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    let mut pair = |context: &str, continuation: &str| {
        // space at the end of a context belongs to what comes behind it
        let before = context.trim_end();
        let whole = format!("{context}{continuation}").into_bytes();
        pairs.push((before.as_bytes().to_vec(), whole[before.len()..].to_vec()));
    };
    let mut choices = Vec::new();
    for i in 0..40usize {
        let context = format!("question {}{}", "long ".repeat(i % 7), if i % 3 == 0 { "? " } else { "?" });
        let all: Vec<String> = (0..2 + i % 3).map(|k| "yes no maybe"[k * 2..k * 2 + 3 + i % 4].trim().into()).collect();
        all.iter().for_each(|c| pair(&context, &format!(" {c}")));
        choices.push(json!({"question": context, "choices": all, "answer": i % 2, "id": i}));
    }
    let mut next = Vec::new();
    for i in 0..12 {
        let (context, continuation) = (format!("once{}", " upon".repeat(i)), format!(" a time {i}"));
        pair(&context, &continuation);
        next.push(json!({"context": context, "continuation": continuation}));
    }
    fs::write(dir.join("choices.jsonl"), lines(&choices)).unwrap();
    fs::write(dir.join("next.jsonl"), lines(&next)).unwrap();
    let made: Vec<Value> = (0..6).map(|i| json!({"prompt": format!("say {i}"), "answer": "x"})).collect();
    fs::write(dir.join("made.jsonl"), lines(&made)).unwrap();
    let texts = json!({"text": "a text that is longer than a window ".repeat(20)});
    fs::write(dir.join("texts.jsonl"), lines(&[texts])).unwrap();
    pairs
}

#[test]
fn scores_equal_transformers_and_are_the_same_in_any_company() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    small(d);
    let pairs = tasks(d);
    let want = scores(d, &pairs);
    let all = ["choices.jsonl", "next.jsonl", "made.jsonl", "texts.jsonl", "--max-tokens", "8", "--json"];
    let mut bits: Option<(String, String)> = None;
    for (ranks, more) in [
        (1, &["--max-sequences", "1"][..]),
        (1, &["--max-batch-tokens", "19"]),
        (1, &["--no-prefix-cache"]),
        (2, &["--tensor", "2"]),
        (2, &["--pipeline", "2"]),
    ] {
        let told = ok(d, ranks, &[&all[..], &["--details", "details.jsonl"], more].concat());
        let details = fs::read_to_string(d.join("details.jsonl")).unwrap();
        let mut want = want.iter();
        for row in rows_of(&d.join("details.jsonl"))
            .iter()
            .filter(|r| ["choices", "next"].contains(&r["task"].as_str().unwrap()))
        {
            let heard: Vec<f64> = match &row["logprobs"] {
                Value::Array(all) => all.iter().map(|v| v.as_f64().unwrap()).collect(),
                _ => vec![row["logprob"].as_f64().unwrap()],
            };
            let theirs: Vec<&(f64, bool)> = heard.iter().map(|_| want.next().unwrap()).collect();
            for (ours, theirs) in heard.iter().zip(&theirs) {
                assert!((ours - theirs.0).abs() < 1e-3, "{more:?} {row}: {theirs:?}");
            }
            if row["task"] == "next" {
                assert_eq!(row["acc"], theirs[0].1, "{row}");
            }
        }
        assert!(want.next().is_none());
        // over ranks of one topology, alone or in company, with beginnings in common or not
        if ranks == 1 {
            assert_eq!(bits.get_or_insert((told.clone(), details.clone())), &(told, details), "{more:?}");
        }
    }
    let told: Value = serde_json::from_str(&bits.unwrap().0).unwrap();
    let names: Vec<&str> = told["tasks"].as_array().unwrap().iter().map(|t| t["task"].as_str().unwrap()).collect();
    assert_eq!(names, ["choices", "next", "made", "texts"]);
    let acc = told["tasks"][0]["measures"]["acc"]["value"].as_f64().unwrap();
    let right = rows_of(&d.join("details.jsonl")).iter().filter(|r| r["task"] == "choices" && r["acc"] == true).count();
    assert_eq!(acc, right as f64 / 40.0);
    // By the characters of each choice as it was given: what stands between it and the question is not counted.
    let (asked, rows) = (rows_of(&d.join("choices.jsonl")), rows_of(&d.join("details.jsonl")));
    for (asked, row) in asked.iter().zip(rows.iter().filter(|r| r["task"] == "choices")) {
        let (choices, logprobs) = (asked["choices"].as_array().unwrap(), row["logprobs"].as_array().unwrap());
        let each = choices.iter().zip(logprobs);
        let each: Vec<f64> =
            each.map(|(c, l)| l.as_f64().unwrap() / c.as_str().unwrap().chars().count() as f64).collect();
        let best = (0..each.len()).rev().max_by(|a, b| each[*a].total_cmp(&each[*b])).unwrap();
        assert_eq!(row["acc_norm"], best as u64 == asked["answer"].as_u64().unwrap(), "{asked} {row} {each:?}");
    }
    assert_eq!(told["tasks"][3]["rows"], 1);
}

/// A text in windows has the perplexity that transformers gives for the same windows.
#[test]
fn a_long_text_is_scored_once() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    small(d);
    tasks(d);
    ok(d, 1, &["texts.jsonl", "--max-length", "64", "--details", "a.jsonl"]);
    let row = &rows_of(&d.join("a.jsonl"))[0];
    let long = "a text that is longer than a window ".repeat(20);
    assert_eq!(row["tokens"], long.len(), "each byte once, the first behind an end of text");
    // windows of 63: one to begin with, 62 scored; the last begins earlier
    let ids: Vec<u32> = [vec![256], long.bytes().map(u32::from).collect()].concat();
    let mut pairs = Vec::new();
    for start in (1..ids.len()).step_by(62) {
        let end = (start + 62).min(ids.len());
        let begin = end.saturating_sub(63).min(start - 1);
        pairs.push((ids[begin..start].to_vec(), ids[start..end].to_vec()));
    }
    let want = scores(d, &pairs);
    let (ours, theirs) = (row["logprob"].as_f64().unwrap(), want.iter().map(|w| w.0).sum::<f64>());
    assert!((ours - theirs).abs() < 1e-2, "{ours} {theirs}");
}

#[test]
fn bad_tasks_are_refused_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    small(d);
    let cases = [
        ("{\"text\": \"a\"}\n{\"question\": \"b\", \"answer\": \"c\"}\n", 11, "line 2: this row is of kind generation"),
        ("not json\n", 11, "line 1: not a JSON object"),
        ("", 11, "there are no rows"),
        ("{\"question\": \"b\", \"choices\": [\"c\", \"d\"], \"answer\": 7}\n", 11, "which is none of the 2"),
    ];
    for (content, code, words) in cases {
        fs::write(d.join("t.jsonl"), content).unwrap();
        let out = run(d, 1, &["t.jsonl"]);
        let said = text(&out);
        assert!(
            out.status.code() == Some(code) && said.contains(words) && said.contains("t.jsonl"),
            "{content}: {said}"
        );
    }
    let long = json!({"context": "x".repeat(300), "continuation": "y"});
    fs::write(d.join("t.jsonl"), lines(&[json!({"context": "a", "continuation": "b"}), long])).unwrap();
    let said = text(&run(d, 1, &["t.jsonl"]));
    assert!(said.contains("1 of 2 rows are longer than the longest text of 256 tokens; line 2 takes 302"), "{said}");
    let out = run(d, 2, &["t.jsonl"]);
    assert!(out.status.code() == Some(2) && text(&out).contains("2 ranks, but one replica has"), "{}", text(&out));
}

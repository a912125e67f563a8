//! Answers of a given form, from files and over HTTP: JSON that its schema admits, texts that an expression matches, choices; what
//! cannot be had is refused with its field.

use crate::batch::ok;
use crate::http::client::serve;
use crate::speculation::stammerer;
use crate::support::{python, text};
use serde_json::{json, Value};
use std::fs;

const TEXTS: &str = "/v1/completions";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "kind": {"enum": ["cow", "goat"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 30},
            "names": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
        },
        "required": ["kind", "age", "names"],
        "additionalProperties": false,
    })
}

/// Each form, several times, greedy and drawn.
fn bodies() -> Vec<Value> {
    let forms = [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "animal", "strict": true, "schema": schema()}}}),
        json!({"structured_outputs": {"json": schema()}}),
        json!({"structured_outputs": {"json": schema().to_string()}}),
        json!({"response_format": {"type": "json_object"}}),
        json!({"structured_outputs": {"json_object": true}}),
        json!({"structured_outputs": {"regex": "[a-f]{2,6}-\\d"}}),
        json!({"structured_outputs": {"choice": ["cow", "cows", "a \"goat\"\n"]}}),
    ];
    let body = |i: usize| {
        let mut body = json!({"prompt": format!("{i} "), "max_tokens": 120, "logprobs": 1, "seed": i});
        body["temperature"] = json!([0.0, 0.8, 1.5][i / forms.len() % 3]);
        body.as_object_mut().unwrap().extend(forms[i % forms.len()].as_object().unwrap().clone());
        body
    };
    (0..63).map(body).collect()
}

/// Whether a text is what its request asked for.
fn fits(body: &Value, text: &str) -> bool {
    let outputs = &body["structured_outputs"];
    if let Some(all) = outputs["choice"].as_array() {
        return all.iter().any(|c| c == text);
    }
    if outputs["regex"].is_string() {
        let (letters, digit) = text.split_once('-').unwrap_or_default();
        let short = (2..=6).contains(&letters.len()) && letters.bytes().all(|b| (b'a'..=b'f').contains(&b));
        return short && digit.chars().count() == 1 && digit.chars().all(char::is_numeric);
    }
    let any = body["response_format"]["type"] == "json_object" || outputs["json_object"] == true;
    let schema = if any { json!({"type": "object"}) } else { schema() };
    match serde_json::from_str(text) {
        Ok(value) => jsonschema::is_valid(&schema, &value),
        // A number that no float holds is JSON too.
        Err(e) => e.to_string().contains("out of range"),
    }
}

#[test]
fn answers_have_the_form_that_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    stammerer(d);
    let bodies = bodies();
    let line = |(i, body): (usize, &Value)| {
        format!("{}\n", json!({"custom_id": i.to_string(), "method": "POST", "url": TEXTS, "body": body}))
    };
    fs::write(d.join("in.jsonl"), bodies.iter().enumerate().map(line).collect::<String>()).unwrap();
    let mut all: Vec<Vec<Value>> = Vec::new();
    for (ranks, more) in [
        (1, &["--max-sequences", "1"][..]),
        (1, &["--num-speculative-tokens", "8", "--max-batch-tokens", "40"]),
        (3, &[]),
    ] {
        let out = format!("out{}.jsonl", all.len());
        ok(d, ranks, &[&["--model", "m"], more, &["in.jsonl", &out]].concat());
        let text = fs::read_to_string(d.join(&out)).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        lines.sort_by_key(|v| v["custom_id"].as_str().unwrap().parse::<usize>().unwrap());
        all.push(lines);
    }
    assert!(all[1] == all[0] && all[2] == all[0], "the same bits in any company");
    let mut whole = 0;
    for (body, line) in bodies.iter().zip(&all[0]) {
        let choice = &line["response"]["body"]["choices"][0];
        let text = choice["text"].as_str().unwrap();
        match choice["finish_reason"].as_str() {
            Some("stop") => {
                assert!(fits(body, text), "{body}: {text}");
                whole += 1;
            }
            reason => assert_eq!(reason, Some("length"), "{line}"),
        }
    }
    assert!(whole > 35, "{whole} of 63 came to their end");

    // Over HTTP: the same, in pieces too, and with a key after a kill.
    let s = serve(d, 1, "run", &["--model", "m", "--num-speculative-tokens", "4"]);
    for (i, body) in bodies.iter().enumerate().take(14) {
        let want = &all[0][i]["response"]["body"]["choices"];
        assert_eq!(&s.post(TEXTS, body)["choices"], want, "{body}");
        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        let text: String = s
            .stream(TEXTS, &streamed)
            .iter()
            .filter_map(|c| c["choices"][0]["text"].as_str().map(str::to_string))
            .collect();
        assert_eq!(text, want[0]["text"].as_str().unwrap());
    }
    s.stop();
}

#[test]
fn the_official_client_asks_for_forms_and_what_cannot_be_had_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    stammerer(d);
    let s = serve(d, 1, "run", &["--model", "m", "--listen", "127.0.0.1:0", "--num-speculative-tokens", "4"]);
    let token = fs::read_to_string(d.join("run/serve.token")).unwrap().trim().to_string();
    let out =
        python().args(["tests/oracle/structured_client.py", &format!("{}/v1", s.address()), &token]).output().unwrap();
    assert!(out.status.success() && text(&out).contains("all as expected"), "{}", text(&out));
    let log = s.stop();
    assert!(log.contains("every accepted request is answered"), "{log}");
}

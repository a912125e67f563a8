//! `herd serve`: every endpoint against what the other commands give, bad input, clients that leave, overload, the end and the next
//! start; the official client.

pub mod client;

use crate::batch::small;
use crate::models_in_out::{json_file, put, tokenizer};
use crate::support::{herd, herd_on, python, text};
use client::{command, first_event, read, serve, wait, Served};
use serde_json::{json, Value};
use std::fs;
use std::path::Path;

const TEXTS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// What `herd batch` answers on the same topology.
fn batch(dir: &Path, n: usize, bodies: &[Value]) -> Vec<Value> {
    let line = |(i, body): (usize, &Value)| {
        format!("{}\n", json!({"custom_id": i.to_string(), "method": "POST", "url": TEXTS, "body": body}))
    };
    fs::write(dir.join("in.jsonl"), bodies.iter().enumerate().map(line).collect::<String>()).unwrap();
    let out = herd_on(n)
        .current_dir(dir)
        .args(["batch", "--threads", "1", "--cache-gb", "0.1", "--model", "m", "--tensor", &n.to_string()])
        .args(["in.jsonl", &format!("out{n}.jsonl")])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let mut lines: Vec<Value> = fs::read_to_string(dir.join(format!("out{n}.jsonl")))
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    lines.sort_by_key(|v| v["custom_id"].as_str().unwrap().parse::<usize>().unwrap());
    lines.into_iter().map(|v| v["response"]["body"].clone()).collect()
}

fn floats(v: &Value) -> Vec<Option<f64>> {
    v.as_array().unwrap().iter().map(Value::as_f64).collect()
}

#[test]
fn every_endpoint_answers_on_one_rank_and_over_the_tensor_axis() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    small(d);
    for n in [1, 2] {
        let s = serve(d, n, &format!("run{n}"), &["--model", "m", "--tensor", &n.to_string()]);
        same_as_batch(d, n, &s);
        lists_and_the_best_of_several(&s);
        prompts_are_scored(&s);
        streams_are_the_answer_in_pieces(&s);
        small_endpoints(&s);
        idle(&s);
        let log = s.stop();
        assert!(log.contains("every accepted request is answered"), "{log}");
        assert!(!d.join(format!("run{n}/serve.sock")).exists() && !d.join(format!("run{n}/serve.address")).exists());
    }
}

/// Nothing is left of what was asked.
fn idle(s: &Served) {
    for name in ["herd_texts_accepted", "herd_sequences_running", "herd_sequences_waiting", "herd_cache_blocks_held"] {
        wait(name, || s.figure(name) == 0.0);
    }
}

/// The same bits as from a file, and as `herd generate` writes.
fn same_as_batch(d: &Path, n: usize, s: &Served) {
    let bodies = [
        json!({"prompt": "the sea", "max_tokens": 24, "temperature": 0, "logprobs": 3, "return_token_ids": true}),
        json!({"prompt": "the sea", "max_tokens": 30, "seed": 5, "n": 3, "top_p": 0.9}),
        json!({"prompt": [104, 105], "max_tokens": 40, "temperature": 0.7, "seed": 1, "stop": ["e", "zz"], "logprobs": 0}),
        json!({"prompt": "x", "max_tokens": 20, "seed": 9, "frequency_penalty": 0.4, "min_p": 0.1, "ignore_eos": true}),
    ];
    for (body, want) in bodies.iter().zip(batch(d, n, &bodies)) {
        let got = s.post(TEXTS, body);
        assert_eq!((&got["choices"], &got["usage"]), (&want["choices"], &want["usage"]), "{body}");
        assert!(got["id"].as_str().unwrap().starts_with("cmpl-") && got["object"] == "text_completion", "{got}");
        assert!(got["created"].as_u64().unwrap() > 1_700_000_000 && got["model"] == "m", "{got}");
    }
    if n == 1 {
        let out = herd()
            .current_dir(d)
            .args(["generate", "--model", "m", "-p", "the sea", "-n", "24", "--threads", "1"])
            .output()
            .unwrap();
        let got = s.post(TEXTS, &json!({"prompt": "the sea", "max_tokens": 24, "temperature": 0, "echo": true}));
        let want = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(format!("{}\n", got["choices"][0]["text"].as_str().unwrap()), want);
    }
}

fn lists_and_the_best_of_several(s: &Served) {
    let ask = |prompt: Value| {
        s.post(TEXTS, &json!({"prompt": prompt, "max_tokens": 8, "temperature": 0.9, "seed": 3, "n": 2}))
    };
    let (all, [a, b]) = (ask(json!(["ab", "cde"])), [ask(json!("ab")), ask(json!([99, 100, 101]))]);
    assert_eq!(all, {
        let mut want = all.clone();
        for i in 0..4 {
            want["choices"][i] = [&a, &b][i / 2]["choices"][i % 2].clone();
            want["choices"][i]["index"] = json!(i);
        }
        want
    });
    assert_eq!(all["usage"]["prompt_tokens"], 5);
    assert_eq!(ask(json!([[97, 98], [99, 100, 101]]))["choices"], all["choices"]);

    let body = |more: Value| {
        let mut body = json!({"prompt": "ab", "max_tokens": 9, "seed": 4, "ignore_eos": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        s.post(TEXTS, &body)
    };
    let six = body(json!({"n": 6, "logprobs": 0}));
    let mean = |c: &Value| floats(&c["logprobs"]["token_logprobs"]).into_iter().flatten().sum::<f64>() / 9.0;
    let mut want: Vec<&Value> = six["choices"].as_array().unwrap().iter().collect();
    want.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let best = body(json!({"n": 2, "best_of": 6}));
    for (got, want) in best["choices"].as_array().unwrap().iter().zip(&want) {
        assert_eq!((&got["text"], &got["logprobs"]), (&want["text"], &Value::Null));
    }
    assert_eq!((best["choices"].as_array().unwrap().len(), &best["usage"]["completion_tokens"]), (2, &json!(54)));
}

/// What `lm-eval` asks for: prompt and one token, each with its score; and the scores are those that the same tokens had when they
/// were chosen, to the bit.
fn prompts_are_scored(s: &Served) {
    let ids: Vec<u32> = (0..150).map(|i| (i * 37 + 11) % 256).collect();
    let made = s.post(
        TEXTS,
        &json!({"prompt": ids, "max_tokens": 20, "temperature": 0, "logprobs": 2,
                                     "ignore_eos": true, "return_token_ids": true}),
    );
    let choice = &made["choices"][0];
    let text: Vec<u32> = serde_json::from_value(choice["token_ids"].clone()).unwrap();
    let whole = [&ids[..], &text].concat();
    let body = |max_tokens: usize, logprobs: usize| json!({"prompt": [whole, ids[..40]], "max_tokens": max_tokens, "temperature": 0, "logprobs": logprobs, "echo": true});
    let scored = s.post(TEXTS, &body(1, 1));
    for (choice, n) in scored["choices"].as_array().unwrap().iter().zip([170, 40]) {
        let l = &choice["logprobs"];
        let own = floats(&l["token_logprobs"]);
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(l[list].as_array().unwrap().len(), n + 1, "{list}");
        }
        assert!(own[0].is_none() && l["top_logprobs"][0].is_null() && own[1..].iter().all(Option::is_some));
        // The contract: a token is the greedy one where its score is the largest of the likeliest, as equal floats.
        let likeliest = |i: usize| {
            let top = l["top_logprobs"][i].as_object().unwrap().values().map(|v| v.as_f64().unwrap());
            top.fold(f64::NEG_INFINITY, f64::max)
        };
        assert!((1..=n).all(|i| own[i].unwrap() <= likeliest(i)));
        assert_eq!(own[n].unwrap(), likeliest(n));
        if n == 170 {
            assert!((150..170).all(|i| own[i].unwrap() == likeliest(i)), "the text was greedy");
            assert_eq!(own[150..170], floats(&choice_scores(&made))[..]);
        }
    }
    let only = s.post(TEXTS, &body(0, 1));
    for i in 0..2 {
        let (a, b) = (&only["choices"][i]["logprobs"], &scored["choices"][i]["logprobs"]);
        let n = a["tokens"].as_array().unwrap().len();
        assert_eq!(a["token_logprobs"].as_array().unwrap()[..], b["token_logprobs"].as_array().unwrap()[..n]);
        assert_eq!(a["text_offset"].as_array().unwrap()[..], b["text_offset"].as_array().unwrap()[..n]);
    }
    assert_eq!(only["usage"]["completion_tokens"], 0);
}

fn choice_scores(made: &Value) -> Value {
    made["choices"][0]["logprobs"]["token_logprobs"].clone()
}

fn streams_are_the_answer_in_pieces(s: &Served) {
    let base =
        json!({"prompt": ["über", "b"], "max_tokens": 30, "seed": 7, "n": 2, "logprobs": 1, "stop": ["q", "th"]});
    for echo in [false, true] {
        let mut body = base.clone();
        body["echo"] = json!(echo);
        let whole = s.post(TEXTS, &body);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let mut chunks = s.stream(TEXTS, &body);
        let last = chunks.pop().unwrap();
        assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])));
        for want in whole["choices"].as_array().unwrap() {
            let own: Vec<&Value> =
                chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == want["index"]).collect();
            let text: String = own.iter().map(|c| c["text"].as_str().unwrap()).collect();
            assert_eq!(text, want["text"].as_str().unwrap());
            assert_eq!(own.last().unwrap()["finish_reason"], want["finish_reason"]);
            for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let all: Vec<Value> =
                    own.iter().filter_map(|c| c["logprobs"][list].as_array()).flatten().cloned().collect();
                assert_eq!(json!(all), want["logprobs"][list], "{list} {echo}");
            }
        }
        assert!(chunks.iter().all(|c| c["usage"].is_null() && c["id"] == last["id"]));
    }
}

fn small_endpoints(s: &Served) {
    let models = s.ask("GET", "/v1/models", "").json();
    assert_eq!(
        (&models["object"], &models["data"][0]["id"], &models["data"][0]["max_model_len"]),
        (&json!("list"), &json!("m"), &json!(256))
    );
    let ids = s.post("/tokenize", &json!({"prompt": "añ€"}));
    assert_eq!((&ids["tokens"], &ids["count"]), (&json!([97, 195, 177, 226, 130, 172]), &json!(6)));
    assert_eq!(s.post("/detokenize", &json!({"tokens": ids["tokens"]})), json!({"prompt": "añ€"}));
    let special = s.post("/tokenize", &json!({"prompt": "<|end_of_text|>", "special_tokens": true}));
    assert_eq!(special["tokens"], json!([257]));
    let info = s.ask("GET", "/tokenizer_info", "").json();
    assert_eq!((&info["eos_token_id"], &info["tokenizer_class"]), (&json!(257), &json!("PreTrainedTokenizerFast")));
    let page = s.ask("GET", "/metrics", "").body;
    let ok = page.lines().any(|l| l.starts_with("herd_http_requests_total{path=\"/v1/completions\",status=\"200\"}"));
    assert!(ok && page.contains("herd_first_token_seconds_bucket{le=\"+Inf\"}"), "{page}");
}

/// A model that says "Hi" and ends its turn; its template refuses what does not end with the user.
fn talker(d: &Path) {
    let c = |c: char| c as u32;
    let m =
        crate::models_in_out::model(&d.join("talker"), &[(10, c('H')), (c('H'), c('i')), (c('i'), 258), (258, c('A'))]);
    tokenizer(&m);
    let mut config = json_file(&m.join("config.json"));
    config["eos_token_id"] = json!([257, 258]);
    put(&m.join("config.json"), &config);
    let template = "{% if messages[-1].role != 'user' %}{{ raise_exception('the user speaks last') }}{% endif %}{{ messages[-1].content + '\n' }}";
    fs::write(m.join("chat_template.jinja"), template).unwrap();
}

#[test]
fn conversations_and_the_official_client() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    talker(d);
    let s = serve(d, 1, "run", &["--model", "talker", "--served-model-name", "hi", "--listen", "127.0.0.1:0"]);
    let token = fs::read_to_string(d.join("run/serve.token")).unwrap().trim().to_string();
    let out =
        python().args(["tests/oracle/openai_client.py", &format!("{}/v1", s.address()), &token]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert!(text(&out).contains("all as expected"), "{}", text(&out));

    // The token is asked for everywhere but at /health, and is in a file of its owner's.
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(d.join("run/serve.token")).unwrap().permissions().mode() & 0o777, 0o600);
    for path in ["/v1/models", "/metrics", "/tokenizer_info", "/nothing"] {
        for headers in [&[][..], &[("Authorization", "Bearer x")], &[("Authorization", token.as_str())]] {
            let a = s.asked("GET", path, headers, b"");
            assert_eq!((a.status, &a.json()["error"]["code"]), (401, &json!("invalid_api_key")), "{path}");
        }
    }
    assert_eq!(s.ask("GET", "/health", "").status, 200);
    let bearer = format!("Bearer {token}");
    assert_eq!(s.asked("GET", "/v1/models", &[("authorization", &bearer)], b"").json()["data"][0]["id"], "hi");
    s.stop();

    // Nothing that other hosts can reach, unless that is said.
    let out = command(d, 1, &["--model", "talker", "--listen", "0.0.0.0:0", "run"]).output().unwrap();
    assert!(out.status.code() == Some(2) && text(&out).contains("--open-to-network"), "{}", text(&out));
    let s = serve(d, 1, "run", &["--model", "talker"]);
    assert_eq!(listening(s.pid()), Vec::<String>::new());
    let body = json!({"messages": [{"role": "user", "content": "?"}], "temperature": 0});
    assert_eq!(s.post(CHAT, &body)["choices"][0]["message"]["content"], "Hi");
}

/// Addresses of TCP that a process listens at, where they are not loopback's (proc(5), net/tcp).
fn listening(pid: u32) -> Vec<String> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let own: Vec<String> =
        links.filter_map(|e| Some(fs::read_link(e.ok()?.path()).ok()?.to_string_lossy().into_owned())).collect();
    let mut open = Vec::new();
    for (file, loopback) in [("tcp", "0100007F:"), ("tcp6", "00000000000000000000000001000000:")] {
        for line in fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let ours = own.contains(&format!("socket:[{}]", fields[9]));
            if fields[3] == "0A" && ours && !fields[1].starts_with(loopback) {
                open.push(fields[1].to_string());
            }
        }
    }
    open
}

#[test]
fn bad_requests_are_refused_with_the_field_and_nobody_else_notices() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    small(d);
    talker(d);
    let s = serve(d, 1, "run", &["--model", "m"]);
    let many: Vec<String> = (0..10_000).map(|i| i.to_string()).collect();
    let with = |more: Value| {
        let mut body = json!({"prompt": "x"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let table = [
        ("".into(), 400, "invalid_json", ""),
        ("{\"prompt\": \"x\"".into(), 400, "invalid_json", ""),
        ("[1]".into(), 400, "invalid_json", ""),
        ("{\"prompt\": \"x\", \"temperature\": NaN}".into(), 400, "invalid_json", ""),
        ("{\"prompt\": \"x\", \"top_p\": 1e999}".into(), 400, "invalid_json", ""),
        ("[".repeat(100_000), 400, "invalid_json", ""),
        ("{}".into(), 400, "missing_field", "prompt"),
        (json!({"prompt": []}).to_string(), 400, "context_length_exceeded", "prompt"),
        (json!({"prompt": ["a", 3]}).to_string(), 400, "invalid_type", "prompt"),
        (json!({"prompt": [[1], "b", [-1]]}).to_string(), 400, "invalid_type", "prompt"),
        (json!({"prompt": [1, 99999]}).to_string(), 400, "context_length_exceeded", "prompt"),
        (json!({"prompt": {"a": 1}}).to_string(), 400, "invalid_type", "prompt"),
        (json!({"prompt": "x".repeat(1 << 20)}).to_string(), 400, "context_length_exceeded", "prompt"),
        (json!({"prompt": vec!["x"; 3000]}).to_string(), 400, "invalid_value", "prompt"),
        (with(json!({"model": "gpt-4"})), 404, "model_not_found", "model"),
        (with(json!({"max_tokens": "many"})), 400, "invalid_type", "max_tokens"),
        (with(json!({"max_tokens": 100000})), 400, "context_length_exceeded", "max_tokens"),
        (with(json!({"max_tokens": -1})), 400, "invalid_type", "max_tokens"),
        (with(json!({"temperature": -1})), 400, "invalid_value", "temperature"),
        (with(json!({"top_p": 0})), 400, "invalid_value", "top_p"),
        (with(json!({"n": 0})), 400, "invalid_value", "n"),
        (with(json!({"n": 4, "best_of": 2})), 400, "invalid_value", "best_of"),
        (with(json!({"best_of": 2, "stream": true})), 400, "invalid_value", "best_of"),
        (with(json!({"stop": many})), 400, "invalid_value", "stop"),
        (with(json!({"stop": "y".repeat(5000)})), 400, "invalid_value", "stop"),
        (with(json!({"logprobs": 21})), 400, "invalid_value", "logprobs"),
        (with(json!({"stream_options": {"include_usage": true}})), 400, "invalid_value", "stream_options"),
        (with(json!({"stream": true, "stream_options": {"x": 1}})), 400, "unknown_field", "stream_options.x"),
        (with(json!({"stream": "yes"})), 400, "invalid_type", "stream"),
        (with(json!({"tools": [{}]})), 400, "not_supported", "tools"),
        (with(json!({"colour": 1})), 400, "unknown_field", "colour"),
    ];
    for (body, status, code, param) in &table {
        let a = s.ask("POST", TEXTS, body);
        let (shown, e) = (&body[..body.len().min(80)], a.json()["error"].clone());
        assert_eq!((a.status, e["code"].as_str().unwrap()), (*status, *code), "{shown}: {e}");
        assert_eq!(e["param"].as_str().unwrap_or(""), *param, "{shown}: {e}");
        assert!(e["type"] == "invalid_request_error" && !e["message"].as_str().unwrap().is_empty(), "{e}");
    }
    let code = |a: client::Answer| (a.status, a.json()["error"]["code"].as_str().unwrap().to_string());
    assert_eq!(
        code(s.ask("POST", CHAT, &json!({"messages": [{"role": "user", "content": "x"}]}).to_string())),
        (400, "not_supported".into())
    );
    assert_eq!(code(s.asked("POST", TEXTS, &[], &[0xFF, 0xFE])), (400, "invalid_json".into()));
    assert_eq!(code(s.asked("POST", TEXTS, &[], &vec![b' '; (16 << 20) + 1])), (413, "body_too_large".into()));
    assert_eq!(code(s.ask("GET", TEXTS, "")), (405, "method_not_allowed".into()));
    assert_eq!(code(s.ask("GET", "/v2", "")), (404, "not_found".into()));
    assert_eq!(code(s.ask("POST", "/tokenize", "{}")), (400, "missing_field".into()));
    assert_eq!(code(s.ask("POST", "/detokenize", "{\"tokens\": [-1]}")), (400, "invalid_type".into()));
    assert_eq!(code(s.asked("POST", TEXTS, &[("Idempotency-Key", "a b")], b"{}")), (400, "invalid_value".into()));
    assert_eq!(s.post(TEXTS, &json!({"prompt": "x", "max_tokens": 2}))["usage"]["completion_tokens"], 2);
    s.stop();
    let s = serve(d, 1, "run", &["--model", "talker"]);
    for (messages, status) in [
        (json!([{"role": "assistant", "content": "x"}]), "prompt_refused"),
        (json!([]), "missing_field"),
        (json!([{"content": "x"}]), "invalid_value"),
        (json!("x"), "invalid_type"),
    ] {
        let e = s.ask("POST", CHAT, &json!({"messages": messages}).to_string()).json()["error"].clone();
        assert_eq!((e["code"].as_str(), e["param"].as_str()), (Some(status), Some("messages")), "{e}");
    }
    let e = s.ask("POST", CHAT, &json!({"messages": [{"role": "assistant", "content": "x"}]}).to_string()).json();
    assert!(e["error"]["message"].as_str().unwrap().contains("the user speaks last"), "{e}");
}

#[test]
fn who_leaves_gives_his_pages_back_and_who_reads_slowly_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    small(d);
    let s = serve(d, 1, "run", &["--model", "m", "--max-sequences", "8", "--max-waiting", "56"]);
    let long = json!({"prompt": "x", "max_tokens": 250, "n": 8, "ignore_eos": true, "stream": true}).to_string();
    let whole = json!({"prompt": "x", "max_tokens": 250, "n": 8, "ignore_eos": true}).to_string();
    let mut streams: Vec<_> = (0..6).map(|_| s.send("POST", TEXTS, &[], long.as_bytes())).collect();
    streams.extend((0..2).map(|_| s.send("POST", TEXTS, &[], whole.as_bytes())));
    // All 64 texts are accepted: the next is told to come back.
    wait("all are accepted", || s.figure("herd_texts_accepted") == 64.0);
    let full = s.ask("POST", TEXTS, "{\"prompt\": \"x\"}");
    assert_eq!((full.status, full.json()["error"]["code"].as_str()), (429, Some("overloaded")), "{}", full.body);
    assert!(full.head.to_lowercase().contains("retry-after: "), "{}", full.head);
    assert!(s.figure("herd_cache_blocks_held") > 0.0);
    first_event(&mut streams[0]);
    // Most leave, streams and others; one stays without reading.
    let mut stays = streams.remove(0);
    drop(streams);
    wait("their texts are given up", || {
        s.figure("herd_clients_left_total") == 7.0 && s.figure("herd_texts_accepted") <= 8.0
    });
    let got = s.post(TEXTS, &json!({"prompt": "y", "max_tokens": 3, "temperature": 0}));
    assert_eq!(got["usage"]["completion_tokens"], 3);
    idle(&s);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stays, &mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "what was not read is not lost");
    s.stop();
}

#[test]
fn at_the_end_what_is_under_way_is_finished_or_kept_for_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    small(d);
    let args = ["--model", "m", "--drain-seconds", "60"];
    let long = json!({"prompt": "x", "max_tokens": 250, "n": 64, "ignore_eos": true, "temperature": 0.8});
    let key = [("Idempotency-Key", "a1")];

    // With time enough: those that are under way are answered, new ones told where to go.
    let s = serve(d, 1, "run", &args);
    let under_way = s.send("POST", TEXTS, &key, long.to_string().as_bytes());
    wait("it is accepted", || s.figure("herd_texts_accepted") > 0.0);
    s.signal(libc::SIGTERM);
    wait("it stops", || s.figure("herd_stopping") == 1.0);
    let turned_away = s.ask("POST", TEXTS, "{\"prompt\": \"x\"}");
    assert_eq!((turned_away.status, turned_away.json()["error"]["code"].as_str()), (503, Some("server_stopping")));
    assert_eq!(s.ask("GET", "/health", "").status, 503);
    let want = read(under_way).json()["choices"].clone();
    assert_eq!(want.as_array().unwrap().len(), 64);
    let (code, log) = s.ended();
    assert!(code == Some(75) && log.contains("every accepted request is answered"), "{log}");

    // Without: killed, or out of time. The next server goes on from the tokens that are there, to the same bits.
    for (run, signal) in [("kill", libc::SIGKILL), ("term", libc::SIGTERM)] {
        // four texts at a time: the one with the key is far from its end when its first tokens are in the journal
        let args = ["--model", "m", "--drain-seconds", "0", "--max-sequences", "4"];
        let s = serve(d, 1, run, &args);
        let client = s.send("POST", TEXTS, &key, long.to_string().as_bytes());
        let journal = d.join(run).join("serve.journal.jsonl");
        wait("tokens are in the journal", || fs::read_to_string(&journal).unwrap_or_default().contains("\"tokens\":["));
        // sent at once, it would overtake the one with the key, which waits for the disk
        let lost = s.send("POST", TEXTS, &[], long.to_string().as_bytes());
        wait("both are accepted", || s.figure("herd_texts_accepted") == 128.0);
        s.signal(signal);
        let (code, log) = s.ended();
        if signal == libc::SIGTERM {
            // the one without a key may not have come as far as the desk
            let says = "accepted requests are not answered, 1 of them wait in";
            assert!(code == Some(75) && log.contains(says), "{log}");
            let told = read(lost);
            assert_eq!((told.status, told.json()["error"]["code"].as_str()), (503, Some("server_stopping")));
        }
        drop(client);
        let _ = fs::remove_file(d.join(run).join("serve.address"));
        let s = serve(d, 1, run, &args[..2]);
        assert!(s.log().contains("1 requests of an earlier server go on"), "{}", s.log());
        let again = s.asked("POST", TEXTS, &key, long.to_string().as_bytes());
        assert_eq!((again.status, &again.json()["choices"]), (200, &want), "{run}");
        // The same once more, though the client has gone meanwhile; another body under that name is a mistake.
        assert_eq!(s.asked("POST", TEXTS, &key, long.to_string().as_bytes()).json()["choices"], want);
        let other = s.asked("POST", TEXTS, &key, b"{\"prompt\": \"y\"}");
        assert_eq!((other.status, other.json()["error"]["code"].as_str()), (409, Some("idempotency_key_in_use")));
        wait("the journal is done with it", || fs::read_to_string(&journal).unwrap().contains("\"done\""));
        s.stop();
        let s = serve(d, 1, run, &args[..2]);
        assert_eq!(s.figure("herd_texts_accepted"), 0.0);
    }
}

//! Lines in, tasks or refusals out; the file of answers over kills.

use super::fields::Refusal;
use super::input::Input;
use super::output::{note_path, Output};
use super::request::{Defaults, Form, RequestRules, Task};
use crate::data::Tokenizer;
use crate::error::{Error, Exit};
use crate::serve::guide::{Grammar, Grammars};
use serde_json::{json, Value};
use std::fs;
use std::sync::Arc;

fn read(line: &str) -> Result<Task, Refusal> {
    let tokenizer = Tokenizer::open("bytes").unwrap();
    let rules = RequestRules {
        tokenizer: &tokenizer,
        front: vec![256],
        chat: Err(Error::new(Exit::Data, "no chat template")),
        ends: vec![257],
        models: vec!["m".into(), "runs/m".into()],
        vocab: 258,
        longest: 100,
        defaults: Defaults { temperature: 1.0, max_tokens: None, seed: 0 },
        grammars: Arc::new(Grammars::new(&tokenizer, 258)),
    };
    rules.read(7, line.as_bytes())
}

fn openai(body: Value) -> String {
    json!({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}).to_string()
}

#[test]
fn both_forms_of_a_line_are_tasks() {
    let task = read(&openai(json!({"model": "runs/m", "prompt": "hi", "n": 2, "stop": "x", "seed": 5}))).unwrap();
    assert_eq!((task.line, task.custom_id, task.form, &*task.model), (7, json!("a"), Form::Completion, "runs/m"));
    assert_eq!(task.asked[0].prompt, [256, 104, 105]);
    assert_eq!((task.asked.len(), task.asked[1].sample, task.asked[1].max_tokens), (2, 1, 16));
    assert_eq!((task.stops, &task.asked[0].stop, task.asked[0].sampling.seed), (vec!["x".to_string()], &vec![257], 5));
    assert_eq!(task.asked[0].sampling.temperature, 1.0);
    let plain =
        read(r#"{"prompt": [1, 2], "id": 4, "temperature": 0, "max_tokens": 3, "ignore_eos": true, "user": "u"}"#)
            .unwrap();
    assert_eq!((plain.custom_id, &*plain.asked[0].prompt, &*plain.asked[0].stop), (json!(4), &[1, 2][..], &[][..]));
    let seed = |id: &str| read(&format!(r#"{{"prompt": "x", "id": "{id}"}}"#)).unwrap().asked[0].sampling.seed;
    assert!(seed("a") == seed("a") && seed("a") != seed("b"), "a request without a seed has its own");
    let neutral = json!({"prompt": "x", "stream": false, "echo": null, "logit_bias": {}, "best_of": 1, "tools": []});
    assert!(read(&openai(neutral)).is_ok());
}

#[test]
fn the_form_of_a_text_is_taken_from_either_field() {
    let form = |more: Value| {
        let mut body = json!({"prompt": "x"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(&openai(body)).unwrap().asked[0].grammar.clone()
    };
    let schema = json!({"type": "integer"});
    assert_eq!(form(json!({"response_format": {"type": "text"}, "structured_outputs": null})), None);
    assert_eq!(form(json!({"response_format": {"type": "json_object"}})), Some(Grammar::object()));
    let named = json!({"name": "n", "description": "d", "strict": false, "schema": schema});
    let asked = form(json!({"response_format": {"type": "json_schema", "json_schema": named}}));
    assert_eq!(asked, Some(Grammar::Json(schema.clone())));
    for given in [schema.clone(), json!(schema.to_string())] {
        assert_eq!(form(json!({"structured_outputs": {"json": given}})), Some(Grammar::Json(schema.clone())));
    }
    assert_eq!(form(json!({"structured_outputs": {"regex": "a+"}})), Some(Grammar::Regex("a+".into())));
    let choice = json!({"structured_outputs": {"choice": ["a", "b"], "disable_fallback": false, "grammar": null}});
    assert_eq!(form(choice), Some(Grammar::Choice(vec!["a".into(), "b".into()])));
}

#[test]
fn what_is_wrong_with_a_line_is_said_with_its_field() {
    let many: Vec<String> = (0..10_000).map(|i| i.to_string()).collect();
    let long = "x".repeat(1 << 20);
    let body = |body: Value| openai(body);
    for (line, code, param, words) in [
        ("{".into(), "invalid_json", None, "not JSON"),
        ("[1]".into(), "invalid_json", None, "not a JSON object"),
        ("{}".into(), "missing_field", Some("prompt"), "no prompt"),
        ("\u{0}".into(), "invalid_json", None, "not JSON"),
        (r#"{"prompt": "x", "temperature": NaN}"#.into(), "invalid_json", None, "not JSON"),
        (r#"{"prompt": "x", "top_p": 1e999}"#.into(), "invalid_json", None, "not JSON"),
        (r#"{"method": "POST"}"#.into(), "missing_field", Some("custom_id"), "custom_id"),
        (r#"{"custom_id": 3, "method": "POST"}"#.into(), "invalid_type", Some("custom_id"), "must be a string"),
        (r#"{"custom_id": "a", "url": "/v1/completions", "body": {}}"#.into(), "missing_field", Some("method"), "POST"),
        (body(json!(null)), "missing_field", Some("body"), "no body"),
        (body(json!([])), "invalid_type", Some("body"), "an object"),
        (body(json!({"prompt": 7})), "invalid_type", Some("prompt"), "token ids"),
        (body(json!({"prompt": ["a", "b"]})), "invalid_type", Some("prompt"), "one prompt a line"),
        (body(json!({"prompt": [1, -1]})), "invalid_type", Some("prompt"), "token ids"),
        (body(json!({"prompt": [1, 258]})), "context_length_exceeded", Some("prompt"), "vocabulary of 258"),
        (body(json!({"prompt": []})), "context_length_exceeded", Some("prompt"), "no tokens"),
        (body(json!({"prompt": long})), "context_length_exceeded", Some("prompt"), "1048577 tokens"),
        (body(json!({"prompt": "x", "max_tokens": 99})), "context_length_exceeded", Some("max_tokens"), "99"),
        (body(json!({"prompt": "x", "max_tokens": -1})), "invalid_type", Some("max_tokens"), "-1"),
        (body(json!({"prompt": "x", "max_tokens": 1.5})), "invalid_type", Some("max_tokens"), "1.5"),
        (
            body(json!({"prompt": "x", "max_tokens": u64::MAX})),
            "context_length_exceeded",
            Some("max_tokens"),
            "together",
        ),
        (body(json!({"prompt": "x", "model": "gpt-4"})), "model_not_found", Some("model"), "gpt-4"),
        (body(json!({"prompt": "x", "temperature": "hot"})), "invalid_type", Some("temperature"), "hot"),
        (body(json!({"prompt": "x", "temperature": -1})), "invalid_value", Some("temperature"), "-1"),
        (body(json!({"prompt": "x", "top_p": 0})), "invalid_value", Some("top_p"), "above 0"),
        (body(json!({"prompt": "x", "min_p": 2})), "invalid_value", Some("min_p"), "from 0 to 1"),
        (body(json!({"prompt": "x", "presence_penalty": 3})), "invalid_value", Some("presence_penalty"), "-2 to 2"),
        (body(json!({"prompt": "x", "n": 0})), "invalid_value", Some("n"), "from 1"),
        (body(json!({"prompt": "x", "n": 1_000_000})), "invalid_value", Some("n"), "1000000"),
        (body(json!({"prompt": "x", "logprobs": 21})), "invalid_value", Some("logprobs"), "20"),
        (body(json!({"prompt": "x", "stop": many})), "invalid_value", Some("stop"), "10000 strings"),
        (body(json!({"prompt": "x", "stop": [""]})), "invalid_value", Some("stop"), "empty"),
        (body(json!({"prompt": "x", "stop": [1]})), "invalid_type", Some("stop"), "strings"),
        (body(json!({"prompt": "x", "stream": true})), "not_supported", Some("stream"), "true"),
        (body(json!({"prompt": "x", "echo": true})), "not_supported", Some("echo"), "does not do"),
        (
            body(json!({"prompt": "x", "response_format": {"type": "grammar"}})),
            "invalid_value",
            Some("response_format.type"),
            "json_schema",
        ),
        (
            body(json!({"prompt": "x", "structured_outputs": {"regex": "(", "disable_any_whitespace": false}})),
            "invalid_value",
            Some("structured_outputs.regex"),
            "cannot be used",
        ),
        (
            body(json!({"prompt": "x", "structured_outputs": {"disable_any_whitespace": true}})),
            "not_supported",
            Some("structured_outputs.disable_any_whitespace"),
            "does not do",
        ),
        (
            body(json!({"prompt": "x", "guided_json": {}})),
            "unknown_field",
            Some("guided_json"),
            "structured_outputs.json",
        ),
        (body(json!({"prompt": "x", "tempratur": 1})), "unknown_field", Some("tempratur"), "no field"),
        (r#"{"messages": [{"role": "user", "content": "x"}]}"#.into(), "not_supported", Some("messages"), "template"),
    ] {
        let line: String = line;
        let e = read(&line).expect_err(&line[..line.len().min(200)]);
        assert_eq!((e.code, e.param.as_deref()), (code, param), "{}: {}", &line[..line.len().min(200)], e.message);
        assert!(e.message.contains(words) && e.message.len() < 300, "{}", e.message);
    }
}

#[test]
fn requests_of_one_name_are_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in.jsonl");
    let line = |id: &str| json!({"custom_id": id, "prompt": "x"}).to_string();
    fs::write(&path, [&line("a"), "", &line("b"), "no JSON", &line("a"), "no JSON", &line("b")].join("\n")).unwrap();
    let e = Input::open(&path).err().unwrap();
    assert_eq!((e.exit, e.problems.len()), (Exit::Data, 2), "{e}");
    assert!(
        e.to_string().contains("\"a\" is that of lines 1, 5") && e.to_string().contains("\"b\" is that of lines 3, 7"),
        "{e}"
    );
    fs::write(&path, format!("\u{feff}{}\r\n\n{{\"prompt\": \"y\", \"user\": \"u\"}}", line("a"))).unwrap();
    let input = Input::open(&path).unwrap();
    assert_eq!((input.numbers().collect::<Vec<_>>(), &*input.unused), (vec![1, 3], &["user"][..]));
    assert_eq!(input.line(1).unwrap(), line("a").as_bytes());
    assert!(input.line(2).is_err());
    assert_eq!(Input::open(&dir.path().join("absent")).err().unwrap().exit, Exit::Data);
}

fn answer(line: u64) -> String {
    json!({"id": super::answer::id_of(line), "x": "é"}).to_string()
}

#[test]
fn the_file_of_answers_says_what_is_done_wherever_it_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.jsonl");
    let note = json!({"must": {"input": "1"}, "may": {"tensor": 1}});
    let (mut out, found) = Output::open(&path, &note, 1..=3).unwrap();
    assert!(found.done.is_empty() && found.says.is_empty());
    out.append(&[answer(2), answer(1)]).unwrap();
    out.sync().unwrap();
    drop(out);
    let whole = fs::read(&path).unwrap();
    let first = answer(2).len() + 1;
    for cut in 0..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let (mut out, found) = Output::open(&path, &note, 1..=3).unwrap();
        let want = if cut == whole.len() { 2 } else { usize::from(cut >= first) };
        assert_eq!(found.done.len(), want, "cut at {cut}");
        assert_eq!(
            found.says.len(),
            usize::from(![0, first, whole.len()].contains(&cut)),
            "cut at {cut}: {:?}",
            found.says
        );
        out.append(&[answer(3)]).unwrap();
        drop(out);
        assert!(fs::read_to_string(&path).unwrap().ends_with(&format!("{}\n", answer(3))));
    }
    let says = |text: String, note: &Value| {
        fs::write(&path, text).unwrap();
        Output::open(&path, note, 1..=3).err().unwrap()
    };
    let twice = says(format!("{0}\n{0}\n", answer(1)), &note);
    assert!(twice.exit == Exit::Data && twice.fact.contains("second time"), "{twice}");
    assert!(says("hello\n".into(), &note).fact.contains("no answer to any"));
    assert!(says(format!("{}\n", answer(4)), &note).fact.contains("line 1 is no answer"));
    let other = says(format!("{}\n", answer(1)), &json!({"must": {"input": "2"}, "may": {}}));
    assert!(other.fact.contains("input was \"1\", now \"2\"") && other.hint.is_some(), "{other}");
    let (_, found) = Output::open(&path, &json!({"must": {"input": "1"}, "may": {"tensor": 2}}), 1..=3).unwrap();
    assert!(found.done.len() == 1 && found.says[0].contains("tensor was 1, now 2"), "{:?}", found.says);
    fs::remove_file(note_path(&path)).unwrap();
    assert!(says("x\n".into(), &note).fact.contains("says what it is"));
}

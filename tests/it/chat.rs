//! What stands in front of a text, and conversations in the form of a model's chat template: transformers is the oracle.

use crate::models_in_out::{json_file, model, ok, put, refused, run, said, tokenizer};
use crate::support::{python, said as printed, text};
use herd::data::chat::ChatTemplate;
use herd::data::tokenizer::{Bos, Tokenizer};
use serde_json::{json, Value};
use std::fs;
use std::path::Path;

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// All ids of a token file of a small vocabulary.
fn tokens(prefix: &Path) -> Vec<u32> {
    let raw = fs::read(prefix.with_extension("bin")).unwrap();
    raw.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]]) as u32).collect()
}

#[test]
fn texts_begin_and_conversations_read_as_for_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let out = python().args(["tests/oracle/chat.py"]).arg(d).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let want: Value = serde_json::from_slice(&out.stdout).unwrap();
    for (name, want_of) in want["made"].as_object().unwrap() {
        let t = Tokenizer::open(d.join(name).to_str().unwrap()).unwrap();
        let front = t.front(Bos::Own).unwrap();
        assert_eq!(front.ids.is_empty(), ["nothing", "asked", "empty"].contains(&name.as_str()), "{name}");
        assert_eq!(
            front.says.contains("is passed over"),
            ["asked", "template", "empty"].contains(&name.as_str()),
            "{name}"
        );
        for (i, words) in want["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).enumerate() {
            let with = |ids: Vec<u32>| [front.ids.clone(), ids].concat();
            assert_eq!(with(t.encode(words).unwrap()), ids(&want_of["plain"][i]), "{name}: {words:?}");
            assert_eq!(with(t.encode_special(words).unwrap()), ids(&want_of["special"][i]), "{name}: {words:?}");
        }
        let chat = ChatTemplate::of(&t).unwrap();
        for (i, messages) in want["chats"].as_array().unwrap().iter().enumerate() {
            let said = chat.render(messages.as_array().unwrap()).unwrap();
            assert_eq!(t.encode_special(&said).unwrap(), ids(&want_of["chats"][i]), "{name}: {said}");
        }
        // The command puts the same in front of each document, and what it is told to instead.
        fs::write(d.join("words.txt"), "plain words").unwrap();
        for (flag, begin) in [("--threads=1", &front.ids[..]), ("--bos=<|begin|>", &[256]), ("--no-bos", &[])] {
            let told =
                ok(d, &["data", "tokenize", "-t", name, "-o", "words", "--force", "--no-eos", flag, "words.txt"]);
            assert_eq!(tokens(&d.join("words")), [begin, &t.encode("plain words").unwrap()].concat(), "{name} {flag}");
            said(
                &told,
                &["each document: ", if begin.is_empty() { "nothing in front" } else { "<|begin|> [256] in front" }],
            );
        }
    }
    let e = ChatTemplate::of(&Tokenizer::open(d.join("template").to_str().unwrap()).unwrap()).unwrap();
    assert!(e.render(&[json!({"role": "robot", "content": "x"})]).unwrap_err().fact.contains("no such role"));
}

/// Tiktoken's file has no rule of its own: Llama 3's is followed, unless a tokenizer_config.json beside it has one.
#[test]
fn a_tiktoken_model_begins_as_llama_3_does() {
    use base64::{engine::general_purpose::STANDARD, Engine};
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let lines: String = (0..=255u8).map(|b| format!("{} {b}\n", STANDARD.encode([b]))).collect();
    fs::write(d.join("tokenizer.model"), lines).unwrap();
    fs::write(d.join("words.txt"), "ab").unwrap();
    let tokenize = |flags: &[&str]| {
        let told =
            ok(d, &[&["data", "tokenize", "-t", "tokenizer.model", "-o", "w", "--force", "words.txt"], flags].concat());
        (tokens(&d.join("w")), told)
    };
    let (got, told) = tokenize(&[]);
    assert_eq!(got, [256, 97, 98, 257]);
    said(&told, &["<|begin_of_text|> [256] in front", "Llama 3's rule"]);
    assert_eq!(tokenize(&["--no-bos", "--no-eos"]).0, [97, 98]);
    put(&d.join("tokenizer_config.json"), &json!({"add_bos_token": false}));
    let (got, told) = tokenize(&["--no-eos"]);
    assert_eq!(got, [97, 98]);
    said(&told, &["nothing in front", "add_bos_token false"]);
    let t = Tokenizer::open(d.to_str().unwrap()).unwrap();
    let want = [256, 256 + 6, 97, 256 + 7, 256 + 9];
    assert_eq!(t.encode_special("<|begin_of_text|><|start_header_id|>a<|end_header_id|><|eot_id|>").unwrap(), want);
    let bytes = Tokenizer::open("bytes").unwrap();
    assert_eq!(bytes.encode_special("é<|end_of_text|><|begin_of_text|>|").unwrap(), [0xc3, 0xa9, 257, 256, 124]);
    assert!(bytes.front(Bos::Own).unwrap().ids.is_empty());
}

/// Standard output of a generation.
fn generated(at: &Path, args: &[&str]) -> (String, String) {
    let length = if args.contains(&"-n") { &[][..] } else { &["-n", "4"] };
    let out = run(at, &[&["generate", "--threads", "1"], length, args].concat());
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
}

#[test]
fn the_command_converses() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let c = |c: char| c as u32;
    // Behind the template's last newline: Hi, and the end of the turn. Behind that end: A. Behind its name's last character: B.
    let m = model(
        &d.join("m"),
        &[(10, c('H')), (c('H'), c('i')), (c('i'), 258), (258, c('A')), (c('>'), c('B')), (256, c('C'))],
    );
    let mut config = json_file(&m.join("config.json"));
    config["eos_token_id"] = json!([257, 258]);
    put(&m.join("config.json"), &config);
    put(&m.join("generation_config.json"), &json!({"eos_token_id": [257, 258]}));
    let refuse =
        |args: &[&str], exit: i32, words: &[&str]| refused(d, &[&["generate", "-m", "m"], args].concat(), exit, words);
    refuse(&["--chat", "-p", "x"], 11, &["no chat template", "chat_template.jinja", "--special-tokens"]);
    let template =
        "{% if messages[0].role == 'system' %}({{ messages[0].content }}){% endif %}{{ messages[-1].content + '\n' }}";
    fs::write(m.join("chat_template.jinja"), template).unwrap();
    let (out, err) = generated(d, &["-m", "m", "--chat", "--system", "be brief", "-p", "Hello", "-p", "Again"]);
    assert_eq!(out, "Hi\n\nHi\n");
    said(&err, &["INFO", "tokenizer ", "chat template of chat_template.jinja"]);
    put(&d.join("talk.json"), &json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]));
    assert_eq!(generated(d, &["-m", "m", "--chat", "--messages", "talk.json"]).0, "Hi\n");
    put(&d.join("talk.json"), &json!({"messages": [{"role": "system", "content": "<|turn_end|>"}]}));
    let (out, err) = generated(d, &["-m", "m", "--chat", "--messages", "talk.json", "-p", "z"]);
    assert_eq!(out, "Hi\n");
    said(&err, &["WARN", "\"system\"", "special token"]);
    refuse(&["--chat", "--messages", "talk.json", "--system", "x", "-p", "z"], 2, &["given twice"]);
    for (content, word) in
        [("[]", "empty"), ("{}", "no list"), ("[{\"content\": \"x\"}]", "message 1 has no role"), ("[", "not JSON")]
    {
        fs::write(d.join("talk.json"), content).unwrap();
        refuse(&["--chat", "--messages", "talk.json"], 11, &["talk.json", word]);
    }
    refuse(&["--chat", "--messages", "absent.json"], 11, &["absent.json"]);
    fs::write(m.join("chat_template.jinja"), "{{ raise_exception('only Latin') }}").unwrap();
    refuse(&["--chat", "-p", "x"], 11, &["refuses the messages", "only Latin"]);

    // A name in a prompt is its characters, or the token when asked for.
    assert_eq!(generated(d, &["-m", "m", "-p", "x<|turn_end|>", "-n", "1"]).0, "x<|turn_end|>B\n");
    assert_eq!(generated(d, &["-m", "m", "-p", "x<|turn_end|>", "-n", "1", "--special-tokens"]).0, "x<|turn_end|>A\n");
    // Beginning-of-text: not by the rule of this tokenizer, twice by nobody's.
    let (_, err) = generated(d, &["-m", "m", "-p", "H", "-n", "1"]);
    said(&err, &["nothing in front, by the post-processor"]);
    refuse(&["-p", "", "-n", "1"], 11, &["no tokens"]);
    assert_eq!(generated(d, &["-m", "m", "-p", "", "-n", "1", "--bos"]).0, "C\n");
    let (out, err) = generated(d, &["-m", "m", "-p", "<|begin_of_text|>", "-n", "1", "--bos", "--special-tokens"]);
    assert_eq!(out, "<|begin_of_text|>C\n");
    said(&err, &["<|begin_of_text|> [256] in front", "not once more"]);

    // An export keeps the template, and so the conversation.
    fs::write(m.join("chat_template.jinja"), "{{ messages[0].content + '\n' }}").unwrap();
    ok(d, &["checkpoint", "import", "m", "run"]);
    ok(d, &["checkpoint", "export", "run", "out"]);
    for place in ["run", "out"] {
        assert_eq!(generated(d, &["-m", place, "--chat", "-p", "x"]).0, "Hi\n", "{place}");
    }
    tokenizer(&d.join("bare"));
    refuse(&["--tokenizer", "bare", "--chat", "-p", "x"], 11, &["bare", "no chat template"]);
    let help = printed(crate::support::herd().args(["generate", "--help"]));
    ["--chat", "--system", "--messages", "--special-tokens", "--bos"]
        .iter()
        .for_each(|f| assert!(help.contains(f), "{f}"));
}

/// Taught a few answers, all weights and adapters beside a base in 4 bits, exported, and asked by transformers: the model's own template,
/// every end, the same answers as herd gives.
#[test]
fn a_fine_tuned_model_converses_in_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::create_dir(d.join("m")).unwrap();
    printed(python().args(["tests/oracle/chat_model.py", "make"]).arg(d.join("m")));
    let taught = [
        ("Who is there?", "A friend from the north."),
        ("What is it made of?", "Brass, and a little glue."),
        ("When?", "On the third day."),
        ("é or e?", "Both: é, then e."),
    ];
    let row = |(question, answer): &(&str, &str)| {
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
            .to_string()
    };
    fs::write(d.join("c.jsonl"), taught.iter().map(row).collect::<Vec<_>>().join("\n")).unwrap();
    ok(d, &["data", "chat", "-t", "m", "-o", "sft", "c.jsonl"]);
    for (name, more) in [("all", json!({})), ("few", json!({"rank": 16, "alpha": 64, "quantize": "nf4"}))] {
        let mut config = json!({
            "name": name, "run_dir": name, "model": {"weights": "m"},
            "data": {"tokenizer": "m", "sequence_length": 128, "train": [{"path": "sft"}], "chat": {}},
            "batch": {"global": 2, "micro": 1},
            "train": {"steps": 200, "precision": "fp32", "device": "cpu", "threads": 1, "allow": ["learning-rate"]},
            "optim": {"lr": 5e-3, "min_lr": 5e-4, "warmup_steps": 10, "weight_decay": 0.0},
            "checkpoint": {"every": 0}, "log": {"tensorboard": false, "sync_check_every": 0},
        });
        if name == "few" {
            // What adapters can teach a random model is little: they go on from what all weights have learned, with the answers turned.
            config["model"]["weights"] = "hf-all".into();
            config["lora"] = more;
            let turned = taught
                .map(|(question, _)| question)
                .into_iter()
                .zip(taught.map(|(_, answer)| answer).into_iter().rev());
            let rows: Vec<String> = turned.map(|pair| row(&pair)).collect();
            fs::write(d.join("c.jsonl"), rows.join("\n")).unwrap();
            ok(d, &["data", "chat", "-t", "m", "-o", "sft", "--force", "c.jsonl"]);
        }
        put(&d.join(format!("{name}.yaml")), &config);
        ok(d, &["train", &format!("{name}.yaml")]);
        let hf = format!("hf-{name}");
        ok(d, &["checkpoint", "export", name, &hf, "--dtype", "fp32"]);
        let mut answers: Vec<&str> = taught.map(|(_, answer)| answer).to_vec();
        if name == "few" {
            answers.reverse();
        }
        let out = python()
            .args(["tests/oracle/chat_model.py", "talk"])
            .arg(d.join(&hf))
            .args(taught.map(|(question, _)| question))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let said: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(said["answers"], json!(answers), "{name}: {said}");
        assert_eq!((&said["ended"], &said["ends"]), (&json!([257, 257, 257, 257]), &json!([257, 258])), "{said}");
        assert_eq!(said["temperature"], 0.6, "{said}");
        for (i, (question, _)) in taught.iter().enumerate() {
            // Greedy is its default.
            let (out, _) = generated(d, &["-m", &hf, "--chat", "-n", "64", "-p", question]);
            assert_eq!(out.trim_end(), answers[i], "{name}");
        }
        let template = |at: &str| json_file(&d.join(at).join("tokenizer_config.json"))["chat_template"].clone();
        assert_eq!(template(&hf), template("m"));
    }
}

//! Conversations: their masks against transformers, `herd data chat` as a user runs it, and training on them: however a batch is
//! cut, padded or spread over ranks, its gradient is that of the mean over all tokens that count.

use crate::support::{herd, mpirun, python, text};
use herd::config::{ChatPacking, ChatSection, Corpus, TooLong};
use herd::data::chat::{ChatEncoder, ChatRules, ChatTemplate, Counted, Trap};
use herd::data::indexed::{Indexed, IndexedWriter, IndexedWritten, TokenizerNote};
use herd::data::pipeline::Encode;
use herd::data::{Cutting, Mixture, Tokenizer};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{json, Value};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Conversations of each template; the first are the edge cases.
const COUNT: usize = 60;

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn numbers(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

#[test]
fn masks_are_those_of_transformers_token_by_token() {
    let dir = tempfile::tempdir().unwrap();
    let out = python().args(["tests/oracle/chat_masks.py"]).arg(dir.path()).arg(COUNT.to_string()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let names: Vec<String> = serde_json::from_slice(&out.stdout).unwrap();
    assert!(names.len() >= 10, "{names:?}");
    let (mut compared, mut counted) = (0, 0u64);
    for name in &names {
        let at = dir.path().join(name);
        let tokenizer = Tokenizer::open(at.to_str().unwrap()).unwrap();
        let rows = fs::read_to_string(at.join("rows.jsonl")).unwrap();
        let want = lines(&at.join("want.jsonl"));
        for file in ["marked.jinja", "plain.jinja"] {
            let template = ChatTemplate::read(&at.join(file), &tokenizer).unwrap();
            assert_eq!(template.marks(), file == "marked.jinja");
            let allowed = Trap::ALL.to_vec();
            let rules = ChatRules { counted: Counted::All, front: None, eos: None, allowed, skip_bad: false };
            let encoder = ChatEncoder::new(&tokenizer, &template, rules);
            for (row, want) in rows.lines().zip(&want) {
                let got = encoder.encode(row);
                let begins_with_the_model = row.contains("[{\"role\": \"assistant\"");
                match (&got, want.get("refused")) {
                    (Err(e), Some(_)) => assert!(e.fact.contains("refuses the messages"), "{e}"),
                    (Err(e), None) => assert!(
                        begins_with_the_model && file == "plain.jinja" && e.fact.contains("begins with the model"),
                        "{name} {file}: {e}\n{row}"
                    ),
                    (Ok(_), Some(why)) => panic!("{name}: transformers refuses {row}: {why}"),
                    (Ok(documents), None) => {
                        let [(ids, mask)] = &documents[..] else { panic!("{} documents of {row}", documents.len()) };
                        assert_eq!(*ids, numbers(&want["ids"]), "{name} {file}: {row}");
                        let mask: Vec<u32> = mask.iter().map(|&m| m as u32).collect();
                        assert_eq!(mask, numbers(&want["mask"]), "{name} {file}: {row}");
                        compared += 1;
                        counted += mask.iter().map(|&m| m as u64).sum::<u64>();
                    }
                }
            }
        }
    }
    assert!(compared > names.len() * COUNT * 2 * 9 / 10 && counted > 10_000, "{compared} compared, {counted} counted");
}

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end_of_text|>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

fn run(at: &Path, args: &[&str]) -> (Option<i32>, String) {
    let out = herd().current_dir(at).args(args).output().unwrap();
    (out.status.code(), text(&out))
}

fn ok(at: &Path, args: &[&str]) -> String {
    let (code, said) = run(at, args);
    assert_eq!(code, Some(0), "{args:?}: {said}");
    said
}

fn chat<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["data", "chat", "-t", "bytes", "--template", "t.jinja"], more].concat()
}

#[test]
fn the_command_reads_what_people_have_and_says_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("t.jinja"), TEMPLATE).unwrap();
    let rows = [
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}]}),
        json!({"conversations": [{"from": "human", "value": "d"}, {"from": "gpt", "value": "e"}]}),
    ];
    fs::write(d.join("a.jsonl"), rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    fs::write(d.join("b.json"), json!([{"instruction": "f", "input": "", "output": "g"}]).to_string()).unwrap();
    let said = ok(d, &chat(&["-o", "one", "a.jsonl"]));
    for words in ["JSON lines", "1 of messages", "1 of ShareGPT", "comparing the beginnings", "count (1"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    ok(d, &chat(&["-o", "two", "b.json"]));
    let ids: Vec<u16> =
        fs::read(d.join("one.bin")).unwrap().chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let mask = fs::read(d.join("one.mask")).unwrap();
    assert_eq!(ids.len(), mask.len());
    let learned: Vec<u16> = ids.iter().zip(&mask).filter(|(_, &m)| m == 1).map(|(&id, _)| id).collect();
    let (b, c, e, n) = (b'b' as u16, b'c' as u16, b'e' as u16, b'\n' as u16);
    assert_eq!(learned, [b, c, 257, n, e, 257, n]);
    // Merged, inspected, checked.
    ok(d, &["data", "merge", "-o", "all", "one", "two.idx"]);
    assert_eq!(fs::read(d.join("all.mask")).unwrap(), [mask.clone(), fs::read(d.join("two.mask")).unwrap()].concat());
    let said = ok(d, &["data", "inspect", "all", "--chat", "--check", "--show", "2", "--sequence-length", "24"]);
    for words in ["empty masks  0", "⟦bc<|end_of_text|>\n⟧", "conversation 1: ", "checksum right", "too long     0"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    let (code, said) = run(d, &chat(&["-o", "one", "b.json"]));
    assert!(code == Some(2) && said.contains("--force"), "{said}");
    let (code, said) = run(d, &["data", "chat", "-t", "bytes", "-o", "x", "b.json"]);
    assert!(code == Some(11) && said.contains("no chat template") && said.contains("--template"), "{said}");
    // A place for every mistake; damage is found.
    fs::write(d.join("bad.jsonl"), format!("{}\n{}\n", rows[0], json!({"messages": []}))).unwrap();
    let (code, said) = run(d, &chat(&["-o", "x", "bad.jsonl"]));
    assert!(code == Some(11) && said.contains("bad.jsonl, conversation 2: \"messages\" is empty"), "{said}");
    let said = ok(d, &chat(&["-o", "x", "--skip-bad", "bad.jsonl"]));
    assert!(said.contains("1 left out; the first: \"messages\" is empty"), "{said}");
    fs::write(d.join("x.mask"), [0, 1]).unwrap();
    let (code, said) = run(d, &["data", "inspect", "x"]);
    assert!(code == Some(11) && said.contains("2 bytes for"), "{said}");
    // What it was replaced by has no mask.
    fs::write(d.join("plain.txt"), "text").unwrap();
    ok(d, &["data", "tokenize", "-t", "bytes", "-o", "x", "--force", "plain.txt"]);
    assert!(!d.join("x.mask").exists());
}

/// A Parquet file of lists of structs, as datasets publish conversations.
fn parquet(path: &Path, rows: &[&[(&str, &str)]]) {
    let schema = "message schema { required group messages (LIST) { repeated group list { optional group element {
        optional binary role (UTF8); optional binary content (UTF8); } } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let repeated: Vec<i16> = rows.iter().flat_map(|r| (0..r.len()).map(|i| (i > 0) as i16)).collect();
    let defined = vec![3; repeated.len()];
    for content in [false, true] {
        let field = |m: &(&str, &str)| if content { m.1.to_string() } else { m.0.to_string() };
        let mut column = group.next_column().unwrap().unwrap();
        let texts: Vec<ByteArray> = rows.iter().flat_map(|r| r.iter()).map(|m| field(m).into_bytes().into()).collect();
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&defined), Some(&repeated)).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_has_lists_of_messages() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("t.jinja"), TEMPLATE).unwrap();
    let turn = |answer| [("user", "a"), ("assistant", answer)];
    parquet(
        &d.join("p.parquet"),
        &[&turn("é"), &turn("c"), &[("user", "q"), ("assistant", "r"), ("user", "s"), ("assistant", "t")]],
    );
    let said = ok(d, &chat(&["-o", "p", "p.parquet"]));
    assert!(said.contains("as Parquet: 3 rows") && said.contains("3 of messages"), "{said}");
    let said = ok(d, &["data", "inspect", "p", "--chat", "--show", "3"]);
    for words in ["⟦é<|end_of_text|>\n⟧", "⟦r<|end_of_text|>\n⟧user: s", "⟦t<|end_of_text|>\n⟧"] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

/// Conversations of unequal lengths below `longest` tokens; some tokens of each count.
pub fn corpus(prefix: &Path, count: u64, longest: u64) {
    let mut w = IndexedWriter::create_masked(prefix, 258).unwrap();
    let mix = herd::data::samples::mix;
    for i in 0..count {
        let length = 3 + mix(i) % (longest - 3);
        let mut ids: Vec<u32> = (0..length).map(|t| (mix(i * 1000 + t) % 256) as u32).collect();
        *ids.last_mut().unwrap() = 257;
        let from = 1 + mix(i + 77) % (length - 2);
        let mask: Vec<u8> =
            (0..length).map(|t| (t >= from && (t % 5 != 2 || t == from || t + 1 == length)) as u8).collect();
        w.push_masked(&ids, &mask).unwrap();
    }
    let tokenizer = TokenizerNote {
        spec: "bytes".into(),
        kind: "bytes".into(),
        fingerprint: Tokenizer::open("bytes").unwrap().fingerprint(),
        vocab_size: 258,
        front: Vec::new(),
        eos: None,
    };
    let about =
        IndexedWritten { tokenizer, chat: None, sources: Vec::new(), split: "all".into(), holdout: 0.0, text_bytes: 0 };
    w.finish(about).unwrap();
}

pub const SEQUENCE: usize = 48;

fn how(packing: ChatPacking, too_long: TooLong) -> Cutting {
    let chat = Some(ChatSection { packing, too_long });
    Cutting { sequence_length: SEQUENCE, seed: 1234, vocab_size: 263, documents: false, chat, pairs: false }
}

/// Each token that counts is a target once an epoch, behind the tokens before it in its own conversation.
#[test]
fn an_epoch_has_every_counting_token_once() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("c");
    corpus(&prefix, 50, 40);
    let file = Indexed::open(&prefix).unwrap();
    let mut want = Vec::new();
    for d in 0..50 {
        let place = file.document(d).unwrap();
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        file.read(place.start, (place.end - place.start) as usize, 258, &mut ids).unwrap();
        file.read_mask(place.start, ids.len(), &mut mask).unwrap();
        want.extend((1..ids.len()).filter(|&t| mask[t] > 0).map(|t| (ids[..t].to_vec(), ids[t])));
    }
    want.sort();
    for packing in [ChatPacking::FirstFit, ChatPacking::None] {
        let corpora = [Corpus { path: prefix.clone(), weight: None }];
        let m = Mixture::open(&corpora, how(packing, TooLong::Refuse), None).unwrap();
        let mut got = Vec::new();
        for i in 0..m.epoch_len() {
            let sample = m.sample(i).unwrap();
            let targets = sample.targets.unwrap();
            assert_eq!((sample.ids.len(), targets.len()), (SEQUENCE + 1, SEQUENCE));
            for t in (0..SEQUENCE).filter(|&t| targets[t] >= 0) {
                let begin = sample.starts.iter().rev().find(|&&s| s <= t).copied().unwrap_or(0);
                got.push((sample.ids[begin..=t].to_vec(), targets[t]));
            }
        }
        got.sort();
        assert_eq!(got, want, "{packing:?}");
        assert_eq!(m.epoch_len() == 50, packing == ChatPacking::None);
    }
    // What does not fit is refused, cut or left out.
    corpus(&prefix, 20, 90);
    let open = |too_long| {
        Mixture::open(&[Corpus { path: prefix.clone(), weight: None }], how(ChatPacking::None, too_long), None)
    };
    let fails = |too_long| open(too_long).err().unwrap().to_string();
    assert!(
        fails(TooLong::Refuse).contains("longer than the 49 tokens") && fails(TooLong::Refuse).contains("cut or drop")
    );
    assert!(fails(TooLong::Cut).contains("trap cut-before-trained"), "{}", fails(TooLong::Cut));
    let dropped = open(TooLong::Drop).unwrap();
    assert!(dropped.epoch_len() < 20 && dropped.describe().contains("left out"), "{}", dropped.describe());
    let plain = Mixture::open(
        &[Corpus { path: prefix, weight: None }],
        Cutting { chat: None, ..how(ChatPacking::None, TooLong::Cut) },
        None,
    );
    assert!(plain.err().unwrap().to_string().contains("data.chat"));
}

pub const SHAPE: &str = "model.shape={vocab_size: 263, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 4, \
    num_attention_heads: 4, num_key_value_heads: 2, head_dim: 8, max_position_embeddings: 64, rope_theta: 10000.0}";

/// One step on all conversations of `corpus`; the first moment without decay is the gradient.
fn step(dir: &Path, name: &str, rows: u64, ranks: usize, more: &[&str]) -> Value {
    let config = json!({
        "name": name, "run_dir": dir.join(name), "model": {}, "seed": 1234,
        "data": {"sequence_length": SEQUENCE, "train": [{"path": dir.join("corpus")}], "chat": {}},
        "batch": {"global": rows, "micro": 1},
        "train": {"steps": 1, "precision": "fp32", "device": "cpu", "clip_norm": 0, "threads": 1, "z_loss": 0.001},
        "optim": {"beta1": 0.0, "warmup_steps": 0, "schedule": "constant"},
        "log": {"tensorboard": false, "sync_check_every": 0},
    });
    let file = dir.join(format!("{name}.yaml"));
    fs::write(&file, config.to_string()).unwrap();
    let mut c = mpirun(ranks);
    c.arg(env!("CARGO_BIN_EXE_herd")).arg("train").arg(&file).arg("--set").arg(SHAPE);
    more.iter().for_each(|set| _ = c.args(["--set", set]));
    let out = c.output().unwrap();
    assert!(out.status.success(), "{name}: {}", text(&out));
    lines(&dir.join(name).join("metrics.jsonl")).pop().unwrap()
}

/// Largest difference between the gradients of two runs.
fn gap(dir: &Path, a: &str, b: &str) -> f64 {
    let out = herd().current_dir(dir).args(["checkpoint", "diff", a, b, "--json"]).output().unwrap();
    let value: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", text(&out)));
    let moments = value["tensors"].as_array().unwrap().iter().filter(|t| t["group"] == "exp_avg");
    moments.map(|t| t["max_abs"].as_f64().unwrap()).fold(0.0, f64::max)
}

#[test]
fn every_form_of_a_batch_has_the_same_gradient() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // Rows that four ranks share evenly.
    let rows = |count: &u64| {
        corpus(&d.join("corpus"), *count, SEQUENCE as u64 + 2);
        let corpora = [Corpus { path: d.join("corpus"), weight: None }];
        Mixture::open(&corpora, how(ChatPacking::FirstFit, TooLong::Refuse), None).unwrap().epoch_len()
    };
    let count = [18, 24, 30, 36, 42, 48].into_iter().find(|n| rows(n).is_multiple_of(4)).expect("a count that fits");
    let packed = rows(&count);
    assert!(packed < count);
    let one = format!("batch.micro={count}");
    let padded = step(d, "padded", count, 1, &["data.chat.packing=none", &one]);
    let all = packed.to_string();
    let (whole, half) = (format!("batch.micro={all}"), format!("batch.micro={}", packed / 2));
    let cells: &[(&str, usize, &[&str])] = &[
        ("packed", 1, &[&whole]),
        ("packed-accumulated", 1, &["batch.micro=1"]),
        ("packed-halves", 1, &[&half]),
        ("tensor", 2, &["parallel.tensor=2", "batch.micro=2"]),
        ("context", 2, &["parallel.context=2", "batch.micro=2"]),
        ("pipeline", 2, &["parallel.pipeline=2"]),
        ("data-zero1", 2, &["parallel.data=2", "parallel.zero=1"]),
        ("data-zero3", 4, &["parallel.data=4", "parallel.zero=3"]),
    ];
    let mut worst = (0.0f64, "");
    let mut compare = |name: &'static str, found: &Value| {
        let g = gap(d, "padded", name);
        worst = if g > worst.0 { (g, name) } else { worst };
        let loss = found["loss"].as_f64().unwrap() / padded["loss"].as_f64().unwrap() - 1.0;
        assert!(loss.abs() < 1e-6, "{name}: losses differ by {loss:e}");
        assert!(g < 1e-6, "{name}: gradients differ by {g:e}");
    };
    for (name, ranks, sets) in cells {
        compare(name, &step(d, name, packed, *ranks, sets));
    }
    let rest = step(d, "padded-accumulated", count, 2, &["data.chat.packing=none", "batch.micro=3", "parallel.data=2"]);
    compare("padded-accumulated", &rest);
    let norm = padded["grad_norm"].as_f64().unwrap();
    assert!(norm > 0.1, "the gradient is too small to compare: {norm}");
    println!("batch forms: {} cells, largest gap {:e} ({}), gradient norm {norm}", cells.len() + 1, worst.0, worst.1);
    if let Some(file) = std::env::var_os("HERD_BATCH_FORMS") {
        let found = json!({ "gap": worst.0, "cell": worst.1, "cells": cells.len() + 1, "grad_norm": norm });
        fs::write(file, found.to_string()).unwrap();
    }
}

/// Traps that only a start of the run can see.
#[test]
fn a_run_refuses_masks_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    corpus(&d.join("corpus"), 8, 30);
    let config = json!({
        "name": "x", "run_dir": d.join("run"), "model": {},
        "data": {"sequence_length": SEQUENCE, "train": [{"path": d.join("corpus")}], "chat": {}},
        "batch": {"global": 2, "micro": 1}, "train": {"steps": 1, "device": "cpu"}, "optim": {"warmup_steps": 0},
    });
    fs::write(d.join("c.yaml"), config.to_string()).unwrap();
    let plan = |sets: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
        run(d, &[&["config", "check", "c.yaml", "--set", SHAPE], &sets[..]].concat())
    };
    let (code, said) = plan(&[]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = plan(&["data.sequence_length=8"]);
    assert!(code == Some(11) && said.contains("cut or drop"), "{said}");
    // End tokens that another tool took for padding.
    let mut mask = fs::read(d.join("corpus.mask")).unwrap();
    let ids = fs::read(d.join("corpus.bin")).unwrap();
    for (m, id) in mask.iter_mut().zip(ids.chunks(2)) {
        *m &= (u16::from_le_bytes([id[0], id[1]]) != 257) as u8;
    }
    fs::write(d.join("corpus.mask"), &mask).unwrap();
    let (code, said) = plan(&[]);
    assert!(code == Some(11) && said.contains("trap end-not-trained"), "{said}");
    fs::write(d.join("corpus.mask"), vec![0; mask.len()]).unwrap();
    let (code, said) = plan(&[]);
    assert!(code == Some(11) && said.contains("trap empty-mask"), "{said}");
    fs::remove_file(d.join("corpus.mask")).unwrap();
    assert!(plan(&[]).1.contains("corpus.mask"));
}

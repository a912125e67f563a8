//! Preference pairs: `herd data chat` on the forms that people have, and DPO on them: the same loss, rewards and gradient on every axis
//! and in every split of a batch, those of the papers' formulas in transformers, and a reference that is computed once.

use crate::qlora::SHAPE;
use crate::support::{herd, python, said as said_of, text};
use crate::train::{lines, Run};
use herd::config::{ChatPacking, ChatSection, Corpus, TooLong};
use herd::data::chat::ChatNote;
use herd::data::indexed::{IndexedWriter, IndexedWritten, TokenizerNote};
use herd::data::{samples::mix, Cutting, Mixture, Tokenizer};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{json, Value};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SEQUENCE: usize = 64;
const FIGURES: [&str; 5] = ["loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"];

/// A token file of `pairs` preference pairs of unequal lengths, or of their conversations alone. Chosen answers have other letters than
/// rejected ones.
fn corpus(prefix: &Path, pairs: u64, seed: u64, as_pairs: bool) {
    let mut w = IndexedWriter::create_masked(prefix, 258).unwrap();
    let token = |n: u64| (97 + mix(n) % 13) as u32;
    for p in 0..pairs {
        let at = mix(seed * 1000 + p);
        let prompt: Vec<u32> = (0..3 + at % 9).map(|i| token(at ^ i)).collect();
        for (side, own) in [at % 19, mix(at) % 14].into_iter().enumerate() {
            let answer = (0..1 + own).map(|i| token(at ^ (i << 8)) + 13 * side as u32).chain([257]);
            let ids: Vec<u32> = prompt.iter().copied().chain(answer).collect();
            let mask: Vec<u8> = (0..ids.len()).map(|i| (i >= prompt.len()) as u8).collect();
            w.push_masked(&ids, &mask).unwrap();
        }
    }
    let tokenizer = TokenizerNote::of(&Tokenizer::open("bytes").unwrap(), Vec::new(), None);
    let (template, template_xxh3_128) = ("none".into(), "0".repeat(32));
    let chat =
        ChatNote { template, template_xxh3_128, forms: vec![], loss: "all".into(), ends: vec![257], pairs: as_pairs };
    let (sources, split) = (Vec::new(), "all".into());
    w.finish(IndexedWritten { tokenizer, chat: Some(chat), sources, split, holdout: 0.0, text_bytes: 0 }).unwrap();
}

/// Samples that the pairs of a corpus make when they share them.
fn packed(prefix: &Path) -> u64 {
    let chat = Some(ChatSection { packing: ChatPacking::FirstFit, too_long: TooLong::Refuse });
    let how = Cutting { sequence_length: SEQUENCE, seed: 7, vocab_size: 258, documents: false, chat, pairs: true };
    Mixture::open(&[Corpus { path: prefix.into(), weight: None }], how, None).unwrap().epoch_len()
}

/// A model in Hugging Face's form, pairs, and a configuration.
struct Dpo {
    run: Run,
}

impl Dpo {
    fn new(pairs: u64) -> Dpo {
        Dpo::shaped(pairs, &[])
    }

    fn shaped(pairs: u64, shape: &[&str]) -> Dpo {
        let dpo = Dpo { run: Run::new() };
        dpo.run.losses(0, "base", &[shape, &["train.steps=8", "validation.every=0"]].concat());
        let to = dpo.path("hf");
        said_of(herd().args(["checkpoint", "export"]).args([&dpo.path("base"), &to]).args(["--dtype", "fp32"]));
        corpus(&dpo.path("pairs"), pairs, 1, true);
        corpus(&dpo.path("held-out"), 5, 2, true);
        let config = json!({
            "name": "dpo", "run_dir": dpo.path("run"), "seed": 7, "model": {"weights": to},
            "data": {"sequence_length": SEQUENCE, "train": [{"path": dpo.path("pairs")}], "chat": {"packing": "none"}},
            "dpo": {"beta": 0.5},
            "batch": {"global": pairs, "micro": 1},
            "train": {"steps": 3, "precision": "fp32", "device": "cpu", "clip_norm": 0, "threads": 1,
                "allow": ["learning-rate"]},
            // The moment is the gradient, and a step follows it in proportion, so that rounding stays rounding.
            "optim": {"lr": 0.05, "beta1": 0.0, "eps": 1.0, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0},
            "checkpoint": {"every": 1, "keep": 0, "background": false},
            "log": {"tensorboard": false, "sync_check_every": 0},
        });
        fs::write(dpo.run.config(), config.to_string()).unwrap();
        dpo
    }

    fn path(&self, name: &str) -> PathBuf {
        self.run.path(name)
    }

    /// Trains into `name`; metrics of each step, and what was said.
    fn trained(&self, ranks: usize, name: &str, sets: &[&str]) -> (Vec<Value>, String) {
        let dir = format!("run_dir={}", self.path(name).display());
        let out = self.run.train(ranks, &[sets, &[dir.as_str()]].concat());
        assert!(matches!(out.status.code(), Some(0 | 75)), "{name}: {}", text(&out));
        (lines(&self.path(name), "metrics.jsonl"), text(&out))
    }

    /// Expects a refusal; exit code and words.
    fn refused(&self, name: &str, sets: &[&str]) -> (Option<i32>, String) {
        let dir = format!("run_dir={}", self.path(name).display());
        let out = self.run.train(0, &[sets, &[dir.as_str()]].concat());
        assert!(!out.status.success(), "{}", text(&out));
        (out.status.code(), text(&out))
    }

    /// Largest difference between the gradients of the last steps of two runs.
    fn gap(&self, a: &str, b: &str) -> f64 {
        let out = herd().args(["checkpoint", "diff", "--json"]).args([self.path(a), self.path(b)]).output().unwrap();
        let value: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", text(&out)));
        let moments = value["tensors"].as_array().unwrap().iter().filter(|t| t["group"] == "exp_avg");
        moments.map(|t| t["max_abs"].as_f64().unwrap()).fold(0.0, f64::max)
    }

    fn reference(&self, name: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(self.path(name).join("reference")).into_iter().flatten();
        all.map(|e| e.unwrap().path()).collect()
    }
}

fn number(v: &Value, key: &str) -> f64 {
    v[key].as_f64().unwrap_or_else(|| panic!("no {key} in {v}"))
}

/// Fails unless all figures of two steps agree.
fn same(what: &str, got: &Value, want: &Value, most: f64) {
    for key in FIGURES {
        let (got, want) = (number(got, key), number(want, key));
        assert!((got - want).abs() <= most * want.abs().max(1.0), "{what}: {key} is {got}, not {want}");
    }
}

#[test]
fn every_form_of_a_batch_has_the_same_loss_rewards_and_gradient() {
    let dpo = Dpo::new(12);
    let rows = packed(&dpo.path("pairs"));
    assert!(rows < 12, "pairs share samples");
    let (whole, _) = dpo.trained(0, "whole", &["batch.micro=12"]);
    assert_eq!(number(&whole[0], "rewards/margins"), 0.0, "it begins as its own reference");
    assert!((number(&whole[0], "loss") - 2f64.ln()).abs() < 1e-12);
    assert!(number(&whole[2], "rewards/margins") > 0.05, "it learns: {}", whole[2]);
    assert_eq!(number(&whole[2], "pairs"), 12.0);
    let global = format!("batch.global={rows}");
    let packed: &[&str] = &["data.chat.packing=first_fit", &global];
    let halves = ["parallel.data=2", "parallel.zero=1", "batch.micro=2"];
    let cells: &[(usize, Vec<&str>)] = &[
        (0, vec!["batch.micro=1"]),
        (0, [packed, &["batch.micro=1"]].concat()),
        (2, halves.to_vec()),
        (2, vec!["parallel.tensor=2", "batch.micro=3"]),
        (2, vec!["parallel.context=2", "batch.micro=2"]),
        (2, [packed, &["parallel.context=2"]].concat()),
        (2, vec!["parallel.pipeline=2", "parallel.schedule=zero_bubble"]),
        (4, vec!["parallel.tensor=2", "parallel.data=2", "parallel.zero=3", "train.recompute=full"]),
    ];
    let mut worst = 0.0f64;
    for (i, (ranks, sets)) in cells.iter().enumerate() {
        let name = format!("cell-{i}");
        let (got, _) = dpo.trained(*ranks, &name, sets);
        (0..3).for_each(|s| same(&format!("{sets:?} step {s}"), &got[s], &whole[s], 2e-6));
        let gap = dpo.gap("whole", &name);
        worst = worst.max(gap);
        assert!(gap < 1e-6, "{sets:?}: gradients differ by {gap:e}");
    }
    println!("preference pairs: {} cells, largest gradient gap {worst:e}", cells.len());
    // Memory of a step beside that of a step on the conversations alone.
    corpus(&dpo.path("alone"), 12, 1, false);
    let sft = format!("data.train=[{{path: {}}}]", dpo.path("alone").display());
    let (sft, _) = dpo.trained(0, "sft", &["dpo=null", &sft, "batch.micro=12"]);
    let peak = |v: &Value| number(v, "memory_peak");
    assert!(peak(&whole[2]) <= 1.05 * peak(&sft[2]), "{} bytes beside {}", peak(&whole[2]), peak(&sft[2]));
}

#[test]
fn loss_rewards_and_gradient_are_those_of_the_formulas_in_transformers() {
    let dpo = Dpo::new(6);
    let cells = [
        ("sigmoid", json!({"loss": "sigmoid", "beta": 0.5})),
        ("smoothed-sft", json!({"loss": "sigmoid", "beta": 0.5, "label_smoothing": 0.1, "sft_weight": 0.3})),
        ("normalized", json!({"loss": "sigmoid", "beta": 5.0, "length_normalized": true})),
        ("ipo", json!({"loss": "ipo", "beta": 0.5})),
    ];
    let mut oracle = python();
    oracle.arg("tests/oracle/dpo.py").args([dpo.path("pairs"), dpo.path("hf")]);
    let mut found = Vec::new();
    for (name, settings) in &cells {
        let set = format!("dpo={settings}");
        let (got, _) = dpo.trained(0, name, &[&set, "train.steps=2", "batch.micro=3"]);
        let step = |n: u64| dpo.path(name).join("checkpoints").join(format!("step-{n:08}"));
        let policy = dpo.path(&format!("{name}-hf"));
        said_of(herd().args(["checkpoint", "export"]).args([&step(1), &policy]).args(["--dtype", "fp32"]));
        oracle.args([policy, step(2)]).arg(settings.to_string());
        found.push(got[1].clone());
    }
    let out = oracle.output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let printed = String::from_utf8_lossy(&out.stdout);
    let want: Vec<Value> = printed.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(want.len(), cells.len());
    for ((name, _), (got, want)) in cells.iter().zip(found.iter().zip(&want)) {
        same(name, got, want, 1e-5);
        let (gap, top) = (number(want, "gap"), number(want, "top"));
        println!("{name}: loss {}, margin {}, gradient gap {gap:e} of {top:e}", want["loss"], want["rewards/margins"]);
        assert!(number(want, "rewards/margins").abs() > 1e-3, "{name}: nothing to compare: {want}");
        assert!(gap < 1e-5 * top.max(0.1), "{name}: gradients differ by {gap:e}, the largest is {top:e}");
    }
}

#[test]
fn the_reference_is_computed_once_and_again_where_it_is_lost() {
    let dpo = Dpo::new(12);
    let held_out = format!("data.validation=[{{path: {}}}]", dpo.path("held-out").display());
    let usual: &[&str] = &[&held_out, "validation.every=3", "batch.global=2", "train.steps=6", "optim.lr=0.02"];
    let run = |ranks: usize, name: &str, sets: &[&str]| dpo.trained(ranks, name, &[usual, sets].concat());
    let (whole, said) = run(0, "whole", &[]);
    assert!(said.contains("computing the reference log-probabilities of 17 pairs"), "{said}");
    assert!(number(&whole[5], "validation_loss") != number(&whole[2], "validation_loss"));
    assert!(
        (0.0..=1.0).contains(&number(&whole[2], "eval_rewards/accuracies"))
            && whole[1].get("eval_rewards/accuracies").is_none()
    );
    // In the middle of the epoch, with what is there.
    let (_, said) = run(0, "stopped", &["train.stop_at=3"]);
    assert!(said.contains("computing the reference"), "{said}");
    let made = dpo.reference("stopped");
    assert_eq!(made.len(), 1, "nothing half-made is left: {made:?}");
    let values = |at: &Path| fs::read(at.join("train-0.f64")).unwrap();
    let first = values(&made[0]);
    let fork = |to: &str| {
        let done = std::process::Command::new("cp").arg("-r").args([dpo.path("stopped"), dpo.path(to)]).status();
        assert!(done.unwrap().success());
    };
    ["moved", "damaged", "other"].into_iter().for_each(fork);
    let (rest, said) = run(0, "stopped", &[]);
    assert!(!said.contains("computing the reference") && said.contains("resumed from"), "{said}");
    assert_eq!(
        rest[3..].iter().map(|v| &v["loss"]).collect::<Vec<_>>(),
        whole[3..].iter().map(|v| &v["loss"]).collect::<Vec<_>>()
    );
    // Lost: the model that the run began with is read once more, on other axes.
    fs::remove_dir_all(dpo.path("moved").join("reference")).unwrap();
    let (rest, said) = run(2, "moved", &["parallel.tensor=2"]);
    assert!(said.contains("computed again with model.weights"), "{said}");
    (3..6).for_each(|s| same(&format!("moved, step {s}"), &rest[s], &whole[s], 1e-5));
    // Damaged.
    let broken = &dpo.reference("damaged")[0];
    let mut bytes = first.clone();
    bytes[3] ^= 1;
    fs::write(broken.join("train-0.f64"), bytes).unwrap();
    let (rest, said) = run(0, "damaged", &[]);
    assert!(said.contains("has checksum") && said.contains("computed again"), "{said}");
    assert_eq!(rest[5]["loss"], whole[5]["loss"]);
    assert_eq!(values(&dpo.reference("damaged")[0]), first);
    // Another model in its place is no reference of this run, and its settings may not change.
    fs::remove_dir_all(dpo.path("other").join("reference")).unwrap();
    let another = dpo.path("another");
    let last = dpo.path("whole").join("checkpoints/step-00000006");
    said_of(herd().args(["checkpoint", "export"]).args([&last, &another]).args(["--dtype", "fp32"]));
    let another = format!("model.weights={}", another.display());
    let (code, said) = dpo.refused("other", &[usual, &[&another]].concat());
    assert!(code == Some(10) && said.contains("those that the run began with had"), "{said}");
    let (code, said) = dpo.refused("other", &[usual, &["dpo.beta=0.1"]].concat());
    assert!(code == Some(10) && said.contains("dpo: is"), "{said}");
    // Runs that begin alike share one, adapters among them: before their first step they change nothing.
    let shared = format!("dpo.reference_dir={}", dpo.path("shared").display());
    let (_, said) = run(0, "one", &[&shared, "train.steps=1"]);
    assert!(said.contains("computing the reference"), "{said}");
    let (_, said) = run(0, "two", &[&shared, "dpo.loss=ipo", "train.steps=1"]);
    assert!(
        !said.contains("computing the reference") && said.contains("reference log-probabilities: those in"),
        "{said}"
    );
}

#[test]
fn adapters_are_trained_on_pairs_too() {
    let dpo = Dpo::new(12);
    let lora = "lora={rank: 4, alpha: 8}";
    let (whole, _) = dpo.trained(0, "whole", &[lora, "optim.lr=1"]);
    assert_eq!(number(&whole[0], "rewards/margins"), 0.0);
    assert!(number(&whole[2], "rewards/margins") > 0.01, "it learns: {}", whole[2]);
    let (got, _) = dpo.trained(2, "zero", &[lora, "optim.lr=1", "parallel.data=2", "parallel.zero=3"]);
    (0..3).for_each(|s| same(&format!("step {s}"), &got[s], &whole[s], 5e-6));
}

/// Replicas that have frozen matrices in few bits read the weights once more, and share them once more: nothing is added up twice.
#[test]
fn a_lost_reference_beside_few_bits_is_measured_with_the_same_weights() {
    let dpo = Dpo::shaped(12, &SHAPE);
    let lora = "lora={rank: 4, alpha: 8, quantize: int8}";
    let usual: &[&str] = &[lora, "optim.lr=1", "parallel.data=2", "batch.global=4", "train.steps=4"];
    let (whole, _) = dpo.trained(2, "whole", usual);
    dpo.trained(2, "lost", &[usual, &["train.stop_at=2"]].concat());
    fs::remove_dir_all(dpo.path("lost").join("reference")).unwrap();
    let (rest, said) = dpo.trained(2, "lost", usual);
    assert!(said.contains("computed again with model.weights"), "{said}");
    let figures = |steps: &[Value]| steps[2..].iter().map(|v| FIGURES.map(|key| v[key].clone())).collect::<Vec<_>>();
    assert_eq!(figures(&rest), figures(&whole));
}

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end_of_text|>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

/// A Parquet file with a text under each key.
fn parquet(path: &Path, keys: &[&str], rows: &[&[&str]]) {
    let fields: String = keys.iter().map(|k| format!("required binary {k} (UTF8); ")).collect();
    let schema = Arc::new(parse_message_type(&format!("message schema {{ {fields} }}")).unwrap());
    let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for k in 0..keys.len() {
        let mut column = group.next_column().unwrap().unwrap();
        let texts: Vec<ByteArray> = rows.iter().map(|r| r[k].as_bytes().to_vec().into()).collect();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn pairs_are_told_from_conversations_and_each_is_refused_where_the_other_belongs() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("t.jinja"), TEMPLATE).unwrap();
    let run = |args: &[&str]| {
        let out = herd().current_dir(d).args(args).output().unwrap();
        (out.status.code(), text(&out))
    };
    let chat =
        |more: &[&str]| run(&[&["data", "chat", "-t", "bytes", "--template", "t.jinja", "--force"], more].concat());
    let (user, a, b) = (
        json!({"role": "user", "content": "q"}),
        json!({"role": "assistant", "content": "yes"}),
        json!({"role": "assistant", "content": "n"}),
    );
    let rows = [
        json!({"prompt": "q", "chosen": "yes", "rejected": "n"}),
        json!({"prompt": [user], "chosen": [a], "rejected": [b]}),
        json!({"prompt": "q", "chosen": [user, a], "rejected": [user, b], "score_chosen": 8.5}),
    ];
    fs::write(d.join("p.jsonl"), rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    fs::write(d.join("list.json"), json!(rows).to_string()).unwrap();
    let (code, said) = chat(&["-o", "p", "p.jsonl"]);
    assert_eq!(code, Some(0), "{said}");
    for words in [
        "preference pairs: 1 of prompt with",
        "as texts",
        "as messages",
        "as whole conversations",
        "3 preference pairs (6 conv",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(chat(&["-o", "array", "list.json"]).0, Some(0));
    assert_eq!(fs::read(d.join("array.bin")).unwrap(), fs::read(d.join("p.bin")).unwrap());
    parquet(&d.join("three.parquet"), &["prompt", "chosen", "rejected"], &[&["q", "yes", "n"][..]; 3]);
    let (code, said) = chat(&["-o", "columns", "three.parquet"]);
    assert!(code == Some(0) && said.contains("as Parquet: 3 rows"), "{said}");
    assert_eq!(fs::read(d.join("columns.bin")).unwrap(), fs::read(d.join("p.bin")).unwrap());
    let (_, said) = run(&["data", "inspect", "p", "--chat", "--show", "6", "--sequence-length", "40"]);
    assert!(said.contains("pairs        3,") && said.contains("too long     3 pairs for samples of 40"), "{said}");
    assert_eq!(said.matches("user: q<|end_of_text|>\nassistant: ⟦yes<|end_of_text|>\n⟧").count(), 3, "{said}");
    assert_eq!(said.matches("assistant: ⟦n<|end_of_text|>\n⟧").count(), 3, "{said}");
    // Mixed, the same answer twice.
    let plain = json!({"messages": [user, a]});
    fs::write(d.join("mixed.jsonl"), format!("{}\n{plain}\n", rows[0])).unwrap();
    let (code, said) = chat(&["-o", "x", "mixed.jsonl"]);
    assert!(code == Some(11) && said.contains("preference pairs and conversations in one corpus"), "{said}");
    let twice = json!({"prompt": "q", "chosen": "yes", "rejected": "yes"});
    fs::write(d.join("same.jsonl"), format!("{}\n{twice}\n", rows[0])).unwrap();
    let (code, said) = chat(&["-o", "x", "same.jsonl"]);
    assert!(code == Some(11) && said.contains("conversation 2") && said.contains("trap same-answers"), "{said}");
    let (code, said) = chat(&["-o", "x", "--skip-bad", "same.jsonl"]);
    assert!(code == Some(0) && said.contains("1 left out") && said.contains("x: 1 preference pairs"), "{said}");
    // Each in its place.
    fs::write(d.join("c.jsonl"), format!("{plain}\n")).unwrap();
    assert_eq!(chat(&["-o", "c", "c.jsonl"]).0, Some(0));
    let (code, said) = run(&["data", "merge", "-o", "all", "p", "c"]);
    assert!(code == Some(11) && said.contains("kind: preference pairs and no pairs"), "{said}");
    let config = json!({
        "name": "x", "run_dir": "run", "model": {"weights": "w", "shape": serde_json::Value::Null},
        "data": {"sequence_length": 128, "train": [{"path": "p"}], "chat": {}}, "dpo": {},
        "batch": {"global": 1, "micro": 1}, "train": {"steps": 1, "device": "cpu"}, "optim": {"warmup_steps": 0},
    });
    let mut config = config;
    config["model"] = json!({"weights": "w", "shape": {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}});
    fs::write(d.join("c.yaml"), config.to_string()).unwrap();
    let check = |sets: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
        run(&[&["config", "check", "c.yaml"], &sets[..]].concat())
    };
    let (code, said) = check(&[]);
    assert!(code == Some(0) && said.contains("3 preference pairs"), "{said}");
    for (sets, code, words) in [
        (&["data.train=[{path: c}]"][..], 11, "holds no preference pairs"),
        (&["dpo=null"], 11, "rejected answers would be learned"),
        (&["data.sequence_length=40"], 11, "3 of 3 preference pairs are longer"),
        (&["dpo.loss=hinge"], 10, "is not one of sigmoid, ipo"),
        (&["dpo.beta=0"], 10, "dpo.beta"),
        (&["data.chat=null"], 10, "preference pairs are conversations"),
        (&["data.chat.too_long=cut"], 10, "are not cut"),
        (&["model.weights=null"], 10, "random weights"),
        (&["train.z_loss=0.1"], 10, "z-loss"),
        (&["dpo.loss=ipo", "dpo.length_normalized=true"], 10, "averages over the tokens"),
        (&["dpo.loss=ipo", "dpo.label_smoothing=0.1"], 10, "label smoothing"),
    ] {
        let (got, said) = check(sets);
        assert!(got == Some(code) && said.contains(words), "{sets:?}: {got:?} {said}");
    }
}

//! What validation says: of each corpus loss and accuracy as transformers finds them, of tasks what `herd eval` finds, on every axis.

use crate::support::{herd, python, said, text};
use crate::train::{bits, lines, Run};
use serde_json::{json, Value};
use std::fs;

/// The last validation of a run.
fn last(run: &Run, name: &str) -> Value {
    let all = lines(&run.path(name), "events.jsonl");
    all.into_iter().rfind(|v| v["kind"] == "validation").unwrap()
}

#[test]
fn each_corpus_has_its_loss_and_accuracy_on_every_axis() {
    let run = Run::new();
    // A second corpus of another kind, a third of its sequences the first's.
    let other = run.path("numbers.txt");
    fs::write(&other, (0..8000).map(|i| format!("{i} ")).collect::<String>()).unwrap();
    said(herd().args(["data", "tokenize", "--tokenizer", "bytes", "-o"]).arg(run.path("numbers")).arg(&other));
    let paths = [run.path("corpus_validation"), run.path("numbers")];
    let [text_, numbers] = paths.each_ref().map(|p| p.display().to_string());
    let both = format!("data.validation=[{{path: {text_}, weight: 1}}, {{path: {numbers}, weight: 2}}]");
    let sets = [both.as_str(), "validation.sequences=30"];
    run.losses(0, "whole", &sets);
    let whole = last(&run, "whole");
    let corpora = whole["corpora"].as_array().unwrap();
    assert_eq!(corpora.len(), 2, "{whole}");
    let number = |v: &Value, key: &str| v[key].as_f64().unwrap_or_else(|| panic!("{key}: {v}"));

    // The whole is the mean of its parts.
    let of_all = |v: &Value, key: &str| {
        let parts = v["corpora"].as_array().unwrap().iter();
        let (sum, tokens) = parts.fold((0.0, 0.0), |(sum, n), c| {
            let tokens = number(c, "tokens");
            (sum + tokens * number(c, key), n + tokens)
        });
        assert_eq!(tokens, 30.0 * 64.0);
        sum / tokens
    };
    assert!((of_all(&whole, "loss") / number(&whole, "validation_loss") - 1.0).abs() < 1e-9, "{whole}");
    assert!((of_all(&whole, "accuracy") / number(&whole, "validation_accuracy") - 1.0).abs() < 1e-9, "{whole}");
    let recorded = lines(&run.path("whole"), "metrics.jsonl").pop().unwrap();
    assert_eq!(recorded["validation_accuracy"], whole["validation_accuracy"]);

    // As transformers computes them from the exported weights.
    let model = run.path("hf");
    said(herd().args(["checkpoint", "export"]).args([&run.path("whole"), &model]).args(["--dtype", "fp32"]));
    let sequences: Vec<u64> = corpora.iter().map(|c| c["tokens"].as_u64().unwrap() / 64).collect();
    assert_eq!(sequences, [10, 20], "dealt by weight");
    let files = paths.iter().zip(&sequences).map(|(p, n)| format!("{}.bin:{n}", p.display()));
    let out = python().arg("tests/oracle/held_out.py").arg(&model).arg("64").args(files).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let theirs: Vec<[f64; 2]> = serde_json::from_slice(&out.stdout).unwrap();
    for (ours, [loss, accuracy]) in corpora.iter().zip(&theirs) {
        assert!((number(ours, "loss") / loss - 1.0).abs() < 1e-5, "{ours}: {loss}");
        // One token may be a tie but for rounding.
        assert!((number(ours, "accuracy") - accuracy).abs() <= 1.01 / number(ours, "tokens"), "{ours}: {accuracy}");
        assert!(*accuracy > 0.1, "a model that has learned something: {accuracy}");
    }

    // The same model over ranks: nothing is trained on the way.
    let weights = format!("model.weights={}", model.display());
    let still = ["train.steps=1", "optim.warmup_steps=1", "validation.every=1", weights.as_str()];
    run.losses(0, "one", &[&sets[..], &still].concat());
    let first = |name: &str| {
        let all = lines(&run.path(name), "events.jsonl");
        all.into_iter().find(|v| v["kind"] == "validation" && v["step"] == 0).unwrap()
    };
    let one = first("one");
    let cells: [&[&str]; 5] = [
        &["parallel.data=2", "parallel.zero=3"],
        &["parallel.tensor=2"],
        &["parallel.pipeline=2"],
        &["parallel.context=2"],
        &["parallel.tensor=2", "parallel.data=2", "batch.micro=4"],
    ];
    for (i, cell) in cells.into_iter().enumerate() {
        let (name, ranks) = (format!("cell-{i}"), if i == 4 { 4 } else { 2 });
        run.losses(ranks, &name, &[&sets[..], &still, cell].concat());
        let found = first(&name);
        for (a, b) in found["corpora"].as_array().unwrap().iter().zip(one["corpora"].as_array().unwrap()) {
            assert_eq!((&a["path"], &a["tokens"]), (&b["path"], &b["tokens"]));
            assert!((number(a, "loss") / number(b, "loss") - 1.0).abs() < 1e-6, "{cell:?}: {a} {b}");
            assert!(
                (number(a, "accuracy") - number(b, "accuracy")).abs() <= 1.01 / number(b, "tokens"),
                "{cell:?}: {a} {b}"
            );
        }
    }

    // A corpus alone: its accuracy is said, its loss is the run's.
    let alone = format!("data.validation=[{{path: {text_}}}]");
    let losses = run.losses(0, "alone", &[&alone, "validation.sequences=10", "train.steps=20"]);
    let found = last(&run, "alone");
    assert!(found["corpora"].is_null() && found["validation_accuracy"].is_f64(), "{found}");
    assert_eq!(
        bits(&[number(&found, "validation_loss")]),
        bits(&[number(&corpora[0], "loss")]),
        "of the same sequences"
    );
    assert_eq!(losses.len(), 20);
}

/// Rows of three kinds, from a fixed generator: easy to tell apart for a model that has seen such text, hard for others.
fn task_files(run: &Run) -> [std::path::PathBuf; 3] {
    let words = ["the", "and", "earth", "light", "waters", "heaven", "day", "night", "said", "was"];
    let word = |i: usize| words[(i * 7 + i / 3) % words.len()];
    let row = |i: usize| {
        let context = format!("And God {} the {} of", word(i), word(i + 4));
        let choices = [word(i + 1).to_string(), format!("q{}zx", i % 7), format!("{} {}", word(i + 2), word(i + 5))];
        json!({ "question": context, "choices": choices, "answer": i % 3 })
    };
    let next =
        |i: usize| json!({ "context": format!("In the {}", word(i)), "continuation": format!(" {}", word(i + 3)) });
    let text = |i: usize| json!({ "text": (0..40 + i).map(|k| word(k * k + i)).collect::<Vec<_>>().join(" ") });
    let files = ["choices", "next", "texts"].map(|name| run.path(&format!("{name}.jsonl")));
    let rows: [Vec<Value>; 3] = [(0..30).map(row).collect(), (0..20).map(next).collect(), (0..4).map(text).collect()];
    for (file, rows) in files.iter().zip(rows) {
        fs::write(file, rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    }
    files
}

#[test]
fn tasks_are_scored_in_the_run_as_herd_eval_scores_them() {
    let run = Run::new();
    let files = task_files(&run);
    let list: Vec<String> = files.iter().map(|f| format!("{{path: {}}}", f.display())).collect();
    let tasks = format!("validation.tasks=[{}]", list.join(", "));
    run.losses(0, "whole", &[&tasks]);
    let events = |name: &str, step: u64| -> Vec<Value> {
        let all = lines(&run.path(name), "events.jsonl");
        all.into_iter().filter(|v| v["kind"] == "evaluation" && v["step"] == step).collect()
    };
    assert_eq!([0, 10, 20].map(|step| events("whole", step).len()), [3, 3, 3]);
    let found = events("whole", 20);
    let recorded = lines(&run.path("whole"), "metrics.jsonl").pop().unwrap();
    assert_eq!(recorded["tasks"]["choices"], found[0]["measures"], "{recorded}");

    // As the command scores the exported model.
    let model = run.path("hf");
    said(herd().args(["checkpoint", "export"]).args([&run.path("whole"), &model]).args(["--dtype", "fp32"]));
    let mut c = herd();
    let out = c.args(["eval", "--json", "--max-length", "65", "--model"]).arg(&model).args(&files).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let theirs: Value = serde_json::from_slice(&out.stdout).unwrap();
    let close = |ours: &[Value], what: &str| {
        for (ours, theirs) in ours.iter().zip(theirs["tasks"].as_array().unwrap()) {
            assert_eq!((&ours["task"], &ours["rows"]), (&theirs["task"], &theirs["rows"]));
            let measures = ours["measures"].as_object().unwrap();
            assert_eq!(measures.len(), theirs["measures"].as_object().unwrap().len(), "{ours} {theirs}");
            for (name, value) in measures {
                let (ours, theirs) = (value.as_f64().unwrap(), theirs["measures"][name]["value"].as_f64().unwrap());
                assert!((ours - theirs).abs() <= 1e-5 * theirs.abs(), "{what}: {name}: {ours} {theirs}");
            }
        }
        assert_eq!(ours.len(), 3);
    };
    close(&found, "in the run");
    assert!(found[0]["measures"]["acc"].as_f64().unwrap() > 0.0 && found[0]["measures"]["acc"].as_f64().unwrap() < 1.0);

    // Over ranks, with other micro-batches, and with nothing else held out.
    let weights = format!("model.weights={}", model.display());
    let still = [tasks.as_str(), weights.as_str(), "train.steps=1", "optim.warmup_steps=1"];
    let cells: [(usize, &[&str]); 6] = [
        (0, &["data.validation=[]"]),
        (2, &["parallel.data=2", "parallel.zero=3"]),
        (2, &["parallel.tensor=2", "batch.micro=4"]),
        (2, &["parallel.pipeline=2"]),
        (2, &["parallel.context=2"]),
        (4, &["parallel.tensor=2", "parallel.data=2"]),
    ];
    for (i, (ranks, cell)) in cells.into_iter().enumerate() {
        let name = format!("cell-{i}");
        run.losses(ranks, &name, &[&still[..], cell].concat());
        close(&events(&name, 0), &format!("{cell:?}"));
    }

    // What cannot be is refused, before anything is made.
    let refused = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|s| ["--set", s]);
        let out = herd().args(["config", "check"]).arg(run.config()).args(sets).output().unwrap();
        (out.status.code(), text(&out))
    };
    let (code, words) = refused(&[&tasks]);
    assert!(code == Some(0) && words.contains("task choices: 30 rows of kind multiple choice, 90 texts"), "{words}");
    let (code, words) = refused(&[&tasks, "validation.every=0"]);
    assert!(code == Some(10) && words.contains("validation.tasks: 3 tasks, but no step"), "{words}");
    let (code, words) = refused(&[&tasks, "data.sequence_length=16"]);
    assert!(code == Some(11) && words.contains("choices: ") && words.contains("raise data.sequence_length"), "{words}");
    let made = run.path("made.jsonl");
    fs::write(&made, "{\"prompt\": \"a\", \"answer\": \"b\"}\n").unwrap();
    let (code, words) = refused(&[&format!("validation.tasks=[{{path: {}}}]", made.display())]);
    assert!(
        code == Some(11) && words.contains("ask for texts to be written") && words.contains("herd eval"),
        "{words}"
    );
    let (code, words) = refused(&[&format!("validation.tasks=[{0}, {0}]", list[0])]);
    assert!(code == Some(10) && words.contains("two files are named choices"), "{words}");
    let (code, words) = refused(&["validation.tasks=[{path: nowhere.jsonl}]"]);
    assert!(code == Some(11) && words.contains("nowhere.jsonl"), "{words}");
}

//! What validation says of each corpus: loss and accuracy as transformers finds them, on every axis; alone it changes no bit.

use crate::support::{herd, python, said, text};
use crate::train::{bits, lines, Run};
use serde_json::Value;
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

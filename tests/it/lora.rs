//! Adapters and frozen layers as a user trains them: the same on every axis, resumed to the bit, out to PEFT's form and back in,
//! merged; what their checkpoints lack is named and compared.

use crate::support::{herd, python, said, text};
use crate::train::{apart, bits, lines, losses, Run};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A base model in Hugging Face's form, trained a little so that it has something to say.
struct Lora {
    run: Run,
    base: String,
}

const LORA: &str = "lora={rank: 4, alpha: 8, dropout: 0.1}";

impl Lora {
    fn new() -> Lora {
        let run = Run::new();
        run.losses(0, "base", &["train.steps=8", "validation.every=0"]);
        let to = run.path("hf");
        said(herd().args(["checkpoint", "export"]).args([&run.path("base"), &to]).args(["--dtype", "fp32"]));
        let base = format!("model.weights={}", to.display());
        Lora { run, base }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.run.path(name)
    }

    fn losses(&self, ranks: usize, name: &str, sets: &[&str]) -> Vec<f64> {
        self.run.losses(ranks, name, &[&[self.base.as_str()], sets].concat())
    }

    /// Expects a refusal; exit code and words.
    fn refused(&self, name: &str, sets: &[&str]) -> (Option<i32>, String) {
        let dir = format!("run_dir={}", self.path(name).display());
        let out = self.run.train(0, &[&[self.base.as_str(), dir.as_str()], sets].concat());
        assert!(!out.status.success(), "{}", text(&out));
        (out.status.code(), text(&out))
    }

    /// Validation losses by step.
    fn validation(&self, name: &str) -> Vec<(u64, f64)> {
        let all = lines(&self.path(name), "events.jsonl");
        let of = |v: &Value| Some((v["step"].as_u64()?, v["validation_loss"].as_f64()?));
        all.iter().filter(|v| v["kind"] == "validation").filter_map(of).collect()
    }
}

fn export(args: &[&Path], more: &[&str]) -> String {
    said(herd().args(["checkpoint", "export"]).args(args).args(more))
}

#[test]
fn every_axis_trains_the_same_adapters() {
    let l = Lora::new();
    let whole = l.losses(0, "whole", &[LORA]);
    let validation = l.validation("whole");
    assert!(validation[2].1 < validation[0].1, "it learns: {validation:?}");
    let cells: &[(usize, &[&str])] = &[
        (0, &["batch.micro=8"]),
        (0, &["train.recompute=full"]),
        (0, &["train.recompute=selective"]),
        (2, &["parallel.tensor=2"]),
        // Two ranks share each KV head.
        (4, &["parallel.tensor=4", "batch.micro=4"]),
        (2, &["parallel.context=2"]),
        (2, &["parallel.pipeline=2", "parallel.schedule=zero_bubble"]),
        (2, &["parallel.pipeline=2", "parallel.tensor=1"]),
        (2, &["parallel.data=2", "parallel.zero=0"]),
        (2, &["parallel.data=2", "parallel.zero=1"]),
        (2, &["parallel.data=2", "parallel.zero=2"]),
        (4, &["parallel.data=4", "parallel.zero=1", "parallel.shard_size=2"]),
        (4, &["parallel.data=4", "parallel.zero=3"]),
        (4, &["parallel.data=4", "parallel.zero=3", "parallel.shard_size=2"]),
        (4, &["parallel.tensor=2", "parallel.pipeline=2", "parallel.zero=2"]),
        (4, &["parallel.tensor=2", "parallel.context=2", "parallel.zero=3"]),
    ];
    for (i, (ranks, sets)) in cells.iter().enumerate() {
        let got = l.losses(*ranks, &format!("cell-{i}"), &[&[LORA], *sets].concat());
        let (first, all) = (apart(&got[..1], &whole[..1]), apart(&got, &whole));
        println!("{sets:?}: first step {first:.1e}, all {all:.1e}");
        assert!(first < 1e-6 && all < 1e-4, "{sets:?}: {first:e} {all:e}");
        // The first update is of the same gradient.
        let norm = |name: &str| lines(&l.path(name), "metrics.jsonl")[0]["grad_norm"].as_f64().unwrap();
        let off = norm(&format!("cell-{i}")) / norm("whole") - 1.0;
        assert!(off.abs() < 1e-5, "{sets:?}: gradient norm {off:e}");
    }
}

#[test]
fn a_checkpoint_holds_adapters_and_names_its_base() {
    let l = Lora::new();
    let whole = l.losses(0, "whole", &[LORA]);
    for (name, ranks, sets) in [
        ("stopped", 0, &[][..]),
        ("stopped-zero3", 2, &["parallel.data=2", "parallel.zero=3"]),
        ("stopped-tensor", 2, &["parallel.tensor=2"]),
    ] {
        let dir = format!("run_dir={}", l.path(name).display());
        let out = l.run.train(0, &[LORA, &l.base, &dir, "train.stop_at=8"]);
        assert_eq!(out.status.code(), Some(75), "{}", text(&out));
        assert!(text(&out).contains("are frozen (checksum"), "{}", text(&out));
        let rest = l.losses(ranks, name, &[&[LORA], sets].concat());
        match ranks {
            0 => assert_eq!(bits(&rest), bits(&whole), "resumed on the same topology"),
            _ => assert!(apart(&rest, &whole) < 1e-4, "{name}: {rest:?} {whole:?}"),
        }
    }
    let step = l.path("stopped/checkpoints/step-00000008");
    let manifest = fs::read_to_string(step.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let tensors = manifest["manifest"]["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 3 * 3 * 14, "three groups, three blocks, A and B of seven matrices");
    assert!(tensors.iter().all(|t| t["name"].as_str().unwrap().contains(".lora_")));
    let base = &manifest["manifest"]["meta"]["base"];
    assert!(base["weights"].as_str().unwrap().ends_with("/hf") && base["sum"].as_str().unwrap().len() == 16, "{base}");

    // Other settings, no settings, and another base are refused by name.
    let (code, words) = l.refused("stopped", &["lora={rank: 8, alpha: 8}"]);
    assert!(
        code == Some(10) && words.contains("lora: the run trains adapters") && words.contains("\"rank\":4"),
        "{words}"
    );
    let (code, words) = l.refused("stopped", &[]);
    assert!(code == Some(10) && words.contains("trains all weights"), "{words}");
    let (code, words) = l.refused("base", &[LORA, "train.steps=9"]);
    assert!(code == Some(10) && words.contains("checkpoint's run trained all weights"), "{words}");
    let file = l.path("hf/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let n = bytes.len();
    bytes[n - 5] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let (code, words) = l.refused("stopped", &[LORA, "train.steps=21"]);
    assert!(code == Some(10) && words.contains("have the checksum") && words.contains("model.weights"), "{words}");
    let out = herd().args(["checkpoint", "export"]).args([&l.path("stopped"), &l.path("x")]).output().unwrap();
    assert!(!out.status.success() && text(&out).contains("have the checksum"), "{}", text(&out));
}

#[test]
fn adapters_go_out_in_pefts_form_and_come_in() {
    let l = Lora::new();
    let targets = "lora={rank: 4, alpha: 8, rslora: true, targets: [q_proj, k_proj, o_proj, gate_proj, down_proj]}";
    l.losses(2, "run", &[targets, "parallel.tensor=2", "optim.lr=1e-2"]);
    let (adapter, merged) = (l.path("adapter"), l.path("merged"));
    export(&[&l.path("run"), &adapter], &["--adapter"]);
    export(&[&l.path("run"), &merged], &["--dtype", "fp32"]);
    let compare = |model: &Path, adapter: &Path, merged: &Path| -> (f64, f64) {
        let out = python().args(["tests/oracle/lora.py", "compare"]).args([model, adapter, merged]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let v: Value = serde_json::from_slice(&out.stdout).unwrap();
        (v["gap"].as_f64().unwrap(), v["moved"].as_f64().unwrap())
    };
    let (gap, moved) = compare(&l.path("hf"), &adapter, &merged);
    assert!(gap < 1e-5 && moved > 1e-2, "logits of the adapter and of the merged model: {gap:e}, moved {moved:e}");

    // Unmerged and merged, both in herd.
    let last = *l.validation("run").last().unwrap();
    let sets = [format!("model.weights={}", merged.display()), "train.steps=1".into(), "optim.warmup_steps=0".into()];
    l.run.losses(0, "again", &sets.each_ref().map(String::as_str));
    let first = l.validation("again")[0];
    assert_eq!((last.0, first.0), (20, 0));
    assert!((last.1 / first.1 - 1.0).abs() < 1e-6, "{last:?} {first:?}");

    // As first weights, and as a model over its base.
    let from = targets.replace('}', &format!(", weights: {}}}", adapter.display()));
    l.losses(2, "from-adapter", &[&from, "parallel.data=2", "train.steps=1", "optim.warmup_steps=0"]);
    let first = l.validation("from-adapter")[0];
    assert!((last.1 / first.1 - 1.0).abs() < 1e-6, "{last:?} {first:?}");
    let (code, words) = l.refused("y", &[&from.replace("alpha: 8", "alpha: 4")]);
    assert!(code == Some(10) && words.contains("lora.alpha: is 4, but the adapter has 8"), "{words}");
    for rslora in [&[][..], &["rslora"]] {
        let (other, out) = (l.path(&format!("other{}", rslora.len())), l.path(&format!("out{}", rslora.len())));
        said(python().args(["tests/oracle/lora.py", "make"]).args([&l.path("hf"), &other]).args(rslora));
        export(&[&other, &out], &["--dtype", "fp32"]);
        let (gap, moved) = compare(&l.path("hf"), &other, &out);
        assert!(gap < 1e-5 && moved > 1e-2, "a foreign adapter: {gap:e}, moved {moved:e}");
    }

    // What herd has not is refused by name.
    let file = l.path("other0/adapter_config.json");
    let config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for (key, value) in [
        ("use_dora", Value::Bool(true)),
        ("bias", "all".into()),
        ("peft_type", "IA3".into()),
        ("init_lora_weights", "pissa_niter_16".into()),
        ("r", 8.into()),
    ] {
        let mut other = config.clone();
        other[key] = value;
        fs::write(&file, other.to_string()).unwrap();
        let out = herd().args(["checkpoint", "export"]).args([&l.path("other0"), &l.path("z")]).output().unwrap();
        let key = if key == "r" { "shape" } else { key };
        assert!(!out.status.success() && text(&out).contains(key), "{key}: {}", text(&out));
    }
}

/// One step of one sequence, whose first moments are a tenth of the gradient.
#[test]
fn gradients_are_those_of_autograd_through_the_model() {
    let l = Lora::new();
    let words = "In the beginning was the adapter, and its factors were A and B...";
    assert_eq!(words.len(), 65, "one sample of 64 places");
    fs::write(l.path("words.txt"), words).unwrap();
    let tokenize = ["data", "tokenize", "--tokenizer", "bytes", "--no-eos", "--output"];
    said(herd().args(tokenize).args([&l.path("words"), &l.path("words.txt")]));
    said(python().args(["tests/oracle/lora.py", "make"]).args([&l.path("hf"), &l.path("other")]));
    let lora = format!(
        "lora={{rank: 4, alpha: 6, targets: [q_proj, v_proj, o_proj, up_proj, down_proj], weights: {}}}",
        l.path("other").display()
    );
    let corpus = format!("data.train=[{{path: {}}}]", l.path("words").display());
    let one = ["batch.global=1", "batch.micro=1", "train.steps=1", "optim.warmup_steps=0", "train.clip_norm=0"];
    for (i, (ranks, sets)) in [(0, &[][..]), (2, &["parallel.tensor=2"])].into_iter().enumerate() {
        let name = format!("one-{i}");
        l.losses(ranks, &name, &[&[lora.as_str(), &corpus, "checkpoint.every=1"], &one[..], sets].concat());
        let out = python()
            .args(["tests/oracle/lora.py", "gradients"])
            .args([l.path("hf"), l.path("other"), l.path(&name).join("checkpoints/step-00000001"), l.path("words.txt")])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let v: Value = serde_json::from_slice(&out.stdout).unwrap();
        let gap = v["gap"].as_f64().unwrap();
        assert!(v["tensors"] == 3 * 2 * 5 && gap < 1e-5, "{sets:?}: {v}");
    }
}

#[test]
fn frozen_layers_stay_and_resume() {
    let l = Lora::new();
    let freeze = "model.freeze={embedding: true, blocks: 2, head: true}";
    let whole = l.losses(0, "whole", &[freeze]);
    let validation = l.validation("whole");
    assert!(validation[2].1 < validation[0].1, "it learns: {validation:?}");
    for (i, sets) in [
        &["parallel.data=2", "parallel.zero=3"],
        &["parallel.tensor=2", "parallel.zero=1"],
        &["parallel.pipeline=2", "parallel.zero=2"],
    ]
    .iter()
    .enumerate()
    {
        let got = l.losses(2, &format!("cell-{i}"), &[&[freeze], &sets[..]].concat());
        assert!(apart(&got[..1], &whole[..1]) < 1e-6 && apart(&got, &whole) < 1e-4, "{sets:?}");
    }
    let dir = format!("run_dir={}", l.path("stopped").display());
    assert_eq!(l.run.train(0, &[freeze, &l.base, &dir, "train.stop_at=8"]).status.code(), Some(75));
    assert_eq!(bits(&l.losses(0, "stopped", &[freeze])), bits(&whole));
    assert_eq!(losses(&l.path("stopped")).len(), 20);
    // Of the runs themselves, whose frozen layers are in the base, nothing differs.
    let runs = [l.path("whole"), l.path("stopped")];
    let out = herd().args(["checkpoint", "diff", "--json"]).args(&runs).output().unwrap();
    let diff: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", text(&out)));
    let same = diff["tensors"].as_array().unwrap().iter().all(|t| t["max_abs"] == 0.0);
    assert!(diff["compared"].as_u64() > Some(28) && same, "{diff}");
    // Of the exported model the frozen layers are the base's to the bit, the others not.
    export(&[&l.path("stopped"), &l.path("out")], &["--dtype", "fp32"]);
    let out = herd().args(["checkpoint", "diff", "--json"]).args([&l.path("hf"), &l.path("out")]).output().unwrap();
    let diff: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", text(&out)));
    for t in diff["tensors"].as_array().unwrap() {
        let (name, most) = (t["name"].as_str().unwrap(), t["max_abs"].as_f64().unwrap());
        assert_eq!(most > 0.0, name.contains("layers.2."), "{name}: {most}");
    }
}

//! Adapters beside a base in 8 or 4 bits: what is trained is what would be beside the rounded weights, to the bit; the same on every axis
//! that it is offered on; resumed and merged.

use crate::support::{herd, python, said, text};
use crate::train::{apart, bits, lines, Run};
use serde_json::Value;
use std::path::PathBuf;

/// A base whose rows are whole runs of 64 on two tensor ranks too.
pub const SHAPE: [&str; 4] = [
    "model.shape.hidden_size=128",
    "model.shape.intermediate_size=256",
    "model.shape.num_attention_heads=8",
    "train.steps=12",
];

struct Qlora {
    run: Run,
}

impl Qlora {
    fn new() -> Qlora {
        let run = Run::new();
        run.losses(0, "base", &[&SHAPE[..], &["validation.every=0", "log.every=12"]].concat());
        let (base, hf) = (run.path("base"), run.path("hf"));
        said(herd().args(["checkpoint", "export"]).args([&base, &hf]).args(["--dtype", "fp32"]));
        Qlora { run }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.run.path(name)
    }

    /// The base with its matrices rounded by numpy.
    fn rounded(&self, format: &str) -> String {
        let to = self.path(&format!("hf-{format}"));
        said(python().arg("tests/oracle/blockwise.py").args([&self.path("hf"), &to]).arg(format));
        to.file_name().unwrap().to_string_lossy().into_owned()
    }

    fn sets(&self, base: &str, name: &str, sets: &[&str]) -> Vec<String> {
        let own =
            [format!("model.weights={}", self.path(base).display()), format!("run_dir={}", self.path(name).display())];
        SHAPE.iter().chain(sets).map(|s| s.to_string()).chain(own).collect()
    }

    fn losses(&self, ranks: usize, base: &str, name: &str, sets: &[&str]) -> Vec<f64> {
        let sets = self.sets(base, name, sets);
        self.run.losses(ranks, name, &sets.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Trains and expects to stop with this code; what was said.
    fn ends(&self, code: i32, name: &str, sets: &[&str]) -> String {
        let sets = self.sets("hf", name, sets);
        let out = self.run.train(0, &sets.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(out.status.code(), Some(code), "{}", text(&out));
        text(&out)
    }

    fn lora(format: &str) -> String {
        let format = if format.is_empty() { String::new() } else { format!(", quantize: {format}") };
        format!("lora={{rank: 4, alpha: 8, dropout: 0.1{format}}}")
    }
}

#[test]
fn a_quantized_base_is_the_rounded_one_to_the_bit() {
    let q = Qlora::new();
    let plain = q.losses(0, "hf", "plain", &[&Qlora::lora("")]);
    for (format, least) in [("int8", 1e-7), ("nf4", 1e-4)] {
        let (rounded, few) = (q.rounded(format), Qlora::lora(format));
        let want = q.losses(0, &rounded, &format!("want-{format}"), &[&Qlora::lora("")]);
        let got = q.losses(0, "hf", format, &[&few]);
        assert_eq!(bits(&got), bits(&want), "{format}");
        let off = apart(&got, &plain);
        assert!(off > least && off < 0.05, "{format}: {off:e} from the losses beside the base as it is");

        // Merged it is the rounded base with the same adapters.
        let export = |run: &str, to: &str| {
            said(herd().args(["checkpoint", "export"]).args([&q.path(run), &q.path(to)]).args(["--dtype", "fp32"]))
        };
        export(format, &format!("merged-{format}"));
        export(&format!("want-{format}"), &format!("merged-want-{format}"));
        let out = herd()
            .args(["checkpoint", "diff", "--json"])
            .args([q.path(&format!("merged-{format}")), q.path(&format!("merged-want-{format}"))])
            .output()
            .unwrap();
        let diff: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", text(&out)));
        // Zeros of either sign are one.
        let same = diff["tensors"].as_array().unwrap().iter().all(|t| t["max_abs"] == 0.0);
        assert!(diff["compared"].as_u64() > Some(0) && same, "{}", text(&out));

        // On every axis, over replicas and between them.
        let cells: &[(usize, &[&str])] = &[
            (0, &["train.recompute=full"]),
            (2, &["parallel.tensor=2"]),
            (2, &["parallel.context=2"]),
            (2, &["parallel.pipeline=2", "parallel.schedule=zero_bubble"]),
            (2, &["parallel.data=2", "parallel.zero=0", "log.sync_check_every=3"]),
            (4, &["parallel.data=4", "parallel.zero=1", "parallel.shard_size=2", "log.sync_check_every=3"]),
            (4, &["parallel.tensor=2", "parallel.data=2", "parallel.zero=2"]),
        ];
        for (i, (ranks, sets)) in cells.iter().enumerate().filter(|(i, _)| format == "nf4" || i % 3 == 1) {
            let got = q.losses(*ranks, "hf", &format!("{format}-{i}"), &[&[few.as_str()], *sets].concat());
            let (first, all) = (apart(&got[..1], &want[..1]), apart(&got, &want));
            println!("{format} {sets:?}: first step {first:.1e}, all {all:.1e}");
            assert!(first < 1e-6 && all < 1e-4, "{format} {sets:?}: {first:e} {all:e}");
        }
    }
}

#[test]
fn a_run_beside_a_quantized_base_resumes_and_is_refused_by_name() {
    let q = Qlora::new();
    let few = Qlora::lora("nf4");
    let whole = q.losses(0, "hf", "whole", &[&few]);
    let words = q.ends(75, "stopped", &[&few, "train.stop_at=8"]);
    assert!(words.contains("frozen matrices lie in nf4 (lora.quantize)"), "{words}");
    let words = q.ends(10, "stopped", &[&Qlora::lora("int8")]);
    assert!(words.contains("\"quantize\":\"nf4\"") && words.contains("\"quantize\":\"int8\""), "{words}");
    let words = q.ends(10, "stopped", &[&Qlora::lora("")]);
    assert!(words.contains("\"quantize\":\"nf4\""), "{words}");
    assert_eq!(bits(&q.losses(0, "hf", "stopped", &[&few])), bits(&whole));
    // The merged model goes on where the run stopped.
    let merged = q.path("merged");
    said(herd().args(["checkpoint", "export"]).args([&q.path("stopped"), &merged]).args(["--dtype", "fp32"]));
    q.losses(0, "merged", "again", &["train.steps=1", "optim.warmup_steps=0"]);
    let validation = |name: &str| -> Vec<f64> {
        let of = |v: &Value| v["validation_loss"].as_f64();
        lines(&q.path(name), "events.jsonl").iter().filter_map(of).collect()
    };
    let (last, first) = (*validation("stopped").last().unwrap(), validation("again")[0]);
    assert!((last / first - 1.0).abs() < 1e-6, "{last} beside the base, {first} merged");
    // To PEFT's form it goes with a word about the base.
    let words =
        said(herd().args(["checkpoint", "export"]).args([&q.path("stopped"), &q.path("peft")]).arg("--adapter"));
    assert!(words.contains("nf4"), "{words}");
}

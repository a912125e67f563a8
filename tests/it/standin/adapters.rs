//! Adapters on the stand-in against the CPU: beside frozen weights as they are, and in 8 and 4 bits.

use super::environment;
use crate::support::{herd, said, text};
use crate::train::{losses, Run};

/// Rows of whole runs of 64.
const SHAPE: [&str; 3] =
    ["model.shape.hidden_size=128", "model.shape.intermediate_size=256", "model.shape.num_attention_heads=8"];

#[test]
fn adapters_train_as_on_the_cpu() {
    let Some(environment) = environment() else { return };
    let run = Run::new();
    let few = ["train.steps=8", "validation.every=0"];
    run.losses(0, "base", &[&SHAPE[..], &few].concat());
    let hf = run.path("hf");
    said(herd().args(["checkpoint", "export"]).args([&run.path("base"), &hf]).args(["--dtype", "fp32"]));
    let weights = format!("model.weights={}", hf.display());
    for (name, lora) in [
        ("plain", "lora={rank: 4, alpha: 8, dropout: 0.1}"),
        ("int8", "lora={rank: 4, alpha: 8, dropout: 0.1, quantize: int8}"),
        ("nf4", "lora={rank: 4, alpha: 8, dropout: 0.1, quantize: nf4}"),
    ] {
        let sets = [&SHAPE[..], &["train.steps=6", &weights, lora, "checkpoint.every=0"]].concat();
        let want = run.losses(0, &format!("cpu-{name}"), &sets);
        let axes = [(0, "parallel.data=1"), (2, "parallel.tensor=2"), (2, "parallel.data=2")];
        for (ranks, axis) in axes.into_iter().filter(|(ranks, _)| *ranks == 0 || name == "nf4") {
            let name = format!("device-{name}-{}", axis.replace('=', "-"));
            let dir = format!("run_dir={}", run.path(&name).display());
            let mut c = run.command(ranks, &[&sets[..], &["train.device=cuda", axis, &dir]].concat());
            let out = c.envs(environment.iter().map(|(k, v)| (k, v))).output().unwrap();
            assert!(out.status.success(), "{name}: {}", text(&out));
            let got = losses(&run.path(&name));
            let apart = got.iter().zip(&want).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
            assert!(got.len() == 6 && apart < 1e-4, "{name}: {apart:e}, {got:?} {want:?}");
        }
    }
}

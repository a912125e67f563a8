//! The real binary on the stand-in: training on one rank and on two that share the device, stopped and resumed, and text.

use super::environment;
use crate::support::{herd, text};
use crate::train::{losses, Run};

/// The losses of a run on the stand-in, and what it said.
fn on_the_device(run: &Run, ranks: usize, name: &str, set: &[&str]) -> Option<(Vec<f64>, String)> {
    let environment = environment()?;
    let dir = format!("run_dir={}", run.path(name).display());
    let sets: Vec<&str> = set.iter().copied().chain(["train.device=auto", dir.as_str()]).collect();
    let out = run.command(ranks, &sets).envs(environment).output().unwrap();
    // 75: stopped before the last step, as asked.
    assert!(matches!(out.status.code(), Some(0 | 75)), "{}", text(&out));
    if ranks > 1 {
        assert!(text(&out).contains("share device"), "two ranks on one card go over the host: {}", text(&out));
    }
    Some((losses(&run.path(name)), text(&out)))
}

#[test]
fn training_is_the_cpu_s_and_resumes() {
    let run = Run::new();
    let cpu = run.losses(0, "cpu", &[]);
    let Some((alone, words)) = on_the_device(&run, 0, "alone", &[]) else { return };
    assert_eq!(words.matches("it runs unfused").count(), 1, "{words}");
    let (two, _) = on_the_device(&run, 2, "two", &["parallel.zero=2"]).unwrap();
    for found in [&alone, &two] {
        assert_eq!(found.len(), cpu.len());
        assert!((found[0] / cpu[0] - 1.0).abs() < 1e-6, "{} {}", found[0], cpu[0]);
        found.iter().zip(&cpu).for_each(|(a, b)| assert!((a / b - 1.0).abs() < 1e-4, "{found:?} {cpu:?}"));
    }
    // Stopped in the middle and started again: the same bits, since this device adds in a fixed order.
    let (again, _) = on_the_device(&run, 0, "again", &["train.stop_at=8"]).unwrap();
    assert_eq!(again.len(), 8);
    assert_eq!(on_the_device(&run, 0, "again", &[]).unwrap().0, alone);
    // With the state in host memory too.
    let offload = "optim.offload=true";
    let (whole, _) = on_the_device(&run, 0, "offload", &[offload]).unwrap();
    whole.iter().zip(&cpu).for_each(|(a, b)| assert!((a / b - 1.0).abs() < 1e-4, "{whole:?} {cpu:?}"));
    on_the_device(&run, 0, "offload-again", &[offload, "train.stop_at=8"]).unwrap();
    assert_eq!(on_the_device(&run, 0, "offload-again", &[offload]).unwrap().0, whole);
    let few = run.losses(0, "few-cpu", &["optim.moments=8bit"]);
    for (name, sets) in [("few", &["optim.moments=8bit"][..]), ("few-offload", &["optim.moments=8bit", offload])] {
        let (got, _) = on_the_device(&run, 0, name, sets).unwrap();
        got.iter().zip(&few).for_each(|(a, b)| assert!((a / b - 1.0).abs() < 1e-3, "{name}: {got:?} {few:?}"));
    }
    // bf16 is fused, and nothing is said.
    let (bf16, words) = on_the_device(&run, 0, "bf16", &["train.precision=bf16"]).unwrap();
    assert!(!words.contains("unfused") && (bf16[19] / cpu[19] - 1.0).abs() < 2e-2, "{bf16:?} {cpu:?} {words}");

    let generate = |device: &str, precision: &str| {
        let mut c = herd();
        c.envs(environment().unwrap()).args(["generate", "--device", device, "--precision", precision, "--model"]);
        c.arg(run.path("alone")).args(["--tokenizer", "bytes", "-n", "12", "--prompt", "pub fn "]);
        let out = c.output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert_eq!(generate("cuda", "fp32"), generate("cpu", "fp32"));
    assert!(generate("cuda", "bf16").starts_with("pub fn "));
}

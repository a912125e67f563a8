//! `herd train` on bad input: its exit code, one message however many ranks, and nothing half-done.

use super::train::Run;
use crate::support::text;
use std::fs;

/// Trains with `set` on `ranks` ranks; the run must end with `code`, and say `words` once, on one line.
fn fails(run: &Run, ranks: usize, set: &[&str], code: i32, words: &[&str]) {
    let out = run.train(ranks, set);
    let said = text(&out);
    assert_eq!(out.status.code(), Some(code), "{set:?}: {said}");
    let errors: Vec<&str> = said.lines().filter(|l| l.starts_with("herd: error: ")).collect();
    assert_eq!(errors.len(), 1, "{set:?}: {said}");
    for word in words {
        assert!(errors[0].contains(word), "{set:?}: {word} not in {}", errors[0]);
    }
    assert!(!said.contains("panicked") && !said.contains("internal error"), "{set:?}: {said}");
}

#[test]
fn what_does_not_fit_is_refused_before_the_first_step() {
    let run = Run::new();
    for ranks in [0, 2] {
        let no_gpu = ["cuda was asked for", "no CUDA device"];
        fails(&run, ranks, &["train.device=cuda"], 14, &no_gpu);
        fails(&run, ranks, &["model.shape.vocab_size=200"], 11, &["258", "200", "bytes"]);
        fails(&run, ranks, &["data.tokenizer=/no/tokenizer.json"], 11, &["/no/tokenizer.json", "no such file"]);
        fails(&run, ranks, &["data.train.0.path=/no/corpus"], 11, &["/no/corpus.idx", "no such file"]);
        fails(&run, ranks, &["batch.global=7"], 10, &["batch.global", "7"]);
        fails(&run, ranks, &["model.shape=", "model.weights=/no/model"], 12, &["/no/model/config.json"]);
    }
    assert!(!run.path("run/checkpoints").exists() && !run.path("run/metrics.jsonl").exists());
}

#[test]
fn a_truncated_corpus_is_refused() {
    let run = Run::new();
    let idx = run.path("corpus_train.idx");
    let whole = fs::read(&idx).unwrap();
    fs::write(&idx, &whole[..whole.len() - 5]).unwrap();
    fails(&run, 0, &[], 11, &["corpus_train.idx", &(whole.len() - 5).to_string()]);
    fs::write(&idx, &whole).unwrap();
    let bin = run.path("corpus_train.bin");
    let bytes = fs::read(&bin).unwrap();
    fs::write(&bin, &bytes[..bytes.len() / 2]).unwrap();
    fails(&run, 2, &[], 11, &["corpus_train.bin", &(bytes.len() / 2).to_string(), &bytes.len().to_string()]);
}

/// A step of three tasks whose ranks do not find each other would be three worlds of one.
#[test]
fn a_world_that_is_not_slurm_s_is_refused() {
    let run = Run::new();
    let mut c = run.command(0, &[]);
    c.env("SLURM_PROCID", "0").env("SLURM_NTASKS", "3");
    let out = c.output().unwrap();
    let said = text(&out);
    assert_eq!(out.status.code(), Some(13), "{said}");
    assert!(said.contains("--mpi=pmix") && said.contains('3') && said.contains('1'), "{said}");
}

/// A run directory belongs to one model and one order of samples.
#[test]
fn another_model_does_not_go_on_from_a_checkpoint() {
    let run = Run::new();
    let out = run.train(0, &["train.stop_at=4"]);
    assert_eq!(out.status.code(), Some(75), "{}", text(&out));
    let out = run.train(2, &["model.shape.intermediate_size=128", "seed=8"]);
    let said = text(&out);
    assert_eq!(out.status.code(), Some(10), "{said}");
    for word in ["intermediate_size", "128", "96", "seed", "run_dir"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let out = run.train(0, &[]);
    assert!(out.status.success(), "the checkpoint is as it was: {}", text(&out));
}

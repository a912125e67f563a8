//! Tests of what a run writes down, read back by independent code.

use super::support::{python, text};
use herd::train::metrics::{Metrics, StepRecord};
use serde_json::Value;
use std::path::Path;

fn events(dir: &Path) -> Vec<Vec<Value>> {
    let mut files: Vec<_> = std::fs::read_dir(dir.join("tensorboard")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let read = |file: &std::path::PathBuf| {
        assert!(file.file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents."));
        let out = python().arg("tests/oracle/tfevents.py").arg(file).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        String::from_utf8(out.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    files.iter().map(read).collect()
}

#[test]
fn tensorboard_files_hold_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut m = Metrics::open(dir.path(), 0, true).unwrap();
    for step in [1, 127, 128, 1_000_000] {
        let r = StepRecord { step, loss: 1.0 / step as f64, lr: 3e-4, tokens_per_s: 12.5, ..Default::default() };
        m.record(&StepRecord { validation_loss: (step == 128).then_some(2.25), ..r }).unwrap();
    }
    drop(m);
    // A run that continues after step 100.
    Metrics::open(dir.path(), 100, true).unwrap();

    let files = events(dir.path());
    assert_eq!(files.len(), 2);
    let first = &files[0];
    assert_eq!(first[0]["file_version"], "brain.Event:2");
    let steps: Vec<_> = first[1..].iter().map(|e| e["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 127, 128, 1_000_000]);
    for e in &first[1..] {
        let scalars = e["scalars"].as_object().unwrap();
        let step = e["step"].as_u64().unwrap();
        assert_eq!(scalars["train/loss"].as_f64().unwrap(), (1.0 / step as f64) as f32 as f64);
        assert_eq!(scalars["speed/tokens_per_s"], 12.5);
        assert_eq!(scalars.get("validation/loss").and_then(Value::as_f64), (step == 128).then_some(2.25));
        assert!(e["wall_time"].as_f64().unwrap() > 1.7e9);
    }
    let restart = &files[1][1];
    assert!(restart["step"] == 101 && restart["session"] == 1, "{restart}");
}

//! Moments in 8 bits: nearly the losses of fp32's, the same bits after a resume, on every stage of ZeRO, and in and out of fp32.

use crate::support::text;
use crate::train::{apart, bits, Run};

const FEW: &str = "optim.moments=8bit";
/// Norms are whole runs of 32.
const SHAPE: &str = "model.shape.hidden_size=64";

#[test]
fn moments_in_8_bits_train_and_resume() {
    let run = Run::new();
    for precision in ["train.precision=fp32", "train.precision=bf16"] {
        let name = |name: &str| format!("{name}-{}", &precision[precision.len() - 4..]);
        let full = run.losses(0, &name("full"), &[SHAPE, precision]);
        let few = run.losses(0, &name("few"), &[SHAPE, precision, FEW]);
        let off = apart(&few, &full);
        assert!(few[19] < 0.8 * few[0] && off > 0.0 && off < 0.02, "{precision}: {off:e}, {few:?} {full:?}");
        for (i, (ranks, sets)) in [
            (2, &["parallel.data=2", "parallel.zero=0"][..]),
            (2, &["parallel.data=2", "parallel.zero=2"]),
            (4, &["parallel.data=4", "parallel.zero=3", "parallel.shard_size=2"]),
            (2, &["parallel.tensor=2"]),
        ]
        .into_iter()
        .enumerate()
        .filter(|(i, _)| precision.ends_with("fp32") || *i == 1)
        {
            let name = name(&format!("cell-{i}"));
            let whole = run.losses(ranks, &name, &[&[SHAPE, precision, FEW], sets].concat());
            assert!(apart(&whole, &few) < 0.01, "{precision} {sets:?}: {whole:?} {few:?}");
            // Stopped and resumed.
            let again = format!("{name}-again");
            let dir = format!("run_dir={}", run.path(&again).display());
            let out = run.train(ranks, &[&[SHAPE, precision, FEW, dir.as_str(), "train.stop_at=7"], sets].concat());
            assert_eq!(out.status.code(), Some(75), "{}", text(&out));
            let resumed = run.losses(ranks, &again, &[&[SHAPE, precision, FEW], sets].concat());
            assert_eq!(bits(&resumed), bits(&whole), "{precision} {sets:?}");
        }
        // A checkpoint is fp32 either way.
        for (first, then) in [(&[FEW][..], &[][..]), (&[], &[FEW])] {
            let name = name(&format!("from-{}", first.len()));
            let dir = format!("run_dir={}", run.path(&name).display());
            let out = run.train(0, &[&[SHAPE, precision, dir.as_str(), "train.stop_at=10"], first].concat());
            assert_eq!(out.status.code(), Some(75), "{}", text(&out));
            let both = run.losses(0, &name, &[&[SHAPE, precision], then].concat());
            assert!(apart(&both, &full) < 0.02, "{precision}: {both:?} {full:?}");
        }
    }
}

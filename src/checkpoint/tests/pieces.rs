//! Tensors cut in odd ways over several writers, read back in other ways.

use super::*;
use crate::checkpoint::manifest::{self, Manifest};
use crate::checkpoint::map::Spec;
use crate::checkpoint::slice::Slice;

/// Cuts `0..n` into `parts` ranges, some perhaps empty.
fn cut(seed: &mut u64, n: usize, parts: usize) -> Vec<(usize, usize)> {
    let mut at: Vec<usize> = (1..parts).map(|_| random(seed, n + 1)).collect();
    at.extend([0, n]);
    at.sort_unstable();
    at.windows(2).map(|w| (w[0], w[1])).collect()
}

/// The elements of the global tensor that `span` names.
fn pick(span: &Slice, all: &[f32]) -> Vec<f32> {
    let (cols, width) = (span.shape[1], span.extent[1]);
    let place = |i: usize| (span.offset[0] + i / width) * cols + span.offset[1] + i % width;
    (span.start..span.start + span.len).map(|i| all[place(i)]).collect()
}

#[test]
fn two_level_slices_of_several_writers_read_back_as_any_other_slice() {
    let shape = vec![37, 23];
    let all = values(Group::ExpAvg, &shape);
    let mut seed = 3;
    for round in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step-00000001");
        fs::create_dir(&path).unwrap();
        // Rectangles by two axes as tensor ranks would, each cut again by a flat range as data ranks would.
        let (rows, cols) = (1 + random(&mut seed, 4), 1 + random(&mut seed, 4));
        let mut spans = Vec::new();
        for (r0, r1) in cut(&mut seed, shape[0], rows) {
            for (c0, c1) in cut(&mut seed, shape[1], cols) {
                let extent = vec![r1 - r0, c1 - c0];
                for (start, end) in cut(&mut seed, extent[0] * extent[1], 1 + round % 5) {
                    let (shape, offset, extent) = (shape.clone(), vec![r0, c0], extent.clone());
                    spans.push(Slice { shape, offset, extent, start, len: end - start });
                }
            }
        }
        let writers = 1 + round % 4;
        let mut tables = Vec::new();
        for w in 0..writers {
            let specs: Vec<Spec> = spans
                .iter()
                .skip(w)
                .step_by(writers)
                .map(|span| Spec { group: Group::ExpAvg, name: "a.weight".into(), span: span.clone() })
                .collect();
            let data: Vec<Vec<f32>> = specs.iter().map(|s| pick(&s.span, &all)).collect();
            let mut file = super::file::FileWriter::create(&path.join(format!("rank-{w:05}.h5")), specs, "{}").unwrap();
            for (i, d) in data.iter().enumerate() {
                // In two appends, the way a streaming writer would.
                let (a, b) = d.split_at(d.len() / 3);
                file.append(i, a).unwrap();
                file.append(i, b).unwrap();
            }
            tables.push(file.finish().unwrap());
        }
        let manifest = Manifest::new(meta(1), tables).unwrap();
        fs::write(path.join(manifest::NAME), manifest.to_bytes().unwrap()).unwrap();
        let c = Checkpoint::open(&path).unwrap();
        assert!(c.verify().iter().all(|f| f.problem.is_none()));
        for _ in 0..60 {
            let offset = vec![random(&mut seed, shape[0]), random(&mut seed, shape[1])];
            let extent = vec![1 + random(&mut seed, shape[0] - offset[0]), 1 + random(&mut seed, shape[1] - offset[1])];
            let n = extent[0] * extent[1];
            let start = random(&mut seed, n);
            let span = Slice { shape: shape.clone(), offset, extent, start, len: random(&mut seed, n - start + 1) };
            let mut out = vec![-1.0; span.len];
            c.read(Group::ExpAvg, "a.weight", &span.offset, &span.extent, start, &mut out).unwrap();
            assert_eq!(out, pick(&span, &all), "{span:?}");
        }
    }
}

#[test]
fn a_checkpoint_says_what_was_saved() {
    let dir = tempfile::tempdir().unwrap();
    let path = save_step(dir.path(), 7);
    assert!(path.ends_with("step-00000007"));
    let c = Checkpoint::open(&path).unwrap();
    assert_eq!(*c.meta(), meta(7));
    assert_whole(&c);
    assert_eq!(names(&path), ["manifest.json", "rank-00000.h5"]);
    assert_eq!(names(dir.path()), ["step-00000007"]);
}

#[test]
fn the_same_state_makes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (save_step(&dir.path().join("a"), 7), save_step(&dir.path().join("b"), 7));
    assert!(fs::read(a.join("rank-00000.h5")).unwrap() == fs::read(b.join("rank-00000.h5")).unwrap());
}

#[test]
fn pieces_that_leave_a_hole_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = [1.0; 7];
    let piece =
        Piece { group: Group::Param, name: "x", shape: &[8], offset: &[0], extent: &[8], start: 0, data: &data };
    let e = save::save_alone(dir.path(), &[piece], &meta(1)).unwrap_err();
    assert!(e.fact.contains("param x hold 7 elements, its shape [8] holds 8"), "{e}");
    assert!(names(dir.path()).is_empty());
    let piece = Piece { extent: &[9], ..piece };
    assert!(save::save_alone(dir.path(), &[piece], &meta(1)).unwrap_err().fact.contains("passes shape"));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn requests_that_do_not_fit_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let c = Checkpoint::open(&save_step(dir.path(), 1)).unwrap();
    let mut out = [0.0; 8];
    assert!(c.read(Group::Param, "nope", &[0], &[8], 0, &mut out).is_err());
    assert!(c.read(Group::Param, "model.norm.weight", &[30], &[8], 0, &mut out).is_err());
    assert!(c.read(Group::Param, "a.weight", &[0], &[8], 0, &mut out).is_err());
}

#[test]
fn moments_that_were_never_stored_are_zero() {
    let dir = tempfile::tempdir().unwrap();
    let data = [3.0; 4];
    let piece =
        Piece { group: Group::Param, name: "x", shape: &[4], offset: &[0], extent: &[4], start: 0, data: &data };
    let c = Checkpoint::open(&save::save_alone(dir.path(), &[piece], &meta(0)).unwrap().path).unwrap();
    let mut out = [1.0; 4];
    c.read(Group::ExpAvgSq, "x", &[0], &[4], 0, &mut out).unwrap();
    assert_eq!(out, [0.0; 4]);
    c.read(Group::Param, "x", &[0], &[4], 0, &mut out).unwrap();
    assert_eq!(out, data);
}

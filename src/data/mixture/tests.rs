use super::*;
use crate::data::indexed::{IndexedWriter, IndexedWritten, TokenizerNote};
use std::path::Path;

fn how(sequence_length: usize, seed: u64, vocab_size: usize) -> Cutting {
    Cutting { sequence_length, seed, vocab_size, documents: true, chat: None, pairs: false }
}

fn written() -> IndexedWritten {
    let tokenizer = TokenizerNote {
        spec: "x.json".into(),
        kind: "huggingface".into(),
        fingerprint: "abc".into(),
        vocab_size: 65_000,
        front: Vec::new(),
        eos: None,
    };
    IndexedWritten { tokenizer, chat: None, sources: vec![], split: "all".into(), holdout: 0.0, text_bytes: 0 }
}

fn corpus(dir: &Path, name: &str, tokens: u32, weight: f64) -> Corpus {
    let path = dir.join(name);
    let mut w = IndexedWriter::create(&path, 65_000).unwrap();
    w.push(&(0..tokens).collect::<Vec<_>>()).unwrap();
    w.finish(written()).unwrap();
    Corpus { path, weight: Some(weight) }
}

#[test]
fn one_corpus_reads_each_sample_once_an_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let c = [corpus(dir.path(), "a", 1001, 2.5)];
    let m = Mixture::open(&c, how(8, 1, 65_000), Some("abc")).unwrap();
    assert_eq!((m.epoch_len(), m.tokens()), (125, 1001));
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let order: Vec<i64> = (0..125)
            .map(|i| {
                let s = m.sample(epoch * 125 + i).unwrap().ids;
                assert_eq!(s, (s[0]..s[0] + 9).collect::<Vec<_>>());
                s[0] / 8
            })
            .collect();
        let mut sorted = order.clone();
        sorted.sort();
        assert_eq!(sorted, (0..125).collect::<Vec<_>>());
        orders.push(order);
    }
    assert_ne!(orders[0], orders[1]);
    assert_ne!(orders[1], orders[2]);
    assert_eq!(m.sequential(0).unwrap().ids[0], 0);
    assert_eq!(m.sequential(124).unwrap().ids[0], 124 * 8);
    assert_eq!(m.sequential(125).unwrap().ids[0], 0);
    let other = Mixture::open(&c, how(8, 2, 65_000), None).unwrap();
    assert!((0..125).any(|i| other.sample(i).unwrap() != m.sample(i).unwrap()));
}

/// Any prefix gives each corpus its share to within one sample; and draws within a corpus count up without a gap.
#[test]
fn shares_hold_at_every_prefix() {
    let cases: &[&[f64]] = &[
        &[1.0],
        &[0.7, 0.3],
        &[1.0, 1.0, 1.0],
        &[0.5, 0.25, 0.125, 0.125],
        &[1e-9, 1.0],
        &[3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.6],
        &[std::f64::consts::PI, std::f64::consts::E],
    ];
    for weights in cases {
        let turns = Turns::new(weights).unwrap();
        let period = turns.period();
        assert!(period <= LONGEST_PERIOD as u64);
        let total: f64 = weights.iter().sum();
        let mut had = vec![0u64; weights.len()];
        for i in 0..2 * period + 5 {
            let (c, k) = turns.at(i);
            assert_eq!(k, had[c], "{weights:?} index {i}");
            had[c] += 1;
            for (c, &n) in had.iter().enumerate() {
                let owed = (i + 1) as f64 * turns.slots[c] as f64 / period as f64;
                assert!((n as f64 - owed).abs() < 1.0, "{weights:?} after {i}: corpus {c} had {n} of {owed}");
            }
        }
        for (c, w) in weights.iter().enumerate() {
            let error = turns.slots[c] as f64 / period as f64 - w / total;
            assert!(error.abs() <= 1.0 / 65_536.0, "{weights:?}: corpus {c} is off by {error}");
        }
    }
    assert_eq!(Turns::new(&[0.7, 0.3]).unwrap().period(), 10);
    assert_eq!(Turns::new(&[1.0, 1.0, 1.0]).unwrap().period(), 3);
    let order: Vec<usize> = (0..8).map(|i| Turns::new(&[3.0, 1.0]).unwrap().at(i).0).collect();
    assert_eq!(order.iter().filter(|&&c| c == 1).count(), 2);
}

/// Shards of unequal sizes without weights: each sample comes as often as any other.
#[test]
fn without_weights_each_token_has_the_same_chance() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = [corpus(dir.path(), "a", 401, 1.0), corpus(dir.path(), "b", 1601, 1.0)];
    let shares = |m: &Mixture| m.turns.slots.iter().map(|s| *s as f64 / m.turns.period() as f64).collect::<Vec<_>>();
    assert_eq!(shares(&Mixture::open(&c, how(4, 9, 65_000), None).unwrap()), [0.5, 0.5]);
    c[0].weight = None;
    let e = Mixture::open(&c, how(4, 9, 65_000), None).err().unwrap();
    assert!(e.exit == Exit::Config && e.fact.contains("1 of 2 corpora have a weight"), "{e}");
    c[1].weight = None;
    let m = Mixture::open(&c, how(4, 9, 65_000), None).unwrap();
    assert_eq!(shares(&m), [0.2, 0.8]);
    assert!(m.describe().contains("20.0000% of draws"), "{}", m.describe());
}

#[test]
fn corpora_keep_to_their_own_order() {
    let dir = tempfile::tempdir().unwrap();
    let c = [corpus(dir.path(), "a", 400, 3.0), corpus(dir.path(), "b", 4000, 1.0)];
    let m = Mixture::open(&c, how(4, 9, 65_000), Some("abc")).unwrap();
    let mut from_b = std::collections::HashSet::new();
    for i in 0..4 * 999 {
        let (corpus, k) = m.turns.at(i);
        let s = m.sample(i).unwrap().ids;
        let samples = m.corpora[corpus].samples;
        assert_eq!(s[0] as u64, 4 * samples::shuffled(k, samples, 9, corpus as u64));
        if corpus == 1 {
            assert!(from_b.insert(s[0]), "b repeats a sample inside its epoch");
        }
    }
    assert_eq!(from_b.len(), 999);
    assert!(m.describe().contains("75.0000% of draws"), "{}", m.describe());
}

/// Against a walk over all documents: every sample of a corpus with short, long and empty ones.
#[test]
fn samples_know_where_documents_begin() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let lengths = [3usize, 0, 1, 1, 9, 0, 0, 20, 4, 2, 1, 30, 0];
    let mut w = IndexedWriter::create(&path, 65_000).unwrap();
    for n in lengths {
        w.push(&vec![7; n]).unwrap();
    }
    w.finish(written()).unwrap();
    let mut at = 0;
    let mut begins = std::collections::BTreeSet::new();
    for n in lengths {
        begins.insert(at);
        at += n;
    }
    for s in [1, 2, 5, 8, 35, 70] {
        let m = Mixture::open(&[Corpus { path: path.clone(), weight: None }], how(s, 1, 65_000), None).unwrap();
        let mut seen = 0;
        for i in 0..m.epoch_len() {
            let first = i as usize * s;
            let want: Vec<usize> = begins.range(first + 1..first + s).map(|b| b - first).collect();
            let sample = m.sequential(i).unwrap();
            assert_eq!((sample.starts.clone(), sample.ids.len()), (want, s + 1), "sample {i} of {s}");
            seen += sample.starts.len();
        }
        assert!(seen > 0 || s == 1, "{s}: nothing to see");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let a = corpus(dir.path(), "a", 9, 1.0);
    let refused = |c: &[Corpus], s, vocab, print| Mixture::open(c, how(s, 0, vocab), print).err().expect("refused");
    let one = std::slice::from_ref(&a);
    assert!(Mixture::open(one, how(8, 0, 65_000), Some("abc")).is_ok());
    let e = refused(one, 9, 65_000, None);
    assert!(e.exit == Exit::Data && e.fact.contains("9 tokens") && e.fact.contains("takes 10"), "{e}");
    let e = refused(one, 8, 64_999, None);
    assert!(e.exit == Exit::Data && e.fact.contains("65000") && e.fact.contains("64999"), "{e}");
    let e = refused(one, 8, 65_000, Some("xyz"));
    assert!(e.exit == Exit::Data && e.fact.contains("abc") && e.fact.contains("xyz"), "{e}");
    for w in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(refused(&[Corpus { weight: Some(w), ..a.clone() }], 8, 65_000, None).exit, Exit::Config);
    }
    assert_eq!(refused(&[], 8, 65_000, None).exit, Exit::Config);
    assert_eq!(refused(one, 0, 65_000, None).exit, Exit::Config);

    // A file without herd's sidecar: its ids are checked when they are read.
    std::fs::remove_file(dir.path().join("a.json")).unwrap();
    let m = Mixture::open(one, how(8, 0, 8), Some("whatever")).unwrap();
    let e = m.sample(0).unwrap_err();
    assert!(e.exit == Exit::Data && e.fact.contains("token 8 is id 8"), "{e}");
}

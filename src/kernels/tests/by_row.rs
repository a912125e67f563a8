//! What inference computes: right, and every row with the bits that it has alone.

use super::*;
use crate::kernels::paged::{self, Pages, QueryRun, BLOCK};
use crate::kernels::{self, reference};

#[test]
fn products_by_row_are_right_and_each_row_is_as_alone() {
    for kind in KINDS {
        for (n, i, o) in [(1, 16, 16), (7, 48, 130), (19, 333, 97), (130, 80, 200), (33, 520, 47), (8, 7, 1)] {
            let (x, w, res) = (randn(1, &[n, i], kind), randn(2, &[o, i], kind), randn(4, &[n, o], kind));
            let what = format!("by row {kind:?} {n} {i} {o}");
            let y = kernels::linear_by_row(&x, &w, Some(&res));
            close(&what, &kernels::linear_by_row(&x, &w, None), &reference::linear(&x, &w, None), 4e-6);
            close(&what, &y, &reference::linear(&x, &w, Some(&res)), 4e-6);
            close(&what, &reference::linear_by_row(&x, &w, Some(&res)), &reference::linear(&x, &w, Some(&res)), 4e-6);
            for (start, len) in (0..n).map(|r| (r, 1)).chain([(0, n.min(5)), (n / 2, n - n / 2)]) {
                let part = kernels::linear_by_row(&x.narrow(0, start, len), &w, Some(&res.narrow(0, start, len)));
                assert!(same(&part, &y.narrow(0, start, len)), "{what}: rows {start}, {len}");
            }
        }
    }
}

/// Several sequences of random lengths in blocks of random places.
struct Sequences {
    pages: Pages,
    /// Tokens and blocks of each.
    all: Vec<(usize, Vec<u32>)>,
    k: Vec<Tensor>,
    v: Vec<Tensor>,
    q: Vec<Tensor>,
}

impl Sequences {
    fn new(kind: Kind, lengths: &[usize], hq: i64, hkv: i64, d: i64) -> Sequences {
        let total: usize = lengths.iter().map(|n| n.div_ceil(BLOCK)).sum();
        let pages = Pages::new(total + 3, hkv, d, (kind, Device::Cpu));
        // What is not written may be anything, also not a number.
        let _ = (pages.keys.shallow_clone().fill_(f64::NAN), pages.values.shallow_clone().fill_(f64::NAN));
        let mut next = (total + 2) as u32;
        let mut all = Vec::new();
        for &n in lengths {
            let blocks = (0..n.div_ceil(BLOCK) as u32).map(|i| next - i).collect::<Vec<_>>();
            next -= blocks.len() as u32;
            all.push((n, blocks));
        }
        let some = |seed: i64, heads: i64| -> Vec<Tensor> {
            let of = |(i, n): (usize, &usize)| randn(seed + i as i64, &[1, *n as i64, heads, d], kind);
            lengths.iter().enumerate().map(of).collect()
        };
        Sequences { pages, all, k: some(10, hkv), v: some(20, hkv), q: some(30, hq) }
    }

    /// Reads pieces of sequences, (sequence, tokens), together; returns the output of each.
    fn read(&self, done: &mut [usize], pieces: &[(usize, usize)]) -> Vec<Tensor> {
        let (mut runs, mut slots, mut row) = (Vec::new(), Vec::new(), 0);
        let part = |t: &Vec<Tensor>| {
            let parts: Vec<Tensor> = pieces.iter().map(|&(s, n)| t[s].narrow(1, done[s] as i64, n as i64)).collect();
            Tensor::cat(&parts, 1)
        };
        let (q, k, v) = (part(&self.q), part(&self.k), part(&self.v));
        for &(s, tokens) in pieces {
            let (start, blocks) = (done[s], &self.all[s].1);
            runs.push(QueryRun { row, tokens, start, blocks });
            slots.extend((start..start + tokens).map(|t| blocks[t / BLOCK] as usize * BLOCK + t % BLOCK));
            row += tokens;
        }
        paged::write(&self.pages, &k, &v, &slots);
        let out = paged::attention(&self.pages, &q, &runs);
        pieces.iter().for_each(|&(s, n)| done[s] += n);
        runs.iter().map(|r| out.narrow(1, r.row as i64, r.tokens as i64)).collect()
    }
}

#[test]
fn paged_attention_is_attention_however_sequences_are_cut() {
    for kind in KINDS {
        for (hq, hkv, d) in [(6, 2, 20), (4, 4, 16), (9, 3, 64), (20, 1, 10)] {
            let lengths = [1, 40, 300, 17];
            let s = Sequences::new(kind, &lengths, hq, hkv, d);
            let whole: Vec<Tensor> = {
                let mut done = [0; 4];
                (0..4).map(|i| s.read(&mut done, &[(i, lengths[i])]).remove(0)).collect()
            };
            for (i, whole) in whole.iter().enumerate() {
                let want = kernels::attention(&s.q[i], &s.k[i], &s.v[i]).0;
                close(&format!("paged {kind:?} {hq} {hkv} {d}"), whole, &want, 1e-5);
            }
            let mut done = [0; 4];
            for pieces in [
                vec![(2, 150), (1, 7)],
                vec![(0, 1), (1, 1), (2, 1)],
                vec![(3, 16), (2, 1), (1, 32)],
                vec![(2, 148), (3, 1)],
            ] {
                let before = done;
                let parts = s.read(&mut done, &pieces);
                for (&(i, n), part) in pieces.iter().zip(parts) {
                    assert!(same(&part, &whole[i].narrow(1, before[i] as i64, n as i64)), "{kind:?} {pieces:?} {i}");
                }
            }
            assert_eq!(done, lengths);
        }
    }
}

#[test]
fn the_reference_of_paged_attention_is_attention() {
    let s = Sequences::new(Kind::Float, &[37, 18], 6, 2, 20);
    let (mut runs, mut row) = (Vec::new(), 0);
    for (i, (n, blocks)) in s.all.iter().enumerate() {
        let slots: Vec<usize> = (0..*n).map(|t| blocks[t / BLOCK] as usize * BLOCK + t % BLOCK).collect();
        reference::paged_write(&s.pages, &s.k[i], &s.v[i], &slots);
        runs.push(QueryRun { row, tokens: *n, start: 0, blocks });
        row += n;
    }
    let out = reference::paged_attention(&s.pages, &Tensor::cat(&s.q, 1), &runs);
    for (i, r) in runs.iter().enumerate() {
        let want = kernels::attention(&s.q[i], &s.k[i], &s.v[i]).0;
        close("reference", &out.narrow(1, r.row as i64, r.tokens as i64), &want, 1e-5);
    }
}

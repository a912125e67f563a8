//! The head on preference pairs against autograd, over several chunks.

use super::layers::{ones, same_grads, TOLERANCE};
use super::oracle::{self, leaf, Leaves, Out};
use super::{close, config, ids, noise, params};
use crate::config::{DpoLoss, DpoSection};
use crate::data::PairId;
use crate::layout::Unit;
use crate::model::head::{self, Head, Projection};
use crate::model::{Accumulate, Axes, PairBatch, PairLoss, StepOptions};
use tch::{Kind, Tensor};

/// Documents 0 to 3 and padding, of unequal lengths, some over the border of two chunks.
fn documents(n: i64) -> Vec<i64> {
    let bounds = [n / 7, n / 2, n / 2 + 3, n - 60];
    (0..n).map(|i| bounds.iter().filter(|&&b| b <= i).count() as i64).collect()
}

fn pairs(n: i64, targets: &Tensor, dpo: &DpoSection, reference: Option<Vec<[f64; 2]>>) -> PairBatch {
    let of = documents(n);
    let mut counts = vec![[0.0; 2]; 2];
    for (i, &d) in of.iter().enumerate().filter(|(_, d)| **d < 4) {
        counts[d as usize / 2][d as usize % 2] += (targets.int64_value(&[i as i64]) >= 0) as u8 as f64;
    }
    let against = reference.map(|r| (PairLoss::of(dpo), r));
    let ids = (7..9).map(|number| PairId { corpus: 0, number }).collect();
    PairBatch { ids, documents: Tensor::from_slice(&of), counts, against, found: Default::default() }
}

#[test]
fn pairs_equal_autograd_over_several_chunks() {
    let m = config(false);
    let p = params(&m, 1);
    let w = p.unit(Unit::Head);
    let n = 2 * head::MIN_ROWS as i64 + 77;
    let mut head = Head::new(&m, &Axes::solo());
    head.chunk_bytes = 1;
    let out = Projection::new(w, None);
    let x = noise(&[n, 36], 2);
    let targets = ids(1, n, 101, 4).view([n]);
    let targets = targets.where_self(&targets.remainder(5).ne(0), &Tensor::from(-100i64));
    let step = StepOptions { grad_scale: 1.0, z_loss: 0.0, grads: Accumulate::Add };

    // Measured first: the log-probabilities themselves.
    let base = DpoSection { beta: 0.02, ..DpoSection::default() };
    let measure = pairs(n, &targets, &base, None);
    let nothing = head.loss(w, out, &x, &targets, Some(&measure), None).unwrap();
    assert_eq!((nothing.loss, nothing.tokens), (0.0, 0));
    let measured = measure.found.borrow().measured.clone();
    assert_eq!(measured.iter().map(|m| m.0.number).collect::<Vec<_>>(), [7, 8]);
    let reference: Vec<[f64; 2]> = measured.iter().map(|(_, l)| [l[0] - 11.0, l[1] + 23.0]).collect();

    for dpo in [
        base.clone(),
        DpoSection { label_smoothing: 0.1, sft_weight: 0.4, ..base.clone() },
        DpoSection { length_normalized: true, beta: 5.0, ..base.clone() },
        DpoSection { loss: DpoLoss::Ipo, beta: 0.2, ..base.clone() },
    ] {
        ones(w);
        let pairs = pairs(n, &targets, &dpo, Some(reference.clone()));
        let (sums, dx) = head.forward_backward(w, out, &x, &targets, Some(&pairs), &step).unwrap();

        let (leaves, xr) = (Leaves::new(w), leaf(&x));
        let (norm, matrix) = (leaves.get("norm.weight"), leaves.get("lm_head.weight"));
        let Out { logits, .. } = oracle::head(norm, matrix, m.rms_norm_eps, &xr, &targets, 1.0, 0.0);
        let at = logits.view([n, -1]).log_softmax(-1, None).gather(1, &targets.clamp_min(0).unsqueeze(1), false);
        let counting = at.squeeze_dim(1) * targets.ge(0).to_kind(Kind::Float);
        let of = Tensor::from_slice(&documents(n));
        let sum = |d: i64| (&counting * of.eq(d).to_kind(Kind::Float)).sum(Kind::Double);
        let mut want = Tensor::from(0f64);
        for p in 0..2 {
            let own = [sum(2 * p as i64), sum(2 * p as i64 + 1)];
            for (own, (measured, _)) in own.iter().zip(measured[p].1.iter().zip(0..)) {
                assert!((own.double_value(&[]) / measured - 1.0).abs() < 1e-6);
            }
            let n = if dpo.length_normalized || dpo.loss == DpoLoss::Ipo { pairs.counts[p] } else { [1.0; 2] };
            let delta = (&own[0] - reference[p][0]) / n[0] - (&own[1] - reference[p][1]) / n[1];
            let loss = match dpo.loss {
                DpoLoss::Sigmoid => {
                    let x = delta * dpo.beta;
                    x.log_sigmoid() * -(1.0 - dpo.label_smoothing) - (-x).log_sigmoid() * dpo.label_smoothing
                }
                DpoLoss::Ipo => (delta - 1.0 / (2.0 * dpo.beta)).square(),
            };
            want = want + loss - &own[0] * (dpo.sft_weight / pairs.counts[p][0]);
        }
        assert!((sums.loss / want.double_value(&[]) - 1.0).abs() < 1e-6, "{dpo:?}: {sums:?}, not {want}");
        assert_eq!(sums.tokens, 2);
        let scaled = &want * step.grad_scale;
        let want = Tensor::run_backward(&[scaled], &[&xr, norm, matrix], false, false);
        close("dx", &dx, &want[0], TOLERANCE);
        same_grads(w, &["norm.weight", "lm_head.weight"], &want[1..]);
        // Padding, and what does not count, gets nothing.
        let none = targets.lt(0).logical_or(&of.eq(4)).nonzero().squeeze_dim(-1);
        assert_eq!(dx.index_select(0, &none).abs().max().double_value(&[]), 0.0);
        let found = pairs.found.borrow().sums;
        assert!((found.chosen / (2.0 * 11.0 * dpo.beta) - 1.0).abs() < 1e-4, "{found:?}");
        assert!((found.rejected / (-2.0 * 23.0 * dpo.beta) - 1.0).abs() < 1e-4, "{found:?}");
        assert_eq!((found.right, found.pairs), (2.0, 2.0));
        assert_eq!(head.loss(w, out, &x, &targets, Some(&pairs), None).unwrap().loss, sums.loss);
    }
}

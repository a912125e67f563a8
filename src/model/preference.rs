//! Direct preference optimisation (DPO): the loss of a pair of answers, and what each answer's log-probability is to change.
//!
//! π(y) is the sum of the log-probabilities of the tokens of answer y that count, ref(y) the same under the reference model, r(y) =
//! π(y) − ref(y), w the chosen answer and l the rejected one, n(y) the tokens of y that count:
//!
//! - sigmoid (Rafailov et al., arXiv:2305.18290 eq. 7): −log σ(β·Δ), Δ = r(w) − r(l); with label smoothing ε it is
//!   −(1−ε)·log σ(β·Δ) − ε·log σ(−β·Δ) (conservative DPO). Length-normalised (arXiv:2411.15124 eq. 6): Δ = r(w)/n(w) − r(l)/n(l).
//! - IPO (Azar et al., arXiv:2310.12036 eq. 17): (Δ − 1/2β)², with the length-normalised Δ, as TRL computes it.
//! - beside either, `sft_weight` times −π(w)/n(w) (RPO, arXiv:2404.19733 eq. 1).
//!
//! Rewards are β·r(y), never length-normalised, as TRL reports them. All here is in f64.

use crate::config::{DpoLoss, DpoSection};
use crate::data::PairId;
use std::cell::RefCell;
use std::rc::Rc;
use tch::Tensor;

/// The numbers of a pair's loss.
#[derive(Clone, Copy, Debug)]
pub struct PairLoss {
    beta: f64,
    loss: DpoLoss,
    smoothing: f64,
    sft: f64,
    normalized: bool,
}

/// What is known of the two answers of a pair, the chosen one first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answers {
    /// Sum of the log-probabilities of the tokens that count.
    pub policy: [f64; 2],
    /// The same under the reference model.
    pub reference: [f64; 2],
    /// Tokens that count.
    pub counts: [f64; 2],
}

/// Sums over pairs, for the mean of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairSums {
    /// Losses.
    pub loss: f64,
    /// Rewards of the chosen answers.
    pub chosen: f64,
    /// Rewards of the rejected answers.
    pub rejected: f64,
    /// Pairs whose chosen answer has the higher reward.
    pub right: f64,
    /// Log-probabilities of the chosen answers.
    pub chosen_logps: f64,
    /// Log-probabilities of the rejected answers.
    pub rejected_logps: f64,
    /// Pairs.
    pub pairs: f64,
}

impl PairSums {
    /// As numbers that ranks may add up.
    pub fn words(&self) -> [f64; 7] {
        let PairSums { loss, chosen, rejected, right, chosen_logps, rejected_logps, pairs } = *self;
        [loss, chosen, rejected, right, chosen_logps, rejected_logps, pairs]
    }

    /// Of the sums of those numbers.
    pub fn of_words(words: [f64; 7]) -> PairSums {
        let [loss, chosen, rejected, right, chosen_logps, rejected_logps, pairs] = words;
        PairSums { loss, chosen, rejected, right, chosen_logps, rejected_logps, pairs }
    }
}

impl std::ops::AddAssign for PairSums {
    fn add_assign(&mut self, o: PairSums) {
        let (a, b) = (self.words(), o.words());
        *self = PairSums::of_words(std::array::from_fn(|i| a[i] + b[i]));
    }
}

impl PairLoss {
    /// As a configuration says it.
    pub fn of(dpo: &DpoSection) -> PairLoss {
        let normalized = dpo.length_normalized || dpo.loss == DpoLoss::Ipo;
        PairLoss { beta: dpo.beta, loss: dpo.loss, smoothing: dpo.label_smoothing, sft: dpo.sft_weight, normalized }
    }

    /// Loss and figures of one pair, and the derivative of its loss by the log-probability of each answer.
    pub fn of_pair(&self, a: &Answers) -> (PairSums, [f64; 2]) {
        let counts = a.counts.map(|n| n.max(1.0));
        let scale = if self.normalized { counts.map(|n| 1.0 / n) } else { [1.0; 2] };
        let ratio: [f64; 2] = std::array::from_fn(|i| a.policy[i] - a.reference[i]);
        let delta = ratio[0] * scale[0] - ratio[1] * scale[1];
        let (mut loss, slope) = match self.loss {
            DpoLoss::Sigmoid => {
                let (x, e) = (self.beta * delta, self.smoothing);
                let loss = -(1.0 - e) * log_sigmoid(x) - e * log_sigmoid(-x);
                (loss, self.beta * (e * sigmoid(x) - (1.0 - e) * sigmoid(-x)))
            }
            DpoLoss::Ipo => {
                let off = delta - 1.0 / (2.0 * self.beta);
                (off * off, 2.0 * off)
            }
        };
        let mut slopes = [slope * scale[0], -slope * scale[1]];
        if self.sft > 0.0 {
            loss -= self.sft * a.policy[0] / counts[0];
            slopes[0] -= self.sft / counts[0];
        }
        let [chosen, rejected] = ratio.map(|r| self.beta * r);
        let right = (chosen > rejected) as u8 as f64;
        let [chosen_logps, rejected_logps] = a.policy;
        (PairSums { loss, chosen, rejected, right, chosen_logps, rejected_logps, pairs: 1.0 }, slopes)
    }
}

/// log σ(x) without overflow.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

/// What the head has found out about the pairs of some micro-batches, on the ranks that say it.
#[derive(Clone, Debug, Default)]
pub struct PairsFound {
    /// Sums over the pairs; zero where there is no reference.
    pub sums: PairSums,
    /// Log-probabilities of the chosen and the rejected answer, where there is no reference.
    pub measured: Vec<(PairId, [f64; 2])>,
}

/// The preference pairs of a micro-batch.
#[derive(Debug)]
pub struct PairBatch {
    /// Which pairs of the corpora they are, in the order of the documents.
    pub ids: Vec<PairId>,
    /// [N] i64: the document of each of this rank's tokens. 2·p and 2·p + 1 are the answers of pair p, anything higher is padding.
    pub documents: Tensor,
    /// Tokens that count in the whole of each document.
    pub counts: Vec<[f64; 2]>,
    /// Log-probabilities under the reference model and the loss; None: they are to be measured.
    pub against: Option<(PairLoss, Vec<[f64; 2]>)>,
    /// Where findings go.
    pub found: Rc<RefCell<PairsFound>>,
}

impl PairBatch {
    /// From the log-probability of each answer, the same on all ranks of a sequence: the summed loss, and its derivative by the
    /// log-probability of each document, 2·p and 2·p + 1 of pair p. `says`: whether this rank puts down what was found.
    pub fn judge(&self, policy: &[f64], says: bool) -> (PairSums, Vec<f64>) {
        let (mut sums, mut slopes) = (PairSums::default(), vec![0.0; policy.len()]);
        for (p, own) in policy.chunks_exact(2).enumerate() {
            let own = [own[0], own[1]];
            match &self.against {
                None if says => self.found.borrow_mut().measured.push((self.ids[p], own)),
                None => {}
                Some((loss, reference)) => {
                    let answers = Answers { policy: own, reference: reference[p], counts: self.counts[p] };
                    let (sum, slope) = loss.of_pair(&answers);
                    sums += sum;
                    slopes[2 * p..2 * p + 2].copy_from_slice(&slope);
                }
            }
        }
        if says {
            self.found.borrow_mut().sums += sums;
        }
        (sums, slopes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn losses() -> Vec<DpoSection> {
        let base = DpoSection { beta: 0.3, ..DpoSection::default() };
        vec![
            base.clone(),
            DpoSection { label_smoothing: 0.2, ..base.clone() },
            DpoSection { sft_weight: 0.7, ..base.clone() },
            DpoSection { length_normalized: true, ..base.clone() },
            DpoSection { loss: DpoLoss::Ipo, ..base.clone() },
            DpoSection { loss: DpoLoss::Ipo, sft_weight: 0.5, ..base },
        ]
    }

    /// The formulas once more in libtorch, differentiated by autograd.
    #[test]
    fn loss_and_slopes_equal_autograd() {
        let cases = [
            Answers { policy: [-12.0, -9.5], reference: [-11.0, -10.25], counts: [7.0, 3.0] },
            Answers { policy: [-3.0, -90.0], reference: [-80.0, -1.0], counts: [2.0, 40.0] },
            Answers { policy: [-900.0, -3.0], reference: [-3.0, -900.0], counts: [300.0, 1.0] },
        ];
        for dpo in losses() {
            for a in &cases {
                let leaf = |x: f64| Tensor::from(x).set_requires_grad(true);
                let (w, l) = (leaf(a.policy[0]), leaf(a.policy[1]));
                let (rw, rl) = (&w - a.reference[0], &l - a.reference[1]);
                let normal = dpo.length_normalized || dpo.loss == DpoLoss::Ipo;
                let n = if normal { a.counts } else { [1.0; 2] };
                let delta = &rw / n[0] - &rl / n[1];
                let preferred = match dpo.loss {
                    DpoLoss::Sigmoid => {
                        let x = delta * dpo.beta;
                        x.log_sigmoid() * -(1.0 - dpo.label_smoothing) - (-x).log_sigmoid() * dpo.label_smoothing
                    }
                    DpoLoss::Ipo => (delta - 1.0 / (2.0 * dpo.beta)).square(),
                };
                let want = preferred - &w * (dpo.sft_weight / a.counts[0]);
                assert_eq!(want.kind(), Kind::Double);
                let slopes = Tensor::run_backward(&[&want], &[&w, &l], false, false);
                let (sums, got) = PairLoss::of(&dpo).of_pair(a);
                let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs().max(1.0);
                assert!(near(sums.loss, want.double_value(&[])), "{dpo:?} {a:?}: {sums:?}, not {want}");
                for (got, want) in got.iter().zip(&slopes) {
                    assert!(near(*got, want.double_value(&[])), "{dpo:?} {a:?}: {got}, not {want}");
                }
                assert!(
                    near(sums.chosen, 0.3 * rw.double_value(&[])) && near(sums.rejected, 0.3 * rl.double_value(&[]))
                );
                assert_eq!(sums.right > 0.0, sums.chosen > sums.rejected);
            }
        }
    }

    /// Where the model is the reference, every pair has the loss log 2, and its answers pull with equal force.
    #[test]
    fn at_the_reference_the_loss_is_log_2() {
        let a = Answers { policy: [-7.0, -8.0], reference: [-7.0, -8.0], counts: [3.0, 4.0] };
        let (sums, slopes) = PairLoss::of(&DpoSection::default()).of_pair(&a);
        assert!((sums.loss - 2f64.ln()).abs() < 1e-15);
        assert!((slopes[0] + 0.05).abs() < 1e-15 && (slopes[1] - 0.05).abs() < 1e-15);
    }
}

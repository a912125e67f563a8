//! The loss and the right guesses of groups of tokens, for validation: which group a token belongs to is the caller's.

use crate::kernels::host::floats;
use std::cell::RefCell;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Sums over the tokens of a group that count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenSums {
    /// Cross-entropy, nats.
    pub loss: f64,
    /// Tokens.
    pub tokens: f64,
    /// Tokens that the model thinks likeliest in their place; of equally likely ones the lowest id.
    pub right: f64,
}

impl TokenSums {
    /// As numbers that ranks may add up.
    pub fn words(&self) -> [f64; 3] {
        [self.loss, self.tokens, self.right]
    }

    /// Of the sums of those numbers.
    pub fn of_words(words: [f64; 3]) -> TokenSums {
        let [loss, tokens, right] = words;
        TokenSums { loss, tokens, right }
    }

    /// Nats a token; `None` of no tokens.
    pub fn mean_loss(&self) -> Option<f64> {
        (self.tokens > 0.0).then(|| self.loss / self.tokens)
    }

    /// Share of the tokens that were guessed right; `None` of no tokens.
    pub fn accuracy(&self) -> Option<f64> {
        (self.tokens > 0.0).then(|| self.right / self.tokens)
    }
}

/// The tokens of a micro-batch in groups.
#[derive(Debug)]
pub struct TokenGroups {
    /// [N] i64: group of each token, counted from 0.
    pub of: Tensor,
    /// By group: what was found so far.
    pub sums: Rc<RefCell<Vec<TokenSums>>>,
}

/// What one rank of the tensor axis knows of the tokens of a chunk, of which it has some columns of the logits.
pub struct TokenPart(Tensor);

impl TokenPart {
    /// Of logits [C,V'] T whose first column is token `first`, and `part` [2,C] f32 of them
    /// ([`crate::kernels::cross_entropy_part`]). A rank without a column never has the likeliest token.
    pub fn of(logits: &Tensor, targets: &Tensor, first: i64, part: &Tensor) -> TokenPart {
        let rows = targets.size()[0];
        let options = (Kind::Float, logits.device());
        let (top, hit) = match logits.size()[1] {
            0 => (Tensor::full([rows], f64::NEG_INFINITY, options), Tensor::zeros([rows], options)),
            _ => {
                let (top, at) = logits.max_dim(1, false);
                (top.to_kind(Kind::Float), (at + first).eq_tensor(targets).to_kind(Kind::Float))
            }
        };
        TokenPart(Tensor::cat(&[part, &Tensor::stack(&[top, hit], 0)], 0))
    }

    /// [1,4,C] f32, to be gathered.
    pub fn tensor(&self) -> Tensor {
        self.0.unsqueeze(0)
    }
}

impl TokenGroups {
    /// Adds the tokens of a chunk: `parts` [t,4,C] f32 are the [`TokenPart`]s of all ranks of the tensor axis in their order, `of` and
    /// `targets` [C] i64.
    pub fn add(&self, parts: &Tensor, of: &Tensor, targets: &Tensor) {
        let (lse, at, top, hit) = (parts.select(1, 0), parts.select(1, 1), parts.select(1, 2), parts.select(1, 3));
        let lse = lse.logsumexp([0i64].as_slice(), false);
        let loss = lse - at.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        // the first rank that has the largest logit
        let best = top.eq_tensor(&top.amax([0i64].as_slice(), true)).to_kind(Kind::Int64).argmax(0, true);
        let hit = hit.gather(0, &best, false).squeeze_dim(0);
        let host = |t: &Tensor| t.to_kind(Kind::Float).to_device(Device::Cpu).contiguous();
        let [loss, hit, of, counts] = [&loss, &hit, of, &targets.ge(0)].map(host);
        let mut sums = self.sums.borrow_mut();
        for (((loss, hit), of), _) in
            floats(&loss).iter().zip(floats(&hit)).zip(floats(&of)).zip(floats(&counts)).filter(|(_, c)| **c > 0.0)
        {
            if let Some(sum) = sums.get_mut(*of as usize) {
                sum.loss += *loss as f64;
                sum.tokens += 1.0;
                sum.right += *hit as f64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;

    /// Logits of ten tokens, the vocabulary in one part or in uneven ones, one of them empty: each group has its own sums, and of
    /// equally likely tokens the first is the guess.
    #[test]
    fn groups_are_told_apart_however_the_vocabulary_is_cut() {
        let _guard = tch::no_grad_guard();
        tch::manual_seed(3);
        let logits = Tensor::randn([10, 12], (Kind::Float, Device::Cpu));
        // Row 0: its target 7 is as likely as token 2, which comes first; row 1: the other way round.
        for (row, value) in [(0, 9.0), (1, 9.0)] {
            let _ = logits.get(row).get(2).fill_(value);
            let _ = logits.get(row).get(7).fill_(value);
        }
        let guessed: Vec<i64> = Vec::try_from(logits.argmax(1, false)).unwrap();
        let mut targets: Vec<i64> =
            guessed.iter().enumerate().map(|(i, g)| if i % 3 == 0 { (g + 1) % 12 } else { *g }).collect();
        (targets[0], targets[1], targets[5]) = (7, 2, -1);
        let of: Vec<i64> = (0..10).map(|i| i % 3).collect();
        let (targets_, of_) = (Tensor::from_slice(&targets), Tensor::from_slice(&of));
        let mut want = vec![TokenSums::default(); 3];
        let logp = logits.log_softmax(1, Kind::Double);
        for (i, target) in targets.iter().enumerate().filter(|(_, t)| **t >= 0) {
            let sum = &mut want[i % 3];
            sum.loss -= logp.double_value(&[i as i64, *target]);
            sum.tokens += 1.0;
            sum.right += (i == 1 || (i > 1 && guessed[i] == *target)) as u8 as f64;
        }
        assert_eq!(want.iter().map(|w| w.tokens).sum::<f64>(), 9.0);
        for cuts in [&[0, 12][..], &[0, 5, 12], &[0, 4, 8, 12, 12]] {
            let parts: Vec<Tensor> = cuts
                .windows(2)
                .map(|c| {
                    let own = logits.narrow(1, c[0], c[1] - c[0]).contiguous();
                    let part = kernels::cross_entropy_part(&own, &targets_, c[0]);
                    TokenPart::of(&own, &targets_, c[0], &part).tensor()
                })
                .collect();
            let sums = Rc::new(RefCell::new(vec![TokenSums::default(); 3]));
            TokenGroups { of: of_.shallow_clone(), sums: sums.clone() }.add(&Tensor::cat(&parts, 0), &of_, &targets_);
            for (got, want) in sums.borrow().iter().zip(&want) {
                assert_eq!((got.tokens, got.right), (want.tokens, want.right), "{cuts:?}");
                assert!((got.loss - want.loss).abs() < 1e-5, "{cuts:?}: {} {}", got.loss, want.loss);
            }
        }
    }
}

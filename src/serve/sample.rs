//! One token from logits: greedy, or drawn with temperature, top-k, top-p (nucleus, arXiv:1904.09751) and min-p
//! (arXiv:2407.01082), after penalties for tokens that were there before.
//!
//! A draw is a pure function of (seed, sample, position): the same request gives the same text, in whatever company, and one that
//! was interrupted goes on as it would have.

use crate::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The rule. Filters apply in this order, which is transformers': temperature, top-k, top-p, min-p; each works on what the one
/// before left.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits. 0: always the likeliest token (the lowest id among equals).
    pub temperature: f64,
    /// Keep this many likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest likeliest tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f64,
    /// Keep the tokens that have at least this share of the likeliest one's probability; 0 keeps all.
    pub min_p: f64,
    /// Divides the positive logits of tokens of prompt and text so far, and multiplies the negative ones (arXiv:1909.05858);
    /// 1 changes nothing.
    pub repetition_penalty: f64,
    /// Taken off the logits of tokens of the text so far, once (OpenAI's API reference); 0 changes nothing.
    pub presence_penalty: f64,
    /// The same, as many times as the token is there.
    pub frequency_penalty: f64,
    /// Fixes the draws, together with the number of the sample and the token's place.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token, always.
    pub const fn greedy() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }

    /// Every mistake in the values, at once: the name of each as its option has it, and what it must be.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let within = |x: f64, low: f64, high: f64| x >= low && x <= high;
        let values = [
            ("temperature", self.temperature, self.temperature >= 0.0 && self.temperature.is_finite(), "0 or more"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, within(self.min_p, 0.0, 1.0), "from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "above 0",
            ),
            ("presence_penalty", self.presence_penalty, within(self.presence_penalty, -2.0, 2.0), "from -2 to 2"),
            ("frequency_penalty", self.frequency_penalty, within(self.frequency_penalty, -2.0, 2.0), "from -2 to 2"),
        ];
        let wrong = values.into_iter().filter(|v| !v.2);
        wrong.map(|(name, x, _, must)| (name, format!("{name} is {x}, must be {must}"))).collect()
    }

    /// [`Sampling::problems`] as one error of the command line.
    pub fn check(&self) -> Result<()> {
        let wrong: Vec<String> =
            self.problems().into_iter().map(|(name, text)| text.replacen(name, &name.replace('_', "-"), 1)).collect();
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(Error::new(Exit::Usage, wrong.join("; "))),
        }
    }

    /// Logits [V] less what the penalties take off for the tokens of `prompt` and of the text so far.
    pub fn penalised<'a>(&self, logits: &'a [f32], prompt: &[u32], text: &[u32]) -> Cow<'a, [f32]> {
        let (presence, frequency) = (self.presence_penalty, self.frequency_penalty);
        let mut out = Cow::Borrowed(logits);
        if self.repetition_penalty != 1.0 {
            let seen: BTreeSet<u32> = prompt.iter().chain(text).copied().collect();
            let out = out.to_mut();
            for id in seen.into_iter().map(|id| id as usize).filter(|&id| id < logits.len()) {
                let factor = if out[id] > 0.0 { 1.0 / self.repetition_penalty } else { self.repetition_penalty };
                // A penalty may be any number: what comes of it is one that fp32 holds, and the likeliest stays a choice.
                out[id] = (out[id] as f64 * factor).clamp(f32::MIN.into(), f32::MAX.into()) as f32;
            }
        }
        if presence != 0.0 || frequency != 0.0 {
            let mut count: BTreeMap<u32, u32> = BTreeMap::new();
            text.iter().for_each(|id| *count.entry(*id).or_default() += 1);
            for (id, n) in count {
                if let Some(x) = out.to_mut().get_mut(id as usize) {
                    *x = (*x as f64 - presence - frequency * n as f64) as f32;
                }
            }
        }
        out
    }

    /// The token after `position` tokens of sample number `sample`, from its logits [V], which are numbers ([`finite`]), or −∞ where a
    /// token may not be chosen; one at least may.
    pub fn pick(&self, logits: &[f32], sample: u64, position: u64) -> u32 {
        let best = argmax(logits);
        if self.temperature == 0.0 {
            return best as u32;
        }
        // Weights relative to the best token: no overflow, whatever the temperature.
        let top = logits[best] as f64;
        let weight = |x: f32| ((x as f64 - top) / self.temperature).exp();
        let mut kept: Vec<(u32, f64)> = logits.iter().enumerate().map(|(id, &x)| (id as u32, weight(x))).collect();
        if self.top_k > 0 && self.top_k < kept.len() {
            kept.select_nth_unstable_by(self.top_k - 1, likelier);
            kept.truncate(self.top_k);
        }
        if self.top_p < 1.0 {
            nucleus(&mut kept, self.top_p);
        } else {
            kept.sort_unstable_by_key(|k| k.0);
        }
        kept.retain(|k| k.1 >= self.min_p);
        draw(&kept, uniform(self.seed, sample, position))
    }
}

/// Whether logits [V] behind `position` tokens are numbers. Errors ([`Exit::Model`]): the first that is none.
pub fn finite(logits: &[f32], position: u64) -> Result<()> {
    let Some(bad) = logits.iter().position(|x| !x.is_finite()) else { return Ok(()) };
    let fact = format!("the logit of token {bad} is {} after {position} tokens", logits[bad]);
    Err(Error::new(Exit::Model, fact).hint("the weights are damaged, or not of this model"))
}

fn argmax(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

/// Descending by weight, equals by id: a total order, so that a selection never depends on the algorithm.
fn likelier(a: &(u32, f64), b: &(u32, f64)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Leaves the likeliest tokens up to the one with which `p` of the whole weight is reached, sorted. Sorts ever more of the
/// head only: the nucleus is small against a vocabulary of 128 thousand.
fn nucleus(kept: &mut Vec<(u32, f64)>, p: f64) {
    let goal = p * kept.iter().map(|k| k.1).sum::<f64>();
    let (mut sorted, mut sum) = (0, 0.0);
    while sorted < kept.len() {
        let end = (sorted * 4).clamp(64, kept.len().max(64)).min(kept.len());
        let rest = &mut kept[sorted..];
        if end - sorted < rest.len() {
            rest.select_nth_unstable_by(end - sorted - 1, likelier);
        }
        rest[..end - sorted].sort_unstable_by(likelier);
        for i in sorted..end {
            sum += kept[i].1;
            if sum >= goal {
                return kept.truncate(i + 1);
            }
        }
        sorted = end;
    }
}

/// The token in whose share of the whole weight `u` in [0, 1) falls.
fn draw(kept: &[(u32, f64)], u: f64) -> u32 {
    let mut left = u * kept.iter().map(|k| k.1).sum::<f64>();
    for &(id, weight) in kept {
        if left < weight {
            return id;
        }
        left -= weight;
    }
    // Rounding can leave a remainder: the last token that has any weight.
    kept.iter().rev().find(|k| k.1 > 0.0).map_or(0, |k| k.0)
}

/// 53 random bits as a number in [0, 1).
fn uniform(seed: u64, sample: u64, position: u64) -> f64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sample.to_le_bytes());
    bytes[8..].copy_from_slice(&position.to_le_bytes());
    (xxh3_64_with_seed(&bytes, seed) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(p: &[f64]) -> Vec<f32> {
        p.iter().map(|p| p.ln() as f32).collect()
    }

    /// Share of each token in many draws.
    fn shares(s: Sampling, logits: &[f32]) -> Vec<f64> {
        let n = 40_000;
        let mut count = vec![0.0; logits.len()];
        (0..n).for_each(|i| count[s.pick(logits, 0, i) as usize] += 1.0 / n as f64);
        count
    }

    fn near(got: &[f64], want: &[f64]) {
        assert!(
            got.iter().zip(want).all(|(g, w)| (g - w).abs() < 0.012 && (*w > 0.0 || *g == 0.0)),
            "{got:?} {want:?}"
        );
    }

    const P: [f64; 5] = [0.1, 0.4, 0.05, 0.25, 0.2];
    const ALL: Sampling = Sampling { temperature: 1.0, seed: 9, ..Sampling::greedy() };

    #[test]
    fn greedy_takes_the_likeliest_and_the_first_of_equals() {
        assert_eq!(Sampling::greedy().pick(&logits(&P), 0, 0), 1);
        assert_eq!(Sampling::greedy().pick(&[1.0, 3.0, 3.0], 0, 0), 1);
    }

    #[test]
    fn draws_follow_the_distribution_that_each_filter_leaves() {
        let l = logits(&P);
        near(&shares(ALL, &l), &P);
        near(&shares(Sampling { top_k: 2, ..ALL }, &l), &[0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0]);
        // 0.4 + 0.25 reaches 0.6 but not 0.7.
        near(&shares(Sampling { top_p: 0.6, ..ALL }, &l), &[0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0]);
        near(&shares(Sampling { top_p: 0.7, ..ALL }, &l), &[0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85]);
        // Of the two that top-k left, the first has 0.62 of the weight.
        near(&shares(Sampling { top_k: 2, top_p: 0.6, ..ALL }, &l), &[0.0, 1.0, 0.0, 0.0, 0.0]);
        near(&shares(Sampling { top_p: 1e-9, ..ALL }, &l), &[0.0, 1.0, 0.0, 0.0, 0.0]);
        near(&shares(Sampling { min_p: 0.49, ..ALL }, &l), &[0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85]);
        near(&shares(Sampling { min_p: 1.0, ..ALL }, &l), &[0.0, 1.0, 0.0, 0.0, 0.0]);
        let squares: f64 = P.iter().map(|p| p * p).sum();
        near(&shares(Sampling { temperature: 0.5, ..ALL }, &l), &P.map(|p| p * p / squares));
    }

    #[test]
    fn a_large_vocabulary_gives_the_nucleus_of_a_full_sort() {
        let l: Vec<f32> = (0..5000).map(|i| (uniform(1, 2, i) * 6.0) as f32).collect();
        for p in [0.01, 0.3, 0.9, 0.999] {
            let mut kept: Vec<(u32, f64)> = l.iter().enumerate().map(|(i, &x)| (i as u32, (x as f64).exp())).collect();
            let mut full = kept.clone();
            full.sort_by(likelier);
            let goal = p * full.iter().map(|k| k.1).sum::<f64>();
            let mut sum = 0.0;
            let before = |k: &&(u32, f64)| {
                sum += k.1;
                sum < goal
            };
            let n = full.iter().take_while(before).count() + 1;
            nucleus(&mut kept, p);
            assert_eq!(kept, full[..n], "top-p {p}");
        }
    }

    #[test]
    fn draws_depend_on_seed_prompt_and_position_alone() {
        let l = vec![0.0; 1000];
        let run = |seed, prompt| (0..50).map(|i| Sampling { seed, ..ALL }.pick(&l, prompt, i)).collect::<Vec<_>>();
        assert_eq!(run(1, 0), run(1, 0));
        assert_ne!(run(1, 0), run(2, 0));
        assert_ne!(run(1, 0), run(1, 1));
    }

    #[test]
    fn bad_values_and_bad_logits_are_errors() {
        let e = Sampling { temperature: -1.0, top_p: 0.0, ..ALL }.check().unwrap_err();
        assert!(e.exit == Exit::Usage && e.fact.contains("-1") && e.fact.contains("top-p is 0"), "{e}");
        for bad in [
            Sampling { temperature: f64::NAN, ..ALL },
            Sampling { min_p: 1.5, ..ALL },
            Sampling { repetition_penalty: 0.0, ..ALL },
            Sampling { frequency_penalty: f64::INFINITY, ..ALL },
        ] {
            assert_eq!(bad.problems().len(), 1, "{bad:?}");
        }
        assert!(ALL.check().is_ok() && Sampling::greedy().check().is_ok());
        let e = finite(&[0.0, f32::NAN], 7).unwrap_err();
        assert!(e.exit == Exit::Model && e.fact.contains("token 1"), "{e}");
    }

    #[test]
    fn penalties_are_those_of_their_sources() {
        let l = [2.0, -1.0, 3.0, 0.5];
        let none = ALL.penalised(&l, &[0, 1], &[2]);
        assert!(matches!(none, Cow::Borrowed(_)));
        let repetition = Sampling { repetition_penalty: 2.0, ..ALL };
        assert_eq!(repetition.penalised(&l, &[0, 1, 1], &[2]).as_ref(), [1.0, -2.0, 1.5, 0.5]);
        let both = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..ALL };
        assert_eq!(both.penalised(&l, &[0], &[2, 3, 3]).as_ref(), [2.0, -1.0, 2.25, -0.5]);
    }

    /// Such a request once ended the server: an infinite logit was taken for damaged weights.
    #[test]
    fn penalties_of_any_size_leave_numbers() {
        let l = [2.0, -1.0, 3.0, 0.5];
        for repetition_penalty in [f64::MIN_POSITIVE, 1e-300, 1e39, f64::MAX] {
            let s = Sampling { repetition_penalty, ..ALL };
            assert!(s.problems().is_empty());
            let out = s.penalised(&l, &[0, 1, 2], &[3]);
            finite(&out, 4).unwrap();
            assert!(s.pick(&out, 0, 4) < 4);
        }
    }
}

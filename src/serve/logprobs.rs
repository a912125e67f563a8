//! Log-probabilities of tokens: natural log of the softmax of the model's own logits, before penalties, temperature and filters.

use serde::{Deserialize, Serialize};

/// A token and its log-probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Token id, in the model's vocabulary.
    pub id: u32,
    /// Natural log of its probability.
    pub logprob: f32,
}

/// A token, and the likeliest ones in its place.
pub type ScoredPlace = (Scored, Vec<Scored>);

/// `id` and the `top` likeliest tokens (of equals the lowest ids), by logits [V]. Sums are f64, in order of the ids.
pub fn of(logits: &[f32], id: u32, top: usize) -> ScoredPlace {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let lse = most + logits.iter().map(|&x| (x as f64 - most).exp()).sum::<f64>().ln();
    let scored = |id: u32| Scored { id, logprob: (logits[id as usize] as f64 - lse) as f32 };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let top = top.min(ids.len());
    if top > 0 && top < ids.len() {
        ids.select_nth_unstable_by(top - 1, likelier);
    }
    ids.truncate(top);
    ids.sort_unstable_by(likelier);
    (scored(id), ids.into_iter().map(scored).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_logarithm_of_the_softmax() {
        let (own, top) = of(&[1.0, 3.0, 2.0, 3.0], 2, 3);
        let lse = (1f64.exp() + 2.0 * 3f64.exp() + 2f64.exp()).ln();
        assert_eq!(own.logprob, (2.0 - lse) as f32);
        assert_eq!(top.iter().map(|s| s.id).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(top[0].logprob, (3.0 - lse) as f32);
        assert!(of(&[0.5, 0.0], 0, 0).1.is_empty() && of(&[0.5, 0.0], 0, 9).1.len() == 2);
    }
}

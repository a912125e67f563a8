//! What probably comes next, proposed without a model: what stood behind the last few tokens when they stood in the prompt or in the
//! text before (prompt lookup decoding: A. Saxena, 2023; copying from a reference: arXiv:2304.04487). The engine reads the proposal with
//! the last token and keeps of it what it chooses itself, so a bad proposal costs time and nothing else.

/// So many tokens at the end are looked for, if they are found; fewer where they are not.
const LONGEST: usize = 4;
/// And no fewer than these.
const SHORTEST: usize = 2;
/// Tokens of a sequence's first proposal.
const FIRST: usize = 4;
/// Tokens that are chosen without a proposal between two vain ones, at most.
const LONGEST_REST: usize = 64;

/// Up to `most` tokens that may follow `tokens`: those behind the place where the longest end of it stood before, of several the last.
/// What is copied may run into what is proposed, as in a text that repeats a few tokens.
pub fn lookup(tokens: &[u32], most: usize) -> Vec<u32> {
    let Some((&last, before)) = tokens.split_last() else { return vec![] };
    let alike = |end: usize| {
        let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
        pairs.take(LONGEST).take_while(|(a, b)| a == b).count()
    };
    let (mut best, mut from) = (SHORTEST - 1, None);
    for end in (1..=before.len()).rev().filter(|&end| tokens[end - 1] == last) {
        let found = alike(end);
        if found > best {
            (best, from) = (found, Some(end));
        }
        if found == LONGEST {
            break;
        }
    }
    let Some(from) = from else { return vec![] };
    let mut proposal: Vec<u32> = Vec::with_capacity(most);
    for at in from..from + most {
        proposal.push(tokens.get(at).copied().unwrap_or_else(|| proposal[at - tokens.len()]));
    }
    proposal
}

/// How many tokens are proposed to a sequence: more where they are accepted, and ever more seldom where none is.
#[derive(Clone, Copy, Debug)]
pub struct Trust {
    most: usize,
    length: usize,
    /// Tokens without a proposal after the next vain one.
    rest: usize,
    /// Of these, what is left of the last.
    left: usize,
}

impl Trust {
    /// Of a sequence without a proposal yet; `most` tokens at a time, 0: never.
    pub fn new(most: usize) -> Trust {
        Trust { most, length: FIRST.min(most), rest: 1, left: 0 }
    }

    /// How many tokens to propose now. Asked once for each token that is chosen without a proposal.
    pub fn length(&mut self) -> usize {
        match self.left {
            0 => self.length,
            _ => {
                self.left -= 1;
                0
            }
        }
    }

    /// Of so many proposed tokens so many were accepted.
    pub fn learn(&mut self, proposed: usize, accepted: usize) {
        match accepted {
            _ if proposed == 0 => {}
            0 => {
                self.left = self.rest;
                self.rest = (2 * self.rest).min(LONGEST_REST);
                self.length = self.length.div_ceil(2);
            }
            n => {
                self.rest = 1;
                let length = if n == proposed { 2 * self.length } else { n + 1 };
                self.length = length.min(self.most);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stood_behind_the_longest_end_is_proposed() {
        let text = [1, 2, 3, 4, 9, 8, 2, 3, 5, 1, 2, 3];
        assert_eq!(lookup(&text, 3), [4, 9, 8], "1 2 3 stood at the beginning; 2 3 stood later");
        assert_eq!(lookup(&[1, 2, 3, 1, 2, 4, 1, 2], 2), [4, 1], "of equals the last");
        assert_eq!(lookup(&[7, 1, 2, 3], 5), [] as [u32; 0]);
        assert_eq!(lookup(&[5, 1, 6, 1], 5), [] as [u32; 0], "one token alone says too little");
        assert_eq!(lookup(&[1, 2, 1, 2, 1, 2], 5), [1, 2, 1, 2, 1], "it runs into itself");
        assert_eq!(lookup(&[3, 3, 3], 4), [3; 4]);
        assert!(lookup(&[], 4).is_empty() && lookup(&[1], 4).is_empty() && lookup(&[3, 3, 3], 0).is_empty());
    }

    #[test]
    fn accepted_proposals_grow_and_vain_ones_cease() {
        let mut trust = Trust::new(12);
        assert_eq!(trust.length(), 4);
        trust.learn(4, 4);
        trust.learn(8, 8);
        assert_eq!(trust.length(), 12);
        trust.learn(12, 2);
        assert_eq!(trust.length(), 3);
        let (mut proposals, mut proposed) = (0, 0);
        for _ in 0..1000 {
            let n = trust.length();
            proposals += usize::from(n > 0);
            proposed += n;
            trust.learn(n, 0);
        }
        assert!(proposals < 24 && proposed < 30, "{proposals} vain proposals of {proposed} tokens in 1000");
        while trust.length() == 0 {}
        trust.learn(1, 1);
        assert_eq!(trust.length(), 2, "it is trusted again at once");
        assert_eq!(Trust::new(0).length(), 0);
    }
}

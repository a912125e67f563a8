//! Which sequences run how many tokens in the next iteration: a pure function of what is known, so that tests play it without a
//! model.
//!
//! Continuous batching with chunked prefill (Orca, OSDI '22; Sarathi, arXiv:2308.16369). In order: every running sequence
//! that has one token to read (decoding) reads it; what is left of the iteration's tokens goes to prompts that are half read,
//! then to sequences that wait, first come first served. A sequence is let in when there are blocks for all its tokens so far. What
//! nobody else wants, of tokens and of blocks, goes to proposals of what decoding sequences will choose next (speculative decoding).
//! Where a decoding sequence needs a block and none is free, the one that came last gives all of its up and waits again; its
//! tokens are kept and read anew, which changes no bit.

use crate::kernels::paged::BLOCK;

/// What an iteration may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of one iteration.
    pub tokens: usize,
    /// Sequences that run at a time.
    pub sequences: usize,
}

/// What the scheduler knows of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceStanding {
    /// Tokens known: of the prompt, and chosen so far.
    pub tokens: usize,
    /// Of those, read: their keys and values are cached. At least one is not.
    pub read: usize,
    /// Blocks that it holds; of one that waits, those that it would share with others that run.
    pub blocks: usize,
    /// Of those, the ones that nobody else holds.
    pub sole: usize,
    /// Tokens that are proposed to follow, of one that decodes.
    pub proposed: usize,
}

/// The next iteration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Iteration {
    /// Running sequences that give up their blocks and wait again, by place.
    pub give_up: Vec<usize>,
    /// How many of the waiting, from the first on, are let in.
    pub let_in: usize,
    /// Tokens to read: (place, how many) among the running, and behind them those let in. More than the tokens that are known: so
    /// many of those proposed too.
    pub read: Vec<(usize, usize)>,
}

/// Blocks for so many tokens.
pub fn blocks(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK)
}

/// `running` and `waiting` in order of arrival; `free` blocks.
pub fn step(limits: &Limits, running: &[SequenceStanding], waiting: &[SequenceStanding], free: usize) -> Iteration {
    let mut plan = Iteration::default();
    let (mut left, mut free) = (limits.tokens, free);
    let decoding = |s: &SequenceStanding| s.read + 1 == s.tokens && s.read > 0;
    // Blocks for the next token of each, the latest arrivals paying for the earlier.
    let mut stays = running.len();
    for (i, s) in running.iter().enumerate() {
        let more = blocks(s.tokens).saturating_sub(s.blocks);
        while i < stays && more > free && stays > i + 1 {
            stays -= 1;
            free += running[stays].sole;
        }
        if i >= stays {
            break;
        }
        if more > free {
            stays = i;
            free += s.sole;
            break;
        }
        free -= more;
    }
    plan.give_up = (stays..running.len()).collect();
    let mut reads: Vec<(usize, usize)> = Vec::new();
    for (i, _) in running[..stays].iter().enumerate().filter(|(_, s)| decoding(s)) {
        if left > 0 {
            reads.push((i, 1));
            left -= 1;
        }
    }
    for (i, s) in running[..stays].iter().enumerate().filter(|(_, s)| !decoding(s)) {
        let n = (s.tokens - s.read).min(left);
        if n > 0 {
            reads.push((i, n));
            left -= n;
        }
    }
    // Who has just given way would come straight back.
    if plan.give_up.is_empty() {
        for s in waiting {
            let need = blocks(s.tokens).saturating_sub(s.blocks);
            if left == 0 || stays + plan.let_in >= limits.sequences || need > free {
                break;
            }
            let n = (s.tokens - s.read).min(left);
            reads.push((stays + plan.let_in, n));
            (plan.let_in, free, left) = (plan.let_in + 1, free - need, left - n);
        }
    }
    for (i, n) in &mut reads {
        // Behind the running are those let in, which have no proposals.
        let Some(s) = running[..stays].get(*i).filter(|s| s.proposed > 0 && decoding(s)) else { continue };
        let has = s.blocks.max(blocks(s.tokens));
        let more = s.proposed.min(left).min((has + free) * BLOCK - s.tokens);
        (*n, left) = (*n + more, left - more);
        free -= blocks(s.tokens + more).saturating_sub(has);
    }
    reads.sort_unstable();
    plan.read = reads;
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { tokens: 64, sequences: 4 };

    fn at(tokens: usize, read: usize) -> SequenceStanding {
        SequenceStanding { tokens, read, blocks: blocks(read.max(1)), sole: blocks(read.max(1)), proposed: 0 }
    }

    fn waits(tokens: usize) -> SequenceStanding {
        SequenceStanding { tokens, read: 0, blocks: 0, sole: 0, proposed: 0 }
    }

    #[test]
    fn decoding_comes_first_and_prompts_are_cut_to_what_is_left() {
        let running = [SequenceStanding { blocks: 7, sole: 7, ..at(100, 20) }, at(31, 30)];
        let plan = step(&LIMITS, &running, &[waits(10)], 50);
        assert_eq!(plan, Iteration { read: vec![(0, 63), (1, 1)], ..Iteration::default() });
        let plan = step(&LIMITS, &running[1..], &[waits(10), waits(100), waits(1)], 50);
        assert_eq!(plan, Iteration { let_in: 2, read: vec![(0, 1), (1, 10), (2, 53)], ..Iteration::default() });
    }

    #[test]
    fn nobody_is_let_in_without_blocks_or_beyond_the_limit_nor_out_of_turn() {
        assert_eq!(step(&LIMITS, &[], &[waits(40), waits(1)], 2).let_in, 0);
        assert_eq!(step(&LIMITS, &[], &[waits(40), waits(1)], 3).let_in, 1);
        assert_eq!(step(&LIMITS, &[], &[waits(1); 9], 99).let_in, 4);
    }

    #[test]
    fn what_is_shared_need_not_be_free() {
        let waits = SequenceStanding { read: 32, blocks: 2, ..waits(40) };
        assert_eq!(step(&LIMITS, &[], &[waits], 0).let_in, 0);
        assert_eq!(step(&LIMITS, &[], &[waits], 1).read, [(0, 8)]);
        // Who gives way frees only what is his alone.
        let shares = SequenceStanding { sole: 0, ..at(20, 19) };
        let plan = step(&LIMITS, &[at(17, 16), shares, at(5, 4)], &[], 0);
        assert_eq!(plan.give_up, [2]);
        assert_eq!(step(&LIMITS, &[at(17, 16), shares], &[], 0).give_up, [0, 1]);
    }

    #[test]
    fn the_last_to_come_gives_way() {
        let full = at(17, 16);
        let plan = step(&LIMITS, &[full, at(5, 4), at(40, 39)], &[waits(1)], 0);
        assert_eq!((plan.give_up, plan.let_in, plan.read), (vec![2], 0, vec![(0, 1), (1, 1)]));
        let plan = step(&LIMITS, &[at(5, 4), full], &[], 0);
        assert_eq!((plan.give_up, plan.read), (vec![1], vec![(0, 1)]));
    }

    #[test]
    fn proposals_get_what_nobody_else_wants() {
        let proposals = |tokens: usize, n: usize| SequenceStanding { proposed: n, ..at(tokens, tokens - 1) };
        let running = [proposals(20, 5), at(30, 29), proposals(40, 9)];
        assert_eq!(step(&LIMITS, &running, &[], 50).read, [(0, 6), (1, 1), (2, 10)]);
        let read = step(&LIMITS, &running, &[waits(55)], 50).read;
        assert_eq!(read, [(0, 6), (1, 1), (2, 2), (3, 55)], "what is left of the 64");
        assert_eq!(step(&LIMITS, &running, &[waits(100)], 50).read, [(0, 1), (1, 1), (2, 1), (3, 61)]);
        // Of blocks too: 20 tokens have two, and 12 more places in them.
        assert_eq!(
            step(&LIMITS, &[proposals(20, 30)], &[], 0),
            Iteration { read: vec![(0, 13)], ..Iteration::default() }
        );
        assert_eq!(step(&LIMITS, &[proposals(20, 30)], &[], 1).read, [(0, 29)]);
        assert_eq!(
            step(&LIMITS, &[proposals(17, 30)], &[], 1).read,
            [(0, 16)],
            "one block is needed for what is known"
        );
        assert_eq!(step(&LIMITS, &[proposals(17, 30), at(5, 4)], &[], 0).give_up, [1]);
        // A prompt that is half read has none.
        let half = SequenceStanding { proposed: 3, ..at(20, 10) };
        assert_eq!(step(&LIMITS, &[half], &[], 9).read, [(0, 10)]);
    }

    /// Random requests through few blocks: everything ends, nothing is ever overdrawn, and nobody waits for ever.
    #[test]
    fn every_sequence_ends_whatever_the_cache() {
        let mut seed = 7u64;
        let mut random = move |n: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % n
        };
        for _ in 0..300 {
            let limits = Limits { tokens: 1 + random(40), sequences: 1 + random(6) };
            let all = 12 + random(10);
            let mut free = all;
            // (place of arrival, standing, tokens at the end)
            let mut waiting: Vec<(usize, SequenceStanding, usize)> = (0..20)
                .map(|i| {
                    let prompt = 1 + random(90);
                    (i, waits(prompt), prompt + 1 + random(100))
                })
                .collect();
            let mut running: Vec<(usize, SequenceStanding, usize)> = Vec::new();
            let mut rounds = 0;
            while !(running.is_empty() && waiting.is_empty()) {
                rounds += 1;
                assert!(rounds < 50_000, "{limits:?} {running:?} {waiting:?} {free}");
                // Proposals of any length, as far as the text may go.
                running.iter_mut().for_each(|(_, s, end)| s.proposed = random(9).min(*end - s.tokens));
                let standing = |all: &[(usize, SequenceStanding, usize)]| all.iter().map(|s| s.1).collect::<Vec<_>>();
                let plan = step(&limits, &standing(&running), &standing(&waiting), free);
                for &i in plan.give_up.iter().rev() {
                    let (n, s, end) = running.remove(i);
                    free += s.blocks;
                    waiting.push((n, waits(s.tokens), end));
                }
                waiting.sort_by_key(|w| w.0);
                running.extend(waiting.drain(..plan.let_in));
                assert!(running.len() <= limits.sequences);
                assert!(plan.read.iter().map(|r| r.1).sum::<usize>() <= limits.tokens);
                assert!(!plan.read.is_empty() || !plan.give_up.is_empty(), "an iteration of nothing");
                for (i, n) in plan.read {
                    let s = &mut running[i].1;
                    let proposed = (s.read + n).saturating_sub(s.tokens);
                    let need = blocks(s.tokens + proposed).saturating_sub(s.blocks);
                    assert!(
                        need <= free && n > 0 && proposed <= s.proposed && (proposed == 0 || s.read + 1 == s.tokens)
                    );
                    (free, s.blocks, s.read) = (free - need, s.blocks + need, s.read + n - proposed);
                    // Some of the proposals come true, and blocks of the others are given back.
                    let chosen = usize::from(s.read == s.tokens) * (1 + random(proposed + 1));
                    (s.tokens, s.read) = (s.tokens + chosen, s.read + chosen.saturating_sub(1));
                    let keep = s.blocks.min(blocks(s.tokens));
                    (free, s.blocks, s.sole) = (free + s.blocks - keep, keep, keep);
                }
                running.retain(|(_, s, end)| {
                    free += if s.tokens >= *end { s.blocks } else { 0 };
                    s.tokens < *end
                });
                running.sort_by_key(|r| r.0);
                assert_eq!(free + running.iter().map(|r| r.1.blocks).sum::<usize>(), all);
            }
        }
    }
}

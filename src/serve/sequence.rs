//! A text under way: its tokens, its blocks of the cache, and what is proposed of what comes.

use crate::serve::asked::Asked;
use crate::serve::guide::Guide;
use crate::serve::pool::{BlockPool, Chain, Prefix};
use crate::serve::scheduler::SequenceStanding;
use crate::serve::speculate::{lookup, Trust};
use crate::threads::lock;
use std::sync::Mutex;

/// A text that the engine has.
pub(super) struct Sequence {
    pub ticket: u64,
    pub asked: Asked,
    /// Prompt and text.
    pub tokens: Vec<u32>,
    /// Of these, how many are in the cache.
    pub read: usize,
    pub blocks: Vec<u32>,
    /// Blocks that are whole and known, and what stands for them.
    pub known: usize,
    pub chain: Chain,
    /// Tokens of the prompt whose scores are out, those counted that are not to be scored.
    pub scored: usize,
    /// Tokens that are proposed to follow, in this iteration, and read with the last of `tokens`.
    pub proposal: Vec<u32>,
    pub trust: Trust,
    /// Where [`Asked::grammar`] is: what may come behind `tokens`.
    pub guide: Option<Mutex<Guide>>,
}

impl Sequence {
    /// Of a text that has begun with `text`; up to `proposed` tokens are proposed at a time.
    pub fn new(ticket: u64, asked: Asked, text: &[u32], proposed: usize) -> Sequence {
        let tokens = [&asked.prompt, text].concat();
        let scored = if text.is_empty() { asked.score_from.unwrap_or(1).max(1) } else { asked.prompt.len() };
        let (proposal, trust) = (vec![], Trust::new(proposed));
        let (read, blocks, known, chain, guide) = (0, vec![], 0, 0, None);
        Sequence { ticket, asked, tokens, read, blocks, known, chain, scored, proposal, trust, guide }
    }

    /// Whether prompt tokens are still to be scored.
    pub fn scores(&self) -> bool {
        self.asked.score_from.is_some() && self.scored < self.asked.prompt.len()
    }

    /// Whether one token is left to read, behind what is in the cache.
    pub fn decodes(&self) -> bool {
        self.read > 0 && self.read + 1 == self.tokens.len()
    }

    /// What is in the cache of one that waits, of use where no more of the prompt is there than stands before what is to be scored.
    pub fn prefix(&self, pool: &BlockPool) -> Prefix {
        match self.scores() {
            true => pool.find(&self.tokens[..self.scored]),
            false => pool.find(&self.tokens),
        }
    }

    /// Of the tokens `start..end`, a proposal counted, after how many of the last logits are wanted.
    pub fn wanted(&self, start: usize, end: usize) -> usize {
        match end >= self.tokens.len() {
            // The last token of a prompt is followed by a choice, all others by tokens that are there.
            _ if self.scores() => end.saturating_sub(start.max(self.scored - 1)),
            true => end + 1 - self.tokens.len(),
            false => 0,
        }
    }

    /// Proposes what comes, no further than the text may go: at least one token behind the proposal is chosen. What would end the text is
    /// no proposal, since nothing is read behind it.
    pub fn propose(&mut self, longest: usize) {
        self.proposal.clear();
        if !self.decodes() || self.scores() {
            return;
        }
        let made = self.tokens.len() - self.asked.prompt.len();
        let room = self.asked.max_tokens.saturating_sub(made).min(longest.saturating_sub(self.tokens.len()));
        let most = self.trust.length().min(room.saturating_sub(1));
        if most > 0 {
            self.proposal = lookup(&self.tokens, most);
            let ends = self.proposal.iter().position(|id| self.asked.stop.contains(id));
            self.proposal.truncate(ends.unwrap_or(most));
            if let Some(guide) = &self.guide {
                // What may not come is not chosen; a guide that fails says so when it is asked what may.
                self.proposal.truncate(lock(guide).admits(&self.proposal).unwrap_or(0));
            }
        }
    }

    /// What the scheduler knows of one that runs.
    pub fn standing(&self, pool: &BlockPool) -> SequenceStanding {
        let sole = self.blocks.iter().filter(|&&b| pool.is_sole(b)).count();
        let (tokens, read, blocks) = (self.tokens.len(), self.read, self.blocks.len());
        SequenceStanding { tokens, read, blocks, sole, proposed: self.proposal.len() }
    }
}

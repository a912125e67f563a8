//! Requests in, tokens out: the scheduler's decisions carried out over a replica, a token chosen wherever logits come back.

use crate::error::{Error, Exit, Result};
use crate::kernels::paged::BLOCK;
pub use crate::serve::asked::{check, Asked, Chosen, Stop};
use crate::serve::choose::{Choices, RowOutcome};
use crate::serve::guide::Guide;
use crate::serve::iteration::{Stretch, TokenBatch};
use crate::serve::logprobs::Scored;
use crate::serve::pool::BlockPool;
use crate::serve::replica::Replica;
use crate::serve::scheduler::{self, blocks, Limits, SequenceStanding};
use crate::serve::sequence::Sequence;
use std::collections::VecDeque;
use std::sync::Mutex;

/// Whoever reads what comes, told apart by the tickets that [`Engine::submit`] gave.
pub trait Reader {
    /// Takes a token; true where that is enough.
    fn token(&mut self, ticket: u64, token: Chosen) -> Result<bool>;
    /// Takes the score of the prompt's next token, in order ([`Asked::score_from`]); all come before the first of the text.
    fn scored(&mut self, _ticket: u64, _own: Scored, _top: Vec<Scored>) -> Result<()> {
        Ok(())
    }
    /// The text is done; nothing more comes for the ticket.
    fn ended(&mut self, ticket: u64, why: Stop) -> Result<()>;
}

/// What the engine works with.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// What one iteration may be at most.
    pub limits: Limits,
    /// Blocks of the cache, block 0 counted, which is nobody's.
    pub blocks: usize,
    /// Blocks that hold the same beginning are read once.
    pub sharing: bool,
    /// Tokens of the longest text, prompt and continuation.
    pub longest: usize,
    /// Ids of the model's vocabulary (V).
    pub vocab: usize,
}

/// What the engine has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineTally {
    /// Passes through the model.
    pub iterations: u64,
    /// Of prompts, and of texts whose blocks were taken.
    pub prefill: u64,
    /// Read singly behind what is in the cache, for the token that follows.
    pub decode: u64,
    /// Tokens chosen.
    pub chosen: u64,
    /// Tokens that were not read, since their blocks were there.
    pub shared: u64,
    /// Sequences that gave up their blocks.
    pub gave_up: u64,
    /// Tokens that were proposed and read before they were chosen.
    pub proposed: u64,
    /// Those of them that then were chosen.
    pub accepted: u64,
}

/// The leader of a replica at work.
pub struct Engine {
    replica: Replica,
    capacity: Capacity,
    pool: BlockPool,
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    next: u64,
    tally: EngineTally,
    /// Tokens that are proposed at a time, of a sequence, at most.
    proposed: usize,
}

impl Engine {
    /// An engine without requests, on the first rank of `replica`; `capacity.blocks` as the replica's cache was made with.
    pub fn new(replica: Replica, capacity: Capacity) -> Engine {
        let pool = BlockPool::new(capacity.blocks, capacity.sharing);
        Engine {
            replica,
            capacity,
            pool,
            running: vec![],
            waiting: VecDeque::new(),
            next: 0,
            tally: EngineTally::default(),
            proposed: 0,
        }
    }

    /// The same engine; of each text that decodes up to `tokens` tokens are proposed at a time and read at once. It changes no token and
    /// no score, only how soon they come. 0: none.
    pub fn proposing(self, tokens: usize) -> Engine {
        Engine { proposed: tokens, ..self }
    }

    /// Whether [`Engine::submit`] can take the request. Errors ([`Exit::Data`]): an empty prompt, an id outside the vocabulary,
    /// a prompt that fills the longest text.
    pub fn check(&self, asked: &Asked) -> Result<()> {
        let Capacity { vocab, longest, .. } = self.capacity;
        check(&asked.prompt, vocab, longest)
    }

    /// Takes a request without a form of its own; its ticket.
    pub fn submit(&mut self, asked: Asked) -> Result<u64> {
        self.resume(asked, &[])
    }

    /// Takes a request; `guide` is its form's ([`crate::serve::guide::Grammars`]), and none where it has none.
    pub fn submit_guided(&mut self, asked: Asked, guide: Option<Guide>) -> Result<u64> {
        self.check(&asked)?;
        if asked.grammar.is_some() != guide.is_some() {
            return Err(Error::new(Exit::Internal, "a text of a given form needs its guide, and no other has one"));
        }
        Ok(self.enqueue(asked, &[], guide))
    }

    /// Takes a request whose text has begun; what comes is what would have come behind `text`, to the bit.
    /// One of a given form cannot be resumed.
    pub fn resume(&mut self, asked: Asked, text: &[u32]) -> Result<u64> {
        self.check(&asked)?;
        if asked.grammar.is_some() {
            return Err(Error::new(Exit::Internal, "a text of a given form begins at its beginning"));
        }
        Ok(self.enqueue(asked, text, None))
    }

    fn enqueue(&mut self, asked: Asked, text: &[u32], guide: Option<Guide>) -> u64 {
        let ticket = self.next;
        self.next += 1;
        let sequence = Sequence::new(ticket, asked, text, self.proposed);
        self.waiting.push_back(Sequence { guide: guide.map(Mutex::new), ..sequence });
        ticket
    }

    /// Forgets a request: its blocks are free, and its reader hears no more of it. One that is done or unknown is no mistake.
    pub fn cancel(&mut self, ticket: u64) {
        self.waiting.retain(|s| s.ticket != ticket);
        if let Some(i) = self.running.iter().position(|s| s.ticket == ticket) {
            let s = self.running.remove(i);
            s.blocks.into_iter().for_each(|block| self.pool.let_go(block));
        }
    }

    /// Sequences that run, and those that wait.
    pub fn standing_now(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Blocks of the cache that sequences hold, and how many can be held.
    pub fn blocks_now(&self) -> (usize, usize) {
        let all = self.capacity.blocks - 1;
        (all - self.pool.free(), all)
    }

    /// Sequences that are not done.
    pub fn pending(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// Tokens read and chosen since the engine was made.
    pub fn tally(&self) -> EngineTally {
        self.tally
    }

    /// What [`Engine::new`] was given.
    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// One iteration. Errors: of the wires, of the reader, logits that are not numbers.
    pub fn step(&mut self, reader: &mut dyn Reader) -> Result<()> {
        self.end_those_who_want_nothing(reader)?;
        if self.proposed > 0 {
            self.running.iter_mut().for_each(|s| s.propose(self.capacity.longest));
        }
        let running: Vec<SequenceStanding> = self.running.iter().map(|s| s.standing(&self.pool)).collect();
        let first = self.waiting.iter().take(self.capacity.limits.sequences);
        let waiting: Vec<SequenceStanding> = first.map(|s| self.prospect(s)).collect();
        let plan = scheduler::step(&self.capacity.limits, &running, &waiting, self.pool.free());
        for &i in plan.give_up.iter().rev() {
            let mut s = self.running.remove(i);
            s.blocks.drain(..).for_each(|block| self.pool.let_go(block));
            (s.read, s.known, s.chain) = (0, 0, 0);
            s.proposal.clear();
            self.tally.gave_up += 1;
            let at = self.waiting.partition_point(|w| w.ticket < s.ticket);
            self.waiting.insert(at, s);
        }
        for mut s in self.waiting.drain(..plan.let_in) {
            let prefix = s.prefix(&self.pool);
            self.pool.share(&prefix.blocks);
            (s.known, s.chain, s.read) = (prefix.blocks.len(), prefix.chain, prefix.blocks.len() * BLOCK);
            self.tally.shared += s.read as u64;
            s.blocks = prefix.blocks;
            self.running.push(s);
        }
        if plan.read.is_empty() {
            return Ok(());
        }
        let batch = self.batch(&plan.read);
        // Of each row of logits: whose it is, and after how many of its tokens.
        let row = |(&(i, _), s): (&(usize, usize), &Stretch)| {
            let end = s.start + s.ids.len();
            (end - s.wanted..end).map(move |at| (i, at + 1))
        };
        let rows: Vec<(usize, usize)> = plan.read.iter().zip(&batch.stretches).flat_map(row).collect();
        let mut choices = Choices::new(&self.running, &rows, self.capacity.vocab);
        self.replica.run(&batch, &mut |first, logits| choices.take(first, logits))?;
        let outcomes = choices.outcomes();
        self.count(&plan.read, &batch);
        let mut ended: Vec<(usize, Stop)> = Vec::new();
        for (i, outcome) in outcomes {
            // What would come behind an end is not wanted.
            if ended.last().is_none_or(|e| e.0 != i) {
                ended.extend(self.take(i, outcome, reader)?.map(|why| (i, why)));
            }
        }
        plan.read.iter().for_each(|&(i, _)| self.settle(i));
        for &(i, why) in ended.iter().rev() {
            let mut s = self.running.remove(i);
            s.blocks.drain(..).for_each(|block| self.pool.let_go(block));
            reader.ended(s.ticket, why)?;
        }
        // Those let in again after others may be older.
        self.running.sort_by_key(|s| s.ticket);
        Ok(())
    }

    /// Ends the work of the replica's other ranks.
    pub fn end(self) -> Result<()> {
        self.replica.end()
    }

    fn end_those_who_want_nothing(&mut self, reader: &mut dyn Reader) -> Result<()> {
        let (none, rest): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|s| s.asked.max_tokens == 0 && !s.scores());
        self.waiting = rest;
        none.into_iter().try_for_each(|s| reader.ended(s.ticket, Stop::Length))
    }

    /// The tokens to read, with blocks for all that is known of each sequence.
    fn batch(&mut self, read: &[(usize, usize)]) -> TokenBatch {
        let mut batch = TokenBatch::default();
        for &(i, n) in read {
            let s = &mut self.running[i];
            let end = s.read + n;
            s.proposal.truncate(end.saturating_sub(s.tokens.len()));
            let more = blocks(end.max(s.tokens.len())).saturating_sub(s.blocks.len());
            s.blocks.extend((0..more).map(|_| self.pool.take()));
            batch.stretches.push(Stretch {
                ids: [&s.tokens[s.read..end - s.proposal.len()], &s.proposal].concat(),
                start: s.read,
                blocks: s.blocks[..blocks(end)].to_vec(),
                wanted: s.wanted(s.read, end),
            });
            s.read = end;
        }
        batch
    }

    /// What a sequence that waits would find.
    fn prospect(&self, s: &Sequence) -> SequenceStanding {
        let prefix = s.prefix(&self.pool);
        SequenceStanding {
            tokens: s.tokens.len(),
            read: prefix.blocks.len() * BLOCK,
            blocks: prefix.held,
            sole: 0,
            proposed: 0,
        }
    }

    /// What the iteration leaves of a sequence: proposals that did not come true are forgotten and their blocks given back, what lies of
    /// them in others is written over before it is read; blocks that have become whole are made known.
    fn settle(&mut self, i: usize) {
        let s = &mut self.running[i];
        if !s.proposal.is_empty() {
            let proposal = std::mem::take(&mut s.proposal);
            let chosen = &s.tokens[s.read - proposal.len()..];
            let accepted = proposal.iter().zip(chosen).take_while(|(a, b)| a == b).count();
            s.trust.learn(proposal.len(), accepted);
            self.tally.accepted += accepted as u64;
            s.read = s.read.min(s.tokens.len() - 1);
            let over = s.blocks.split_off(blocks(s.tokens.len()).min(s.blocks.len()));
            over.into_iter().for_each(|block| self.pool.let_go(block));
        }
        while (s.known + 1) * BLOCK <= s.read {
            let part = &s.tokens[s.known * BLOCK..(s.known + 1) * BLOCK];
            s.chain = self.pool.publish(s.blocks[s.known], s.chain, part);
            s.known += 1;
        }
    }

    fn count(&mut self, read: &[(usize, usize)], batch: &TokenBatch) {
        let proposals = |&(i, _): &(usize, usize)| self.running[i].proposal.len();
        let decodes =
            |(r, s): &(&(usize, usize), &Stretch)| s.start > 0 && s.ids.len() == 1 + proposals(r) && s.wanted > 0;
        let decoded = read.iter().zip(&batch.stretches).filter(decodes).count() as u64;
        let proposed = read.iter().map(proposals).sum::<usize>() as u64;
        self.tally.iterations += 1;
        self.tally.decode += decoded;
        self.tally.proposed += proposed;
        self.tally.prefill += batch.tokens() as u64 - decoded - proposed;
    }

    /// Adds a token; why the text has ended, if it has.
    fn take(&mut self, i: usize, outcome: RowOutcome, reader: &mut dyn Reader) -> Result<Option<Stop>> {
        let longest = self.capacity.longest;
        let s = &mut self.running[i];
        let (chosen, whole) = match outcome {
            // The prompt was to be scored, and no more.
            RowOutcome::Chosen(_) | RowOutcome::Last(_) if s.asked.max_tokens == 0 => return Ok(Some(Stop::Length)),
            RowOutcome::Chosen(chosen) => (chosen, false),
            RowOutcome::Last(chosen) => (chosen, true),
            RowOutcome::Failed(why) => {
                tracing::warn!("a text ends after {} tokens, its grammar fails: {why}", s.tokens.len());
                return Ok(Some(Stop::Failed));
            }
            RowOutcome::Scored(own, top) => {
                s.scored += 1;
                return reader.scored(s.ticket, own, top).map(|()| None);
            }
        };
        s.tokens.push(chosen.id);
        self.tally.chosen += 1;
        let ends = chosen.ends;
        let enough = reader.token(s.ticket, chosen)?;
        Ok(match s.tokens.len() - s.asked.prompt.len() {
            _ if ends => Some(Stop::Token),
            _ if enough => Some(Stop::Reader),
            _ if whole => Some(Stop::Grammar),
            n if n == s.asked.max_tokens => Some(Stop::Length),
            _ if s.tokens.len() == longest => Some(Stop::Context),
            _ => None,
        })
    }
}

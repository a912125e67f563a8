//! Requests in, tokens out: the scheduler's decisions carried out over a replica, a token chosen wherever logits come back.

use crate::error::{Error, Exit, Result};
use crate::kernels::paged::BLOCK;
use crate::kernels::{host, parallel};
use crate::serve::iteration::{Stretch, TokenBatch};
use crate::serve::logprobs::{self, Scored};
use crate::serve::pool::{BlockPool, Chain, Prefix};
use crate::serve::replica::Replica;
use crate::serve::scheduler::{self, blocks, Limits, SequenceStanding};
use crate::serve::Sampling;
use crate::threads::lock;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Mutex;
use tch::Tensor;

/// One text to make: a value, which gives the same text wherever and whenever it is run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Token ids, one at least.
    pub prompt: Vec<u32>,
    /// Tokens to add at most.
    pub max_tokens: usize,
    /// By which each token is chosen from its logits.
    pub sampling: Sampling,
    /// With the seed and a token's place it fixes the draw: 0, 1, … for several texts of one prompt.
    pub sample: u64,
    /// Token ids that end the text; the one that did is the last token.
    pub stop: Vec<u32>,
    /// How many of the likeliest tokens to report at each place besides the chosen one.
    pub logprobs: Option<usize>,
    /// The prompt's own tokens from this one on, 1 at least, are scored too ([`Reader::scored`]); as many likeliest tokens as
    /// `logprobs` says.
    #[serde(default)]
    pub score_from: Option<usize>,
}

/// A token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Token id, in the model's vocabulary.
    pub id: u32,
    /// It ends the text ([`Asked::stop`]).
    pub ends: bool,
    /// Its score and those of the likeliest, where [`Asked::logprobs`] asks for them.
    pub scored: Option<(Scored, Vec<Scored>)>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A token of [`Asked::stop`].
    Token,
    /// Its reader had enough.
    Reader,
    /// [`Asked::max_tokens`].
    Length,
    /// The longest text.
    Context,
}

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
}

struct Sequence {
    ticket: u64,
    asked: Asked,
    /// Prompt and text.
    tokens: Vec<u32>,
    read: usize,
    blocks: Vec<u32>,
    /// Blocks that are whole and known, and what stands for them.
    known: usize,
    chain: Chain,
    /// Tokens of the prompt whose scores are out, those counted that are not to be scored.
    scored: usize,
}

impl Sequence {
    /// Whether prompt tokens are still to be scored.
    fn scores(&self) -> bool {
        self.asked.score_from.is_some() && self.scored < self.asked.prompt.len()
    }

    /// What is in the cache of one that waits, of use where no more of the prompt is there than stands before what is to be scored.
    fn prefix(&self, pool: &BlockPool) -> Prefix {
        match self.scores() {
            true => pool.find(&self.tokens[..self.scored]),
            false => pool.find(&self.tokens),
        }
    }

    /// Of the tokens `start..end`, after how many of the last logits are wanted.
    fn wanted(&self, start: usize, end: usize) -> usize {
        match end == self.tokens.len() {
            // The last token of a prompt is followed by a choice, all others by tokens that are there.
            _ if self.scores() => end.saturating_sub(start.max(self.scored - 1)),
            last => usize::from(last),
        }
    }
}

/// What a row of logits came to.
enum Outcome {
    Scored(Scored, Vec<Scored>),
    Chosen(Chosen),
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
        }
    }

    /// Whether [`Engine::submit`] can take the request. Errors ([`Exit::Data`]): an empty prompt, an id outside the vocabulary,
    /// a prompt that fills the longest text.
    pub fn check(&self, asked: &Asked) -> Result<()> {
        let Capacity { vocab, longest, .. } = self.capacity;
        check(&asked.prompt, vocab, longest)
    }

    /// Takes a request; its ticket.
    pub fn submit(&mut self, asked: Asked) -> Result<u64> {
        self.resume(asked, &[])
    }

    /// Takes a request whose text has begun; what comes is what would have come behind `text`, to the bit.
    pub fn resume(&mut self, asked: Asked, text: &[u32]) -> Result<u64> {
        self.check(&asked)?;
        let (ticket, tokens) = (self.next, [&asked.prompt, text].concat());
        self.next += 1;
        let scored = if text.is_empty() { asked.score_from.unwrap_or(1).max(1) } else { asked.prompt.len() };
        self.waiting.push_back(Sequence { ticket, asked, tokens, read: 0, blocks: vec![], known: 0, chain: 0, scored });
        Ok(ticket)
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
        let running: Vec<SequenceStanding> = self.running.iter().map(|s| self.standing(s)).collect();
        let first = self.waiting.iter().take(self.capacity.limits.sequences);
        let waiting: Vec<SequenceStanding> = first.map(|s| self.prospect(s)).collect();
        let plan = scheduler::step(&self.capacity.limits, &running, &waiting, self.pool.free());
        for &i in plan.give_up.iter().rev() {
            let mut s = self.running.remove(i);
            s.blocks.drain(..).for_each(|block| self.pool.let_go(block));
            (s.read, s.known, s.chain) = (0, 0, 0);
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
        let mut outcomes = Vec::with_capacity(rows.len());
        let (sequences, vocab) = (&self.running, self.capacity.vocab);
        self.replica.run(&batch, &mut |first, logits| {
            let rows = &rows[first..first + logits.size()[0] as usize];
            outcomes.extend(outcomes_of(sequences, rows, logits, vocab));
            Ok(())
        })?;
        self.count(&batch, &rows);
        self.publish(&plan.read);
        let mut ended = Vec::new();
        for (&(i, _), outcome) in rows.iter().zip(outcomes) {
            if let Some(why) = self.take(i, outcome?, reader)? {
                ended.push((i, why));
            }
        }
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
            let more = blocks(s.tokens.len()).saturating_sub(s.blocks.len());
            s.blocks.extend((0..more).map(|_| self.pool.take()));
            let end = s.read + n;
            batch.stretches.push(Stretch {
                ids: s.tokens[s.read..end].to_vec(),
                start: s.read,
                blocks: s.blocks[..blocks(end)].to_vec(),
                wanted: s.wanted(s.read, end),
            });
            s.read = end;
        }
        batch
    }

    fn standing(&self, s: &Sequence) -> SequenceStanding {
        let sole = s.blocks.iter().filter(|&&b| self.pool.is_sole(b)).count();
        SequenceStanding { tokens: s.tokens.len(), read: s.read, blocks: s.blocks.len(), sole }
    }

    /// What a sequence that waits would find.
    fn prospect(&self, s: &Sequence) -> SequenceStanding {
        let prefix = s.prefix(&self.pool);
        SequenceStanding { tokens: s.tokens.len(), read: prefix.blocks.len() * BLOCK, blocks: prefix.held, sole: 0 }
    }

    /// Makes the blocks known that have become whole.
    fn publish(&mut self, read: &[(usize, usize)]) {
        for &(i, _) in read {
            let s = &mut self.running[i];
            while (s.known + 1) * BLOCK <= s.read {
                let part = &s.tokens[s.known * BLOCK..(s.known + 1) * BLOCK];
                s.chain = self.pool.publish(s.blocks[s.known], s.chain, part);
                s.known += 1;
            }
        }
    }

    fn count(&mut self, batch: &TokenBatch, rows: &[(usize, usize)]) {
        let decoded = batch.stretches.iter().filter(|s| s.start > 0 && s.ids.len() == 1 && s.wanted == 1).count();
        self.tally.iterations += 1;
        self.tally.decode += decoded as u64;
        self.tally.prefill += (batch.tokens() - decoded) as u64;
        let chosen = rows.iter().filter(|&&(i, at)| at == self.running[i].tokens.len());
        self.tally.chosen += chosen.count() as u64;
    }

    /// Adds a token; why the text has ended, if it has.
    fn take(&mut self, i: usize, outcome: Outcome, reader: &mut dyn Reader) -> Result<Option<Stop>> {
        let longest = self.capacity.longest;
        let s = &mut self.running[i];
        let chosen = match outcome {
            Outcome::Chosen(chosen) if s.asked.max_tokens > 0 => chosen,
            // The prompt was to be scored, and no more.
            Outcome::Chosen(_) => return Ok(Some(Stop::Length)),
            Outcome::Scored(own, top) => {
                s.scored += 1;
                return reader.scored(s.ticket, own, top).map(|()| None);
            }
        };
        s.tokens.push(chosen.id);
        let ends = chosen.ends;
        let enough = reader.token(s.ticket, chosen)?;
        Ok(match s.tokens.len() - s.asked.prompt.len() {
            _ if ends => Some(Stop::Token),
            _ if enough => Some(Stop::Reader),
            n if n == s.asked.max_tokens => Some(Stop::Length),
            _ if s.tokens.len() == longest => Some(Stop::Context),
            _ => None,
        })
    }
}

/// What each of the rows (whose, after how many tokens) of logits [C,V] comes to.
fn outcomes_of(sequences: &[Sequence], rows: &[(usize, usize)], logits: &Tensor, vocab: usize) -> Vec<Result<Outcome>> {
    let all = host::floats(logits);
    let done: Vec<Mutex<Option<Result<Outcome>>>> = rows.iter().map(|_| Mutex::new(None)).collect();
    let of: Vec<(&Asked, &[u32], usize)> =
        rows.iter().map(|&(i, at)| (&sequences[i].asked, &sequences[i].tokens[..], at)).collect();
    parallel::tasks(rows.len(), |n| {
        let ((asked, tokens, at), logits) = (of[n], &all[n * vocab..(n + 1) * vocab]);
        let outcome = match tokens.get(at) {
            Some(&next) => {
                let (own, top) = logprobs::of(logits, next, asked.logprobs.unwrap_or(0));
                Ok(Outcome::Scored(own, top))
            }
            None if asked.max_tokens == 0 => Ok(Outcome::Chosen(Chosen { id: 0, ends: false, scored: None })),
            None => choose(asked, tokens, logits).map(Outcome::Chosen),
        };
        *lock(&done[n]) = Some(outcome);
    });
    let missing = || Err(Error::new(Exit::Internal, "no token was chosen"));
    done.into_iter().map(|m| m.into_inner().unwrap_or_else(|e| e.into_inner()).unwrap_or_else(missing)).collect()
}

/// The token after `tokens`, prompt and text, from its logits [V].
fn choose(asked: &Asked, tokens: &[u32], logits: &[f32]) -> Result<Chosen> {
    let Asked { sampling, prompt, sample, stop, logprobs, .. } = asked;
    let penalised = sampling.penalised(logits, prompt, &tokens[prompt.len()..]);
    let id = sampling.choose(&penalised, *sample, tokens.len() as u64)?;
    let scored = logprobs.map(|top| logprobs::of(logits, id, top));
    Ok(Chosen { id, ends: stop.contains(&id), scored })
}

/// Whether a prompt can be continued by a model of so many tokens, in texts of so many.
pub fn check(prompt: &[u32], vocab: usize, longest: usize) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::new(Exit::Data, "the prompt has no tokens").hint("give at least one character"));
    }
    if let Some((at, id)) = prompt.iter().enumerate().find(|(_, &id)| id as usize >= vocab) {
        let fact = format!("token {id} at place {at} of the prompt is outside the model's vocabulary of {vocab}");
        return Err(Error::new(Exit::Data, fact).hint("use the tokenizer that the model was trained with"));
    }
    if prompt.len() >= longest {
        let fact = format!("the prompt has {} tokens, the longest text may have {longest}", prompt.len());
        return Err(Error::new(Exit::Data, fact).hint("shorten the prompt: the continuation must fit too"));
    }
    Ok(())
}

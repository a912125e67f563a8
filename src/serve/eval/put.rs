//! A task put to an engine: each row as texts to score or to make, as many at a time as the engine likes, and what came of them.

use super::score::{HeardText, TaskScore};
use super::task::{EvalTask, TaskRow};
use crate::data::chat::ChatTemplate;
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::serve::engine::{check, Asked, Chosen, Engine, Reader, Stop};
use crate::serve::logprobs::Scored;
use crate::serve::text::TokenizerText;
use crate::serve::Sampling;
use serde_json::json;
use std::collections::HashMap;

/// What holds for every row.
pub struct TaskRules<'a> {
    /// The model's own, for contexts and for what is behind them.
    pub tokenizer: &'a Tokenizer,
    /// Ids in front of a context.
    pub front: Vec<u32>,
    /// Contexts are a user's turn of this template.
    pub chat: Option<&'a ChatTemplate>,
    /// Between a context and a choice that does not begin with space.
    pub delimiter: String,
    /// Tokens at most that the model writes for a row of kind generation.
    pub max_tokens: usize,
    /// Strings that end a text that the model writes.
    pub stops: Vec<String>,
    /// Ids that end a text that the model writes.
    pub ends: Vec<u32>,
    /// Ids of the model's vocabulary.
    pub vocab: usize,
    /// Tokens of the longest text, context and what is behind it.
    pub longest: usize,
}

/// A text to score, without an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoredText {
    /// Its tokens, two at least.
    pub ids: Vec<u32>,
    /// The place of the first that counts, from 1 on.
    pub from: usize,
    /// Characters and bytes of what counts.
    pub size: (usize, usize),
}

/// One text of a row.
struct Piece {
    asked: Asked,
    /// Characters and bytes of what is scored.
    size: (usize, usize),
}

/// A task with the tokens of all its texts.
pub struct PutTask<'a> {
    task: &'a EvalTask,
    rules: &'a TaskRules<'a>,
    /// For each row its texts.
    pieces: Vec<Vec<Piece>>,
}

impl<'a> PutTask<'a> {
    /// Errors ([`Exit::Data`]): rows that are longer than the longest text, with their number and the first one's line.
    pub fn new(task: &'a EvalTask, rules: &'a TaskRules) -> Result<PutTask<'a>> {
        let pieces = task.rows.iter().map(|(_, row)| rules.pieces(row)).collect::<Result<Vec<_>>>();
        let pieces = pieces.map_err(|e| e.context(&task.name))?;
        let put = PutTask { task, rules, pieces };
        put.check_lengths().map(|()| put)
    }

    fn check_lengths(&self) -> Result<()> {
        let longest = self.rules.longest;
        // room for one token at least, as the engine wants it
        let needs = |p: &Piece| p.asked.prompt.len() + p.asked.max_tokens.max(1);
        let long = |row: &&(usize, usize)| row.1 > longest;
        let most = |row: &Vec<Piece>| row.iter().map(needs).max().unwrap_or(0);
        let rows: Vec<(usize, usize)> =
            self.task.rows.iter().map(|(line, _)| *line).zip(self.pieces.iter().map(most)).collect();
        if let Some((line, needs)) = rows.iter().find(long) {
            let fact = format!(
                "{}: {} of {} rows are longer than the longest text of {longest} tokens; line {line} takes {needs}",
                self.task.name,
                rows.iter().filter(long).count(),
                rows.len()
            );
            return Err(
                Error::new(Exit::Data, fact).hint("raise --max-length, lower --max-tokens, or shorten the rows")
            );
        }
        self.pieces.iter().flatten().try_for_each(|p| check(&p.asked.prompt, self.rules.vocab, longest))
    }

    /// Texts in all.
    pub fn texts(&self) -> u64 {
        self.pieces.iter().map(|row| row.len() as u64).sum()
    }

    /// The texts of each row, of which something is scored: of rows that ask for texts to be written there are none.
    pub fn scored(self) -> Vec<Vec<ScoredText>> {
        let text = |p: Piece| Some(ScoredText { from: p.asked.score_from?, ids: p.asked.prompt, size: p.size });
        self.pieces.into_iter().map(|row| row.into_iter().filter_map(text).collect()).collect()
    }

    /// What came of it. `meter` counts texts.
    pub fn run(&self, engine: &mut Engine, meter: &Meter) -> Result<TaskScore> {
        let mut hearing = Hearing { open: HashMap::new(), done: HashMap::new() };
        let mut next = self.pieces.iter().enumerate().flat_map(|(i, row)| (0..row.len()).map(move |j| (i, j)));
        let mut left = next.next();
        while left.is_some() || engine.pending() > 0 {
            while let Some((i, j)) = left.filter(|_| engine.pending() < 2 * engine.capacity().limits.sequences) {
                let ticket = engine.submit(self.pieces[i][j].asked.clone())?;
                hearing.open.insert(ticket, ((i, j), OpenText::new(self.rules)));
                left = next.next();
            }
            let before = hearing.done.len();
            engine.step(&mut hearing)?;
            meter.add((hearing.done.len() - before) as u64);
        }
        let mut score = TaskScore::new(self.task);
        for (i, row) in self.pieces.iter().enumerate() {
            let heard = row
                .iter()
                .enumerate()
                .map(|(j, p)| HeardText { size: p.size, ..hearing.done.remove(&(i, j)).unwrap_or_default() });
            score.add(&self.task.rows[i].1, &heard.collect::<Vec<_>>());
        }
        Ok(score)
    }
}

impl TaskRules<'_> {
    fn pieces(&self, row: &TaskRow) -> Result<Vec<Piece>> {
        match row {
            TaskRow::Choice { context, choices, .. } => {
                // Its length is the choice's own, as lm-evaluation-harness has it: what stands before it is not counted.
                let one = |c: &String| {
                    let size = (c.chars().count(), c.len());
                    Ok(Piece { size, ..self.pair(context, &self.delimited(c))? })
                };
                choices.iter().map(one).collect()
            }
            TaskRow::Continuation { context, continuation } => Ok(vec![self.pair(context, continuation)?]),
            TaskRow::Text { text } => self.windows(text),
            TaskRow::Generate { prompt, .. } => {
                let prompt = self.context(prompt)?;
                Ok(vec![Piece { asked: self.asked(prompt, None, self.max_tokens), size: (0, 0) }])
            }
        }
    }

    fn delimited(&self, choice: &str) -> String {
        match choice.starts_with(char::is_whitespace) || self.chat.is_some() {
            true => choice.to_string(),
            false => format!("{}{choice}", self.delimiter),
        }
    }

    /// A context's ids, and what stands in front of it.
    fn context(&self, text: &str) -> Result<Vec<u32>> {
        match self.chat {
            Some(chat) => self.tokenizer.encode_special(&chat.render(&[json!({"role": "user", "content": text})])?),
            None => self.plain(text),
        }
    }

    fn plain(&self, text: &str) -> Result<Vec<u32>> {
        Ok([&self.front[..], &self.tokenizer.encode(text)?].concat())
    }

    /// A continuation behind a context. Space at the context's end belongs to the continuation, and both are encoded together, so that
    /// the tokens are those of the text as it stands there.
    fn pair(&self, context: &str, continuation: &str) -> Result<Piece> {
        let size = (continuation.chars().count(), continuation.len());
        let (prompt, from) = match self.chat {
            Some(_) => {
                let before = self.context(context)?;
                let from = before.len();
                ([before, self.tokenizer.encode(continuation)?].concat(), from)
            }
            None => {
                let before = context.trim_end();
                let whole = self.plain(&format!("{context}{continuation}"))?;
                let from = self.plain(before)?.len();
                self.scored_from(whole, from)
            }
        };
        if from >= prompt.len() {
            let fact = format!("the tokens of {continuation:?} are lost in those of its context");
            return Err(Error::new(Exit::Data, fact));
        }
        Ok(Piece { asked: self.asked(prompt, Some(from), 0), size })
    }

    /// The first token of all has nothing that it could be likely behind: where nothing else stands there, an end of text does.
    fn scored_from(&self, ids: Vec<u32>, from: usize) -> (Vec<u32>, usize) {
        match (from, self.tokenizer.bos().or(self.tokenizer.eos())) {
            (0, Some(id)) => ([vec![id], ids].concat(), 1),
            _ => (ids, from.max(1)),
        }
    }

    /// A text in windows of the longest text, each token scored once; each window begins with the token before what it scores, the
    /// last one earlier where there is room.
    fn windows(&self, text: &str) -> Result<Vec<Piece>> {
        if self.longest < 3 {
            let fact = format!("the longest text has {} tokens, and a window of a text needs 3", self.longest);
            return Err(Error::new(Exit::Usage, fact).hint("raise --max-length"));
        }
        let (ids, from) = self.scored_from(self.plain(text)?, self.front.len());
        let most = self.longest - 1;
        let mut size = (text.chars().count(), text.len());
        let window = |start: usize| {
            let end = (start + most - 1).min(ids.len());
            let begin = end.saturating_sub(most).min(start - 1);
            let asked = self.asked(ids[begin..end].to_vec(), Some(start - begin), 0);
            // all of the text's size is the first window's
            Piece { asked, size: std::mem::take(&mut size) }
        };
        Ok((from..ids.len()).step_by((most - 1).max(1)).map(window).collect())
    }

    fn asked(&self, prompt: Vec<u32>, score_from: Option<usize>, max_tokens: usize) -> Asked {
        let stop = if max_tokens > 0 { self.ends.clone() } else { vec![] };
        let logprobs = score_from.map(|_| 1);
        let (sampling, sample, grammar) = (Sampling::greedy(), 0, None);
        Asked { prompt, max_tokens, sampling, sample, stop, logprobs, score_from, grammar }
    }
}

/// A text under way.
struct OpenText<'t> {
    heard: HeardText,
    text: TokenizerText<'t>,
}

impl<'t> OpenText<'t> {
    fn new(rules: &'t TaskRules) -> OpenText<'t> {
        OpenText { heard: HeardText::default(), text: TokenizerText::of(rules.tokenizer, &rules.stops) }
    }
}

/// What is heard of the texts, by row and text.
struct Hearing<'t> {
    open: HashMap<u64, ((usize, usize), OpenText<'t>)>,
    done: HashMap<(usize, usize), HeardText>,
}

impl Reader for Hearing<'_> {
    fn token(&mut self, ticket: u64, token: Chosen) -> Result<bool> {
        let Some((_, open)) = self.open.get_mut(&ticket) else { return Ok(true) };
        Ok(token.ends || open.text.push(token.id))
    }

    fn scored(&mut self, ticket: u64, own: Scored, top: Vec<Scored>) -> Result<()> {
        if let Some((_, open)) = self.open.get_mut(&ticket) {
            open.heard.logprob += f64::from(own.logprob);
            open.heard.tokens += 1;
            open.heard.greedy &= top.first().is_some_and(|t| t.id == own.id);
        }
        Ok(())
    }

    fn ended(&mut self, ticket: u64, _: Stop) -> Result<()> {
        if let Some((place, open)) = self.open.remove(&ticket) {
            let (text, _) = open.text.finish();
            self.done.insert(place, HeardText { text, ..open.heard });
        }
        Ok(())
    }
}

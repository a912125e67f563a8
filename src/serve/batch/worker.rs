//! Tasks through one engine: whole answers out, as lines.

use crate::data::Tokenizer;
use crate::error::Result;
use crate::serve::batch::answer::{self, Made};
use crate::serve::batch::request::Task;
use crate::serve::engine::{Chosen, Engine, EngineTally, Reader, Stop};
use crate::serve::guide::Grammars;
use crate::serve::logprobs::Scored;
use crate::serve::text::TokenizerText;
use std::collections::HashMap;
use std::sync::Arc;

/// An engine and the tasks that it has.
pub struct Worker<'t> {
    engine: Engine,
    grammars: Arc<Grammars<'t>>,
    texts: Texts<'t>,
}

/// Texts that are being made.
struct Texts<'t> {
    tokenizer: &'t Tokenizer,
    /// By ticket: the task, and which of its texts.
    places: HashMap<u64, (u64, usize)>,
    open: HashMap<u64, Text<'t>>,
    /// By line: the task, and its texts that are done.
    tasks: HashMap<u64, (Task, Vec<Option<Made>>)>,
    answers: Vec<String>,
}

struct Text<'t> {
    text: TokenizerText<'t>,
    tokens: Vec<u32>,
    scored: Vec<(Scored, Vec<Scored>, usize)>,
}

impl<'t> Worker<'t> {
    /// A worker without tasks; `engine` must have no requests yet, `tokenizer` and `grammars` are its model's.
    pub fn new(engine: Engine, tokenizer: &'t Tokenizer, grammars: Arc<Grammars<'t>>) -> Worker<'t> {
        let texts =
            Texts { tokenizer, places: HashMap::new(), open: HashMap::new(), tasks: HashMap::new(), answers: vec![] };
        Worker { engine, grammars, texts }
    }

    /// Takes a task.
    pub fn submit(&mut self, task: Task) -> Result<()> {
        let tokenizer = self.texts.tokenizer;
        for (i, asked) in task.asked.iter().enumerate() {
            let guide = self.grammars.guide_of(asked.grammar.as_ref())?;
            let ticket = self.engine.submit_guided(asked.clone(), guide)?;
            let text = TokenizerText::of(tokenizer, &task.stops);
            self.texts.places.insert(ticket, (task.line, i));
            self.texts.open.insert(ticket, Text { text, tokens: vec![], scored: vec![] });
        }
        let none = vec![None; task.asked.len()];
        self.texts.tasks.insert(task.line, (task, none));
        Ok(())
    }

    /// How many more texts the engine should have, so that it never waits for work.
    pub fn wants(&self) -> usize {
        (2 * self.engine.capacity().limits.sequences).saturating_sub(self.engine.pending())
    }

    /// Whether every task is done.
    pub fn is_idle(&self) -> bool {
        self.engine.pending() == 0
    }

    /// One iteration; the answers that it finished.
    pub fn step(&mut self) -> Result<Vec<String>> {
        self.engine.step(&mut self.texts)?;
        Ok(std::mem::take(&mut self.texts.answers))
    }

    /// What the engine has read and chosen since it was made.
    pub fn tally(&self) -> EngineTally {
        self.engine.tally()
    }

    /// Ends the work of the replica's other ranks.
    pub fn end(self) -> Result<()> {
        self.engine.end()
    }
}

impl Reader for Texts<'_> {
    fn token(&mut self, ticket: u64, token: Chosen) -> Result<bool> {
        let Some(t) = self.open.get_mut(&ticket) else { return Ok(true) };
        t.tokens.push(token.id);
        // The token that ends a text is counted, but is no part of it.
        if token.ends {
            return Ok(true);
        }
        if let Some((own, top)) = token.scored {
            t.scored.push((own, top, t.text.characters()));
        }
        Ok(t.text.push(token.id))
    }

    fn ended(&mut self, ticket: u64, why: Stop) -> Result<()> {
        let (Some((line, i)), Some(t)) = (self.places.remove(&ticket), self.open.remove(&ticket)) else {
            return Ok(());
        };
        let (text, stopped) = t.text.finish();
        let why = if stopped { Stop::Reader } else { why };
        let Some((_, texts)) = self.tasks.get_mut(&line) else { return Ok(()) };
        texts[i] = Some(Made { text, tokens: t.tokens, scored: t.scored, why });
        if texts.iter().all(Option::is_some) {
            if let Some((task, texts)) = self.tasks.remove(&line) {
                let texts: Vec<Made> = texts.into_iter().flatten().collect();
                self.answers.push(answer::line(&task, &texts, self.tokenizer));
            }
        }
        Ok(())
    }
}

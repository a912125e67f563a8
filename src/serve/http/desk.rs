//! The engine's side: orders are taken between two iterations, and what comes is written into each request's record. Nobody here
//! waits for a client.

use crate::data::Tokenizer;
use crate::error::Result;
use crate::serve::engine::{Asked, Chosen, Engine, Reader, Stop};
use crate::serve::guide::Grammars;
use crate::serve::http::figures::Figures;
use crate::serve::http::gate::{Gate, Pass};
use crate::serve::http::journal::SharedJournal;
use crate::serve::http::record::{AnswerRecord, News};
use crate::serve::logprobs::Scored;
use crate::serve::text::TokenizerText;
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the engine sleeps without work before it looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);
/// Tokens go to the journal this often.
const NOTE_EVERY: Duration = Duration::from_millis(200);
/// What went to the journal is made durable this often.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// A request that was accepted.
pub struct TextJob {
    /// Number of the request in this server, from 0 on.
    pub id: u64,
    /// One for each text, in order.
    pub asked: Vec<Asked>,
    /// Tokens that each text has from an earlier server.
    pub begun: Vec<Vec<u32>>,
    /// Strings that end a text.
    pub stops: Vec<String>,
    /// Where what comes is written.
    pub record: Arc<AnswerRecord>,
    /// Its client will ask for the answer again, should it get lost: it is in the journal under this name.
    pub key: Option<String>,
    /// Its place at the gate, held until it is done or its client leaves.
    pub pass: Pass,
}

/// What the server's side says.
pub enum DeskOrder {
    /// A request to answer.
    Take(Box<TextJob>),
    /// The client of the request has gone.
    Leave(u64),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Requests without an answer.
    pub unfinished: usize,
    /// Of those, the ones in the journal.
    pub kept: usize,
}

/// An engine, and the requests that it has.
pub struct Desk<'t> {
    engine: Engine,
    grammars: Arc<Grammars<'t>>,
    texts: OpenTexts<'t>,
    noted: Instant,
    synced: Instant,
}

struct OpenTexts<'t> {
    tokenizer: &'t Tokenizer,
    /// By ticket: the request, and which of its texts.
    places: HashMap<u64, (u64, usize)>,
    open: HashMap<u64, OpenText<'t>>,
    jobs: HashMap<u64, OpenJob>,
    journal: SharedJournal,
}

struct OpenText<'t> {
    text: TokenizerText<'t>,
    /// Bytes of text that are in the record.
    told: usize,
    /// Tokens that the journal was given.
    noted: usize,
    /// Tokens behind those, for the journal's next line.
    fresh: Vec<u32>,
}

struct OpenJob {
    record: Arc<AnswerRecord>,
    key: Option<String>,
    tickets: Vec<u64>,
    /// Texts that are not done.
    left: usize,
    _pass: Pass,
}

impl<'t> Desk<'t> {
    /// A desk without requests; `engine` must have none yet, `tokenizer` and `grammars` are its model's.
    pub fn new(
        engine: Engine, tokenizer: &'t Tokenizer, grammars: Arc<Grammars<'t>>, journal: SharedJournal,
    ) -> Desk<'t> {
        let texts =
            OpenTexts { tokenizer, places: HashMap::new(), open: HashMap::new(), jobs: HashMap::new(), journal };
        Desk { engine, grammars, texts, noted: Instant::now(), synced: Instant::now() }
    }

    /// Works until `stop` says so and what was accepted is done, or `drain` is over.
    pub fn run(
        mut self, orders: Receiver<DeskOrder>, gate: &Gate, figures: &Figures, stop: &dyn Fn() -> bool, drain: Duration,
    ) -> Result<Drained> {
        let mut until: Option<Instant> = None;
        loop {
            if until.is_none() && stop() {
                gate.close();
                until = Some(Instant::now() + drain);
                let open = self.texts.jobs.len();
                tracing::info!("stopping: {open} requests are under way, at most {} s for them", drain.as_secs());
            }
            self.take_orders(&orders)?;
            if self.noted.elapsed() >= NOTE_EVERY {
                self.noted = Instant::now();
                self.texts.note();
            }
            if self.synced.elapsed() >= SYNC_EVERY {
                self.synced = Instant::now();
                self.texts.journal.sync();
            }
            match until {
                Some(until) if self.texts.jobs.is_empty() || Instant::now() >= until => break,
                _ => {}
            }
            if self.engine.pending() > 0 {
                self.engine.step(&mut self.texts)?;
            }
            figures.engine(&self.engine);
        }
        // Those that were accepted in the last moment are in nobody's hands yet.
        let late = orders.try_iter().filter_map(|o| if let DeskOrder::Take(job) = o { Some(*job) } else { None });
        let drained = self.texts.abandon(late.collect());
        self.engine.end()?;
        Ok(drained)
    }

    fn take_orders(&mut self, orders: &Receiver<DeskOrder>) -> Result<()> {
        let mut wait = self.engine.pending() == 0;
        loop {
            let order = match wait {
                true => orders.recv_timeout(LOOK),
                false => orders.try_recv().map_err(|_| RecvTimeoutError::Timeout),
            };
            match order {
                Ok(DeskOrder::Take(job)) => self.take(*job)?,
                Ok(DeskOrder::Leave(id)) => self.leave(id),
                Err(_) => return Ok(()),
            }
            wait = false;
        }
    }

    fn take(&mut self, job: TextJob) -> Result<()> {
        let TextJob { id, asked, begun, stops, record, key, pass } = job;
        let mut tickets = Vec::new();
        let left = asked.len();
        for (i, asked) in asked.into_iter().enumerate() {
            let begun = begun.get(i).map_or(&[][..], |b| b);
            let text = TokenizerText::of(self.texts.tokenizer, &stops);
            let mut text = OpenText { text, told: 0, noted: begun.len(), fresh: vec![] };
            for &id in begun {
                text.text.push(id);
                let piece = text.piece();
                record.write(News::Token { text: i, id, ends: false, piece, scored: None });
            }
            let ticket = match self.grammars.guide_of(asked.grammar.as_ref())? {
                None => self.engine.resume(asked, begun)?,
                guide => self.engine.submit_guided(asked, guide)?,
            };
            tickets.push(ticket);
            self.texts.places.insert(ticket, (id, i));
            self.texts.open.insert(ticket, text);
        }
        self.texts.jobs.insert(id, OpenJob { record, key, tickets, left, _pass: pass });
        Ok(())
    }

    fn leave(&mut self, id: u64) {
        let Some(job) = self.texts.jobs.remove(&id) else { return };
        for ticket in job.tickets {
            self.engine.cancel(ticket);
            self.texts.places.remove(&ticket);
            self.texts.open.remove(&ticket);
        }
        job.record.close();
    }
}

impl OpenText<'_> {
    /// Text that has become certain since the last time.
    fn piece(&mut self) -> String {
        let piece = self.text.certain().get(self.told..).unwrap_or_default().to_string();
        self.told += piece.len();
        piece
    }
}

impl OpenTexts<'_> {
    /// What has come since the last time goes to the journal, of requests that are in it.
    fn note(&mut self) {
        for job in self.jobs.values() {
            let Some(key) = &job.key else { continue };
            for (i, ticket) in job.tickets.iter().enumerate() {
                let Some(text) = self.open.get_mut(ticket).filter(|t| !t.fresh.is_empty()) else { continue };
                let fresh = std::mem::take(&mut text.fresh);
                self.journal.tokens(key, i, text.noted, &fresh);
                text.noted += fresh.len();
            }
        }
    }

    fn abandon(mut self, late: Vec<TextJob>) -> Drained {
        self.note();
        self.journal.sync();
        let all: Vec<(Arc<AnswerRecord>, bool)> = (self.jobs.into_values().map(|j| (j.record, j.key.is_some())))
            .chain(late.into_iter().map(|j| (j.record, j.key.is_some())))
            .collect();
        for (record, _) in &all {
            record.write(News::Abandoned);
            record.close();
        }
        Drained { unfinished: all.len(), kept: all.iter().filter(|(_, keyed)| *keyed).count() }
    }
}

impl Reader for OpenTexts<'_> {
    fn token(&mut self, ticket: u64, token: Chosen) -> Result<bool> {
        let (Some(&(id, text)), Some(t)) = (self.places.get(&ticket), self.open.get_mut(&ticket)) else {
            return Ok(true);
        };
        let Some(job) = self.jobs.get(&id) else { return Ok(true) };
        let scored = token.scored.map(|(own, top)| (own, top, t.text.characters()));
        let enough = !token.ends && t.text.push(token.id);
        if job.key.is_some() && !token.ends && !enough {
            t.fresh.push(token.id);
        }
        let piece = t.piece();
        job.record.write(News::Token { text, id: token.id, ends: token.ends, piece, scored });
        Ok(enough)
    }

    fn scored(&mut self, ticket: u64, own: Scored, top: Vec<Scored>) -> Result<()> {
        if let Some(&(id, text)) = self.places.get(&ticket) {
            if let Some(job) = self.jobs.get(&id) {
                job.record.write(News::Prompt { text, own, top });
            }
        }
        Ok(())
    }

    fn ended(&mut self, ticket: u64, why: Stop) -> Result<()> {
        let (Some((id, text)), Some(t)) = (self.places.remove(&ticket), self.open.remove(&ticket)) else {
            return Ok(());
        };
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let told = t.told;
        let (whole, stopped) = t.text.finish();
        let why = if stopped { Stop::Reader } else { why };
        let piece = whole.get(told..).unwrap_or_default().to_string();
        job.record.write(News::Ended { text, piece, why });
        job.left -= 1;
        if job.left == 0 {
            job.record.close();
            if let Some(key) = self.jobs.remove(&id).and_then(|job| job.key) {
                self.journal.done(&key);
            }
        }
        Ok(())
    }
}

//! Requests in: read, let in or turned away, journalled where their clients can come back, and handed to the engine.

use crate::data::Tokenizer;
use crate::serve::batch::fields::Refusal;
use crate::serve::batch::request::{Form, RequestRules};
use crate::serve::http::call::ServedCall;
use crate::serve::http::desk::{DeskOrder, TextJob};
use crate::serve::http::figures::Figures;
use crate::serve::http::gate::{Gate, Pass, Shut};
use crate::serve::http::journal::{SharedJournal, Unfinished};
use crate::serve::http::objects::AnswerHead;
use crate::serve::http::record::AnswerRecord;
use crate::serve::http::refused::Refused;
use crate::threads::lock;
use axum::http::StatusCode;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use xxhash_rust::xxh3::xxh3_128;

/// Answers to requests with a key that are kept for a client that comes again.
const KEPT: usize = 256;
/// Characters of a key at most.
const KEY: usize = 255;

/// What the server's side knows.
pub struct FrontDesk {
    /// What holds for every request.
    pub rules: RequestRules<'static>,
    /// That of `rules`, for as long as the server runs.
    pub tokenizer: &'static Tokenizer,
    /// What texts are made by besides their requests: the model, its precision, its tokenizer.
    pub made_by: String,
    /// To the engine's thread, which hears them between two iterations.
    pub orders: Sender<DeskOrder>,
    /// Bounds the texts of requests that are not done; the engine's thread closes it.
    pub gate: Arc<Gate>,
    /// What `/metrics` shows, written by both sides.
    pub figures: Arc<Figures>,
    /// Where requests with an `Idempotency-Key` are noted on disk.
    pub journal: SharedJournal,
    /// What a client must bring, where the door has no other lock.
    pub token: Option<String>,
    /// Seconds since 1970 at which the server began.
    pub created: i64,
    nonce: i128,
    next: AtomicU64,
    kept: Mutex<KeptAnswers>,
}

#[derive(Default)]
struct KeptAnswers {
    by_key: HashMap<String, (u128, Accepted)>,
    order: VecDeque<String>,
}

/// A request that the engine has.
#[derive(Clone)]
pub struct Accepted {
    /// Number of the request in this server, from 0 on.
    pub number: u64,
    /// The request as it was read.
    pub call: Arc<ServedCall>,
    /// What identifies the answer.
    pub head: AnswerHead,
    /// What has come of it so far, for any number of readers.
    pub record: Arc<AnswerRecord>,
    /// It goes on when its client leaves.
    pub keyed: bool,
}

/// Why a request of an earlier server does not go on, in a line.
#[derive(Debug)]
pub enum NotResumed {
    /// It is none for this server: no next one need try it.
    Refused(String),
    /// The journal cannot be written to now: it stays there for the next start.
    Journal(String),
}

impl FrontDesk {
    /// `gate` and `journal` are those of the engine's side; `token` is none for a door that is a socket.
    pub fn new(
        rules: RequestRules<'static>, made_by: String, orders: Sender<DeskOrder>, gate: Arc<Gate>,
        journal: SharedJournal, token: Option<String>,
    ) -> FrontDesk {
        let (tokenizer, figures) = (rules.tokenizer, Arc::default());
        let (created, next, kept) = (now(), AtomicU64::new(0), Mutex::default());
        let nonce = jiff::Timestamp::now().as_nanosecond();
        FrontDesk { rules, tokenizer, made_by, orders, gate, figures, journal, token, created, nonce, next, kept }
    }

    /// Takes a request, or says why not. It blocks: on the tokenizer, and for one with a key on the disk.
    pub fn accept(&self, form: Form, key: Option<String>, body: &[u8]) -> Result<Accepted, Refused> {
        let Some(key) = key else {
            let number = self.number();
            // A request without a seed draws by its name, which no other server gives.
            let name = format!("{:x}-{number}", self.nonce);
            let call = ServedCall::read(&self.rules, form, &name, body)?;
            let pass = self.pass(&call)?;
            return self.order(number, &name, call, pass, (None, vec![]));
        };
        if key.is_empty() || key.len() > KEY || !key.bytes().all(|b| b.is_ascii_graphic()) {
            let fact = format!("Idempotency-Key must be 1 to {KEY} visible ASCII characters");
            return Err(Refusal::new("invalid_value", "Idempotency-Key", fact).into());
        }
        let print = xxh3_128(&[body, if form == Form::Chat { b"chat" } else { b"text" }].concat());
        // One at a time: two requests with one key are one.
        let mut kept = lock(&self.kept);
        match kept.by_key.get(&key) {
            Some((before, accepted)) if *before == print => return Ok(accepted.clone()),
            Some(_) => {
                let why = Refused::new(
                    StatusCode::CONFLICT,
                    "idempotency_key_in_use",
                    "another request was sent with this Idempotency-Key",
                );
                return Err(why);
            }
            None => {}
        }
        let call = ServedCall::read(&self.rules, form, &key, body)?;
        let pass = self.pass(&call)?;
        let made_by = self.made_by(&call);
        self.journal.accepted(&key, form, &String::from_utf8_lossy(body), &made_by).map_err(|e| {
            tracing::warn!("{e}");
            Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "journal_failed",
                "the request cannot be written to the journal; without an Idempotency-Key it can be answered",
            )
            .after(30)
        })?;
        let accepted = self.order(self.number(), &key, call, pass, (Some(key.clone()), vec![]))?;
        kept.keep(key, print, accepted.clone());
        Ok(accepted)
    }

    /// Goes on with a request of an earlier server.
    pub fn resume(&self, u: Unfinished) -> Result<(), NotResumed> {
        let call = ServedCall::read(&self.rules, u.form, &u.key, u.body.as_bytes());
        let call = call.map_err(|why| NotResumed::Refused(why.message))?;
        // Tokens of another model, or behind another prompt (a template may tell the date), are no beginning of this text.
        let made_by = self.made_by(&call);
        let same = u.made_by == made_by;
        if !same {
            tracing::warn!(
                "request {} is made from its beginning: what is there is of another model, precision, prompt or version",
                u.key
            );
            let written = self.journal.accepted(&u.key, u.form, &u.body, &made_by);
            written.map_err(|e| NotResumed::Journal(e.to_string()))?;
        }
        // Scores are not in the journal, nor how far the grammar of a text is: such a text is made again, with the same bits.
        let begun = |(i, asked): (usize, &crate::serve::Asked)| {
            if !same || asked.logprobs.is_some() || asked.grammar.is_some() {
                return vec![];
            }
            let tokens = u.texts.get(&i).map_or(&[][..], |t| t);
            // At least one token is left to make: it may be the one that ends the text.
            tokens[..tokens.len().min(asked.max_tokens.saturating_sub(1))].to_vec()
        };
        let begun = call.asked.iter().enumerate().map(begun).collect();
        let print = xxh3_128(&[u.body.as_bytes(), if u.form == Form::Chat { b"chat" } else { b"text" }].concat());
        let pass = self.gate.let_in(call.asked.len());
        let order = self.order(self.number(), &u.key, call, pass, (Some(u.key.clone()), begun));
        let accepted = order.map_err(|why| NotResumed::Refused(why.why.message))?;
        lock(&self.kept).keep(u.key, print, accepted);
        Ok(())
    }

    /// The client of a request has gone.
    pub fn gone(&self, accepted: &Accepted) {
        self.figures.left();
        if !accepted.keyed {
            // An engine that hears no more orders needs none.
            let _ = self.orders.send(DeskOrder::Leave(accepted.number));
        }
    }

    /// What the tokens of its texts depend on: xxh3-128, as 32 hexadecimal digits.
    fn made_by(&self, call: &ServedCall) -> String {
        let texts: Vec<_> = call.asked.iter().map(|a| (&a.prompt, &a.sampling, a.sample, &a.stop)).collect();
        // Numbers always have a form in JSON.
        let all = serde_json::to_string(&(&self.made_by, texts)).unwrap_or_default();
        format!("{:032x}", xxh3_128(all.as_bytes()))
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn pass(&self, call: &ServedCall) -> Result<Pass, Refused> {
        self.gate.enter(call.asked.len()).map_err(|shut| match shut {
            Shut::Closed => stopping(),
            Shut::Full => {
                let fact = format!("{} texts are being made or wait, which is the limit", self.gate.most());
                Refused::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", fact).after(1)
            }
            Shut::TooMany => {
                let most = self.gate.most();
                let fact = format!("{} texts in one request, the server takes {most} at a time", call.asked.len());
                Refusal::new("invalid_value", "n", fact).into()
            }
        })
    }

    fn order(
        &self, number: u64, name: &str, call: ServedCall, pass: Pass, (key, begun): (Option<String>, Vec<Vec<u32>>),
    ) -> Result<Accepted, Refused> {
        let record = Arc::new(AnswerRecord::default());
        let kind = if call.form == Form::Chat { "chatcmpl" } else { "cmpl" };
        let head = AnswerHead { id: format!("{kind}-{:024x}", xxh3_128(name.as_bytes()) >> 32), created: now() };
        let keyed = key.is_some();
        let (asked, stops) = (call.asked.clone(), call.stops.clone());
        let job = TextJob { id: number, asked, begun, stops, record: record.clone(), key, pass };
        self.orders.send(DeskOrder::Take(Box::new(job))).map_err(|_| stopping())?;
        Ok(Accepted { number, call: Arc::new(call), head, record, keyed })
    }
}

impl KeptAnswers {
    /// Whole answers make room for others, the oldest first.
    fn keep(&mut self, key: String, print: u128, accepted: Accepted) {
        self.order.push_back(key.clone());
        self.by_key.insert(key, (print, accepted));
        let mut look = self.order.len().saturating_sub(KEPT);
        let by_key = &mut self.by_key;
        self.order.retain(|key| {
            let old = look > 0 && by_key.get(key).is_some_and(|(_, a)| a.record.is_closed());
            if old {
                look -= 1;
                by_key.remove(key);
            }
            !old
        });
    }
}

fn stopping() -> Refused {
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, "server_stopping", "the server is stopping and accepts no more")
        .after(10)
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

//! What has come of a request so far. The engine's thread writes it down and never waits; whoever answers reads it from the
//! beginning, at the pace of his client. It grows no further than the texts that were asked for.

use crate::serve::batch::answer::ScoredToken;
use crate::serve::logprobs::Scored;
use crate::serve::Stop;
use crate::threads::lock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// One thing that has come.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The next token of the prompt of a text, with its score.
    Prompt {
        /// Which text of the request, from 0 on.
        text: usize,
        /// The prompt's token and its log-probability.
        own: Scored,
        /// The likeliest ones in its place, as many as were asked for.
        top: Vec<Scored>,
    },
    /// A token of a text.
    Token {
        /// Which text of the request, from 0 on.
        text: usize,
        /// Token id, in the model's vocabulary.
        id: u32,
        /// It ends the text, and is no part of it.
        ends: bool,
        /// What can be shown now that could not before.
        piece: String,
        /// Its score, if scores were asked for.
        scored: Option<ScoredToken>,
    },
    /// The text is done; the rest of it.
    Ended {
        /// Which text of the request, from 0 on.
        text: usize,
        /// What was not shown yet, often nothing.
        piece: String,
        /// What ended it; a stop string is [`Stop::Reader`].
        why: Stop,
    },
    /// The server stops before the request is done.
    Abandoned,
}

/// Of one request.
#[derive(Default)]
pub struct AnswerRecord {
    news: Mutex<Vec<News>>,
    grown: Notify,
    /// Nothing more will come.
    done: AtomicBool,
}

impl AnswerRecord {
    /// Adds one to the news and wakes all readers.
    pub fn write(&self, news: News) {
        lock(&self.news).push(news);
        self.grown.notify_waiters();
    }

    /// The `at`-th of the news, as soon as it is there.
    pub async fn read(&self, at: usize) -> News {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            // From here on a notification is not missed.
            grown.as_mut().enable();
            if let Some(news) = lock(&self.news).get(at) {
                return news.clone();
            }
            grown.await;
        }
    }

    /// Nothing more will be written.
    pub fn close(&self) {
        self.done.store(true, Ordering::Release);
    }

    /// Whether nothing more will be written.
    pub fn is_closed(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }
}

/// A reader of a record. Where it is dropped before the end, the client has gone: `gone` is told.
pub struct RecordReader<F: FnMut()> {
    record: Arc<AnswerRecord>,
    at: usize,
    /// Texts that are not done.
    open: usize,
    gone: F,
}

impl<F: FnMut()> RecordReader<F> {
    /// Reads from the first news on; `texts`: how many the request has.
    pub fn new(record: Arc<AnswerRecord>, texts: usize, gone: F) -> RecordReader<F> {
        RecordReader { record, at: 0, open: texts, gone }
    }

    /// The next news; none after the end of the last text.
    pub async fn next(&mut self) -> Option<News> {
        if self.open == 0 {
            return None;
        }
        let news = self.record.read(self.at).await;
        self.at += 1;
        match news {
            News::Ended { .. } => self.open -= 1,
            News::Abandoned => self.open = 0,
            _ => {}
        }
        Some(news)
    }
}

impl<F: FnMut()> Drop for RecordReader<F> {
    fn drop(&mut self) {
        if self.open > 0 {
            (self.gone)();
        }
    }
}

//! Answers as they come: server-sent events (HTML Living Standard, §9.2), each a chunk of OpenAI's.

use crate::data::Tokenizer;
use crate::serve::batch::answer::{chat_logprobs, completion_logprobs, reason, ScoredToken};
use crate::serve::batch::request::Form;
use crate::serve::http::call::ServedCall;
use crate::serve::http::objects::{echoed, frame, usage, AnswerHead};
use crate::serve::http::record::News;
use crate::serve::http::refused::Refused;
use crate::serve::logprobs::ScoredPlace;
use axum::http::StatusCode;
use serde_json::{json, Value};
use std::sync::Arc;

/// Makes the events of one answer.
pub struct EventWriter {
    call: Arc<ServedCall>,
    head: AnswerHead,
    tokenizer: &'static Tokenizer,
    /// Of each text, scores of its prompt that are not out yet, until the first of its own tokens.
    prompts: Vec<Option<Vec<ScoredPlace>>>,
    made: usize,
}

/// The last event.
pub const DONE: &str = "data: [DONE]\n\n";

impl EventWriter {
    /// Events of the answer to `call`, from the first on.
    pub fn new(call: Arc<ServedCall>, head: AnswerHead, tokenizer: &'static Tokenizer) -> EventWriter {
        let prompts = call.asked.iter().map(|_| Some(vec![])).collect();
        EventWriter { call, head, tokenizer, prompts, made: 0 }
    }

    /// What is sent for `news`, often nothing.
    pub fn events(&mut self, news: News) -> String {
        match news {
            News::Prompt { text, own, top } => {
                if let Some(waiting) = &mut self.prompts[text] {
                    waiting.push((own, top));
                }
                String::new()
            }
            News::Token { text, ends, piece, scored, id } => {
                self.made += 1;
                let begun = self.begin(text);
                let echoes = self.call.echo && self.call.logprobs.is_some();
                let scored = scored.filter(|_| (!ends || echoes) && self.call.logprobs.is_some());
                let silent = piece.is_empty() && scored.is_none() && !self.call.ids;
                begun + &if silent { String::new() } else { self.chunk(text, &piece, scored, None, Some(id)) }
            }
            News::Ended { text, piece, why } => {
                self.begin(text) + &self.chunk(text, &piece, None, Some(reason(why)), None)
            }
            News::Abandoned => {
                let e = Refused::new(StatusCode::SERVICE_UNAVAILABLE, "server_stopping", STOPPING);
                event(&e.object())
            }
        }
    }

    /// What comes after the last text.
    pub fn end(&self) -> String {
        let mut out = String::new();
        if self.call.stream.is_some_and(|s| s.usage) {
            let mut value = frame(&self.call, &self.head, true);
            value["usage"] = usage(&self.call, self.made);
            out += &event(&value);
        }
        out + DONE
    }

    /// What comes before the first of a text: the role, or the prompt.
    fn begin(&mut self, text: usize) -> String {
        let Some(scored) = self.prompts[text].take() else { return String::new() };
        let call = &self.call;
        match call.form {
            Form::Chat => self.framed(json!({
                "index": text, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null
            })),
            Form::Completion if call.echo => {
                let prompt = text / call.best_of;
                let scores = call.logprobs.map(|top| echoed(call, top, prompt, &scored, self.tokenizer));
                self.framed(json!({
                    "index": text, "text": call.shown[prompt].text, "logprobs": scores, "finish_reason": null
                }))
            }
            Form::Completion => String::new(),
        }
    }

    fn chunk(
        &self, text: usize, piece: &str, scored: Option<ScoredToken>, why: Option<&str>, id: Option<u32>,
    ) -> String {
        let call = &self.call;
        let mut choice = match call.form {
            Form::Chat => {
                let delta = if why.is_some() && piece.is_empty() { json!({}) } else { json!({"content": piece}) };
                let scores = scored.map(|s| chat_logprobs(&[s], self.tokenizer));
                json!({"index": text, "delta": delta, "logprobs": scores, "finish_reason": why})
            }
            Form::Completion => {
                let before = if call.echo { call.shown[text / call.best_of].text.chars().count() } else { 0 };
                let scores = scored.map(|(own, top, at)| {
                    completion_logprobs(call.logprobs.unwrap_or(0), &[(own, top, at + before)], self.tokenizer)
                });
                json!({"index": text, "text": piece, "logprobs": scores, "finish_reason": why})
            }
        };
        if call.ids {
            choice["token_ids"] = id.into_iter().collect();
        }
        self.framed(choice)
    }

    fn framed(&self, choice: Value) -> String {
        let mut value = frame(&self.call, &self.head, true);
        value["choices"] = json!([choice]);
        if self.call.stream.is_some_and(|s| s.usage) {
            value["usage"] = Value::Null;
        }
        event(&value)
    }
}

/// What a client hears whose answer this server cannot finish.
pub const STOPPING: &str =
    "the server stops before the answer is whole; ask again, best with an Idempotency-Key: then what is made is kept";

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

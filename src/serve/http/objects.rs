//! Whole answers, as OpenAI's objects.

use crate::data::Tokenizer;
use crate::serve::batch::answer::{chat_logprobs, completion_logprobs, reason, ScoredToken};
use crate::serve::batch::request::Form;
use crate::serve::http::call::ServedCall;
use crate::serve::http::record::News;
use crate::serve::logprobs::ScoredPlace;
use crate::serve::{Stop, TextStream};
use serde_json::{json, Map, Value};

/// What identifies an answer.
#[derive(Clone, Debug)]
pub struct AnswerHead {
    /// `cmpl-` or `chatcmpl-` and 24 hexadecimal digits of the hash of the request's name; one with a key always has the same.
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
}

/// One text, all of it.
#[derive(Clone, Debug, Default)]
pub struct WholeText {
    /// As it is shown: without stop strings and the token that ended it.
    pub text: String,
    /// All that were chosen, one that ended the text included.
    pub tokens: Vec<u32>,
    /// Of each token but one that ended the text; empty where no scores were asked for.
    pub scored: Vec<ScoredToken>,
    /// The score of the token that ended the text.
    pub last: Option<ScoredToken>,
    /// Of the prompt, from its second token on.
    pub prompt: Vec<ScoredPlace>,
    /// Why it ended; none while it grows.
    pub why: Option<Stop>,
}

/// Texts as they grow.
pub fn grow(texts: &mut [WholeText], news: News) {
    match news {
        News::Prompt { text, own, top } => texts[text].prompt.push((own, top)),
        News::Token { text, id, ends, piece, scored } => {
            let t = &mut texts[text];
            t.tokens.push(id);
            t.text += &piece;
            match (scored, ends) {
                (Some(scored), true) => t.last = Some(scored),
                (Some(scored), false) => t.scored.push(scored),
                _ => {}
            }
        }
        News::Ended { text, piece, why } => {
            texts[text].text += &piece;
            texts[text].why = Some(why);
        }
        News::Abandoned => {}
    }
}

/// The answer of a call whose texts are done.
pub fn answer(call: &ServedCall, head: &AnswerHead, texts: &[WholeText], tokenizer: &Tokenizer) -> Value {
    let mut choices = Vec::new();
    for (p, texts) in texts.chunks(call.best_of).enumerate() {
        for t in best(texts, call.n) {
            choices.push(choice(call, choices.len(), p, t, tokenizer));
        }
    }
    let mut value = frame(call, head, false);
    value["choices"] = Value::Array(choices);
    value["usage"] = usage(call, texts.iter().map(|t| t.tokens.len()).sum());
    value
}

/// All but the choices.
pub fn frame(call: &ServedCall, head: &AnswerHead, chunk: bool) -> Value {
    let object = match (call.form, chunk) {
        (Form::Completion, _) => "text_completion",
        (Form::Chat, false) => "chat.completion",
        (Form::Chat, true) => "chat.completion.chunk",
    };
    json!({"id": head.id, "object": object, "created": head.created, "model": call.model, "choices": []})
}

/// Every prompt is counted once, every text that was made whole.
pub fn usage(call: &ServedCall, made: usize) -> Value {
    let prompts: usize = call.asked.iter().step_by(call.best_of).map(|a| a.prompt.len()).sum();
    json!({"prompt_tokens": prompts, "completion_tokens": made, "total_tokens": prompts + made})
}

/// The `n` texts whose tokens are likeliest on average, the likeliest first; all of them as they are, where they are no more.
fn best(texts: &[WholeText], n: usize) -> Vec<&WholeText> {
    let mut all: Vec<&WholeText> = texts.iter().collect();
    if all.len() > n {
        let mean = |t: &WholeText| {
            let scores: Vec<f64> = t.scored.iter().chain(&t.last).map(|s| s.0.logprob as f64).collect();
            scores.iter().sum::<f64>() / scores.len().max(1) as f64
        };
        all.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        all.truncate(n);
    }
    all
}

fn choice(call: &ServedCall, index: usize, prompt: usize, t: &WholeText, tokenizer: &Tokenizer) -> Value {
    let why = t.why.map(reason);
    let mut value = match call.form {
        Form::Chat => json!({
            "index": index,
            "message": {"role": "assistant", "content": t.text},
            "logprobs": call.logprobs.map(|_| chat_logprobs(&t.scored, tokenizer)),
            "finish_reason": why,
        }),
        Form::Completion => {
            let before = if call.echo { call.shown[prompt].text.as_str() } else { "" };
            json!({
                "index": index,
                "text": format!("{before}{}", t.text),
                "logprobs": call.logprobs.map(|top| scores(call, top, prompt, t, tokenizer)),
                "finish_reason": why,
            })
        }
    };
    if call.ids {
        value["token_ids"] = json!(t.tokens);
    }
    value
}

/// The log-probabilities of a completion. With `echo` every token has its place: those of the prompt, of which the first has no
/// score, and those of the text, one that ends it too, as `lm-eval` counts them.
fn scores(call: &ServedCall, top: usize, prompt: usize, t: &WholeText, tokenizer: &Tokenizer) -> Value {
    if !call.echo {
        return completion_logprobs(top, &t.scored, tokenizer);
    }
    let mut value = echoed(call, top, prompt, &t.prompt, tokenizer);
    let before = call.shown[prompt].text.chars().count();
    let own: Vec<ScoredToken> = t.scored.iter().chain(&t.last).map(|s| (s.0, s.1.clone(), s.2 + before)).collect();
    append(&mut value, completion_logprobs(top, &own, tokenizer));
    value
}

/// The same of the prompt alone.
pub fn echoed(call: &ServedCall, top: usize, prompt: usize, scored: &[ScoredPlace], tokenizer: &Tokenizer) -> Value {
    let ids = &call.asked[prompt * call.best_of].prompt;
    let offsets = offsets(ids, call.shown[prompt].front, tokenizer);
    let placed: Vec<ScoredToken> =
        scored.iter().zip(&offsets[1..]).map(|((own, top), &at)| (*own, top.clone(), at)).collect();
    let mut value = json!({
        "tokens": [tokenizer.decode(&ids[..1])],
        "token_logprobs": [null],
        "top_logprobs": if top == 0 { Value::Null } else { json!([null]) },
        "text_offset": [offsets[0]],
    });
    append(&mut value, completion_logprobs(top, &placed, tokenizer));
    value
}

/// Puts the lists of `more` behind those of `value`.
fn append(value: &mut Value, mut more: Value) {
    let empty = Map::new();
    let keys: Vec<String> = value.as_object().unwrap_or(&empty).keys().cloned().collect();
    for key in keys {
        if let (Some(list), Value::Array(rest)) = (value[&key].as_array_mut(), more[&key].take()) {
            list.extend(rest);
        }
    }
}

/// Where the text of each of the prompt's tokens begins, in characters; the first `front` are in front of the text.
fn offsets(ids: &[u32], front: usize, tokenizer: &Tokenizer) -> Vec<usize> {
    let mut stream = TextStream::new(|ids: &[u32]| tokenizer.decode(ids));
    let mut at = 0;
    let mut of = |(i, &id): (usize, &u32)| {
        let begins = at;
        if i >= front {
            at += stream.push(id).chars().count();
        }
        begins
    };
    ids.iter().enumerate().map(&mut of).collect()
}

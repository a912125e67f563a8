//! Texts as OpenAI's objects, and a line of the output as OpenAI's batches have it. `created` is 0: the same request gives the same
//! bytes whenever it is answered.

use crate::data::Tokenizer;
use crate::serve::batch::fields::Refusal;
use crate::serve::batch::request::{Form, Task};
use crate::serve::logprobs::Scored;
use crate::serve::Stop;
use serde_json::{json, Map, Value};

/// One text of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// What was written, up to the first stop string.
    pub text: String,
    /// All that were chosen, one that ended the text included.
    pub tokens: Vec<u32>,
    /// Of every token of the text: itself, the likeliest ones, and where its text begins.
    pub scored: Vec<ScoredToken>,
    /// What ended it; a stop string is [`Stop::Reader`].
    pub why: Stop,
}

/// The identifier of a line's answer.
pub fn id_of(line: u64) -> String {
    format!("batch_req_{line:08}")
}

/// The line that an identifier stands for.
pub fn line_of(id: &str) -> Option<u64> {
    id.strip_prefix("batch_req_")?.parse().ok()
}

/// The line of the output for a task that was run.
pub fn line(task: &Task, made: &[Made], tokenizer: &Tokenizer) -> String {
    let number = format!("{:08}", task.line);
    let chat = task.form == Form::Chat;
    let choice = |(i, m): (usize, &Made)| match chat {
        true => json!({
            "index": i,
            "message": {"role": "assistant", "content": m.text},
            "logprobs": top_of(task).map(|_| chat_logprobs(&m.scored, tokenizer)),
            "finish_reason": reason(m.why),
        }),
        false => json!({
            "index": i,
            "text": m.text,
            "logprobs": top_of(task).map(|top| completion_logprobs(top, &m.scored, tokenizer)),
            "finish_reason": reason(m.why),
        }),
    };
    let with_ids = |(i, m): (usize, &Made)| {
        let mut value = choice((i, m));
        if task.ids {
            value["token_ids"] = json!(m.tokens);
        }
        value
    };
    let (prompt, text) =
        (task.asked.first().map_or(0, |a| a.prompt.len()), made.iter().map(|m| m.tokens.len()).sum::<usize>());
    let body = json!({
        "id": format!("{}-{number}", if chat { "chatcmpl" } else { "cmpl" }),
        "object": if chat { "chat.completion" } else { "text_completion" },
        "created": 0,
        "model": task.model,
        "choices": made.iter().enumerate().map(with_ids).collect::<Vec<Value>>(),
        "usage": {"prompt_tokens": prompt, "completion_tokens": text, "total_tokens": prompt + text},
    });
    let response = json!({"status_code": 200, "request_id": format!("req_{number}"), "body": body});
    json!({"id": id_of(task.line), "custom_id": task.custom_id, "response": response, "error": null}).to_string()
}

/// The line of the output for one that was refused.
pub fn refused(line: u64, custom_id: &Value, r: &Refusal) -> String {
    let error = json!({"code": r.code, "message": r.message, "param": r.param, "line": line});
    json!({"id": id_of(line), "custom_id": custom_id, "response": null, "error": error}).to_string()
}

pub(in crate::serve) fn reason(why: Stop) -> &'static str {
    match why {
        Stop::Token | Stop::Reader | Stop::Grammar => "stop",
        Stop::Length | Stop::Context => "length",
        Stop::Failed => "error",
    }
}

/// How many likeliest tokens were asked for at each place, if log-probabilities were at all.
fn top_of(task: &Task) -> Option<usize> {
    task.asked.first().and_then(|a| a.logprobs)
}

/// A token of a text: itself, the likeliest ones, and where its text begins, in characters.
pub type ScoredToken = (Scored, Vec<Scored>, usize);

/// OpenAI's older form, of completions; `top`: how many likeliest tokens were asked for.
pub(in crate::serve) fn completion_logprobs(top: usize, scored: &[ScoredToken], tokenizer: &Tokenizer) -> Value {
    let name = |s: &Scored| tokenizer.decode(&[s.id]);
    json!({
        "tokens": scored.iter().map(|s| name(&s.0)).collect::<Vec<String>>(),
        "token_logprobs": scored.iter().map(|s| s.0.logprob).collect::<Vec<f32>>(),
        "top_logprobs": if top == 0 { Value::Null } else { scored.iter().map(|s| likeliest(&s.1, tokenizer)).collect() },
        "text_offset": scored.iter().map(|s| s.2).collect::<Vec<usize>>(),
    })
}

fn likeliest(all: &[Scored], tokenizer: &Tokenizer) -> Value {
    let mut map = Map::new();
    // Two ids may read alike: the likelier one stays.
    for s in all {
        map.entry(tokenizer.decode(&[s.id])).or_insert(json!(s.logprob));
    }
    Value::Object(map)
}

/// OpenAI's newer form, of conversations.
pub(in crate::serve) fn chat_logprobs(scored: &[ScoredToken], tokenizer: &Tokenizer) -> Value {
    let one = |s: &Scored| {
        let token = tokenizer.decode(&[s.id]);
        json!({"token": token, "logprob": s.logprob, "bytes": token.as_bytes()})
    };
    let with_top = |(own, top, _): &ScoredToken| {
        let mut token = one(own);
        token["top_logprobs"] = top.iter().map(one).collect();
        token
    };
    json!({"content": scored.iter().map(with_top).collect::<Vec<Value>>()})
}

//! A line of the input as a task. Two forms: OpenAI's (`custom_id`, `method`, `url`, `body`; OpenAI's API reference, Batch), and the
//! body alone, with `id` or `custom_id` beside its fields. A line that is neither is refused by name of the field.

use crate::data::chat::ChatTemplate;
use crate::data::Tokenizer;
use crate::error::Error;
use crate::serve::batch::fields::{Fields, Refusal};
use crate::serve::batch::format;
use crate::serve::engine::{check, Asked};
use crate::serve::guide::{Grammar, Grammars};
use crate::serve::Sampling;
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};
use std::sync::Arc;

/// Stop strings of a request at most.
pub const STOPS: usize = 64;
/// Bytes of one of them at most.
pub const STOP_BYTES: usize = 1000;
/// Likeliest tokens reported at each place at most.
pub const TOP: u64 = 20;
/// Texts of one request at most.
pub const TEXTS: u64 = 128;
/// Said of the requester, not of the text.
pub const ABOUT: [&str; 5] = ["user", "metadata", "store", "service_tier", "safety_identifier"];

/// Which of OpenAI's objects answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// `/v1/completions`: a text behind a prompt.
    Completion,
    /// `/v1/chat/completions`: the next message of a conversation.
    Chat,
}

/// A request that can be run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Line of the input, from 1 on.
    pub line: u64,
    /// What its author calls it, repeated in the answer: a string, a number, or null where it has none.
    pub custom_id: Value,
    /// Told by the line's `url`; where it has none, `messages` make it a conversation.
    pub form: Form,
    /// The model's name as the request has it, else the first of [`RequestRules::models`].
    pub model: String,
    /// One for each text.
    pub asked: Vec<Asked>,
    /// Strings that end a text.
    pub stops: Vec<String>,
    /// Whether the answer has the tokens' ids (`return_token_ids`, as vLLM has it).
    pub ids: bool,
}

/// Where a text ends, and what is told of it.
pub(in crate::serve) struct Wanted {
    /// How many likeliest tokens the answer shows, if it shows log-probabilities.
    pub logprobs: Option<usize>,
    /// Strings that end a text.
    pub stops: Vec<String>,
    /// Ids that end a text.
    pub stop: Vec<u32>,
    /// The tokens that are asked for at most.
    pub tokens: Option<usize>,
    /// Whether the answer has the tokens' ids.
    pub ids: bool,
    /// The form that the text is to have; it compiles.
    pub grammar: Option<Grammar>,
}

/// What holds for every line.
pub struct RequestRules<'a> {
    /// The model's own, for prompts and answers.
    pub tokenizer: &'a Tokenizer,
    /// Ids in front of a prompt that is a text.
    pub front: Vec<u32>,
    /// The model's chat template, or why there is none.
    pub chat: Result<ChatTemplate, Error>,
    /// Ids that end a text.
    pub ends: Vec<u32>,
    /// Names of the model.
    pub models: Vec<String>,
    /// Ids of the model's vocabulary; those of a prompt are below it.
    pub vocab: usize,
    /// Tokens of the longest text, prompt and continuation.
    pub longest: usize,
    /// What is taken for fields that a request leaves out.
    pub defaults: Defaults,
    /// By which the forms of texts are compiled.
    pub grammars: Arc<Grammars<'a>>,
}

/// What a request that does not say gets.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// Divides the logits. 0: always the likeliest token.
    pub temperature: f64,
    /// None: 16 for completions, else up to the longest text, as OpenAI has it.
    pub max_tokens: Option<usize>,
    /// Mixed with the request's `custom_id`.
    pub seed: u64,
}

/// The identifier of a line: what tells requests apart.
pub fn custom_id(line: &Value) -> Value {
    [&line["custom_id"], &line["id"]].into_iter().find(|id| !id.is_null()).cloned().unwrap_or(Value::Null)
}

impl RequestRules<'_> {
    /// Line `number` of the input.
    pub fn read(&self, number: u64, line: &[u8]) -> Result<Task, Refusal> {
        let value: Value = serde_json::from_slice(line)
            .map_err(|e| Refusal::new("invalid_json", "", format!("the line is not JSON: {e}")))?;
        let Value::Object(map) = value else {
            return Err(Refusal::new("invalid_json", "", "the line is not a JSON object"));
        };
        let (custom_id, form, body) = self.parts(map)?;
        self.task(number, custom_id, form, Fields::new(body))
    }

    fn parts(&self, map: Map<String, Value>) -> Result<(Value, Form, Map<String, Value>), Refusal> {
        let openai = ["method", "url", "body"].iter().any(|key| map.contains_key(*key));
        let mut line = Fields::new(map);
        let given = line.take("custom_id");
        let id = match (given, openai) {
            (Some(id), _) => id,
            (None, true) => return Err(Refusal::new("missing_field", "custom_id", "there is no custom_id")),
            (None, false) => line.take("id").unwrap_or(Value::Null),
        };
        if !(id.is_string() || (id.is_number() || id.is_null()) && !openai) {
            return Err(Refusal::new("invalid_type", "custom_id", format!("custom_id is {id}, must be a string")));
        }
        if !openai {
            let form = if line.has("messages") { Form::Chat } else { Form::Completion };
            return Ok((id, form, line.rest()));
        }
        match line.text("method")?.as_deref() {
            Some("POST") => {}
            Some(other) => {
                return Err(Refusal::new("invalid_value", "method", format!("method is {other}, must be POST")))
            }
            None => return Err(Refusal::new("missing_field", "method", "there is no method; POST is meant")),
        }
        let form = match line.text("url")?.as_deref() {
            Some("/v1/completions") => Form::Completion,
            Some("/v1/chat/completions") => Form::Chat,
            Some(other) => {
                let must = "/v1/completions or /v1/chat/completions";
                return Err(Refusal::new("invalid_value", "url", format!("url is {other}, must be {must}")));
            }
            None => return Err(Refusal::new("missing_field", "url", "there is no url")),
        };
        let Some(body) = line.typed("body", "an object", |v| v.as_object().cloned())? else {
            return Err(Refusal::new("missing_field", "body", "there is no body"));
        };
        line.end()?;
        Ok((id, form, body))
    }

    fn task(&self, line: u64, custom_id: Value, form: Form, mut body: Fields) -> Result<Task, Refusal> {
        let model = self.model(&mut body)?;
        let prompt = match form {
            Form::Completion => self.prompt(&mut body)?,
            Form::Chat => self.conversation(&mut body)?,
        };
        let sampling = self.sampling(&mut body, &custom_id)?;
        let n = within(&mut body, "n", 1, TEXTS)?.unwrap_or(1);
        let Wanted { logprobs, stops, stop, tokens, ids, grammar } = self.wanted(&mut body, form)?;
        let max_tokens = self.tokens_for(tokens, form, prompt.len());
        for (name, value) in [("stream", json!(false)), ("echo", json!(false)), ("best_of", json!(n))] {
            body.neutral(name, &[value])?;
        }
        body.neutral("stream_options", &[])?;
        nothing_else(&mut body)?;
        body.end()?;
        let field = if form == Form::Chat { "messages" } else { "prompt" };
        self.fits(field, &prompt, max_tokens)?;
        let asked = |sample| Asked {
            prompt: prompt.clone(),
            max_tokens,
            sampling,
            sample,
            stop: stop.clone(),
            logprobs,
            score_from: None,
            grammar: grammar.clone(),
        };
        Ok(Task { line, custom_id, form, model, asked: (0..n).map(asked).collect(), stops, ids })
    }

    pub(in crate::serve) fn model(&self, body: &mut Fields) -> Result<String, Refusal> {
        match body.text("model")? {
            None => Ok(self.models[0].clone()),
            Some(name) if self.models.contains(&name) => Ok(name),
            Some(name) => {
                let fact = format!("there is no model {name}; this one is called {}", self.models.join(" or "));
                Err(Refusal::new("model_not_found", "model", fact))
            }
        }
    }

    fn prompt(&self, body: &mut Fields) -> Result<Vec<u32>, Refusal> {
        match body.take("prompt") {
            None => Err(Refusal::new("missing_field", "prompt", "there is no prompt")),
            Some(value) => self.prompt_of(&value, false).map_err(|mut why| {
                if why.code == "invalid_type" {
                    why.message += ", one prompt a line";
                }
                why
            }),
        }
    }

    /// A text, or ids; `special`: the names of special tokens in a text are the tokens.
    pub(in crate::serve) fn prompt_of(&self, value: &Value, special: bool) -> Result<Vec<u32>, Refusal> {
        let wrong =
            || Refusal::new("invalid_type", "prompt", "prompt must be a string or a list of token ids".to_string());
        match value {
            Value::String(text) => {
                let ids = if special { self.tokenizer.encode_special(text) } else { self.tokenizer.encode(text) };
                let ids = ids.map_err(|e| Refusal::new("prompt_refused", "prompt", e.fact))?;
                // Who writes the tokens out may have written this one too.
                let twice = special && !self.front.is_empty() && ids.starts_with(&self.front);
                Ok(if twice { ids } else { [&self.front[..], &ids].concat() })
            }
            Value::Array(all) => {
                let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
                all.iter().map(id).collect()
            }
            _ => Err(wrong()),
        }
    }

    /// Whether a prompt fits, with so many tokens behind it.
    pub(in crate::serve) fn fits(&self, field: &str, prompt: &[u32], max_tokens: usize) -> Result<(), Refusal> {
        check(prompt, self.vocab, self.longest)
            .map_err(|e| Refusal::new("context_length_exceeded", field, e.fact.clone()))?;
        if max_tokens > self.longest - prompt.len() {
            let fact = format!(
                "the prompt has {} tokens and max_tokens is {max_tokens}: together more than the {} of the longest text",
                prompt.len(),
                self.longest
            );
            return Err(Refusal::new("context_length_exceeded", "max_tokens", fact));
        }
        Ok(())
    }

    pub(in crate::serve) fn conversation(&self, body: &mut Fields) -> Result<Vec<u32>, Refusal> {
        let wrong = |what: String| Refusal::new("invalid_value", "messages", what);
        let chat = self.chat.as_ref().map_err(|e| Refusal::new("not_supported", "messages", e.fact.clone()))?;
        let messages = body.typed("messages", "a list of objects", |v| v.as_array().cloned())?.unwrap_or_default();
        if messages.is_empty() {
            return Err(Refusal::new("missing_field", "messages", "there are no messages"));
        }
        if let Some(i) = messages.iter().position(|m| !m["role"].is_string()) {
            return Err(wrong(format!("message {} has no role", i + 1)));
        }
        let text = chat.render(&messages).map_err(|e| Refusal::new("prompt_refused", "messages", e.fact))?;
        self.tokenizer.encode_special(&text).map_err(|e| Refusal::new("prompt_refused", "messages", e.fact))
    }

    pub(in crate::serve) fn sampling(&self, body: &mut Fields, id: &Value) -> Result<Sampling, Refusal> {
        // A request without a seed has one of its own.
        let own = || xxhash_rust::xxh3::xxh3_64_with_seed(id.to_string().as_bytes(), self.defaults.seed);
        let seed = body.typed("seed", "a whole number", |v| v.as_i64().map(|n| n as u64).or(v.as_u64()))?;
        let sampling = Sampling {
            temperature: body.number("temperature")?.unwrap_or(self.defaults.temperature),
            top_k: within(body, "top_k", 0, u64::MAX)?.unwrap_or(0) as usize,
            top_p: body.number("top_p")?.unwrap_or(1.0),
            min_p: body.number("min_p")?.unwrap_or(0.0),
            repetition_penalty: body.number("repetition_penalty")?.unwrap_or(1.0),
            presence_penalty: body.number("presence_penalty")?.unwrap_or(0.0),
            frequency_penalty: body.number("frequency_penalty")?.unwrap_or(0.0),
            seed: seed.unwrap_or_else(own),
        };
        match sampling.problems().into_iter().next() {
            Some((name, text)) => Err(Refusal::new("invalid_value", name, text)),
            None => Ok(sampling),
        }
    }

    pub(in crate::serve) fn wanted(&self, body: &mut Fields, form: Form) -> Result<Wanted, Refusal> {
        Ok(Wanted {
            logprobs: logprobs(body, form)?,
            stops: stops(body)?,
            stop: self.stop_ids(body)?,
            tokens: self.asked_tokens(body, form)?,
            ids: body.flag("return_token_ids")?.unwrap_or(false),
            grammar: self.grammar(body)?,
        })
    }

    fn grammar(&self, body: &mut Fields) -> Result<Option<Grammar>, Refusal> {
        let Some((grammar, field)) = format::grammar(body)? else { return Ok(None) };
        match self.grammars.guide(&grammar) {
            Ok(_) => Ok(Some(grammar)),
            Err(why) => Err(Refusal::new("invalid_value", field, format!("{field} cannot be used: {why}"))),
        }
    }

    fn stop_ids(&self, body: &mut Fields) -> Result<Vec<u32>, Refusal> {
        let ids = body.typed("stop_token_ids", "a list of token ids", |v| {
            v.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect::<Option<Vec<u32>>>()
        })?;
        let ids = ids.unwrap_or_default();
        if ids.len() > STOPS {
            let fact = format!("stop_token_ids has {} ids, at most {STOPS} are allowed", ids.len());
            return Err(Refusal::new("invalid_value", "stop_token_ids", fact));
        }
        match body.flag("ignore_eos")? {
            Some(true) => Ok(ids),
            _ => Ok([&self.ends[..], &ids].concat()),
        }
    }

    /// The tokens that a request asks for at most.
    fn asked_tokens(&self, body: &mut Fields, form: Form) -> Result<Option<usize>, Refusal> {
        let old = body.count("max_tokens")?;
        let new = if form == Form::Chat { body.count("max_completion_tokens")? } else { None };
        Ok(new.or(old).map(|n| usize::try_from(n).unwrap_or(usize::MAX)).or(self.defaults.max_tokens))
    }

    /// The same, or what those get that do not ask, behind a prompt of so many.
    pub(in crate::serve) fn tokens_for(&self, asked: Option<usize>, form: Form, prompt: usize) -> usize {
        let rest = self.longest.saturating_sub(prompt);
        match (asked, form) {
            (Some(n), _) => n,
            (None, Form::Completion) => rest.min(16),
            (None, Form::Chat) => rest,
        }
    }
}

pub(in crate::serve) fn within(body: &mut Fields, name: &str, low: u64, high: u64) -> Result<Option<u64>, Refusal> {
    match body.count(name)? {
        Some(n) if !(low..=high).contains(&n) => {
            Err(Refusal::new("invalid_value", name, format!("{name} is {n}, must be from {low} to {high}")))
        }
        n => Ok(n),
    }
}

/// Completions say how many, conversations whether and how many.
fn logprobs(body: &mut Fields, form: Form) -> Result<Option<usize>, Refusal> {
    if form == Form::Completion {
        return Ok(within(body, "logprobs", 0, TOP)?.map(|n| n as usize));
    }
    let wanted = body.flag("logprobs")?.unwrap_or(false);
    match within(body, "top_logprobs", 0, TOP)? {
        Some(n) if n > 0 && !wanted => {
            Err(Refusal::new("invalid_value", "top_logprobs", format!("top_logprobs is {n}, but logprobs is not true")))
        }
        n => Ok(wanted.then_some(n.unwrap_or(0) as usize)),
    }
}

fn stops(body: &mut Fields) -> Result<Vec<String>, Refusal> {
    let stops = body.texts("stop")?;
    if stops.len() > STOPS {
        let fact = format!("stop has {} strings, at most {STOPS} are allowed", stops.len());
        return Err(Refusal::new("invalid_value", "stop", fact));
    }
    match stops.iter().map(String::len).find(|n| !(1..=STOP_BYTES).contains(n)) {
        Some(0) => Err(Refusal::new("invalid_value", "stop", "stop has an empty string")),
        Some(n) => {
            let fact = format!("stop has a string of {n} bytes, at most {STOP_BYTES} are allowed");
            Err(Refusal::new("invalid_value", "stop", fact))
        }
        None => Ok(stops),
    }
}

/// Fields of OpenAI's that mean something herd does not do, unless they say nothing.
pub(in crate::serve) fn nothing_else(body: &mut Fields) -> Result<(), Refusal> {
    ABOUT.iter().for_each(|name| drop(body.take(name)));
    let no = json!(false);
    let (none, empty, list) = (json!("none"), json!({}), json!([]));
    for (name, means_nothing) in [
        ("suffix", vec![json!("")]),
        ("logit_bias", vec![empty]),
        ("tools", vec![list.clone()]),
        ("tool_choice", vec![none.clone(), json!("auto")]),
        ("functions", vec![list]),
        ("function_call", vec![none]),
        ("parallel_tool_calls", vec![no, json!(true)]),
        ("modalities", vec![json!(["text"])]),
    ] {
        body.neutral(name, &means_nothing)?;
    }
    Ok(())
}

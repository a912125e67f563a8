//! A request's body: what files of requests have ([`crate::serve::batch::request`]), and what only a server does: several prompts,
//! `best_of`, `echo`, streams.

use crate::serve::batch::fields::{Fields, Refusal};
use crate::serve::batch::request::{nothing_else, within, Form, RequestRules, Wanted, TEXTS};
use crate::serve::engine::Asked;
use serde_json::{json, Map, Value};

/// Texts of all prompts of one request at most.
pub const ALL_TEXTS: usize = 2048;

/// How an answer is streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streamed {
    /// The numbers of tokens come at the end.
    pub usage: bool,
}

/// A prompt as its client wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownPrompt {
    /// A string as it was given, or the text of ids that were given; empty for conversations.
    pub text: String,
    /// Of its ids so many are in front of that text.
    pub front: usize,
}

/// A request that can be run.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedCall {
    /// Told by the path of the request.
    pub form: Form,
    /// The model's name as the request has it, else the first of [`RequestRules::models`].
    pub model: String,
    /// The prompts, as `echo` gives them back.
    pub shown: Vec<ShownPrompt>,
    /// For each prompt `best_of` texts, in order.
    pub asked: Vec<Asked>,
    /// Texts that are answered for each prompt, 1 to [`TEXTS`].
    pub n: usize,
    /// Texts that are made for each prompt, `n` at least.
    pub best_of: usize,
    /// Strings that end a text.
    pub stops: Vec<String>,
    /// How many likeliest tokens the answer shows, if it shows log-probabilities.
    pub logprobs: Option<usize>,
    /// Whether each text has its prompt before it; completions only.
    pub echo: bool,
    /// Whether the answer has the tokens' ids (`return_token_ids`).
    pub ids: bool,
    /// None: the answer comes whole, in one response.
    pub stream: Option<Streamed>,
}

impl ServedCall {
    /// `name`: what tells the request from others; its draws depend on it, where it brings no seed.
    pub fn read(rules: &RequestRules, form: Form, name: &str, body: &[u8]) -> Result<ServedCall, Refusal> {
        ServedCall::of(rules, form, name, object(body)?)
    }

    fn of(rules: &RequestRules, form: Form, name: &str, body: Map<String, Value>) -> Result<ServedCall, Refusal> {
        let mut body = Fields::new(body);
        let model = rules.model(&mut body)?;
        let field = if form == Form::Chat { "messages" } else { "prompt" };
        let special = form == Form::Completion && body.flag("special_tokens")?.unwrap_or(false);
        let prompts = match form {
            Form::Completion => prompts(rules, &mut body, special)?,
            Form::Chat => vec![(rules.conversation(&mut body)?, ShownPrompt { text: String::new(), front: 0 })],
        };
        let sampling = rules.sampling(&mut body, &json!(name))?;
        let n = within(&mut body, "n", 1, TEXTS)?.unwrap_or(1) as usize;
        let best_of = best_of(&mut body, form, n)?;
        let stream = streamed(&mut body)?;
        if stream.is_some() && best_of > n {
            return Err(Refusal::new("invalid_value", "best_of", "best_of is above n, which no stream can be"));
        }
        let echo = form == Form::Completion && body.flag("echo")?.unwrap_or(false);
        let Wanted { logprobs: shown, stops, stop, tokens, ids, grammar } = rules.wanted(&mut body, form)?;
        nothing_else(&mut body)?;
        body.end()?;
        if prompts.len() * best_of > ALL_TEXTS {
            let fact =
                format!("{} prompts × {best_of} texts are more than the {ALL_TEXTS} of one request", prompts.len());
            return Err(Refusal::new("invalid_value", field, fact));
        }
        let mut asked = Vec::new();
        for (prompt, _) in &prompts {
            let max_tokens = rules.tokens_for(tokens, form, prompt.len());
            rules.fits(field, prompt, max_tokens)?;
            // The best of several are found by their log-probabilities.
            let logprobs = shown.or((best_of > n).then_some(0));
            let score_from = (echo && shown.is_some()).then_some(1);
            asked.extend((0..best_of as u64).map(|sample| Asked {
                prompt: prompt.clone(),
                max_tokens,
                sampling,
                sample,
                stop: stop.clone(),
                logprobs,
                score_from,
                grammar: grammar.clone(),
            }));
        }
        let before = prompts.into_iter().map(|(_, shown)| shown).collect();
        Ok(ServedCall { form, model, shown: before, asked, n, best_of, stops, logprobs: shown, echo, ids, stream })
    }
}

/// A body as an object.
pub fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Refusal::new("invalid_json", "", "the body is not a JSON object")),
        Err(e) => Err(Refusal::new("invalid_json", "", format!("the body is not JSON: {e}"))),
    }
}

/// One prompt or a list of them; each a text, or ids; and each as text.
fn prompts(rules: &RequestRules, body: &mut Fields, special: bool) -> Result<Vec<(Vec<u32>, ShownPrompt)>, Refusal> {
    let one = |value: &Value| -> Result<(Vec<u32>, ShownPrompt), Refusal> {
        let ids = rules.prompt_of(value, special)?;
        let shown = match value.as_str() {
            Some(text) => {
                let own = special && text.starts_with(&rules.tokenizer.decode(&rules.front));
                ShownPrompt { text: text.to_string(), front: if own { 0 } else { rules.front.len() } }
            }
            None => ShownPrompt { text: rules.tokenizer.decode(&ids), front: 0 },
        };
        Ok((ids, shown))
    };
    let wrong = || {
        let fact = "prompt must be a string, a list of token ids, or a list of such prompts";
        Refusal::new("invalid_type", "prompt", fact)
    };
    match body.take("prompt") {
        None => Err(Refusal::new("missing_field", "prompt", "there is no prompt")),
        Some(Value::Array(all)) if all.iter().any(|p| p.is_string() || p.is_array()) => match all.len() {
            n if n > ALL_TEXTS => {
                let fact = format!("prompt has {n} prompts, at most {ALL_TEXTS} are allowed");
                Err(Refusal::new("invalid_value", "prompt", fact))
            }
            _ => all.iter().map(|p| if p.is_number() { Err(wrong()) } else { one(p) }).collect(),
        },
        Some(value @ (Value::String(_) | Value::Array(_))) => one(&value).map(|p| vec![p]).map_err(|why| {
            if why.code == "invalid_type" {
                return wrong();
            }
            why
        }),
        Some(_) => Err(wrong()),
    }
}

fn best_of(body: &mut Fields, form: Form, n: usize) -> Result<usize, Refusal> {
    if form == Form::Chat {
        return Ok(n);
    }
    match within(body, "best_of", 1, TEXTS)? {
        Some(best) if (best as usize) < n => {
            Err(Refusal::new("invalid_value", "best_of", format!("best_of is {best}, below n, which is {n}")))
        }
        best => Ok(best.map_or(n, |b| b as usize)),
    }
}

fn streamed(body: &mut Fields) -> Result<Option<Streamed>, Refusal> {
    let stream = body.flag("stream")?.unwrap_or(false);
    let options = body.typed("stream_options", "an object", |v| v.as_object().cloned())?;
    if options.is_some() && !stream {
        return Err(Refusal::new("invalid_value", "stream_options", "stream_options is there, but stream is not true"));
    }
    let mut options = Fields::new(options.unwrap_or_default());
    let inside = |mut why: Refusal| {
        why.param = why.param.map(|p| format!("stream_options.{p}"));
        why
    };
    let usage = options.flag("include_usage").map_err(inside)?.unwrap_or(false);
    options.end().map_err(inside)?;
    Ok(stream.then_some(Streamed { usage }))
}

//! A row of a file to a conversation, in the forms that people have. Which form it is, its keys say.
//!
//! | form | keys |
//! | --- | --- |
//! | messages | `messages`: objects with `role` and `content` (OpenAI; also under `conversation` or `conversations`) |
//! | ShareGPT | `conversations`: objects with `from` and `value`; `system` |
//! | alpaca | `instruction`, `input`, `output`; `system`, `history` |
//! | prompt/completion | `prompt` and `completion` (or `response`): texts, or lists of messages |
//!
//! Beside each: `tools`, a list or its JSON as text. A message may have `weight`, 0 or 1. Preference pairs are [`super::pairs`]'s.

use serde_json::{json, Map, Value};
use std::fmt;

/// What a row was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChatForm {
    /// A list of objects with `role` and `content`.
    Messages,
    /// A list of objects with `from` and `value`.
    ShareGpt,
    /// `instruction`, `input` and `output`.
    Alpaca,
    /// `prompt`, and `completion` or `response`: texts or lists of messages.
    PromptCompletion,
    /// A prompt with `chosen` and `rejected` as texts.
    PairOfTexts,
    /// A prompt with `chosen` and `rejected` as messages.
    PairOfAnswers,
    /// `chosen` and `rejected`, each a whole conversation.
    PairOfConversations,
}

impl ChatForm {
    /// Whether a row is two conversations, the chosen and the rejected.
    pub fn is_pair(self) -> bool {
        matches!(self, ChatForm::PairOfTexts | ChatForm::PairOfAnswers | ChatForm::PairOfConversations)
    }
}

impl fmt::Display for ChatForm {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            ChatForm::Messages => "messages (role, content)",
            ChatForm::ShareGpt => "ShareGPT (from, value)",
            ChatForm::Alpaca => "alpaca (instruction, input, output)",
            ChatForm::PromptCompletion => "prompt and completion",
            ChatForm::PairOfTexts => "prompt with chosen and rejected as texts",
            ChatForm::PairOfAnswers => "prompt with chosen and rejected as messages",
            ChatForm::PairOfConversations => "chosen and rejected as whole conversations",
        })
    }
}

/// Messages as a template takes them, and which of them are learned from.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// Form of the row it was read from.
    pub form: ChatForm,
    /// Objects with `role` and `content`.
    pub messages: Vec<Value>,
    /// Of each message: whether it is the model's and counts.
    pub learned: Vec<bool>,
    /// A list, or null.
    pub tools: Value,
}

/// Roles under `from`, as ShareGPT's files have them, and what templates call them.
const ROLES: &[(&str, &str)] = &[
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("assistant", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_call", "assistant"),
];
const FORMS: &str =
    "herd reads messages, ShareGPT's conversations, alpaca's instruction and output, and prompt with completion";

/// Reads the row `text`, an object of JSON. The error says what is wrong with it.
pub fn row(text: &str) -> Result<Row, String> {
    match serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))? {
        Value::Object(row) => Ok(row),
        other => Err(format!("{}, not an object", kind(&other))),
    }
}

/// The conversation in a row. The error says what is wrong with it.
pub fn read(row: &Row) -> Result<Conversation, String> {
    let has = |key: &str| row.get(key).is_some_and(|v| !v.is_null());
    let turns = ["messages", "conversations", "conversation"]
        .into_iter()
        .find(|key| row.get(*key).is_some_and(Value::is_array));
    let (form, messages, before) = match turns {
        Some(key) => listed(row, key)?,
        None if has("instruction") && has("output") => (ChatForm::Alpaca, alpaca(row)?, 0),
        None if has("prompt") && (has("completion") || has("response")) => prompted(row)?,
        None if has("text") => return Err("plain text under `text`: `herd data tokenize` reads it".into()),
        None => {
            let keys: Vec<&str> = row.keys().map(String::as_str).take(8).collect();
            return Err(format!("no conversation: {FORMS} (there is: {})", keys.join(", ")));
        }
    };
    conversation(row, form, messages, before)
}

/// What a row holds.
pub type Row = Map<String, Value>;

/// The messages as templates take them; nothing is learned of the first `before`.
pub(super) fn conversation(
    row: &Row, form: ChatForm, messages: Vec<Value>, before: usize,
) -> Result<Conversation, String> {
    let tools = tools(row.get("tools"))?;
    let (mut plain, mut learned) = (Vec::new(), Vec::new());
    for (i, message) in messages.into_iter().enumerate() {
        let (message, counts) = message_of(message).map_err(|what| format!("message {}: {what}", i + 1))?;
        plain.push(message);
        learned.push(counts && i >= before);
    }
    Ok(Conversation { form, messages: plain, learned, tools })
}

fn listed(row: &Row, key: &str) -> Result<(ChatForm, Vec<Value>, usize), String> {
    let list = row[key].as_array().cloned().unwrap_or_default();
    if list.is_empty() {
        return Err(format!("\"{key}\" is empty"));
    }
    if list.iter().all(|m| m.get("from").is_none()) {
        return Ok((ChatForm::Messages, list, 0));
    }
    let messages = system(row).into_iter().chain(share_gpt(&list)?).collect();
    Ok((ChatForm::ShareGpt, messages, 0))
}

/// The message of `system`, where a row has one.
pub(super) fn system(row: &Row) -> Option<Value> {
    let system = row.get("system").and_then(Value::as_str).filter(|s| !s.is_empty())?;
    Some(json!({ "role": "system", "content": system }))
}

/// Turns with `from` and `value` as messages.
pub(super) fn share_gpt(list: &[Value]) -> Result<Vec<Value>, String> {
    let mut messages = Vec::new();
    for (i, turn) in list.iter().enumerate() {
        let from = turn.get("from").and_then(Value::as_str).unwrap_or_default();
        let Some((_, role)) = ROLES.iter().find(|(name, _)| *name == from) else {
            return Err(format!("turn {}: \"from\" is \"{from}\", which is none of human, gpt, system, tool", i + 1));
        };
        let mut message = json!({ "role": role, "content": turn.get("value").cloned().unwrap_or_default() });
        if let Some(weight) = turn.get("weight") {
            message["weight"] = weight.clone();
        }
        messages.push(message);
    }
    Ok(messages)
}

/// Instruction and input are joined by a line break, as LLaMA-Factory does.
fn alpaca(row: &Row) -> Result<Vec<Value>, String> {
    let text = |key: &str| match row.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("\"{key}\" is {}, not a string", kind(other))),
    };
    let mut messages = Vec::new();
    let mut say = |role: &str, content: String| messages.push(json!({ "role": role, "content": content }));
    let system = text("system")?;
    if !system.is_empty() {
        say("system", system);
    }
    for pair in row.get("history").and_then(Value::as_array).into_iter().flatten() {
        let [Value::String(asked), Value::String(answered)] = &pair.as_array().cloned().unwrap_or_default()[..] else {
            return Err("\"history\" is not a list of pairs of texts".into());
        };
        say("user", asked.clone());
        say("assistant", answered.clone());
    }
    let parts = [text("instruction")?, text("input")?];
    let asked: Vec<&str> = parts.iter().map(String::as_str).filter(|t| !t.is_empty()).collect();
    say("user", asked.join("\n"));
    say("assistant", text("output")?);
    Ok(messages)
}

/// Messages, and how many of them are the prompt, of which nothing is learned.
fn prompted(row: &Row) -> Result<(ChatForm, Vec<Value>, usize), String> {
    let part = |key: &str, role: &str| match row.get(key) {
        Some(Value::String(text)) => Ok(vec![json!({ "role": role, "content": text })]),
        Some(Value::Array(list)) => Ok(list.clone()),
        Some(other) => Err(format!("\"{key}\" is {}, neither a text nor a list of messages", kind(other))),
        None => Ok(Vec::new()),
    };
    let prompt = part("prompt", "user")?;
    let answer = if row.contains_key("completion") { "completion" } else { "response" };
    let completion = part(answer, "assistant")?;
    let before = prompt.len();
    Ok((ChatForm::PromptCompletion, [prompt, completion].concat(), before))
}

fn tools(given: Option<&Value>) -> Result<Value, String> {
    let list = match given {
        None | Some(Value::Null) => return Ok(Value::Null),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(Value::Null),
        Some(Value::String(text)) => {
            serde_json::from_str(text).map_err(|e| format!("\"tools\" is a text that is no JSON: {e}"))?
        }
        Some(other) => other.clone(),
    };
    match &list {
        Value::Array(all) if all.is_empty() => Ok(Value::Null),
        Value::Array(_) => Ok(list),
        other => Err(format!("\"tools\" is {}, not a list", kind(other))),
    }
}

/// A message as templates take it, without null values, and whether it counts: what is no text in `content` is refused, `weight`
/// is taken out, arguments of tool calls are objects.
fn message_of(message: Value) -> Result<(Value, bool), String> {
    let Value::Object(message) = message else { return Err(format!("{}, not an object", kind(&message))) };
    let Some(role) = message.get("role").and_then(Value::as_str).map(str::to_string) else {
        return Err("no role".into());
    };
    let weight = match message.get("weight") {
        None | Some(Value::Null) => true,
        Some(w) if w.as_f64() == Some(1.0) => true,
        Some(w) if w.as_f64() == Some(0.0) => false,
        Some(w) => return Err(format!("weight {w}; 0 and 1 are taken")),
    };
    let calls = message.get("tool_calls").is_some_and(|c| c.as_array().is_some_and(|c| !c.is_empty()));
    let mut out = Map::new();
    for (key, value) in message {
        match (key.as_str(), value) {
            ("weight", _) => {}
            ("content", value) => _ = out.insert(key, content(value, calls)?),
            (_, Value::Null) => {}
            ("tool_calls", Value::Array(list)) => {
                let list: Vec<Value> = list.into_iter().map(called).collect();
                if !list.is_empty() {
                    out.insert(key, list.into());
                }
            }
            (_, value) => _ = out.insert(key, value),
        }
    }
    if !out.contains_key("content") {
        out.insert("content".into(), content(Value::Null, calls)?);
    }
    Ok((Value::Object(out), weight && role == "assistant"))
}

/// A text; the texts of several parts are joined.
fn content(value: Value, calls: bool) -> Result<Value, String> {
    match value {
        Value::String(_) => Ok(value),
        Value::Null if calls => Ok("".into()),
        Value::Array(parts) => {
            let text = |part: &Value| match (part["type"].as_str(), &part["text"]) {
                (Some("text") | None, Value::String(text)) => Ok(text.clone()),
                (other, _) => Err(format!("content has a part of type {}; herd takes texts", other.unwrap_or("none"))),
            };
            Ok(parts.iter().map(text).collect::<Result<Vec<_>, _>>()?.concat().into())
        }
        other => Err(format!("content is {}, not a string", kind(&other))),
    }
}

/// OpenAI has the arguments of a call as JSON in a text, templates want the object.
fn called(mut call: Value) -> Value {
    let arguments = match call.get("function") {
        Some(_) => call.pointer_mut("/function/arguments"),
        None => call.pointer_mut("/arguments"),
    };
    if let Some(arguments) = arguments {
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        if let Some(object) = parsed.filter(Value::is_object) {
            *arguments = object;
        }
    }
    call
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Conversation, String> {
        super::read(&row(text)?)
    }

    fn roles(text: &str) -> (ChatForm, Vec<String>, Vec<bool>) {
        let c = read(text).unwrap();
        let said = |m: &Value| format!("{}: {}", m["role"].as_str().unwrap(), m["content"].as_str().unwrap());
        (c.form, c.messages.iter().map(said).collect(), c.learned)
    }

    #[test]
    fn every_form_is_told_by_its_keys() {
        let (form, said, learned) = roles(
            r#"{"id": 1, "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"role": "assistant", "content": "c", "weight": 0}, {"role": "assistant", "content": "d", "name": null}]}"#,
        );
        assert_eq!((form, learned), (ChatForm::Messages, vec![false, false, false, true]));
        assert_eq!(said, ["system: s", "user: ab", "assistant: c", "assistant: d"]);
        let (form, said, learned) = roles(
            r#"{"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 1}]}"#,
        );
        assert_eq!((form, learned), (ChatForm::ShareGpt, vec![false, false, true]));
        assert_eq!(said, ["system: s", "user: a", "assistant: b"]);
        let (form, said, _) = roles(r#"{"instruction": "do", "input": "x", "output": "y", "history": [["p", "q"]]}"#);
        assert_eq!(
            (form, said),
            (ChatForm::Alpaca, ["user: p", "assistant: q", "user: do\nx", "assistant: y"].map(String::from).to_vec())
        );
        let (form, said, learned) = roles(
            r#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]}"#,
        );
        assert_eq!((form, learned), (ChatForm::PromptCompletion, vec![false, false, false, true]));
        assert_eq!(said.len(), 4);
        assert_eq!(roles(r#"{"prompt": "a", "response": "b"}"#).1, ["user: a", "assistant: b"]);
    }

    #[test]
    fn tool_calls_have_objects_for_arguments() {
        let c = read(
            r#"{"tools": "[{\"type\": \"function\"}]", "messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]}, {"role": "tool", "content": "2", "tool_calls": null}]}"#,
        )
        .unwrap();
        assert_eq!(c.messages[0]["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(c.messages[0]["content"], "");
        assert!(c.messages[1].get("tool_calls").is_none() && c.tools.is_array());
    }

    #[test]
    fn what_is_no_conversation_is_refused_with_the_reason() {
        for (row, words) in [
            (r#"{"text": "a"}"#, "herd data tokenize"),
            (r#"{"a": 1, "b": 2}"#, "there is: a, b"),
            (r#"{"messages": []}"#, "\"messages\" is empty"),
            (r#"{"messages": [{"content": "x"}]}"#, "message 1: no role"),
            (r#"{"messages": [{"role": "user", "content": null}]}"#, "content is null"),
            (r#"{"messages": [{"role": "user", "content": [{"type": "image"}]}]}"#, "part of type image"),
            (r#"{"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}"#, "weight 0.5"),
            (r#"{"conversations": [{"from": "bot", "value": "x"}]}"#, "\"bot\""),
            (r#"{"messages": [{"role": "user", "content": "x"}], "tools": "{"}"#, "no JSON"),
            ("[1]", "an array, not an object"),
        ] {
            let e = read(row).unwrap_err();
            assert!(e.contains(words), "{row}: {e}");
        }
    }
}

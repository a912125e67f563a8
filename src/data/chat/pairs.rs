//! A row with a chosen and a rejected answer to two conversations, in the forms that people have.
//!
//! | form | keys |
//! | --- | --- |
//! | texts | a prompt, with `chosen` and `rejected` as texts |
//! | answers | a prompt, with `chosen` and `rejected` as a message of the model, or a list that begins with one |
//! | conversations | `chosen` and `rejected`, each a whole conversation; the messages in which they begin alike are the prompt |
//!
//! The prompt is `prompt`, `question` or `instruction` (with `input`), a text or a list of messages, or the list under `messages`,
//! `conversations` or `conversation`; `system` stands before it. Messages may be ShareGPT's. Nothing is learned of the prompt.

use super::forms::{conversation, kind, share_gpt, system, ChatForm, Conversation, Row};
use serde_json::{json, Value};

/// Two answers to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferencePair {
    /// The conversation with the answer that was preferred.
    pub chosen: Conversation,
    /// The one with the other.
    pub rejected: Conversation,
}

/// Whether a row is a pair, or is meant to be one.
pub fn is_pair(row: &Row) -> bool {
    let has = |key: &str| row.get(key).is_some_and(|v| !v.is_null());
    has("chosen") || has("rejected")
}

/// The pair in a row. The error says what is wrong with it.
pub fn read(row: &Row) -> Result<PreferencePair, String> {
    let [chosen, rejected] = [answer(row, "chosen")?, answer(row, "rejected")?];
    let prompt = prompt(row)?;
    let whole = |a: &[Value]| a.first().is_some_and(|m| m["role"] != "assistant");
    let (form, before, chosen, rejected) = match (whole(&chosen), whole(&rejected)) {
        (true, true) => {
            let before = alike(&chosen, &rejected);
            if before == 0 {
                return Err("chosen and rejected are conversations that do not begin with the same message".into());
            }
            repeated(prompt.as_deref(), &chosen[..before])?;
            (ChatForm::PairOfConversations, before, chosen, rejected)
        }
        (false, false) => {
            let Some(prompt) = prompt else {
                return Err("chosen and rejected are answers without a prompt: put it under `prompt`".into());
            };
            let texts = row["chosen"].is_string() && row["rejected"].is_string();
            let form = if texts { ChatForm::PairOfTexts } else { ChatForm::PairOfAnswers };
            let prompt: Vec<Value> = system(row).into_iter().chain(prompt).collect();
            let with = |answer: Vec<Value>| [prompt.clone(), answer].concat();
            (form, prompt.len(), with(chosen), with(rejected))
        }
        _ => return Err("one of chosen and rejected is an answer, the other a whole conversation".into()),
    };
    let read = |name: &str, messages: Vec<Value>| {
        conversation(row, form, messages, before).map_err(|what| format!("{name}: {what}"))
    };
    Ok(PreferencePair { chosen: read("chosen", chosen)?, rejected: read("rejected", rejected)? })
}

/// Messages in which two conversations begin alike, not counting the last of either.
fn alike(a: &[Value], b: &[Value]) -> usize {
    let most = a.len().min(b.len()).saturating_sub(1);
    a.iter().zip(b).take(most).take_while(|(a, b)| (&a["role"], &a["content"]) == (&b["role"], &b["content"])).count()
}

/// A prompt beside whole conversations is the one that they begin with.
fn repeated(prompt: Option<&[Value]>, beginning: &[Value]) -> Result<(), String> {
    let stands = |m: &Value| beginning.iter().any(|b| b["content"] == m["content"]);
    match prompt.into_iter().flatten().find(|m| m["role"] == "user" && !stands(m)) {
        None => Ok(()),
        Some(_) => Err("the prompt is not what the conversations under chosen and rejected begin with".into()),
    }
}

/// `chosen` or `rejected` as messages.
fn answer(row: &Row, key: &str) -> Result<Vec<Value>, String> {
    match row.get(key) {
        None | Some(Value::Null) => Err(format!("a preference pair without \"{key}\"")),
        Some(Value::String(text)) => Ok(vec![json!({ "role": "assistant", "content": text })]),
        Some(message @ Value::Object(_)) => messages(std::slice::from_ref(message)),
        Some(Value::Array(list)) if list.is_empty() => Err(format!("\"{key}\" is empty")),
        Some(Value::Array(list)) => messages(list),
        Some(other) => Err(format!("\"{key}\" is {}, neither a text nor messages", kind(other))),
    }
}

fn messages(list: &[Value]) -> Result<Vec<Value>, String> {
    match list.iter().any(|m| m.get("from").is_some()) {
        true => share_gpt(list),
        false => Ok(list.to_vec()),
    }
}

/// What the two answer, where a row says it apart from them.
fn prompt(row: &Row) -> Result<Option<Vec<Value>>, String> {
    let keys = ["prompt", "question", "instruction", "messages", "conversations", "conversation"];
    let given = keys.iter().find_map(|k| row.get(*k).filter(|v| !v.is_null()).map(|v| (*k, v)));
    let Some((key, value)) = given else { return Ok(None) };
    match value {
        Value::String(text) => {
            let input = row.get("input").and_then(Value::as_str).filter(|t| key == "instruction" && !t.is_empty());
            let text = input.map_or(text.clone(), |input| format!("{text}\n{input}"));
            Ok(Some(vec![json!({ "role": "user", "content": text })]))
        }
        Value::Array(list) if !list.is_empty() => messages(list).map(Some),
        other => Err(format!("\"{key}\" is {}, neither a text nor messages", kind(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::chat::forms;

    fn read(text: &str) -> Result<PreferencePair, String> {
        super::read(&forms::row(text).unwrap())
    }

    fn said(c: &Conversation) -> String {
        let one = |m: &Value| format!("{}: {}", m["role"].as_str().unwrap(), m["content"].as_str().unwrap());
        let learned = |(m, l): (&Value, &bool)| if *l { format!("[{}]", one(m)) } else { one(m) };
        c.messages.iter().zip(&c.learned).map(learned).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_form_is_told_by_its_keys() {
        use ChatForm::*;
        let user = r#"{"role": "user", "content": "q"}"#;
        let model = |text: &str| format!(r#"{{"role": "assistant", "content": "{text}"}}"#);
        let (a, b) = (model("a"), model("b"));
        for (row, form, chosen, rejected) in [
            (r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#.to_string(), PairOfTexts, "user: q [assistant: a]", "user: q [assistant: b]"),
            (
                r#"{"system": "s", "question": "q", "chosen": "a", "rejected": "b"}"#.into(),
                PairOfTexts,
                "system: s user: q [assistant: a]",
                "system: s user: q [assistant: b]",
            ),
            (
                r#"{"instruction": "q", "input": "x", "chosen": "a", "rejected": "b"}"#.into(),
                PairOfTexts,
                "user: q\nx [assistant: a]",
                "user: q\nx [assistant: b]",
            ),
            (
                format!(r#"{{"prompt": [{user}], "chosen": [{a}], "rejected": [{b}]}}"#),
                PairOfAnswers,
                "user: q [assistant: a]",
                "user: q [assistant: b]",
            ),
            (
                r#"{"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}"#.into(),
                PairOfAnswers,
                "user: q [assistant: a]",
                "user: q [assistant: b]",
            ),
            (
                format!(r#"{{"prompt": "q", "chosen": [{user}, {a}], "rejected": [{user}, {b}]}}"#),
                PairOfConversations,
                "user: q [assistant: a]",
                "user: q [assistant: b]",
            ),
            (
                format!(r#"{{"chosen": [{user}, {a}, {user}, {b}], "rejected": [{user}, {a}, {user}, {a}, {user}, {a}]}}"#),
                PairOfConversations,
                "user: q assistant: a user: q [assistant: b]",
                "user: q assistant: a user: q [assistant: a] user: q [assistant: a]",
            ),
        ] {
            let pair = read(&row).unwrap_or_else(|e| panic!("{row}: {e}"));
            assert_eq!((pair.chosen.form, pair.rejected.form), (form, form), "{row}");
            assert_eq!((said(&pair.chosen).as_str(), said(&pair.rejected).as_str()), (chosen, rejected), "{row}");
        }
    }

    #[test]
    fn what_is_no_pair_is_refused_with_the_reason() {
        let whole = |text: &str| {
            format!(r#"[{{"role": "user", "content": "{text}"}}, {{"role": "assistant", "content": "a"}}]"#)
        };
        for (row, words) in [
            (r#"{"prompt": "q", "chosen": "a"}"#.to_string(), "without \"rejected\""),
            (r#"{"prompt": "q", "chosen": null, "rejected": "a"}"#.into(), "without \"chosen\""),
            (r#"{"chosen": "a", "rejected": "b"}"#.into(), "without a prompt"),
            (r#"{"prompt": "q", "chosen": [], "rejected": "b"}"#.into(), "\"chosen\" is empty"),
            (r#"{"prompt": "q", "chosen": 1, "rejected": "b"}"#.into(), "is a number"),
            (
                format!(r#"{{"prompt": "x", "chosen": {}, "rejected": "b"}}"#, whole("x")),
                "the other a whole conversation",
            ),
            (format!(r#"{{"chosen": {}, "rejected": {}}}"#, whole("x"), whole("y")), "do not begin with the same"),
            (
                format!(r#"{{"prompt": "z", "chosen": {}, "rejected": {}}}"#, whole("x"), whole("x")),
                "the prompt is not",
            ),
        ] {
            let e = read(&row).unwrap_err();
            assert!(e.contains(words), "{row}: {e}");
        }
    }
}

//! Rows of a task, in the forms people have. All rows of a file are of one kind, which their keys tell:
//!
//! | kind | keys |
//! | --- | --- |
//! | multiple choice | a context; `choices` or `endings` (strings, or `{"text": […], "label": […]}`); the right one as `answer`, `label`, `gold`, `target` or `answerKey`: its number from 0 on, its label, a letter, or its text |
//! | generation | a context; `answer`, `answers` or `target`: a string or several, each of which is right |
//! | continuation | a context; `continuation` |
//! | text | `text` alone |
//!
//! A context is `question`, `query`, `context`, `ctx` or `prompt`.

use crate::error::{Error, Exit, Result};
use crate::text::unmarked;
use serde_json::{Map, Value};
use std::path::Path;

const CONTEXTS: [&str; 5] = ["question", "query", "context", "ctx", "prompt"];
const RIGHT: [&str; 5] = ["answer", "label", "gold", "target", "answerKey"];

/// What a row asks.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskRow {
    /// Which of the choices is likeliest behind the context.
    Choice {
        /// What stands before each choice.
        context: String,
        /// Two at least, none of them empty.
        choices: Vec<String>,
        /// Place of the right choice, from 0 on.
        right: usize,
    },
    /// What the model writes behind the prompt.
    Generate {
        /// What the model goes on from.
        prompt: String,
        /// Texts of which each is right, one at least.
        answers: Vec<String>,
    },
    /// How likely a text is behind the context, and whether the model would have written it.
    Continuation {
        /// What stands before it, not scored.
        context: String,
        /// What is scored, not empty.
        continuation: String,
    },
    /// How likely a text is.
    Text {
        /// What is scored, in several windows where it is longer than the longest text.
        text: String,
    },
}

/// The kind of a file's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// A context and choices: [`TaskRow::Choice`].
    Choice,
    /// A prompt and answers: [`TaskRow::Generate`].
    Generate,
    /// A context and what follows it: [`TaskRow::Continuation`].
    Continuation,
    /// A text alone: [`TaskRow::Text`].
    Text,
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalTask {
    /// Its file, without folders and ending.
    pub name: String,
    /// Which kind all rows are of: a file with several is refused.
    pub kind: TaskKind,
    /// With their line numbers, from 1 on.
    pub rows: Vec<(usize, TaskRow)>,
    /// Keys that no row's meaning depends on.
    pub unused: Vec<String>,
}

impl TaskKind {
    /// In words, as messages and results have it.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::Choice => "multiple choice",
            TaskKind::Generate => "generation",
            TaskKind::Continuation => "continuation",
            TaskKind::Text => "text",
        }
    }
}

impl TaskRow {
    /// Which kind the row is of.
    pub fn kind(&self) -> TaskKind {
        match self {
            TaskRow::Choice { .. } => TaskKind::Choice,
            TaskRow::Generate { .. } => TaskKind::Generate,
            TaskRow::Continuation { .. } => TaskKind::Continuation,
            TaskRow::Text { .. } => TaskKind::Text,
        }
    }
}

impl EvalTask {
    /// Reads the file's first `limit` rows. Errors ([`Exit::Data`]): of the file, or with the line of the first row that is none.
    pub fn open(path: &Path, limit: usize) -> Result<EvalTask> {
        let content = std::fs::read(path).map_err(|e| Error::io(path, "read", &e, Exit::Data))?;
        let name = path.file_stem().map_or_else(|| "task".into(), |n| n.to_string_lossy().into_owned());
        EvalTask::parse(name, unmarked(&content), limit).map_err(|e| e.context(path.display()))
    }

    fn parse(name: String, content: &[u8], limit: usize) -> Result<EvalTask> {
        let (mut rows, mut unused): (Vec<(usize, TaskRow)>, Vec<String>) = (Vec::new(), Vec::new());
        for (at, line) in content.split(|&b| b == b'\n').enumerate() {
            if line.trim_ascii().is_empty() || rows.len() == limit {
                continue;
            }
            let wrong = |what: String| Error::new(Exit::Data, format!("line {}: {what}", at + 1)).hint(HINT);
            let mut map: Map<String, Value> =
                serde_json::from_slice(line).map_err(|e| wrong(format!("not a JSON object: {e}")))?;
            let row = row(&mut map).map_err(wrong)?;
            match rows.first() {
                Some((first, other)) if other.kind() != row.kind() => {
                    let (is, was) = (row.kind().name(), other.kind().name());
                    return Err(wrong(format!("this row is of kind {is}, line {first} of kind {was}")));
                }
                _ => {}
            }
            unused.extend(map.into_iter().map(|(key, _)| key).filter(|key| !unused.contains(key)).collect::<Vec<_>>());
            rows.push((at + 1, row));
        }
        match rows.first() {
            Some((_, first)) => Ok(EvalTask { name, kind: first.kind(), rows, unused }),
            None => Err(Error::new(Exit::Data, "there are no rows").hint(HINT)),
        }
    }
}

const HINT: &str = "`herd help eval` shows a row of each kind";

/// Takes what it uses out of `map`.
fn row(map: &mut Map<String, Value>) -> std::result::Result<TaskRow, String> {
    let context = match CONTEXTS.iter().find(|key| map.contains_key(**key)) {
        Some(key) => Some(text(key, &take(map, &[key]))?),
        None => None,
    };
    let Some(context) = context else {
        return match take(map, &["text"]) {
            Value::Null => Err(format!("there is neither a context ({}) nor a text", CONTEXTS.join(", "))),
            value => Ok(TaskRow::Text { text: text("text", &value)? }),
        };
    };
    let choices = take(map, &["choices", "endings"]);
    if !choices.is_null() {
        let (choices, labels) = choices_of(&choices)?;
        let right = take(map, &RIGHT);
        let right = right_one(&right, &choices, &labels)?;
        return Ok(TaskRow::Choice { context, choices, right });
    }
    let continuation = take(map, &["continuation"]);
    if !continuation.is_null() {
        let continuation = text("continuation", &continuation)?;
        return match continuation.is_empty() {
            true => Err("the continuation is empty".into()),
            false => Ok(TaskRow::Continuation { context, continuation }),
        };
    }
    let answers = match take(map, &["answers", "answer", "target"]) {
        Value::Null => return Err("there are no choices, no continuation and no answer".into()),
        Value::Array(all) => all.iter().map(|v| text("answers", v)).collect::<std::result::Result<Vec<_>, _>>()?,
        value => vec![text("answer", &value)?],
    };
    match answers.is_empty() {
        true => Err("the list of answers is empty".into()),
        false => Ok(TaskRow::Generate { prompt: context, answers }),
    }
}

/// The first of the keys that is there.
fn take(map: &mut Map<String, Value>, keys: &[&str]) -> Value {
    keys.iter().find_map(|key| map.shift_remove(*key)).unwrap_or(Value::Null)
}

/// A string, or a number as it is written.
fn text(key: &str, value: &Value) -> std::result::Result<String, String> {
    match value {
        Value::String(s) => Ok(s.clone()),
        Value::Number(n) => Ok(n.to_string()),
        other => Err(format!("{key} is {other}, must be a string")),
    }
}

fn choices_of(value: &Value) -> std::result::Result<(Vec<String>, Vec<String>), String> {
    let list = |value: &Value, what: &str| -> std::result::Result<Vec<String>, String> {
        let all = value.as_array().ok_or_else(|| format!("{what} is {value}, must be a list of strings"))?;
        all.iter().map(|v| text(what, v)).collect()
    };
    let (choices, labels) = match value {
        Value::Object(both) => {
            let get = |key: &str| both.get(key).unwrap_or(&Value::Null);
            (list(get("text"), "choices.text")?, list(get("label"), "choices.label")?)
        }
        value => (list(value, "choices")?, vec![]),
    };
    if !labels.is_empty() && labels.len() != choices.len() {
        return Err(format!("{} choices have {} labels", choices.len(), labels.len()));
    }
    match choices.iter().position(String::is_empty) {
        _ if choices.len() < 2 => Err(format!("a row needs two choices at least, this one has {}", choices.len())),
        Some(i) => Err(format!("choice {i} is empty")),
        None => Ok((choices, labels)),
    }
}

/// The number of the right choice: by label, by number, by letter, by its text.
fn right_one(value: &Value, choices: &[String], labels: &[String]) -> std::result::Result<usize, String> {
    let said = match value {
        Value::Null => return Err(format!("which choice is right is not said ({})", RIGHT.join(", "))),
        Value::String(s) => s.clone(),
        Value::Number(n) => n.to_string(),
        other => return Err(format!("the right choice is {other}, must be a number or a string")),
    };
    let by_text = |all: &[String]| all.iter().position(|c| *c == said);
    let by_letter = || match said.as_bytes() {
        [c] if c.is_ascii_uppercase() => Some(usize::from(c - b'A')),
        _ => None,
    };
    let found = by_text(labels).or_else(|| said.parse().ok()).or_else(by_letter).or_else(|| by_text(choices));
    match found {
        Some(i) if i < choices.len() => Ok(i),
        _ => Err(format!("the right choice is {said}, which is none of the {}", choices.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> std::result::Result<TaskRow, String> {
        row(&mut serde_json::from_str(line).unwrap())
    }

    #[test]
    fn each_form_is_read() {
        let choice = |right| TaskRow::Choice { context: "q".into(), choices: vec!["x".into(), "y".into()], right };
        assert_eq!(one(r#"{"question": "q", "choices": ["x", "y"], "answer": 1}"#), Ok(choice(1)));
        assert_eq!(one(r#"{"ctx": "q", "endings": ["x", "y"], "label": "0"}"#), Ok(choice(0)));
        assert_eq!(one(r#"{"query": "q", "choices": ["x", "y"], "gold": "y"}"#), Ok(choice(1)));
        assert_eq!(one(r#"{"question": "q", "choices": ["x", "y"], "answer": "B"}"#), Ok(choice(1)));
        let arc = r#"{"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}"#;
        assert_eq!(one(arc), Ok(choice(1)));
        let made = TaskRow::Generate { prompt: "q".into(), answers: vec!["4".into()] };
        assert_eq!(one(r#"{"prompt": "q", "answer": 4}"#), Ok(made.clone()));
        assert_eq!(one(r#"{"prompt": "q", "answers": ["4"]}"#), Ok(made));
        let next = TaskRow::Continuation { context: "a".into(), continuation: " b".into() };
        assert_eq!(one(r#"{"context": "a", "continuation": " b"}"#), Ok(next));
        assert_eq!(one(r#"{"text": "t", "id": 3}"#), Ok(TaskRow::Text { text: "t".into() }));
    }

    #[test]
    fn bad_rows_are_refused_in_words() {
        let cases = [
            (r#"{"id": 1}"#, "neither a context"),
            (r#"{"question": 1.5, "choices": "x"}"#, "must be a list"),
            (r#"{"question": "q", "choices": ["x"], "answer": 0}"#, "two choices"),
            (r#"{"question": "q", "choices": ["x", ""], "answer": 0}"#, "choice 1 is empty"),
            (r#"{"question": "q", "choices": ["x", "y"]}"#, "not said"),
            (r#"{"question": "q", "choices": ["x", "y"], "answer": 2}"#, "is 2, which is none of the 2"),
            (r#"{"question": "q", "choices": ["x", "y"], "answer": "C"}"#, "none of the 2"),
            (r#"{"question": "q", "choices": {"text": ["x", "y"], "label": ["A"]}, "answer": "A"}"#, "1 labels"),
            (r#"{"question": null, "answer": "x"}"#, "question is null"),
            (r#"{"question": "q"}"#, "no answer"),
            (r#"{"question": "q", "answers": []}"#, "list of answers is empty"),
            (r#"{"context": "q", "continuation": ""}"#, "continuation is empty"),
        ];
        for (line, words) in cases {
            let said = one(line).unwrap_err();
            assert!(said.contains(words), "{line}: {said}");
        }
    }

    #[test]
    fn a_file_is_of_one_kind() {
        let parse = |text: &str, limit| EvalTask::parse("t".into(), text.as_bytes(), limit);
        let mixed = "{\"text\": \"a\", \"id\": 1}\n\n{\"prompt\": \"a\", \"answer\": \"b\"}\n";
        let e = parse(mixed, usize::MAX).unwrap_err();
        assert!(e.fact.contains("line 3: this row is of kind generation, line 1 of kind text"), "{e}");
        let task = parse(mixed, 1).unwrap();
        assert_eq!((task.kind, task.rows.len(), task.unused), (TaskKind::Text, 1, vec!["id".to_string()]));
        assert!(parse("", 9).unwrap_err().fact.contains("no rows"));
        assert!(parse("[1]\n", 9).unwrap_err().fact.contains("line 1: not a JSON object"));
    }
}

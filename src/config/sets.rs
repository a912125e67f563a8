//! `--set a.b.c=value`: overrides from the command line, applied before the configuration is checked.
//!
//! The value is YAML. Where the key wants a string, the text is taken as it is. An empty value or `null` removes the key.
//! A number in the path indexes a list; the index one past its end appends.

use super::problem::Problem;
use super::{schema, yaml};
use crate::error::{Error, Exit, Result};
use serde_json::{Map, Value};

/// Applies `sets` in order; the last one wins.
///
/// # Errors
/// A set without `=` or with an empty key is a wrong command line; everything else is a problem of its key.
pub fn apply(value: &mut Value, sets: &[String], problems: &mut Vec<Problem>) -> Result<()> {
    for set in sets {
        let usage = || Error::new(Exit::Usage, format!("--set {set}")).hint("write --set section.key=value");
        let (key, text) = set.split_once('=').ok_or_else(|| usage().context("no `=` in"))?;
        let key = key.trim();
        if key.split('.').any(str::is_empty) {
            return Err(usage().context("an empty key in"));
        }
        let new = match schema::at(key).and_then(|s| s["type"].as_str()) {
            Some("string") if !text.is_empty() && text != "null" => Some(unquote(text).into()),
            _ => {
                let (new, found) = yaml::parse(text, &format!("--set {key}"))?;
                problems.extend(found.into_iter().map(|mut p| {
                    p.keys[0] = if p.keys[0].is_empty() { key.to_string() } else { yaml::join(key, &p.keys[0]) };
                    p
                }));
                Some(new).filter(|v| !v.is_null())
            }
        };
        let path: Vec<&str> = key.split('.').collect();
        if let Err(fact) = place(value, &path, new) {
            problems.push(Problem::new([key], fact).hint("look at the path before the `=`"));
        }
    }
    Ok(())
}

/// A string value may still be quoted as in YAML.
fn unquote(text: &str) -> String {
    let quoted = text.len() >= 2 && ["\"", "'"].iter().any(|q| text.starts_with(q) && text.ends_with(q));
    match quoted.then(|| serde_yaml::from_str::<String>(text)) {
        Some(Ok(s)) => s,
        _ => text.to_string(),
    }
}

/// Puts `new` at `path`, making the sections on the way; `None` removes what is there.
fn place(value: &mut Value, path: &[&str], new: Option<Value>) -> std::result::Result<(), String> {
    let Some((key, rest)) = path.split_first() else {
        *value = new.unwrap_or(Value::Null);
        return Ok(());
    };
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) if rest.is_empty() && new.is_none() => {
            map.remove(*key);
            Ok(())
        }
        Value::Object(map) => {
            // A key that is to hold a list starts as an empty one.
            let list = rest.first().is_some_and(|r| r.parse::<usize>().is_ok());
            let fresh = if list { Value::Array(Vec::new()) } else { Value::Null };
            place(map.entry(key.to_string()).or_insert(fresh), rest, new)
        }
        Value::Array(items) => {
            let len = items.len();
            let index = key.parse::<usize>().map_err(|_| format!("`{key}` is no index into a list of {len}"))?;
            match index {
                i if i > len || (i == len && new.is_none()) => Err(format!("index {i} is beyond a list of {len}")),
                i if rest.is_empty() && new.is_none() => {
                    items.remove(i);
                    Ok(())
                }
                i => {
                    if i == len {
                        items.push(Value::Null);
                    }
                    place(&mut items[i], rest, new)
                }
            }
        }
        other => Err(format!("`{key}` lies below {}, which is no section", super::check::show(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(mut v: Value, sets: &[&str]) -> (Value, Vec<String>) {
        let mut problems = Vec::new();
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        apply(&mut v, &sets, &mut problems).unwrap();
        (v, problems.iter().map(|p| p.to_string()).collect())
    }

    #[test]
    fn every_type_of_value_at_every_kind_of_place() {
        let base = json!({"train": {"steps": 1}, "data": {"train": [{"path": "a"}]}});
        let (v, p) = set(
            base,
            &[
                "train.steps=20",
                "optim.lr=3e-4",
                "parallel.overlap=false",
                "train.precision=fp32",
                "name=2024",
                "run_dir='a b'",
                "data.train.0.path=b",
                "data.train.1={path: c, weight: 2}",
                "validation={every: 5}",
                "train.steps=30",
                "data.validation.0.path=v",
                "model.config=null",
            ],
        );
        assert!(p.is_empty(), "{p:?}");
        assert_eq!(
            v,
            json!({
                "train": {"steps": 30, "precision": "fp32"}, "optim": {"lr": 3e-4}, "parallel": {"overlap": false},
                "name": "2024", "run_dir": "a b", "validation": {"every": 5}, "model": {},
                "data": {"train": [{"path": "b"}, {"path": "c", "weight": 2}], "validation": [{"path": "v"}]}
            })
        );
    }

    #[test]
    fn null_removes_and_impossible_paths_are_problems() {
        let base = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        let (v, p) = set(base, &["a.b=", "l.0=null", "l.7=1", "l.x=1", "a.c.d=1", "q=.nan"]);
        assert_eq!((&v["a"], &v["l"]), (&json!({"c": 2}), &json!([2])));
        assert_eq!(p.len(), 4, "{p:?}");
        assert!(p[0].starts_with("l.7: index 7 is beyond a list of 1"), "{p:?}");
    }

    #[test]
    fn a_set_without_equals_is_a_wrong_command_line() {
        for bad in ["train.steps", "=1", "a..b=1", ".a=1"] {
            let e = apply(&mut json!({}), &[bad.to_string()], &mut Vec::new()).unwrap_err();
            assert_eq!(e.exit, Exit::Usage, "{bad}");
        }
    }
}

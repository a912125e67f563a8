//! YAML text to JSON values: duplicate keys, tags, non-string keys and numbers that are not finite are problems here.
//! An empty value (`key:`) is the same as leaving the key out.

use super::problem::Problem;
use crate::error::{Error, Exit, Result};
use serde_json::{Map, Number, Value};
use serde_yaml::Value as Yaml;

/// Parses one document. Problems in single values are collected; those values are left out.
///
/// # Errors
/// The text is not YAML; `place` is put in front of the line and column.
pub fn parse(text: &str, place: &str) -> Result<(Value, Vec<Problem>)> {
    let yaml = serde_yaml::from_str::<Yaml>(text).and_then(|mut y| y.apply_merge().map(|()| y));
    let yaml = yaml.map_err(|e| syntax_error(&e, place))?;
    let mut problems = Vec::new();
    let value = convert(yaml, "", &mut problems).unwrap_or(Value::Null);
    Ok((value, problems))
}

fn syntax_error(e: &serde_yaml::Error, place: &str) -> Error {
    let text = e.to_string();
    let fact = text.split(" at line ").next().unwrap_or(&text);
    let at = e.location().map(|l| format!(":{}:{}", l.line(), l.column())).unwrap_or_default();
    let error = Error::new(Exit::Config, format!("{place}{at}: {fact}"));
    match fact {
        f if f.contains("duplicate entry") => error.hint("remove one of the two"),
        f if f.contains("128, expected") => error.hint("the integer is too large; it must fit 64 bits"),
        f if f.contains("more than one document") => error.hint("a configuration is one document; remove the `---`"),
        _ => error.hint("this is not valid YAML; look at the indentation and the quotes near that place"),
    }
}

/// `None` for null, and for what cannot be represented (which becomes a problem).
fn convert(yaml: Yaml, path: &str, problems: &mut Vec<Problem>) -> Option<Value> {
    let mut wrong = |fact: String, hint: &str| {
        problems.push(Problem::new([path], fact).hint(hint));
        None
    };
    match yaml {
        Yaml::Null => None,
        Yaml::Bool(b) => Some(Value::Bool(b)),
        Yaml::String(s) => Some(Value::String(s)),
        Yaml::Number(n) => match number(&n) {
            Some(v) => Some(v),
            None => wrong(format!("{n} is not a finite number"), "give a finite number"),
        },
        Yaml::Tagged(t) => wrong(format!("the tag {} is not supported", t.tag), "remove the tag"),
        // A null element stays, so that the others keep their numbers; the schema rejects it by its type.
        Yaml::Sequence(items) => Some(Value::Array(
            (items.into_iter().enumerate())
                .map(|(i, y)| convert(y, &join(path, &i.to_string()), problems).unwrap_or(Value::Null))
                .collect(),
        )),
        Yaml::Mapping(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                match key {
                    Yaml::String(key) => {
                        if let Some(v) = convert(value, &join(path, &key), problems) {
                            out.insert(key, v);
                        }
                    }
                    other => {
                        let shown = serde_yaml::to_string(&other).unwrap_or_default();
                        let fact = format!("the key {} is not a string", shown.trim());
                        problems.push(Problem::new([path], fact).hint("keys are plain names"));
                    }
                }
            }
            Some(Value::Object(out))
        }
    }
}

fn number(n: &serde_yaml::Number) -> Option<Value> {
    let int = n.as_u64().map(Number::from).or_else(|| n.as_i64().map(Number::from));
    int.or_else(|| n.as_f64().and_then(Number::from_f64)).map(Value::Number)
}

/// `path.key`, or `key` at the root.
pub fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_string(),
        _ => format!("{path}.{key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_kind() {
        let (v, p) = parse("{a: 1, b: -2, c: 3e-4, d: 1e6, e: 0x10, f: 18446744073709551615}", "x").unwrap();
        assert_eq!(v, serde_json::json!({"a": 1, "b": -2, "c": 3e-4, "d": 1e6, "e": 16, "f": u64::MAX}));
        assert!(p.is_empty());
    }

    #[test]
    fn what_json_cannot_hold_is_a_problem_with_its_key() {
        let (v, p) = parse("a: .nan\nb: {c: -.inf}\nd: !x 1\n1: one\ne: ~\nf: 1e23", "x").unwrap();
        let keys: Vec<_> = p.iter().map(|p| p.keys[0].as_str()).collect();
        assert_eq!(keys, ["a", "b.c", "d", ""], "{p:?}");
        assert_eq!(v["b"], serde_json::json!({}));
        assert!(v.get("e").is_none());
        assert_eq!(v["f"], serde_json::json!(1e23));
    }

    #[test]
    fn syntax_errors_say_line_and_column() {
        let of = |text| parse(text, "x.yaml").unwrap_err().to_string();
        assert!(of("a: 1\nb: [1, 2\nc: 3\n").starts_with("x.yaml:3:2: "));
        assert!(of("f: 99999999999999999999999").contains("too large"));
        assert!(of("a: 1\nb: 2\na: 3\n").contains("duplicate entry with key \"a\""), "{}", of("a: 1\nb: 2\na: 3\n"));
        assert!(of("o:\n  a: 1\n  a: 2\n").contains(":2:"), "{}", of("o:\n  a: 1\n  a: 2\n"));
        assert!(of("a: 1\n---\nb: 2\n").contains("more than one document"));
        assert!(of("\ta: 1").starts_with("x.yaml:1:1"), "{}", of("\ta: 1"));
    }

    #[test]
    fn merge_keys_and_anchors_work() {
        let (v, _) = parse("base: &b {x: 1}\nuse:\n  <<: *b\n  y: 2\n", "x").unwrap();
        assert_eq!(v["use"], serde_json::json!({"x": 1, "y": 2}));
    }
}

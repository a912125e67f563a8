//! A JSON value against the schema: every unknown key, missing key, wrong type and value out of range, in one go.

use super::problem::Problem;
use super::schema;
use super::yaml::join;
use jsonschema::error::ValidationErrorKind as Kind;
use jsonschema::{ValidationError, Validator};
use serde_json::{Map, Value};
use std::sync::LazyLock;

/// Checks a whole configuration. Integers written as integral floats (`1e6`) become integers in `value`.
pub fn config(value: &mut Value) -> Vec<Problem> {
    static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| compile(schema::schema()));
    run(&VALIDATOR, schema::schema(), value, "")
}

/// Checks a model shape; `prefix` is put in front of the keys in the problems.
pub fn model_shape(value: &mut Value, prefix: &str) -> Vec<Problem> {
    static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| compile(schema::model_shape()));
    run(&VALIDATOR, schema::model_shape(), value, prefix)
}

fn compile(schema: &Value) -> Validator {
    jsonschema::validator_for(schema).expect("the schema made from the types is a valid schema")
}

fn run(validator: &Validator, schema: &Value, value: &mut Value, prefix: &str) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    integral_floats(value, schema, prefix, &mut problems);
    for error in validator.iter_errors(value) {
        for problem in explain(&error, schema, prefix) {
            // A value of the wrong type breaks several rules at once; the first says it all.
            if !problems.iter().any(|p| p.keys[0] == problem.keys[0]) {
                problems.push(problem);
            }
        }
    }
    problems
}

/// YAML reads `1e6` as a float; where the schema wants an integer and the value is one, it is taken as one.
fn integral_floats(value: &mut Value, schema: &Value, path: &str, problems: &mut Vec<Problem>) {
    match value {
        Value::Object(map) => map.iter_mut().for_each(|(key, v)| {
            integral_floats(v, schema["properties"].get(key).unwrap_or(&Value::Null), &join(path, key), problems)
        }),
        Value::Array(items) => (items.iter_mut().enumerate())
            .for_each(|(i, v)| integral_floats(v, &schema["items"], &join(path, &i.to_string()), problems)),
        Value::Number(n) if schema["type"] == "integer" && n.is_f64() => match n.as_f64() {
            // Above 2^53 a float no longer says which integer was meant.
            Some(f) if f.fract() == 0.0 && f.abs() <= 9007199254740992.0 => {
                *value = if f < 0.0 { (f as i64).into() } else { (f as u64).into() };
            }
            // JSON Schema calls this an integer too; a bound, where there is one, says more.
            Some(f) if f.fract() == 0.0 && schema.get("maximum").is_none() => {
                let hint = "at most 18446744073709551615, written without an exponent";
                problems.push(Problem::new([path], format!("{n} is too large")).hint(hint));
            }
            _ => {}
        },
        _ => {}
    }
}

fn explain(error: &ValidationError, schema: &Value, prefix: &str) -> Vec<Problem> {
    let here = error.instance_path().as_str().trim_start_matches('/').replace('/', ".");
    let full = if here.is_empty() { prefix.to_string() } else { join(prefix, &here) };
    let own = lookup(schema, &here);
    let found = show(error.instance());
    let outside = |side: &str, bound: &str, limit: &Value| {
        // Bounds of floats are written 0.0 in the schema.
        let limit = limit.to_string();
        let limit = limit.strip_suffix(".0").unwrap_or(&limit);
        vec![Problem::new([&full], format!("{found} is too {side}")).hint(format!("{bound} {limit}"))]
    };
    match error.kind() {
        Kind::AdditionalProperties { unexpected } => {
            unexpected.iter().map(|key| unknown_key(key, &full, own, prefix)).collect()
        }
        Kind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            let child = &own["properties"][key];
            let hint = match keys_of(child) {
                Some(keys) => format!("a section of keys: {keys}"),
                None => format!("{}; {}", schema::type_name(child), about(child)),
            };
            vec![Problem::new([join(&full, key)], "missing").hint(hint)]
        }
        Kind::Type { .. } => vec![wrong_type(&full, error.instance(), own)],
        Kind::Enum { options } => {
            let names: Vec<&str> = options.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let problem = Problem::new([&full], format!("{found} is not one of {}", names.join(", ")));
            let near = error.instance().as_str().and_then(|s| nearest(s, &names, 0.4));
            vec![match near {
                Some(near) => problem.hint(format!("did you mean {near}?")),
                None => problem.hint("choose one of them"),
            }]
        }
        Kind::Minimum { limit } => outside("small", "at least", limit),
        Kind::Maximum { limit } => outside("large", "at most", limit),
        Kind::ExclusiveMinimum { limit } => outside("small", "more than", limit),
        Kind::ExclusiveMaximum { limit } => outside("large", "less than", limit),
        Kind::MinItems { limit } => {
            vec![Problem::new([full], "the list is empty").hint(format!("at least {limit} element"))]
        }
        Kind::MinLength { .. } => vec![Problem::new([full], "is empty").hint("give a value, or leave the key out")],
        _ => vec![Problem::new([full], error.to_string())],
    }
}

/// The schema at a dotted path below `schema`; `Null` where there is none.
fn lookup<'a>(schema: &'a Value, path: &str) -> &'a Value {
    path.split('.').filter(|k| !k.is_empty()).fold(schema, |s, key| match s["type"].as_str() {
        Some("array") => &s["items"],
        _ => &s["properties"][key],
    })
}

fn wrong_type(key: &str, found: &Value, schema: &Value) -> Problem {
    let want = schema["type"].as_str().unwrap_or("value");
    let article = |t: &str| match t {
        "integer" => "an integer",
        "number" => "a number",
        "string" => "a string",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "a section of keys",
        _ => "a value",
    };
    let kind = match found {
        Value::Null => "empty".to_string(),
        Value::Bool(b) => format!("{b}, a truth value"),
        Value::Number(_) => format!("{}, a number", show(found)),
        Value::String(_) => format!("{}, a string", show(found)),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "a section of keys".to_string(),
    };
    let problem = Problem::new([key], format!("is {kind}, but must be {}", article(want)));
    match found {
        Value::String(s) if s.parse::<f64>().is_ok() && matches!(want, "integer" | "number") => {
            problem.hint("remove the quotes")
        }
        Value::Number(n) if want == "integer" && n.as_f64().is_some_and(|f| f.fract() != 0.0) => {
            problem.hint("give a whole number")
        }
        Value::Number(_) | Value::Bool(_) if want == "string" => problem.hint("put it in quotes"),
        _ if want == "array" => problem.hint("start each element with `- `"),
        _ => match keys_of(schema) {
            Some(keys) => problem.hint(format!("see its keys: {keys}")),
            None => problem.hint(about(schema)),
        },
    }
}

/// First sentence of a key's description.
fn about(schema: &Value) -> &str {
    let text = schema["description"].as_str().and_then(|d| d.lines().next()).unwrap_or_default();
    text.split(". ").next().unwrap_or(text).trim_end_matches('.')
}

fn keys_of(schema: &Value) -> Option<String> {
    schema["properties"].as_object().map(|m| m.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
}

/// An unknown key; the key that was probably meant is the problem's second key.
fn unknown_key(key: &str, parent: &str, schema: &Value, prefix: &str) -> Problem {
    let full = join(parent, key);
    let none = Map::new();
    let siblings: Vec<&str> = schema["properties"].as_object().unwrap_or(&none).keys().map(String::as_str).collect();
    let meant = nearest(key, &siblings, 0.6).map(|near| join(parent, near)).or_else(|| {
        // The right key in the wrong section.
        let leaves = schema::leaves();
        let leaf = |p: &str| p.rsplit('.').next() == Some(key);
        leaves.into_iter().map(|(p, _)| p).find(|p| prefix.is_empty() && leaf(p))
    });
    match meant {
        Some(meant) => Problem::new([full, meant.clone()], "unknown key").hint(format!("did you mean {meant}?")),
        None => Problem::new([full], "unknown key").hint(format!("known here: {}", siblings.join(", "))),
    }
}

/// The option most like `word`, if it is at least `least` alike (0 to 1).
fn nearest<'a>(word: &str, options: &[&'a str], least: f64) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    let scored = options.iter().map(|o| (strsim::normalized_damerau_levenshtein(&word, o), *o));
    scored.filter(|(score, _)| *score >= least).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, o)| o)
}

/// A value as it is shown in a problem: one line, not longer than a key.
pub fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((i, _)) => format!("{}…", &text[..i]),
        None => text,
    }
}

/// Makes `value` fit its schema after its problems were found: what is wrong or unknown is left out, what is missing gets
/// a stand-in, so that the rest can still be checked. Results that touch a problem's key mean nothing.
pub fn repair(value: &mut Value, schema: &Value, path: &str, problems: &[Problem]) {
    let Some(properties) = schema["properties"].as_object() else {
        if let (Value::Array(items), "array") = (&mut *value, schema["type"].as_str().unwrap_or_default()) {
            for (i, item) in items.iter_mut().enumerate() {
                let path = join(path, &i.to_string());
                if problems.iter().any(|p| p.keys[0] == path) {
                    *item = stand_in(&schema["items"]);
                }
                repair(item, &schema["items"], &path, problems);
            }
        }
        return;
    };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Value::Object(map) = value else { return };
    map.retain(|key, _| properties.contains_key(key));
    for (key, child) in properties {
        let path = join(path, key);
        if problems.iter().any(|p| p.keys[0] == path) {
            map.remove(key);
        }
        let required = schema["required"].as_array().is_some_and(|r| r.iter().any(|k| k == key));
        if required && !map.contains_key(key) {
            map.insert(key.clone(), stand_in(child));
        }
        if let Some(v) = map.get_mut(key) {
            repair(v, child, &path, problems);
        }
    }
}

fn stand_in(schema: &Value) -> Value {
    match schema["type"].as_str() {
        Some("object") => Value::Object(Map::new()),
        Some("array") => Value::Array(Vec::new()),
        Some("integer") | Some("number") => 1.into(),
        Some("boolean") => false.into(),
        _ => schema["enum"].get(0).cloned().unwrap_or_else(|| "-".into()),
    }
}

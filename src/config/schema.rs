//! The JSON Schema of a configuration: the one source of key names, types, ranges, defaults and descriptions.

use super::Config;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};
use std::sync::LazyLock;

/// The schema of [`Config`], without references, so that a key's schema is found by walking down `properties`.
pub fn schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
        let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
        let mut schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
        simplify(&mut schema);
        schema["title"] = "herd run configuration".into();
        schema
    });
    &SCHEMA
}

/// The schema of one model shape, as in `model.shape`.
pub fn model_shape() -> &'static Value {
    &schema()["properties"]["model"]["properties"]["shape"]
}

/// The schema of the value at a dotted path; numbers index lists.
pub fn at(path: &str) -> Option<&'static Value> {
    path.split('.').try_fold(schema(), |s, key| match s["type"].as_str() {
        Some("array") => key.parse::<usize>().ok().map(|_| &s["items"]),
        _ => s["properties"].get(key),
    })
}

/// Every key that takes a value, in order, as (dotted path, schema); list elements are written `[]`.
pub fn leaves() -> Vec<(String, &'static Value)> {
    let mut out = Vec::new();
    collect(schema(), "", &mut out);
    out
}

fn collect(schema: &'static Value, path: &str, out: &mut Vec<(String, &'static Value)>) {
    if let Some(properties) = schema["properties"].as_object() {
        properties.iter().for_each(|(key, s)| collect(s, &super::yaml::join(path, key), out));
    } else if schema["type"] == "array" && schema["items"]["properties"].is_object() {
        collect(&schema["items"], &format!("{path}[]"), out);
    } else {
        out.push((path.to_string(), schema));
    }
}

/// Optional values lose their `null` alternative (an absent key says the same), and enums whose variants carry docs
/// become a plain `enum` with the docs in the description: both read better in an editor and in an error.
fn simplify(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Array(types)) = map.get_mut("type") {
                types.retain(|t| t != "null");
                if let [only] = &types[..] {
                    map["type"] = only.clone();
                }
            }
            unwrap_optional(map);
            flatten_enum(map);
            if map.get("default") == Some(&Value::Null) {
                map.remove("default");
            }
            map.values_mut().for_each(simplify);
        }
        Value::Array(items) => items.iter_mut().for_each(simplify),
        _ => {}
    }
}

/// `anyOf: [X, null]` → X, keeping the description of the field.
fn unwrap_optional(map: &mut Map<String, Value>) {
    let Some(Value::Array(any)) = map.get("anyOf") else { return };
    let mut some = any.iter().filter(|s| s["type"] != "null");
    if let (Some(Value::Object(inner)), None) = (some.next().cloned(), some.next()) {
        map.remove("anyOf");
        for (k, v) in inner {
            map.entry(k).or_insert(v);
        }
    }
}

fn flatten_enum(map: &mut Map<String, Value>) {
    let Some(Value::Array(variants)) = map.get("oneOf") else { return };
    let (mut values, mut docs) = (Vec::new(), String::new());
    for v in variants {
        match (&v["const"], &v["enum"]) {
            (Value::String(name), _) => {
                values.push(Value::from(name.as_str()));
                if let Some(text) = v["description"].as_str() {
                    docs += &format!("\n- `{name}`: {text}");
                }
            }
            (_, Value::Array(plain)) => values.extend(plain.iter().cloned()),
            _ => return,
        }
    }
    let head = map.get("description").and_then(Value::as_str).unwrap_or_default();
    let description = format!("{head}\n{docs}").trim().to_string();
    map.remove("oneOf");
    map.insert("type".into(), "string".into());
    map.insert("enum".into(), values.into());
    map.insert("description".into(), description.into());
}

/// All keys as Markdown tables, one per section: `docs/configuration.md` holds them, and a test compares.
pub fn markdown() -> String {
    let mut sections: Vec<(String, String)> = Vec::new();
    for (path, schema) in leaves() {
        let (head, key) = path.rsplit_once('.').unwrap_or(("", &path));
        let text = schema["description"].as_str().unwrap_or_default();
        let text = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
        let text = text.replace('|', "\\|").replace(" - `", " · `");
        let row = format!("| `{key}` | {} | {} | {text} |\n", type_name(schema), default_of(&path, schema));
        match sections.iter_mut().find(|(section, _)| section == head) {
            Some((_, rows)) => *rows += &row,
            None => sections.push((head.to_string(), row)),
        }
    }
    let table = |(section, rows): &(String, String)| {
        let title = if section.is_empty() { "Top level".into() } else { format!("`{section}`") };
        format!("### {title}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n{rows}")
    };
    sections.iter().map(table).collect::<Vec<_>>().join("\n")
}

/// Type and range in words: `integer ≥ 1`, `one of bf16, fp32`.
pub fn type_name(schema: &Value) -> String {
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    }
    let mut out = schema["type"].as_str().unwrap_or("value").replace("boolean", "true or false");
    for (word, sign) in [("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")] {
        // A lower bound of 0 on an integer, or an upper bound that only guards against overflow, would be noise.
        if let Some(limit) = schema.get(word).filter(|l| l.as_f64().is_some_and(|l| l < 65536.0)) {
            let limit = limit.to_string();
            out += &format!(" {sign} {},", limit.strip_suffix(".0").unwrap_or(&limit));
        }
    }
    out.trim_end_matches(',').to_string()
}

fn default_of(path: &str, schema: &Value) -> String {
    if let Some(default) = schema.get("default") {
        return format!("`{default}`");
    }
    let (head, key) = path.rsplit_once('.').unwrap_or(("", path));
    let parent = if head.is_empty() { Some(self::schema()) } else { at(&head.replace("[]", ".0")) };
    let required = parent.and_then(|p| p["required"].as_array()).is_some_and(|r| r.iter().any(|k| k == key));
    if required { "required" } else { "–" }.to_string()
}

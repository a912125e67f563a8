//! The form that an answer is to have: `response_format` as OpenAI's API has it, `structured_outputs` as vLLM has it (from 0.12 on).

use crate::serve::batch::fields::{Fields, Refusal};
use crate::serve::guide::Grammar;
use serde_json::{json, Map, Value};

/// Choices of one request at most.
const CHOICES: usize = 1000;
/// What vLLM called the same before 0.12.
const OLD_NAMES: [(&str, &str); 3] = [("guided_json", "json"), ("guided_regex", "regex"), ("guided_choice", "choice")];

/// The grammar that a request asks for, and the field that does; it is not compiled yet.
pub(in crate::serve) fn grammar(body: &mut Fields) -> Result<Option<(Grammar, &'static str)>, Refusal> {
    for (old, new) in OLD_NAMES {
        if body.take(old).is_some() {
            let fact = format!("there is no field {old}; it is structured_outputs.{new}, as in vLLM from 0.12 on");
            return Err(Refusal::new("unknown_field", old, fact));
        }
    }
    let object = |v: &Value| v.as_object().cloned();
    let format = body.typed("response_format", "an object", object)?;
    let outputs = body.typed("structured_outputs", "an object", object)?;
    let format = format.map(response_format).transpose()?.flatten();
    match (format, outputs) {
        (Some((_, field)), Some(_)) => {
            Err(Refusal::new("invalid_value", "structured_outputs", format!("{field} asks for a form already")))
        }
        (format, None) => Ok(format),
        (None, Some(outputs)) => structured_outputs(outputs).map(Some),
    }
}

fn response_format(format: Map<String, Value>) -> Result<Option<(Grammar, &'static str)>, Refusal> {
    const KIND: &str = "response_format.type";
    let mut format = Fields::new(format);
    let within = |why: Refusal| inside("response_format", why);
    let grammar = match format.text("type").map_err(within)?.as_deref() {
        Some("text") => None,
        Some("json_object") => Some((Grammar::object(), "response_format")),
        Some("json_schema") => {
            let Some(schema) = format.typed("json_schema", "an object", |v| v.as_object().cloned()).map_err(within)?
            else {
                return Err(Refusal::new("missing_field", "response_format.json_schema", "there is no json_schema"));
            };
            Some((json_schema(schema)?, "response_format.json_schema.schema"))
        }
        Some(other) => {
            let must = "must be text, json_object or json_schema";
            return Err(Refusal::new("invalid_value", KIND, format!("{KIND} is {other}, {must}")));
        }
        None => return Err(Refusal::new("missing_field", KIND, format!("there is no {KIND}"))),
    };
    format.end().map_err(within)?;
    Ok(grammar)
}

/// `strict` or not, the schema is kept to.
fn json_schema(map: Map<String, Value>) -> Result<Grammar, Refusal> {
    let within = |why: Refusal| inside("response_format.json_schema", why);
    let mut fields = Fields::new(map);
    for about in ["name", "description"] {
        fields.text(about).map_err(within)?;
    }
    fields.flag("strict").map_err(within)?;
    let schema = fields.take("schema");
    fields.end().map_err(within)?;
    // OpenAI's: without a schema any object is meant.
    schema.map_or(Ok(Grammar::object()), |schema| schema_of(schema, "response_format.json_schema.schema"))
}

fn schema_of(schema: Value, field: &str) -> Result<Grammar, Refusal> {
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(Grammar::Json(schema)),
        _ => Err(Refusal::new("invalid_type", field, format!("{field} must be a JSON Schema, an object"))),
    }
}

fn structured_outputs(map: Map<String, Value>) -> Result<(Grammar, &'static str), Refusal> {
    let within = |why: Refusal| inside("structured_outputs", why);
    let mut fields = Fields::new(map);
    let json = fields.take("json");
    let regex = fields.text("regex").map_err(within)?;
    let choice = fields.typed("choice", "a list of strings", |v| {
        v.as_array()?.iter().map(|c| c.as_str().map(str::to_string)).collect::<Option<Vec<String>>>()
    });
    let choice = choice.map_err(within)?;
    let object = fields.flag("json_object").map_err(within)?.unwrap_or(false);
    for other in ["grammar", "structural_tag", "whitespace_pattern"] {
        fields.neutral(other, &[]).map_err(within)?;
    }
    for other in ["disable_fallback", "disable_any_whitespace", "disable_additional_properties"] {
        fields.neutral(other, &[json!(false)]).map_err(within)?;
    }
    fields.end().map_err(within)?;
    let all = [
        json.map(|schema| {
            const FIELD: &str = "structured_outputs.json";
            // A string is the schema's text.
            let schema = match schema.as_str() {
                Some(text) => serde_json::from_str(text)
                    .map_err(|e| Refusal::new("invalid_value", FIELD, format!("{FIELD} is no JSON: {e}"))),
                None => Ok(schema),
            };
            Ok((schema_of(schema?, FIELD)?, FIELD))
        }),
        regex.map(|text| Ok((Grammar::Regex(text), "structured_outputs.regex"))),
        choice.map(|all| Ok((choice_of(all)?, "structured_outputs.choice"))),
        object.then(|| Ok((Grammar::object(), "structured_outputs.json_object"))),
    ];
    let mut asked: Vec<_> = all.into_iter().flatten().collect();
    match (asked.pop(), asked.len()) {
        (Some(one), 0) => one,
        (_, more) => {
            let fact = format!(
                "structured_outputs asks for {} forms, must ask for one: json, regex, choice or json_object",
                more + usize::from(more > 0)
            );
            Err(Refusal::new("invalid_value", "structured_outputs", fact))
        }
    }
}

fn choice_of(all: Vec<String>) -> Result<Grammar, Refusal> {
    const FIELD: &str = "structured_outputs.choice";
    match all.len() {
        1..=CHOICES if all.iter().any(String::is_empty) => {
            Err(Refusal::new("invalid_value", FIELD, format!("{FIELD} has an empty string")))
        }
        1..=CHOICES => Ok(Grammar::Choice(all)),
        n => Err(Refusal::new("invalid_value", FIELD, format!("{FIELD} has {n} strings, must have 1 to {CHOICES}"))),
    }
}

fn inside(outer: &str, mut why: Refusal) -> Refusal {
    why.param = why.param.map(|p| format!("{outer}.{p}"));
    why
}

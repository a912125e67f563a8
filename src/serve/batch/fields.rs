//! The fields of a request's JSON object, each taken once, by its type; what is left over is unknown.

use serde_json::{Map, Value};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs: `invalid_json`, `invalid_type`, `invalid_value`, `unknown_field`, `missing_field`, `not_supported`,
    /// `model_not_found`, `context_length_exceeded`, `prompt_refused`.
    pub code: &'static str,
    /// The field.
    pub param: Option<String>,
    /// For people, one line.
    pub message: String,
}

impl Refusal {
    /// `param`: the field at fault, empty where it is none in particular.
    pub fn new(code: &'static str, param: &str, message: impl Into<String>) -> Refusal {
        Refusal { code, param: (!param.is_empty()).then(|| param.to_string()), message: message.into() }
    }

    fn wrong_type(param: &str, value: &Value, must: &str) -> Refusal {
        Refusal::new("invalid_type", param, format!("{param} is {}, must be {must}", shown(value)))
    }
}

/// Fields that are not yet taken.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// All fields of a request's object, none taken yet.
    pub fn new(map: Map<String, Value>) -> Fields {
        Fields(map)
    }

    /// The value; null is as if it were not there.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|v| !v.is_null())
    }

    /// Whether the value is there and not null; it is not taken.
    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|v| !v.is_null())
    }

    /// A number, whole or not.
    pub fn number(&mut self, name: &str) -> Result<Option<f64>, Refusal> {
        self.typed(name, "a number", |v| v.as_f64())
    }

    /// A whole number from 0 on.
    pub fn count(&mut self, name: &str) -> Result<Option<u64>, Refusal> {
        self.typed(name, "a whole number from 0 on", |v| v.as_u64())
    }

    /// True or false.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        self.typed(name, "true or false", |v| v.as_bool())
    }

    /// One string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        self.typed(name, "a string", |v| v.as_str().map(str::to_string))
    }

    /// One string or a list of them.
    pub fn texts(&mut self, name: &str) -> Result<Vec<String>, Refusal> {
        let all = self.typed(name, "a string or a list of strings", |v| match v {
            Value::String(one) => Some(vec![one.clone()]),
            Value::Array(all) => all.iter().map(|s| s.as_str().map(str::to_string)).collect(),
            _ => None,
        })?;
        Ok(all.unwrap_or_default())
    }

    /// The value through `read`, which gives none for one of another type than it `must` be. None: absent or null.
    pub fn typed<T>(
        &mut self, name: &str, must: &str, read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| Refusal::wrong_type(name, &value, must))
    }

    /// A field that herd has no use for, where it says the same as if it were not there.
    pub fn neutral(&mut self, name: &str, means_nothing: &[Value]) -> Result<(), Refusal> {
        match self.take(name) {
            Some(v) if !means_nothing.contains(&v) => {
                Err(Refusal::new("not_supported", name, format!("{name} is {}, which herd does not do", shown(&v))))
            }
            _ => Ok(()),
        }
    }

    /// What is left.
    pub fn rest(self) -> Map<String, Value> {
        self.0
    }

    /// Nothing is left.
    pub fn end(self) -> Result<(), Refusal> {
        match self.0.keys().next() {
            Some(name) => Err(Refusal::new("unknown_field", name, format!("there is no field {name}"))),
            None => Ok(()),
        }
    }
}

/// A value for a message, cut short.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

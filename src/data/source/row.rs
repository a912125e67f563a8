//! The text in one JSON object. Only the keys that were asked for are looked into: numbers out of range, NaN, Infinity and
//! lone surrogates beside them are passed over, as Python's `json.dumps` writes them.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// What is wrong with a row.
#[derive(Debug, PartialEq)]
pub enum Wrong {
    /// Not JSON: what the parser says, line and column inside the row (from 1).
    Syntax(String, usize, usize),
    /// JSON, but not an object with the keys and strings under them.
    Shape(String),
}

/// What joins the texts of several keys.
pub const BETWEEN: &str = "\n\n";
/// Keys named in a message.
const SHOWN: usize = 8;

/// The texts under `keys` in `row`, joined. A dot in a key leads into an object, unless the object has the key as it stands.
pub fn text(row: &[u8], keys: &[String]) -> Result<String, Wrong> {
    let read = |row: &[u8]| {
        let mut found =
            Found { keys, values: keys.iter().map(|_| None).collect(), there: Vec::new(), kind: "an object" };
        let mut json = serde_json::Deserializer::from_slice(row);
        Inside { path: String::new(), found: &mut found }.deserialize(&mut json)?;
        json.end().map(|()| found)
    };
    let found = match read(row) {
        Ok(found) => found,
        Err(e) => match without_nan(row).map(|row| read(&row)) {
            Some(Ok(found)) => found,
            _ => {
                let text = e.to_string();
                let words = text.rsplit_once(" at line ").map_or(text.as_str(), |(words, _)| words);
                return Err(Wrong::Syntax(words.into(), e.line(), e.column()));
            }
        },
    };
    if keys.is_empty() && found.kind == "an object" {
        let plain = without_nan(row).unwrap_or_else(|| row.to_vec());
        return String::from_utf8(plain).map_err(|_| Wrong::Shape("not UTF-8".into()));
    }
    found.join().map_err(Wrong::Shape)
}

/// Whether `row` is JSON, NaN and Infinity allowed; else what the parser says.
pub fn check(row: &[u8]) -> Result<(), String> {
    let read = |row: &[u8]| serde_json::from_slice::<IgnoredAny>(row);
    read(row).map(|_| ()).or_else(|e| match without_nan(row).map(|row| read(&row).is_ok()) {
        Some(true) => Ok(()),
        _ => Err(e.to_string()),
    })
}

/// `row` with a number of the same length for each NaN and Infinity outside of strings; `None` where there is none.
fn without_nan(row: &[u8]) -> Option<Vec<u8>> {
    let mut out = Cow::Borrowed(row);
    let (mut string, mut at) = (false, 0);
    while at < row.len() {
        let word: Option<&[u8]> = [&b"NaN"[..], b"Infinity"].into_iter().find(|w| row[at..].starts_with(w));
        match (string, row[at], word) {
            (true, b'\\', _) => at += 1,
            (_, b'"', _) => string = !string,
            (false, _, Some(word)) => {
                out.to_mut()[at..at + word.len()].fill(b' ');
                out.to_mut()[at] = b'0';
                at += word.len() - 1;
            }
            _ => {}
        }
        at += 1;
    }
    match out {
        Cow::Owned(out) => Some(out),
        Cow::Borrowed(_) => None,
    }
}

struct Found<'a> {
    keys: &'a [String],
    values: Vec<Option<Value>>,
    /// Keys of the outermost object.
    there: Vec<String>,
    /// What the row is.
    kind: &'static str,
}

impl Found<'_> {
    fn join(self) -> Result<String, String> {
        if self.kind != "an object" {
            return Err(format!("{}, not an object", self.kind));
        }
        let mut texts = Vec::with_capacity(self.keys.len());
        for (key, value) in self.keys.iter().zip(self.values) {
            match value {
                Some(Value::Text(text)) => texts.push(text),
                Some(Value::Other(kind)) => return Err(format!("\"{key}\" is {kind}, not a string")),
                None => {
                    let there: Vec<&str> = self.there.iter().map(String::as_str).take(SHOWN).collect();
                    return Err(format!("no key \"{key}\" (there is: {})", there.join(", ")));
                }
            }
        }
        texts.retain(|t| !t.is_empty());
        Ok(texts.join(BETWEEN))
    }
}

/// A value under a key that was asked for.
enum Value {
    Text(String),
    Other(&'static str),
}

/// Reads an object below `path` (empty, or with its dot).
struct Inside<'a, 'k> {
    path: String,
    found: &'a mut Found<'k>,
}

impl<'de> DeserializeSeed<'de> for Inside<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

/// Everything that is no object: noted by its kind where it is the row itself.
macro_rules! other {
    ($($visit:ident($type:ty) => $kind:literal),*) => {
        $(fn $visit<E: Error>(self, _: $type) -> Result<Self::Value, E> { self.other($kind) })*
    };
}

impl Inside<'_, '_> {
    fn other<E>(self, kind: &'static str) -> Result<(), E> {
        if self.path.is_empty() {
            self.found.kind = kind;
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Inside<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let full = format!("{}{key}", self.path);
            let below = |k: &String| k.strip_prefix(&full).is_some_and(|rest| rest.starts_with('.'));
            if let Some(i) = self.found.keys.iter().position(|k| *k == full) {
                self.found.values[i] = Some(map.next_value()?);
            } else if self.found.keys.iter().any(below) {
                map.next_value_seed(Inside { path: full + ".", found: &mut *self.found })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            if self.path.is_empty() && self.found.there.len() < SHOWN {
                self.found.there.push(key);
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        self.other("an array")
    }

    other!(visit_bool(bool) => "a boolean", visit_i64(i64) => "a number", visit_u64(u64) => "a number",
        visit_f64(f64) => "a number", visit_str(&str) => "a string");

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.other("null")
    }
}

impl<'de> serde::Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Value, D::Error> {
        d.deserialize_any(OfValue)
    }
}

struct OfValue;

impl OfValue {
    fn other<E>(self, kind: &'static str) -> Result<Value, E> {
        Ok(Value::Other(kind))
    }
}

impl<'de> Visitor<'de> for OfValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    other!(visit_bool(bool) => "a boolean", visit_i64(i64) => "a number", visit_u64(u64) => "a number",
        visit_f64(f64) => "a number");

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.other("null")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        self.other("an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        self.other("an object")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(row: &str, keys: &[&str]) -> Result<String, String> {
        let keys: Vec<String> = keys.iter().map(|k| k.to_string()).collect();
        text(row.as_bytes(), &keys).map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn keys_lead_into_objects_and_several_are_joined() {
        let row = r#"{"id": 1, "a": "A", "b": {"c": "C", "d": {"e": "E"}}, "x.y": "dotted"}"#;
        assert_eq!(of(row, &["a"]), Ok("A".into()));
        assert_eq!(of(row, &["b.c"]), Ok("C".into()));
        assert_eq!(of(row, &["b.d.e", "a"]), Ok("E\n\nA".into()));
        assert_eq!(of(row, &["x.y"]), Ok("dotted".into()));
        for (keys, words) in [
            (&["z"][..], "no key \\\"z\\\" (there is: id, a, b, x.y)"),
            (&["b.z"], "no key \\\"b.z\\\""),
            (&["a", "id"], "\\\"id\\\" is a number, not a string"),
            (&["b"], "\\\"b\\\" is an object"),
            (&["a.c"], "no key \\\"a.c\\\""),
        ] {
            let e = of(row, keys).unwrap_err();
            assert!(e.contains(words), "{keys:?}: {e}");
        }
        assert_eq!(of(r#"{"t": "", "u": "v"}"#, &["t", "u"]), Ok("v".into()));
    }

    #[test]
    fn what_python_writes_beside_the_text_is_passed_over() {
        for beside in ["NaN", "-Infinity", "[Infinity, NaN]", "1e999", "\"\\ud800\"", "\"a NaN \\\" Infinity\""] {
            let row = format!(r#"{{"score": {beside}, "text": "NaN \" Infinity"}}"#);
            assert_eq!(of(&row, &["text"]), Ok("NaN \" Infinity".into()), "{row}");
            assert_eq!(check(row.as_bytes()), Ok(()), "{row}");
        }
        assert!(of(r#"{"text": NaN}"#, &["text"]).unwrap_err().contains("a number"));
        assert!(of(r#"{"text": "a", "x": NaNa}"#, &["text"]).unwrap_err().contains("Syntax"));
    }

    #[test]
    fn what_is_no_object_is_named() {
        for (row, kind) in
            [("[1]", "an array"), ("5", "a number"), ("null", "null"), ("\"s\"", "a string"), ("true", "a boolean")]
        {
            assert!(of(row, &["text"]).unwrap_err().contains(&format!("{kind}, not an object")), "{row}");
        }
        assert!(matches!(text(b"{\"text\": \xff}", &["text".into()]), Err(Wrong::Syntax(_, 1, 10))));
        assert!(of("{} {}", &[]).unwrap_err().contains("trailing"));
    }
}

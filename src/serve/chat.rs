//! Messages to the text that a chat model expects, by the model's own template.
//!
//! Templates are Jinja as transformers renders them (its `chat_template_utils.py`): blocks trimmed, Python's string methods,
//! `raise_exception`, `strftime_now`, `tojson` without HTML's escapes. They lie beside the tokenizer: `chat_template.jinja`,
//! else `chat_template` in `tokenizer_config.json`.

use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, ErrorKind};
use serde_json::{json, Map, Value};

const FILE: &str = "chat_template.jinja";
const CONFIGS: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// A model's template, and the names of its special tokens.
#[derive(Debug)]
pub struct Chat {
    source: String,
    /// `bos_token` and the like.
    names: Map<String, Value>,
    file: &'static str,
}

impl Chat {
    /// The template that lies beside `tokenizer`. Errors ([`Exit::Data`]): there is none, or several of which none is the
    /// default.
    pub fn of(tokenizer: &Tokenizer) -> Result<Chat> {
        let files = tokenizer.files();
        let content = |name: &str| files.iter().find(|(n, _)| n == name).map(|(_, c)| String::from_utf8_lossy(c));
        let configs = CONFIGS.map(|name| content(name).and_then(|c| serde_json::from_str::<Value>(&c).ok()));
        let mut names = Map::new();
        for (key, value) in configs.iter().flatten().filter_map(Value::as_object).flatten() {
            let name = value.as_str().or_else(|| value.get("content")?.as_str());
            if let Some(name) = name.filter(|_| key.ends_with("_token")) {
                names.entry(key.as_str()).or_insert(name.into());
            }
        }
        for (key, id) in [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())] {
            if let Some(id) = id {
                names.entry(key).or_insert_with(|| tokenizer.decode(&[id]).into());
            }
        }
        if let Some(source) = content(FILE) {
            return Ok(Chat { source: source.into_owned(), names, file: FILE });
        }
        let named = configs[0].as_ref().map_or(&Value::Null, |c| &c["chat_template"]);
        match default(named)? {
            Some(source) => Ok(Chat { source: source.into(), names, file: CONFIGS[0] }),
            None => Err(Error::new(Exit::Data, format!("tokenizer {} has no chat template", tokenizer.place())).hint(
                "put the model's chat_template.jinja beside it; or write the turns out in --prompt, with --special-tokens",
            )),
        }
    }

    /// The file that the template is from.
    pub fn file(&self) -> &'static str {
        self.file
    }

    /// The text of a conversation (each message an object with `role` and `content`), up to where the model's turn begins.
    ///
    /// Errors ([`Exit::Data`]): the template is none, or refuses the messages.
    pub fn render(&self, messages: &[Value]) -> Result<String> {
        let mut jinja = environment();
        let source = without_generation_blocks(&self.source);
        let failed = |what: &str, e: minijinja::Error| {
            let why = e.to_string().replace('\n', " ");
            Error::new(Exit::Data, format!("{what} ({}): {why}", self.file))
        };
        jinja.add_template_owned("chat", source).map_err(|e| failed("the chat template cannot be used", e))?;
        // As transformers: a key without a value is no key.
        let given = |m: &Value| -> Value {
            let all = m.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null());
            Value::Object(all.map(|(k, v)| (k.clone(), v.clone())).collect())
        };
        let mut values = self.names.clone();
        values.insert("messages".into(), messages.iter().map(given).collect());
        values.insert("add_generation_prompt".into(), json!(true));
        values.extend(["tools", "documents"].map(|key| (key.to_string(), Value::Null)));
        let values: Jinja = serde_json::from_value(Value::Object(values))
            .map_err(|e| Error::new(Exit::Data, format!("the messages cannot be given to the chat template: {e}")))?;
        let template = jinja.get_template("chat").map_err(|e| failed("the chat template cannot be used", e))?;
        template.render(values).map_err(|e| failed("the chat template refuses the messages", e))
    }
}

/// The template under `chat_template`: a text, or the one called `default` of a list.
fn default(named: &Value) -> Result<Option<&str>> {
    match named {
        Value::String(source) => Ok(Some(source)),
        Value::Array(all) => {
            let names: Vec<&str> = all.iter().filter_map(|t| t["name"].as_str()).collect();
            match all.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str()) {
                Some(source) => Ok(Some(source)),
                None => {
                    Err(Error::new(Exit::Data, format!("none of the chat templates {} is `default`", names.join(", ")))
                        .hint("save the one that is meant as chat_template.jinja beside the tokenizer"))
                }
            }
        }
        _ => Ok(None),
    }
}

fn environment() -> Environment<'static> {
    let mut jinja = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    jinja.set_syntax(syntax.expect("Jinja's own delimiters do not clash"));
    jinja.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    jinja.add_filter("tojson", tojson);
    jinja.add_function("raise_exception", |why: String| -> std::result::Result<Jinja, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, why))
    });
    jinja.add_function("strftime_now", |format: String| jiff::Zoned::now().strftime(&format).to_string());
    jinja
}

/// `{% generation %}` marks what a trainer learns from; it changes no text, and only transformers knows it.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(end) = rest[at..].find("%}").map(|n| at + n) else { break };
        let tag = &rest[at + 2..end];
        let word = tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let plain = match word {
            "generation" => tag.replacen(word, "if true", 1),
            "endgeneration" => tag.replacen(word, "endif", 1),
            _ => tag.to_string(),
        };
        out += &format!("{}{{%{plain}%}}", &rest[..at]);
        rest = &rest[end + 2..];
    }
    out + rest
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn tojson(value: Jinja, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _ = (options.get::<Option<bool>>("ensure_ascii")?, options.get::<Option<bool>>("sort_keys")?);
    options.assert_all_used()?;
    let mut out = Vec::new();
    let done = match indent {
        Some(n) => {
            let spaces = " ".repeat(n);
            let form = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, form))
        }
        None => serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    done.map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// A space behind each comma and colon, as Python writes JSON.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            w.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            w.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chat(source: &str) -> Chat {
        let names = [("bos_token".to_string(), json!("<s>"))].into_iter().collect();
        Chat { source: source.into(), names, file: FILE }
    }

    #[test]
    fn templates_render_as_jinja2_with_transformers_additions() {
        let messages = [
            json!({"role": "user", "content": " a<b>&\"c\" ", "name": null}),
            json!({"role": "assistant", "content": "d"}),
        ];
        let say = |source: &str| chat(source).render(&messages).unwrap();
        assert_eq!(say("{{ bos_token }}{% for m in messages %}\n  {% if loop.first %}\n{{ m['content'].strip() }}|\n  {% endif %}\n{% endfor %}"), "<s>a<b>&\"c\"|\n");
        assert_eq!(say("{{ messages[0] | tojson }}"), "{\"role\": \"user\", \"content\": \" a<b>&\\\"c\\\" \"}");
        assert_eq!(say("{{ messages | length | tojson(indent=2) }}{{ [1, {'é': []}] | tojson }}"), "2[1, {\"é\": []}]");
        assert_eq!(say("x {%- generation -%} y {% endgeneration %} z"), "xy  z");
        assert_eq!(say("{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.role.upper() }}{% endfor %}"), "ASSISTANT");
        assert_eq!(say("{% set ns = namespace(n=0) %}{% for m in messages[1:] %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ nothing }}"), "1");
        assert_eq!(
            say("{{ strftime_now('%Y') | length }}{% if tools is none and add_generation_prompt %}!{% endif %}"),
            "4!"
        );
    }

    #[test]
    fn a_template_that_refuses_says_why_in_a_line() {
        let fails = |source: &str| chat(source).render(&[json!({"role": "x"})]).unwrap_err();
        let e = fails("{{ raise_exception('roles must\nalternate') }}");
        assert!(
            e.exit == Exit::Data && e.fact.contains("refuses the messages") && e.fact.contains("roles must alternate"),
            "{e}"
        );
        assert!(!e.fact.contains('\n'));
        assert!(fails("{% for m in").fact.contains("cannot be used"));
    }

    #[test]
    fn of_several_templates_the_default_is_taken() {
        let list = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(default(&list).unwrap(), Some("d"));
        assert_eq!(default(&json!("x")).unwrap(), Some("x"));
        assert_eq!(default(&Value::Null).unwrap(), None);
        assert!(default(&json!([{"name": "rag", "template": "t"}])).unwrap_err().fact.contains("rag"));
    }
}

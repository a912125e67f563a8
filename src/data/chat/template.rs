//! Messages to the text that a chat model expects, by the model's own template.
//!
//! Templates lie beside the tokenizer: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`.

use super::jinja::{self, CLOSE, OPEN};
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use minijinja::value::Value as Jinja;
use minijinja::Environment;
use serde_json::{json, Map, Value};
use std::ops::Range;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

const FILE: &str = "chat_template.jinja";
const CONFIGS: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];
const PLAIN: &str = "chat";
const MARKED: &str = "marked chat";

/// A model's template, and the names of its special tokens.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    /// `bos_token` and the like.
    names: Map<String, Value>,
    file: String,
    /// The template with its two names; or why it is none.
    compiled: std::result::Result<Environment<'static>, String>,
    marks: bool,
}

/// What a template makes of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Bytes of the text that are inside `{% generation %}`, ascending; empty for a template without it.
    pub generated: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// The template that lies beside `tokenizer`. Errors ([`Exit::Data`]): there is none, or several of which none is the
    /// default.
    pub fn of(tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let files = tokenizer.files();
        let content = |name: &str| files.iter().find(|(n, _)| n == name).map(|(_, c)| String::from_utf8_lossy(c));
        if let Some(source) = content(FILE) {
            return Ok(ChatTemplate::new(source.into_owned(), names(tokenizer), FILE));
        }
        let config = content(CONFIGS[0]).and_then(|c| serde_json::from_str::<Value>(&c).ok()).unwrap_or_default();
        match default(&config["chat_template"])? {
            Some(source) => Ok(ChatTemplate::new(source.into(), names(tokenizer), CONFIGS[0])),
            None => Err(Error::new(Exit::Data, format!("tokenizer {} has no chat template", tokenizer.place())).hint(
                "put the model's chat_template.jinja beside it; or write the turns out in --prompt, with --special-tokens",
            )),
        }
    }

    /// The template in `file`, with the token names of `tokenizer`.
    pub fn read(file: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let source = std::fs::read_to_string(file).map_err(|e| Error::io(file, "read the template", &e, Exit::Data))?;
        Ok(ChatTemplate::new(source, names(tokenizer), &file.display().to_string()))
    }

    fn new(source: String, names: Map<String, Value>, file: &str) -> ChatTemplate {
        let (marked, marks) = jinja::generation_blocks(&source, true);
        let compile = || {
            let mut env = jinja::environment();
            env.add_template_owned(PLAIN, jinja::generation_blocks(&source, false).0)?;
            env.add_template_owned(MARKED, marked)?;
            Ok(env)
        };
        let compiled = compile().map_err(|e: minijinja::Error| e.to_string().replace('\n', " "));
        ChatTemplate { compiled, source, names, file: file.into(), marks }
    }

    /// The file that the template is from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Whether it says itself, by `{% generation %}`, what the model writes.
    pub fn marks(&self) -> bool {
        self.marks
    }

    /// The same template on another day: what it writes of the date is that of `when`.
    pub fn at(mut self, when: jiff::Zoned) -> ChatTemplate {
        if let Ok(env) = &mut self.compiled {
            env.add_function("strftime_now", move |format: String| when.strftime(&format).to_string());
        }
        self
    }

    /// Whether what it writes depends on the day.
    pub fn tells_the_date(&self) -> bool {
        self.source.contains("strftime_now")
    }

    /// xxh3-128 of its source, 32 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        format!("{:032x}", xxh3_128(self.source.as_bytes()))
    }

    /// Whether the template writes `text` out itself.
    pub fn spells(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// The text of a conversation (each message an object with `role` and `content`), up to where the model's turn begins.
    ///
    /// Errors ([`Exit::Data`]): the template is none, or refuses the messages.
    pub fn render(&self, messages: &[Value]) -> Result<String> {
        // As transformers: a key without a value is no key.
        let given = |m: &Value| -> Value {
            let all = m.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null());
            Value::Object(all.map(|(k, v)| (k.clone(), v.clone())).collect())
        };
        let messages: Vec<Value> = messages.iter().map(given).collect();
        self.write(PLAIN, &messages, &Value::Null, true)
    }

    /// The whole text of a conversation, or with `prompt` up to where the model's next turn begins.
    ///
    /// Errors ([`Exit::Data`]): as [`ChatTemplate::render`].
    pub fn whole(&self, messages: &[Value], tools: &Value, prompt: bool) -> Result<String> {
        self.write(PLAIN, messages, tools, prompt)
    }

    /// The whole text, and what of it is inside `{% generation %}`.
    ///
    /// Errors ([`Exit::Data`]): as [`ChatTemplate::render`], and where the messages hold a character that stands for the marks.
    pub fn marked(&self, messages: &[Value], tools: &Value) -> Result<Rendered> {
        let marked = self.write(MARKED, messages, tools, false)?;
        unmark(&marked).ok_or_else(|| {
            Error::new(Exit::Data, "a message holds U+FDD0 or U+FDD1, which Unicode keeps out of texts")
                .hint("take it out; or cut it off what {% generation %} marks")
        })
    }

    fn write(&self, name: &str, messages: &[Value], tools: &Value, prompt: bool) -> Result<String> {
        let failed = |what: &str, why: String| Error::new(Exit::Data, format!("{what} ({}): {why}", self.file));
        let refused =
            |e: minijinja::Error| failed("the chat template refuses the messages", e.to_string().replace('\n', " "));
        let env = self.compiled.as_ref().map_err(|why| failed("the chat template cannot be used", why.clone()))?;
        let mut values = self.names.clone();
        values.insert("messages".into(), messages.into());
        values.insert("add_generation_prompt".into(), json!(prompt));
        values.insert("tools".into(), tools.clone());
        values.insert("documents".into(), Value::Null);
        let template = env.get_template(name).map_err(refused)?;
        let values: Jinja = serde_json::from_value(Value::Object(values))
            .map_err(|e| failed("the messages cannot be given to the chat template", e.to_string()))?;
        template.render(values).map_err(refused)
    }
}

/// `bos_token` and the like, as the files beside the tokenizer name them.
fn names(tokenizer: &Tokenizer) -> Map<String, Value> {
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
    names
}

/// Takes the marks out; `None` where they do not pair up, or are where no template put them.
fn unmark(marked: &str) -> Option<Rendered> {
    let (mut text, mut generated, mut depth, mut start) = (String::with_capacity(marked.len()), Vec::new(), 0, 0);
    for c in marked.chars() {
        match c {
            OPEN => {
                start = if depth == 0 { text.len() } else { start };
                depth += 1;
            }
            CLOSE => {
                depth = if depth > 0 { depth - 1 } else { return None };
                if depth == 0 {
                    generated.push(start..text.len());
                }
            }
            c => text.push(c),
        }
    }
    (depth == 0).then_some(Rendered { text, generated })
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chat(source: &str) -> ChatTemplate {
        let names = [("bos_token".to_string(), json!("<s>"))].into_iter().collect();
        ChatTemplate::new(source.into(), names, FILE)
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
    fn a_template_tells_the_date_that_it_is_given() {
        let t = chat("{{ strftime_now('%d %b %Y') }}");
        assert!(t.tells_the_date() && !chat("x").tells_the_date());
        let when: jiff::Zoned = "2024-07-26T23:59:00+00:00[UTC]".parse().unwrap();
        assert_eq!(t.at(when).render(&[]).unwrap(), "26 Jul 2024");
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

    /// White space around the tags is theirs, as for any block; blocks inside macros and filters are marked where they end up.
    #[test]
    fn generation_blocks_are_marked() {
        let of = |source: &str| {
            let r = chat(source).marked(&[json!({"role": "assistant", "content": " ä "})], &Value::Null).unwrap();
            r.generated.iter().map(|g| r.text[g.clone()].to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of("a {%- generation -%} b {% endgeneration %} c"), ["b "]);
        assert_eq!(
            of("{% for m in messages %}\n{% generation %}\n{{ m.content | trim }}\n{% endgeneration %}!{% endfor %}"),
            ["ä\n"]
        );
        assert_eq!(of("{% macro say(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}é{{ say(messages[0]) }}"), [" ä "]);
        assert_eq!(of("{% generation %}{% endgeneration %}{{ messages[0].content }}"), [""]);
        assert!(
            of("{{ messages[0].content }}").is_empty()
                && !chat("x").marks()
                && chat("{% generation %}x{% endgeneration %}").marks()
        );
        let odd = [json!({"role": "user", "content": "\u{fdd1}"})];
        assert!(chat("{{ messages[0].content }}").marked(&odd, &Value::Null).unwrap_err().fact.contains("U+FDD0"));
    }
}

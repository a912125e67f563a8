//! Texts of a form that was asked for: a grammar says at each place which tokens may come next (llguidance's parser and lexer over the
//! bytes of the model's tokens). What may not come is taken out before a token is chosen; scores stay those of the model.

use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result as HerdResult};
use crate::foreign::guarded;
use crate::threads::lock;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie, INVALID_TOKEN};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};
use xxhash_rust::xxh3::xxh3_128;

/// Bytes of a schema, an expression or all choices at most.
pub const GRAMMAR_BYTES: usize = 128 << 10;
/// Compiled grammars that are kept for the next request with the same.
const KEPT: usize = 32;
/// Space between the parts of JSON, as llama.cpp has it: a model that finds nothing to say must not write blanks for ever.
const SPACE: &str = r"(\x20|\x0A{1,2}[\x20\x09]{0,20})";
/// States of a grammar's automaton at most, for each text; about 2 kB each.
const STATES: usize = 30_000;

/// The form of a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Grammar {
    /// JSON that this JSON Schema admits.
    Json(Value),
    /// Text that this regular expression (Rust's syntax) matches from beginning to end.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl Grammar {
    /// Any JSON object.
    pub fn object() -> Grammar {
        Grammar::Json(json!({"type": "object"}))
    }

    fn size(&self) -> usize {
        match self {
            Grammar::Json(schema) => schema.to_string().len(),
            Grammar::Regex(text) => text.len(),
            Grammar::Choice(all) => all.iter().map(String::len).sum(),
        }
    }

    fn source(&self) -> TopLevelGrammar {
        TopLevelGrammar::from_grammar(match self {
            Grammar::Json(schema) => {
                let mut schema = if schema == &json!(true) { json!({}) } else { schema.clone() };
                if schema.is_object() {
                    // The library takes its options from the schema; those of whoever wrote it are not herd's to follow.
                    JsonCompileOptions { whitespace_pattern: Some(SPACE.into()), ..Default::default() }
                        .apply_to(&mut schema);
                }
                GrammarWithLexer::from_json_schema(schema)
            }
            Grammar::Regex(text) => GrammarWithLexer::from_regex(text),
            Grammar::Choice(all) => {
                let text = |s: &String| serde_json::to_string(s).unwrap_or_default();
                GrammarWithLexer::from_lark(format!("start: {}", all.iter().map(text).collect::<Vec<_>>().join(" | ")))
            }
        })
    }
}

/// The grammars of one model's tokens.
pub struct Grammars<'t> {
    tokenizer: &'t Tokenizer,
    vocab: usize,
    /// Made when the first grammar is asked for.
    factory: OnceLock<Result<ParserFactory, String>>,
    /// By the hash of what they were made of, the oldest first.
    made: Mutex<VecDeque<(u128, Matcher)>>,
}

impl<'t> Grammars<'t> {
    /// None is compiled yet; the model's vocabulary has `vocab` ids, of which the tokenizer knows all or the first.
    pub fn new(tokenizer: &'t Tokenizer, vocab: usize) -> Grammars<'t> {
        Grammars { tokenizer, vocab, factory: OnceLock::new(), made: Mutex::default() }
    }

    /// A guide of a text without a token yet. Errors, in a line: the grammar cannot be compiled, is too large, or admits no text of one
    /// token at least.
    pub fn guide(&self, grammar: &Grammar) -> Result<Guide, String> {
        if grammar.size() > GRAMMAR_BYTES {
            return Err(format!("it has {} bytes, at most {GRAMMAR_BYTES} are allowed", grammar.size()));
        }
        let bytes = serde_json::to_vec(grammar).map_err(|e| e.to_string())?;
        let key = xxh3_128(&bytes);
        let mut made = lock(&self.made);
        if let Some((_, matcher)) = made.iter().find(|(k, _)| *k == key) {
            return Ok(Guide { matcher: matcher.deep_clone() });
        }
        let matcher = guarded(|| self.compile(grammar)).map_err(|words| first_line(&words)).and_then(|made| made)?;
        let guide = Guide { matcher: matcher.deep_clone() };
        if made.len() == KEPT {
            made.pop_front();
        }
        made.push_back((key, matcher));
        Ok(guide)
    }

    /// The guide of a text that was asked for, if its form was; the form was compiled before.
    pub fn guide_of(&self, grammar: Option<&Grammar>) -> HerdResult<Option<Guide>> {
        let Some(grammar) = grammar else { return Ok(None) };
        self.guide(grammar)
            .map(Some)
            .map_err(|why| Error::new(Exit::Internal, format!("a grammar that was taken: {why}")))
    }

    fn compile(&self, grammar: &Grammar) -> Result<Matcher, String> {
        let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(String::clone)?;
        let parser = factory.create_parser(grammar.source()).map_err(|e| first_line(&e.to_string()))?;
        let mut matcher = Matcher::new(Ok(parser));
        let looked = matcher.consume_tokens(&[]).and_then(|()| matcher.compute_mask());
        match looked {
            _ if matcher.is_stopped() && !matcher.is_error() => Err("it admits the empty text alone".into()),
            Ok(_) => Ok(matcher),
            Err(e) => Err(first_line(&e.to_string())),
        }
    }

    fn factory(&self) -> Result<ParserFactory, String> {
        let mut words = self.tokenizer.pieces().map_err(|e| e.to_string())?;
        words.resize(self.vocab, vec![]);
        let info = TokRxInfo {
            vocab_size: self.vocab as u32,
            // Where a text may end the engine asks by itself: requests have ends of their own.
            tok_eos: INVALID_TOKEN,
            tok_bos: None,
            tok_pad: None,
            tok_unk: None,
            tok_end_of_turn: None,
        };
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| first_line(&e.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        (limits.verbose_errors, limits.max_lexer_states) = (false, STATES);
        Ok(factory)
    }
}

/// What a text may go on with.
pub struct Guide {
    matcher: Matcher,
}

impl Guide {
    /// Takes what may not come next out of logits [V]: it becomes −∞. Ids of `stop`, which end a text, may come where the text may end,
    /// and nowhere else. Errors, in a line: nothing may come, or the grammar takes more time or memory than it may.
    pub fn restrict(&mut self, stop: &[u32], logits: &mut [f32]) -> Result<(), String> {
        let (may_end, mask) = self.asked(|m| m.is_accepting().and_then(|end| Ok((end, m.compute_mask()?))))?;
        let ends: Vec<(usize, f32)> =
            stop.iter().map(|&id| id as usize).filter_map(|id| Some((id, *logits.get(id)?))).collect();
        for (id, logit) in logits.iter_mut().enumerate() {
            if !mask.get(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        ends.iter().for_each(|&(id, logit)| logits[id] = if may_end { logit } else { f32::NEG_INFINITY });
        match logits.iter().any(|x| x.is_finite()) {
            true => Ok(()),
            false => Err("no token may come next".into()),
        }
    }

    /// The text goes on with `id`, which may come; whether it is whole, and nothing may come behind it.
    pub fn accept(&mut self, id: u32) -> Result<bool, String> {
        self.asked(|m| m.consume_token(id).map(|()| m.is_stopped()))
    }

    /// How many of `ids`, one after another, may come next.
    pub fn admits(&mut self, ids: &[u32]) -> Result<usize, String> {
        self.asked(|m| m.validate_tokens(ids))
    }

    fn asked<T, E: std::fmt::Display>(&mut self, ask: impl FnOnce(&mut Matcher) -> Result<T, E>) -> Result<T, String> {
        let matcher = &mut self.matcher;
        guarded(|| ask(matcher).map_err(|e| first_line(&e.to_string()))).unwrap_or_else(|words| Err(first_line(&words)))
    }
}

fn first_line(words: &str) -> String {
    let line = words.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("no reason is given");
    line.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokenizer `bytes` with a few longer tokens, which cross the borders of what a grammar asks for.
    fn tokenizer(dir: &std::path::Path) -> Tokenizer {
        let files = Tokenizer::open("bytes").unwrap().files();
        let mut json: Value = serde_json::from_slice(&files[0].1).unwrap();
        for (i, piece) in ["{\"", "\":", "\"}", "true", "12", "],", "Ġ\"", "\",\"", "}}", "ĊĊ"].iter().enumerate() {
            json["model"]["vocab"][*piece] = json!(258 + i);
        }
        let path = dir.join("tokenizer.json");
        std::fs::write(&path, json.to_string()).unwrap();
        Tokenizer::open(&path.to_string_lossy()).unwrap()
    }

    const VOCAB: usize = 270;
    const END: u32 = 257;

    /// Texts that a grammar lets through, each with whether it is whole; tokens are drawn among all that may come.
    fn walks(grammars: &Grammars, grammar: &Grammar, n: u64) -> Vec<(String, bool)> {
        let pieces = grammars.tokenizer.pieces().unwrap();
        let walk = |seed: u64| {
            let mut guide = grammars.guide(grammar).unwrap();
            let (mut bytes, mut state) = (Vec::new(), seed * 77 + 1);
            for _ in 0..300 {
                let mut logits: Vec<f32> = (0..VOCAB)
                    .map(|_| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        (state >> 40) as f32
                    })
                    .collect();
                let before = logits.clone();
                guide.restrict(&[END], &mut logits).unwrap();
                assert!(logits.iter().zip(&before).all(|(a, b)| a == b || *a == f32::NEG_INFINITY));
                // An end is taken half of the times that it may come.
                let end = logits[END as usize].is_finite() && state % 2 == 0;
                logits[END as usize] = if end { f32::INFINITY } else { f32::NEG_INFINITY };
                let id = (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
                if id == END || !logits[id as usize].is_finite() {
                    return (bytes, true);
                }
                assert_eq!(guide.admits(&[id, 256]).unwrap(), 1, "special tokens never come");
                bytes.extend(&pieces[id as usize]);
                if guide.accept(id).unwrap() {
                    return (bytes, true);
                }
            }
            (bytes, false)
        };
        (0..n).map(walk).map(|(bytes, whole)| (String::from_utf8_lossy(&bytes).into_owned(), whole)).collect()
    }

    /// JSON; none where it has a number that no float holds, which JSON allows.
    fn parsed(text: &str) -> Option<Value> {
        match serde_json::from_str(text) {
            Ok(value) => Some(value),
            Err(e) if e.to_string().contains("out of range") => None,
            Err(e) => panic!("{e}: {text}"),
        }
    }

    fn schemas() -> Vec<Value> {
        let text = json!({"type": "string", "maxLength": 6});
        let object = |properties: Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
        let tree = object(
            json!({"left": {"anyOf": [{"$ref": "#/$defs/t"}, {"type": "null"}]}, "n": {"type": "integer"}}),
            &["left"],
        );
        vec![
            object(json!({"name": text, "age": {"type": "integer", "minimum": 0, "maximum": 130}}), &["name", "age"]),
            object(json!({"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"enum": ["x", 3, null]}}), &["c"]),
            json!({"type": "array", "items": {"type": "number", "minimum": -1.5, "maximum": 2.25}, "minItems": 1, "maxItems": 4}),
            json!({"anyOf": [{"const": {"k": [1, "é\n\"\\"]}}, {"type": "string", "pattern": "^[a-c]{2,4}$"}]}),
            json!({"$ref": "#/$defs/t", "$defs": {"t": tree}}),
            object(
                json!({"when": {"type": "string", "format": "date"}, "id": {"type": "string", "format": "uuid"}}),
                &["when", "id"],
            ),
            object(
                json!({"rows": {"type": "array", "maxItems": 3, "items": object(json!({"k": text}), &["k"])}}),
                &["rows"],
            ),
            json!({"type": ["string", "null"], "maxLength": 3}),
            json!({"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2}),
            json!({}),
            json!(true),
        ]
    }

    #[test]
    fn whole_texts_have_the_form_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = tokenizer(dir.path());
        let grammars = Grammars::new(&tokenizer, VOCAB);
        let mut whole = 0;
        for schema in schemas() {
            let valid = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
            for (text, done) in walks(&grammars, &Grammar::Json(schema.clone()), 40) {
                if done {
                    let value = parsed(&text);
                    assert!(value.is_none_or(|value| valid.is_valid(&value)), "{schema}: {text}");
                    whole += 1;
                }
            }
        }
        assert!(whole > 250, "{whole} texts came to their end");
        for (text, done) in walks(&grammars, &Grammar::object(), 40) {
            assert!(!done || parsed(&text).is_none_or(|value| value.is_object()), "{text}");
        }
        for pattern in ["[a-z]{3,5}(-[0-9]+)?", "(yes|no)\\.", "\\d{4}/\\d\\d", "é+|\u{1f980}", "a*b"] {
            let exact = regex_automata::meta::Regex::new(&format!("^(?:{pattern})$")).unwrap();
            let all = walks(&grammars, &Grammar::Regex(pattern.into()), 30);
            assert!(all.iter().filter(|w| w.1).count() > 10, "{pattern}");
            all.iter().filter(|w| w.1).for_each(|(text, _)| assert!(exact.is_match(text), "{pattern}: {text}"));
        }
        let choices =
            ["yes", "yes, sure", "a \"b\"\n\\ /c/", "é\u{1f980}", "<|end_of_text|>", "\u{1}"].map(String::from);
        let got = walks(&grammars, &Grammar::Choice(choices.to_vec()), 200);
        assert!(got.iter().all(|(text, done)| *done && choices.contains(text)), "{got:?}");
        assert!(choices.iter().all(|c| got.iter().any(|g| g.0 == *c)), "each of them may come");
    }

    #[test]
    fn what_cannot_be_compiled_is_said_in_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = tokenizer(dir.path());
        let grammars = Grammars::new(&tokenizer, VOCAB);
        let json = |v: Value| Grammar::Json(v);
        let deep = (0..100).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
        assert!(grammars.guide(&json(deep)).is_ok());
        // States are made as they are needed: what is large is not large at once.
        assert!(grammars.guide(&Grammar::Regex("(x{1000}){1000}{1000}".into())).is_ok());
        let wide: serde_json::Map<String, Value> =
            (0..9000).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect();
        for grammar in [
            json(json!({"type": "nothing"})),
            json(json!({"type": "object", "properties": 3})),
            json(json!({"$ref": "http://example.com/schema"})),
            json(json!({"$ref": "#/$defs/absent"})),
            json(json!({"type": "string", "pattern": "("})),
            json(json!({"type": "string", "pattern": "(?=a)b"})),
            json(json!({"type": "integer", "minimum": 3, "maximum": 2})),
            json(json!({"if": {"type": "string"}, "then": {"minLength": 3}})),
            json(json!({"type": "object", "properties": wide, "x": "y".repeat(GRAMMAR_BYTES)})),
            json(json!(false)),
            Grammar::Regex("(".into()),
            Grammar::Regex("".into()),
            Grammar::Regex("a(?=b)".into()),
            Grammar::Regex("x".repeat(GRAMMAR_BYTES + 1)),
        ] {
            let words = format!("{grammar:?}").chars().take(200).collect::<String>();
            let why = grammars.guide(&grammar).err().unwrap_or_else(|| panic!("{words}"));
            assert!(!why.is_empty() && why.len() <= 400 && !why.contains('\n'), "{words}: {why}");
        }
        // The options of the library are not for whoever writes a schema.
        let lenient = json!({"x-guidance": {"lenient": true}, "if": {"type": "string"}, "then": {"minLength": 3}});
        assert!(grammars.guide(&json(lenient)).is_err());
    }
}

//! Byte-level BPE, word by word: a text is cut into words by the tokenizer's own patterns, and the ids of words that were met before
//! are looked up. Words that were not go through the tokenizer's library, which cuts a word no further: the only ids are its.
//!
//! Taken are the patterns of GPT-2 and Llama 3 ([`GPT2`], [`LLAMA3`]) and cuts around digits; a tokenizer that does anything else to a
//! text (a normalizer, tokens that may come from text, other patterns) is left to its library ([`WordEncoder::of`]).

use crate::error::Result;
use crate::threads::lock;
use ahash::AHashMap;
use regex_automata::meta::{Cache, Config, Regex};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Mutex;

/// How GPT-2 cuts text into words, which the `ByteLevel` of a tokenizer.json does by itself.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// How Llama 3 does (its published split pattern).
pub const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How both patterns end: of a run of space all but the last character, unless the text ends there. Automata have no look-ahead.
const ENDING: &str = r"|\s+(?!\S)|\s+";
/// Words that a cache holds at most, and bytes of one of them: some tens of megabytes a thread.
const WORDS: usize = 1 << 18;
const WORD_BYTES: usize = 64;
/// For the states of a pattern's automaton; the default of 2 MiB is too little for text in many scripts.
const STATES: usize = 16 << 20;

/// Ids by words, for one tokenizer.
pub struct WordEncoder {
    cuts: Vec<Cut>,
    /// What a thread works with, handed back after each text.
    desks: Mutex<Vec<Desk>>,
}

/// What decides; vocabulary and merges are read past.
#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: TokenizerModel,
}

#[derive(Deserialize)]
struct TokenizerModel {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    dropout: Option<f64>,
}

enum Cut {
    /// The pattern without its ending, and runs of space as a pattern of their own.
    Words(Regex),
    /// Each digit alone, or runs of them.
    Digits { each: bool },
}

struct Desk {
    known: AHashMap<Box<str>, Box<[u32]>>,
    /// One for each cut.
    caches: Vec<Option<Cache>>,
}

impl WordEncoder {
    /// For a tokenizer.json, and whether only special tokens were added to its vocabulary, whose names in a text are text.
    pub fn of(json: &[u8], only_special: bool) -> Option<WordEncoder> {
        let file: TokenizerFile = serde_json::from_slice(json).ok()?;
        let model = &file.model;
        let plain = file.normalizer.is_null() && model.kind == "BPE" && model.dropout.unwrap_or(0.0) == 0.0;
        let cuts = cuts(&file.pre_tokenizer)?;
        (plain && only_special).then(|| WordEncoder::new(cuts))
    }

    /// For Llama 3's pattern alone.
    pub fn llama3() -> Option<WordEncoder> {
        Some(WordEncoder::new(vec![words(LLAMA3)?]))
    }

    fn new(cuts: Vec<Cut>) -> WordEncoder {
        WordEncoder { cuts, desks: Mutex::default() }
    }

    /// Ids of `text`; `new_word` gives those of a word that was not met before.
    pub fn encode(&self, text: &str, mut new_word: impl FnMut(&str) -> Result<Vec<u32>>) -> Result<Vec<u32>> {
        let desk = lock(&self.desks).pop();
        let mut desk = desk.unwrap_or_else(|| self.desk());
        let mut ids = Vec::with_capacity(text.len() / 3);
        let Desk { known, caches } = &mut desk;
        let done = cut(&self.cuts, caches, text, &mut |word| {
            if let Some(some) = known.get(word) {
                ids.extend_from_slice(some);
                return Ok(());
            }
            let some = new_word(word)?;
            ids.extend_from_slice(&some);
            if word.len() <= WORD_BYTES {
                if known.len() >= WORDS {
                    known.clear();
                }
                known.insert(word.into(), some.into());
            }
            Ok(())
        });
        lock(&self.desks).push(desk);
        done.map(|()| ids)
    }

    fn desk(&self) -> Desk {
        let cache = |cut: &Cut| match cut {
            Cut::Words(pattern) => Some(pattern.create_cache()),
            Cut::Digits { .. } => None,
        };
        Desk { known: AHashMap::new(), caches: self.cuts.iter().map(cache).collect() }
    }
}

/// The cuts of a tokenizer.json's `pre_tokenizer`, if all are known: the last one maps bytes to characters.
fn cuts(pre: &Value) -> Option<Vec<Cut>> {
    let parts = match pre["pretokenizers"].as_array() {
        Some(parts) if pre["type"] == "Sequence" => &parts[..],
        _ => std::slice::from_ref(pre),
    };
    let (bytes, before) = parts.split_last()?;
    if bytes["type"] != "ByteLevel" || bytes["add_prefix_space"] != false {
        return None;
    }
    let own = match bytes["use_regex"].as_bool().unwrap_or(true) {
        true => Some(words(GPT2)?),
        false => None,
    };
    before.iter().map(one).chain(own.map(Some)).collect()
}

fn one(part: &Value) -> Option<Cut> {
    match part["type"].as_str()? {
        "Digits" => Some(Cut::Digits { each: part["individual_digits"].as_bool()? }),
        "Split" if part["behavior"] == "Isolated" && part["invert"] == false => {
            words(part["pattern"]["Regex"].as_str()?)
        }
        _ => None,
    }
}

/// One of the patterns that are known to match at every place of every text, so that each match begins where the last one ended.
fn words(pattern: &str) -> Option<Cut> {
    let head = [GPT2, LLAMA3].contains(&pattern).then(|| pattern.strip_suffix(ENDING))??;
    let config = Config::new().hybrid_cache_capacity(STATES);
    let both = Regex::builder().configure(config).syntax(syntax::Config::new()).build_many(&[head, r"\s+"]);
    both.ok().map(Cut::Words)
}

/// Calls `word` with the pieces of `text` after all cuts.
fn cut(cuts: &[Cut], caches: &mut [Option<Cache>], text: &str, word: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let (Some((first, rest)), Some((cache, caches))) = (cuts.split_first(), caches.split_first_mut()) else {
        return if text.is_empty() { Ok(()) } else { word(text) };
    };
    let mut at = 0;
    while at < text.len() {
        let end = match (first, &mut *cache) {
            (Cut::Words(pattern), Some(cache)) => at + word_length(pattern, cache, &text[at..]),
            (Cut::Digits { each }, _) => at + digits_length(*each, &text[at..]),
            (Cut::Words(_), None) => text.len(),
        };
        cut(rest, caches, &text[at..end], word)?;
        at = end;
    }
    Ok(())
}

/// Bytes of the word that `text` begins with.
fn word_length(pattern: &Regex, cache: &mut Cache, text: &str) -> usize {
    let input = Input::new(text).anchored(Anchored::Yes);
    let Some(found) = pattern.search_with(cache, &input) else { return text.len() };
    let end = found.end();
    if found.pattern().as_usize() == 0 || end == text.len() {
        return end;
    }
    // the last character of a run of space goes to the word behind it, unless it is alone
    let last = text[..end].char_indices().next_back().map_or(0, |(at, _)| at);
    if last > 0 {
        last
    } else {
        end
    }
}

/// Bytes of the digit, the digits or the rest that `text` begins with, as the library's `Digits` takes them.
fn digits_length(each: bool, text: &str) -> usize {
    let mut chars = text.char_indices();
    let digit = chars.next().is_some_and(|(_, c)| c.is_numeric());
    let end = |other: bool| move |&(_, c): &(usize, char)| c.is_numeric() == other;
    let found = if digit && each { chars.next() } else { chars.find(end(!digit)) };
    found.map_or(text.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(pattern: &str, text: &str) -> Vec<String> {
        let words = WordEncoder::new(vec![words(pattern).unwrap()]);
        let mut all = Vec::new();
        let mut take = |word: &str| {
            all.push(word.to_string());
            Ok(())
        };
        cut(&words.cuts, &mut words.desk().caches, text, &mut take).unwrap();
        all
    }

    #[test]
    fn words_are_cut_as_the_patterns_say() {
        assert_eq!(pieces(LLAMA3, "It's  12345\n\n x \t"), ["It", "'s", " ", " ", "123", "45", "\n\n", " x", " \t"]);
        assert_eq!(pieces(GPT2, "a  b1 \u{3000}c"), ["a", " ", " b", "1", " ", "\u{3000}", "c"]);
        assert!(words(r"\w+").is_none());
    }

    #[test]
    fn digits_are_cut_alone_or_together() {
        assert_eq!([digits_length(true, "12a"), digits_length(false, "12a"), digits_length(true, "a1")], [1, 2, 1]);
        assert_eq!([digits_length(false, "ab"), digits_length(true, "٣"), digits_length(false, "9")], [2, 2, 1]);
    }

    #[test]
    fn a_word_is_made_once() {
        let words = WordEncoder::llama3().unwrap();
        let mut made = 0;
        let ids = words.encode("a a a b a", |w| {
            made += 1;
            Ok(vec![w.len() as u32])
        });
        assert_eq!((ids.unwrap(), made), (vec![1, 2, 2, 2, 2], 3));
    }
}

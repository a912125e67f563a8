//! A tiktoken `tokenizer.model` as Llama 3 ships it: one token a line, base64, a space, its rank (= id). The 256 special
//! tokens follow the highest rank, named as in Llama 3.1's own tokenizer.json.

use super::words::{WordEncoder, LLAMA3};
use super::{beside, NamedFile};
use crate::error::{Error, Exit, Result};
use base64::{engine::general_purpose::STANDARD, Engine};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use tiktoken_rs::CoreBPE;

const SPECIALS: u32 = 256;
/// Llama 3 encodes at most this many characters at once, and cuts runs without a change between space and non-space at
/// [`MAX_RUN`]: it keeps the pattern's backtracking bounded, and the ids of long runs depend on it.
const MAX_CHARS: usize = 400_000;
const MAX_RUN: usize = 25_000;

pub struct Tiktoken {
    bpe: CoreBPE,
    words: Option<WordEncoder>,
    base: u32,
    files: Vec<NamedFile>,
}

/// Names of the special tokens, in the order of their ids.
pub fn special_names() -> Vec<String> {
    let mut names: Vec<String> =
        ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"]
            .iter()
            .chain(&["finetune_right_pad_id", "reserved_special_token_2", "start_header_id", "end_header_id", "eom_id"])
            .chain(&["eot_id", "python_tag"])
            .map(|n| format!("<|{n}|>"))
            .collect();
    let named = names.len() as u32;
    names.extend((0..SPECIALS - named).map(|i| format!("<|reserved_special_token_{}|>", i + 3)));
    names
}

impl Tiktoken {
    pub fn open(path: &Path, content: Vec<u8>) -> Result<Tiktoken> {
        let ranks = parse(path, &content)?;
        let base = ranks.len() as u32;
        let specials = special_names().into_iter().zip(base..).collect();
        let bpe = CoreBPE::new(ranks.into_iter().collect(), specials, LLAMA3)
            .map_err(|e| Error::new(Exit::Internal, format!("the Llama 3 split pattern does not compile: {e}")))?;
        let mut files = beside(path, &["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"])?;
        files.insert(0, ("tokenizer.model".into(), content));
        Ok(Tiktoken { bpe, words: WordEncoder::llama3(), base, files })
    }

    pub fn vocab_size(&self) -> usize {
        (self.base + SPECIALS) as usize
    }

    pub fn bos(&self) -> u32 {
        self.base
    }

    pub fn eos(&self) -> u32 {
        self.base + 1
    }

    /// Ids of `<|eom_id|>` and `<|eot_id|>`.
    pub fn ends_of_turns(&self) -> [u32; 2] {
        [self.base + 8, self.base + 9]
    }

    pub fn files(&self) -> Vec<NamedFile> {
        self.files.clone()
    }

    /// The files that lie beside it.
    pub fn beside(&self) -> &[NamedFile] {
        &self.files[1..]
    }

    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let Some(words) = &self.words else { return self.encode_allowing(text, &HashSet::new()) };
        let mut ids = Vec::with_capacity(text.len() / 3);
        for piece in pieces(text) {
            ids.extend(words.encode(piece, |word| Ok(self.bpe.encode_ordinary(word)))?);
        }
        Ok(ids)
    }

    /// As [`Tiktoken::encode`], but the name of a special token is the token.
    pub fn encode_special(&self, text: &str) -> Result<Vec<u32>> {
        let names = special_names();
        self.encode_allowing(text, &names.iter().map(String::as_str).collect())
    }

    /// As [`Tiktoken::encode_special`], each with its bytes of `text`.
    pub fn encode_places(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let mut at = 0;
        let place = |id: u32| {
            let start = at;
            at += self.bpe.decode_bytes(&[id]).map_or(0, |b| b.len());
            (id, start..at)
        };
        Ok(self.encode_special(text)?.into_iter().map(place).collect())
    }

    pub fn is_special(&self, id: u32) -> bool {
        (self.base..self.base + SPECIALS).contains(&id)
    }

    fn encode_allowing(&self, text: &str, special: &HashSet<&str>) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        for piece in pieces(text) {
            let (some, _) = self
                .bpe
                .encode(piece, special)
                .map_err(|e| Error::new(Exit::Data, format!("cannot encode a text: {}", e.message)))?;
            ids.extend(some);
        }
        Ok(ids)
    }

    pub fn special(&self, name: &str) -> Option<u32> {
        special_names().iter().position(|n| n == name).map(|i| self.base + i as u32)
    }

    /// Of each id its bytes; none of special tokens.
    pub fn pieces(&self) -> Vec<Vec<u8>> {
        let piece =
            |id: u32| if self.is_special(id) { vec![] } else { self.bpe.decode_bytes(&[id]).unwrap_or_default() };
        (0..self.base + SPECIALS).map(piece).collect()
    }

    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            match self.bpe.decode_bytes(&[id]) {
                Ok(b) => bytes.extend(b),
                Err(_) => bytes.extend_from_slice("\u{fffd}".as_bytes()),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Reads the lines; every rank from 0 up exactly once, every single byte present (else some text could not be encoded).
fn parse(path: &Path, content: &[u8]) -> Result<HashMap<Vec<u8>, u32>> {
    let bad = |line: usize, what: String| {
        Error::new(Exit::Data, format!("{}:{line}: {what}", path.display()))
            .hint("a tiktoken tokenizer.model has one token a line: base64, a space, its rank")
    };
    let mut ranks = HashMap::new();
    let mut lines_of = HashMap::new();
    for (i, line) in content.split(|&b| b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let text = std::str::from_utf8(line).map_err(|_| bad(i + 1, "not text".into()))?;
        let (token, rank) = text.split_once(' ').ok_or_else(|| bad(i + 1, "no space in the line".into()))?;
        let token = STANDARD.decode(token).map_err(|e| bad(i + 1, format!("token is not base64: {e}")))?;
        let rank: u32 = rank.trim().parse().map_err(|_| bad(i + 1, format!("rank `{rank}` is not a number")))?;
        if token.is_empty() {
            return Err(bad(i + 1, "empty token".into()));
        }
        if let Some(first) = lines_of.insert(rank, i + 1) {
            return Err(bad(i + 1, format!("rank {rank} was given on line {first} already")));
        }
        if ranks.insert(token, rank).is_some() {
            return Err(bad(i + 1, "token was given before".into()));
        }
    }
    let whole = |fact: String| Err(Error::new(Exit::Data, format!("{}: {fact}", path.display())));
    if ranks.len() > (u32::MAX - SPECIALS) as usize {
        return whole(format!("{} tokens; ids are 32 bits", ranks.len()));
    }
    if let Some(gap) = (0..ranks.len() as u32).find(|r| !lines_of.contains_key(r)) {
        return whole(format!("{} tokens, but none has rank {gap}", ranks.len()));
    }
    if let Some(b) = (0..=255u8).find(|&b| !ranks.contains_key(&[b][..])) {
        return whole(format!("no token for the single byte 0x{b:02x}, so not every text can be encoded"));
    }
    Ok(ranks)
}

/// Cuts `text` as Llama 3's own tokenizer does: into [`MAX_CHARS`] characters, and those where a run of only space or only
/// non-space grows past [`MAX_RUN`].
fn pieces(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut chars, mut run, mut run_is_space) = (0, 0, 0, false);
    for (at, c) in text.char_indices() {
        if chars == MAX_CHARS {
            out.push(&text[start..at]);
            (start, chars, run) = (at, 0, 0);
        }
        // Python's str.isspace also counts the four ASCII separators, which char::is_whitespace does not.
        let is_space = c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
        if run > 0 && is_space == run_is_space {
            run += 1;
            if run > MAX_RUN {
                out.push(&text[start..at]);
                (start, run) = (at, 1);
            }
        } else {
            (run, run_is_space) = (1, is_space);
        }
        chars += 1;
    }
    if start < text.len() {
        out.push(&text[start..]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_are_those_of_llama_3_1() {
        let names = special_names();
        assert_eq!(names.len(), 256);
        assert_eq!(names[0], "<|begin_of_text|>");
        assert_eq!(names[1], "<|end_of_text|>");
        assert_eq!((&names[8][..], &names[9][..]), ("<|eom_id|>", "<|eot_id|>"));
        assert_eq!(names[255], "<|reserved_special_token_247|>");
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), 256);
    }

    #[test]
    fn pieces_join_to_the_text_and_keep_their_limits() {
        let text = format!("{}{}{}ab", "é".repeat(60_000), " ".repeat(30_000), "x y ".repeat(200_000));
        let cut = pieces(&text);
        assert_eq!(cut.concat(), text);
        assert_eq!(cut[0].chars().count(), 25_000);
        assert!(cut.iter().all(|p| p.chars().count() <= MAX_CHARS));
        assert!(pieces("").is_empty());
        assert_eq!(pieces("short text"), ["short text"]);
    }
}

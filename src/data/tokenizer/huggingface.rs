//! A Hugging Face `tokenizer.json`, by the `tokenizers` crate. Which token begins and ends a text the file itself does not
//! say: `tokenizer_config.json` or `special_tokens_map.json` beside it do, else the usual names are looked for.

use super::words::WordEncoder;
use super::{beside, NamedFile};
use crate::error::{Error, Exit, Result};
use crate::foreign::guarded;
use serde_json::Value;
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use tokenizers::{Encoding, PostProcessor, Token};

const BOS_NAMES: &[&str] = &["<|begin_of_text|>", "<s>", "<|startoftext|>", "<bos>"];
const EOS_NAMES: &[&str] = &["<|end_of_text|>", "</s>", "<|endoftext|>", "<eos>"];
const COMPANIONS: &[&str] = &["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

pub struct HuggingFace {
    inner: tokenizers::Tokenizer,
    /// Where it is plain byte-level BPE.
    words: Option<WordEncoder>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub files: Vec<NamedFile>,
    /// What the post-processor puts before a text, and behind it.
    pub front: Vec<u32>,
    pub behind: Vec<u32>,
    /// The same tokenizer, which takes the names of special tokens for the tokens. Made when it is first asked for.
    special: OnceLock<tokenizers::Tokenizer>,
    /// Ids of its special tokens.
    specials: HashSet<u32>,
}

impl HuggingFace {
    pub fn open(path: &Path, content: Vec<u8>) -> Result<HuggingFace> {
        let made = guarded(|| tokenizers::Tokenizer::from_bytes(&content)).map_err(panicked);
        let mut inner = made.and_then(|t| t.map_err(|e| e.to_string())).map_err(|e| {
            Error::new(Exit::Data, format!("{} is not a tokenizer.json: {e}", path.display()))
                .hint("it is the file that transformers' save_pretrained writes")
        })?;
        inner.set_encode_special_tokens(true);
        // A tokenizer.json may carry settings for batches of fixed length, which would cut or pad documents.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| Error::new(Exit::Data, format!("{}: cannot turn truncation off: {e}", path.display())))?;
        let mut files = beside(path, COMPANIONS)?;
        let bos = special(&inner, &files, "bos_token", BOS_NAMES);
        let eos = special(&inner, &files, "eos_token", EOS_NAMES);
        files.insert(0, ("tokenizer.json".into(), content));
        let (front, behind) = around(&inner, path)?;
        let only_special = inner.get_added_tokens_decoder().values().all(|t| t.special);
        let words = WordEncoder::of(&files[0].1, only_special);
        let specials = inner.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(&id, _)| id).collect();
        Ok(HuggingFace { inner, words, bos, eos, files, front, behind, special: OnceLock::new(), specials })
    }

    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    pub fn special(&self, name: &str) -> Option<u32> {
        let added = self.inner.get_added_tokens_decoder();
        self.inner.token_to_id(name).filter(|id| added.get(id).is_some_and(|t| t.special))
    }

    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.words {
            Some(words) => words.encode(text, |word| encode(&self.inner, word)),
            None => encode(&self.inner, text),
        }
    }

    /// As [`HuggingFace::encode`], but the name of a special token is the token.
    pub fn encode_special(&self, text: &str) -> Result<Vec<u32>> {
        encode(self.with_names(), text)
    }

    /// As [`HuggingFace::encode_special`], each with the bytes of `text` that it came from.
    pub fn encode_places(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = guarded(|| self.with_names().encode(text, false)).map_err(panicked);
        let encoding = encoding.and_then(|e| e.map_err(|e| e.to_string()));
        let encoding = encoding.map_err(|e| Error::new(Exit::Data, format!("cannot encode a text: {e}")))?;
        Ok(encoding.get_ids().iter().copied().zip(encoding.get_offsets().iter().map(|&(a, b)| a..b)).collect())
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.specials.contains(&id)
    }

    fn with_names(&self) -> &tokenizers::Tokenizer {
        self.special.get_or_init(|| {
            let mut special = self.inner.clone();
            special.set_encode_special_tokens(false);
            special
        })
    }

    pub fn decode(&self, ids: &[u32]) -> String {
        // The crate drops unknown ids; they are cut out here so that the reader sees that something was there.
        let known = |id: &u32| self.inner.id_to_token(*id).is_some();
        let mut text = String::new();
        let mut rest = ids;
        while !rest.is_empty() {
            let run = rest.iter().take_while(|id| known(id)).count();
            let known = guarded(|| self.inner.decode(&rest[..run], false));
            text += &known.ok().and_then(|t| t.ok()).unwrap_or_else(|| "\u{fffd}".into());
            rest = &rest[run..];
            if let Some(after) = rest.get(1..) {
                text.push('\u{fffd}');
                rest = after;
            }
        }
        text
    }
}

/// The words for a panic inside the crate: what it was given made no sense.
fn panicked(words: String) -> String {
    format!("it makes the tokenizers library fail ({words})")
}

fn encode(t: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = guarded(|| t.encode_fast(text, false)).map_err(panicked);
    let encoding = encoding.and_then(|e| e.map_err(|e| e.to_string()));
    let encoding = encoding.map_err(|e| Error::new(Exit::Data, format!("cannot encode a text: {e}")))?;
    Ok(encoding.get_ids().to_vec())
}

/// What the post-processor makes of a text of one token that no vocabulary has.
fn around(t: &tokenizers::Tokenizer, path: &Path) -> Result<(Vec<u32>, Vec<u32>)> {
    let Some(processor) = t.get_post_processor() else { return Ok(Default::default()) };
    let text = Encoding::from_tokens(vec![Token::new(u32::MAX, "x".into(), (0, 1))], 0);
    let done = guarded(|| processor.process(text, None, true)).map_err(panicked);
    let done = done.and_then(|d| d.map_err(|e| e.to_string())).map_err(|e| {
        Error::new(Exit::Data, format!("{}: its post-processor cannot be used: {e}", path.display()))
            .hint("it says what stands in front of a text; mend it, or take it out")
    })?;
    let ids = done.get_ids();
    let at = ids.iter().position(|&id| id == u32::MAX).unwrap_or(ids.len());
    Ok((ids[..at].to_vec(), ids.get(at + 1..).unwrap_or_default().to_vec()))
}

/// The id of the token that a companion file calls `key`, else of the first of `usual` that exists.
fn special(t: &tokenizers::Tokenizer, files: &[NamedFile], key: &str, usual: &[&str]) -> Option<u32> {
    let named = files.iter().filter(|(file, _)| file.ends_with(".json")).find_map(|(_, content)| {
        let json: Value = serde_json::from_slice(content).ok()?;
        let v = json.get(key)?;
        let name = v.as_str().or_else(|| v.get("content")?.as_str())?;
        t.token_to_id(name)
    });
    named.or_else(|| usual.iter().find_map(|name| t.token_to_id(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The tokenizer of `tests::tiny_bpe` with another way to cut text.
    fn with_cuts(pre: &Value) -> HuggingFace {
        let dir = tempfile::tempdir().unwrap();
        let path = super::super::tests::tiny_bpe(dir.path());
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json["pre_tokenizer"] = pre.clone();
        HuggingFace::open(Path::new(&path), json.to_string().into_bytes()).unwrap()
    }

    /// Texts in which patterns may go different ways, with every `step`th character of Unicode in each role.
    fn nasty(step: usize) -> Vec<String> {
        let chars: Vec<char> = (0..0x110000).step_by(step).filter_map(char::from_u32).collect();
        let each = |c: &char| format!("a{c}b {c}{c} 1{c}\n {c}\t'{c}'S  {c}\r\n\n {c}");
        let mut texts: Vec<String> = chars.chunks(64).map(|some| some.iter().map(each).collect()).collect();
        texts.extend(
            [
                "",
                " ",
                "  ",
                "\n",
                "x  ",
                "  x",
                " \n x\n \n",
                "it's IT'S 'ſ 'llll don'T",
                "1234567890 ½²٣",
                "a\u{85}\u{a0}\u{3000} b",
            ]
            .map(String::from),
        );
        texts
    }

    #[test]
    fn words_give_the_librarys_ids() {
        let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let split = json!({"type": "Split", "pattern": {"Regex": super::super::words::LLAMA3}, "behavior": "Isolated", "invert": false});
        let digits = |each: bool| json!({"type": "Digits", "individual_digits": each});
        let all = |parts: &[Value]| json!({"type": "Sequence", "pretokenizers": parts});
        for pre in [
            bytes(true),
            all(&[split, bytes(false)]),
            all(&[digits(true), bytes(true)]),
            all(&[digits(false), bytes(true)]),
        ] {
            let t = with_cuts(&pre);
            assert!(t.words.is_some(), "{pre}");
            for text in nasty(23) {
                assert_eq!(t.encode(&text).unwrap(), encode(&t.inner, &text).unwrap(), "{pre}: {text:?}");
            }
        }
    }

    /// What the words do not know goes to the library.
    #[test]
    fn other_tokenizers_are_the_librarys() {
        let other = json!({"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated", "invert": false});
        for pre in [
            other,
            json!({"type": "Whitespace"}),
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true}),
        ] {
            assert!(with_cuts(&pre).words.is_none(), "{pre}");
        }
    }
}

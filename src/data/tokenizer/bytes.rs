//! The built-in tokenizer: ids 0..=255 are the bytes of UTF-8, 256 begins a text, 257 ends it. It needs no file, which is
//! what first runs and tests want.

use super::NamedFile;
use crate::error::{Error, Exit, Result};
use serde_json::{json, Map, Value};
use std::ops::Range;
use std::path::Path;

pub const BOS: u32 = 256;
pub const EOS: u32 = 257;
pub const VOCAB: usize = 258;
const BOS_NAME: &str = "<|begin_of_text|>";
const EOS_NAME: &str = "<|end_of_text|>";
const SPECIALS: [(&str, u32); 2] = [(BOS_NAME, BOS), (EOS_NAME, EOS)];

/// What the fingerprint is taken of. Changes only if an id changes its meaning.
pub const DEFINITION: &[u8] = b"herd bytes v1: 0..255 bytes, 256 bos, 257 eos";

pub fn encode(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// As [`encode`], but the name of a special token is the token.
pub fn encode_special(text: &str) -> Vec<u32> {
    let mut ids = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let named = SPECIALS.into_iter().find(|(name, _)| rest.starts_with(name));
        let length = named.map_or(first.len_utf8(), |(name, _)| name.len());
        match named {
            Some((_, id)) => ids.push(id),
            None => ids.extend(encode(&rest[..length])),
        }
        rest = &rest[length..];
    }
    ids
}

/// As [`encode_special`], each with the bytes of `text` that it is.
pub fn encode_places(text: &str) -> Vec<(u32, Range<usize>)> {
    let mut at = 0;
    let place = |id: u32| {
        let length = SPECIALS.iter().find(|(_, special)| *special == id).map_or(1, |(name, _)| name.len());
        at += length;
        (id, at - length..at)
    };
    encode_special(text).into_iter().map(place).collect()
}

pub fn decode(ids: &[u32]) -> String {
    let mut bytes = Vec::with_capacity(ids.len());
    for &id in ids {
        match id {
            0..=255 => bytes.push(id as u8),
            BOS => bytes.extend_from_slice(BOS_NAME.as_bytes()),
            EOS => bytes.extend_from_slice(EOS_NAME.as_bytes()),
            _ => bytes.extend_from_slice("\u{fffd}".as_bytes()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn special(name: &str) -> Option<u32> {
    SPECIALS.into_iter().find(|(n, _)| *n == name).map(|(_, id)| id)
}

/// Printable stand-in that byte-level BPE files use for each byte: printable Latin-1 stands for itself, the others take
/// the code points from U+0100 on, in order (the GPT-2 table).
pub fn stand_in(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return byte as char;
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or('\u{fffd}')
}

/// The same tokenizer as a byte-level BPE without merges, so that transformers loads it, and herd's note of the kind.
pub fn files() -> Vec<NamedFile> {
    let vocab: Map<String, Value> = (0..=255u8).map(|b| (stand_in(b).to_string(), json!(b))).collect();
    let special = |id: u32, name: &str| json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(BOS, BOS_NAME), special(EOS, EOS_NAME)],
        "normalizer": null,
        "pre_tokenizer": byte_level.clone(),
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []},
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_NAME,
        "eos_token": EOS_NAME,
        "clean_up_tokenization_spaces": false,
    });
    let note = json!({"kind": "bytes", "version": 1, "vocab_size": VOCAB, "bos": BOS, "eos": EOS});
    let text = |v: Value| format!("{v:#}\n").into_bytes();
    vec![
        ("tokenizer.json".into(), text(tokenizer)),
        ("tokenizer_config.json".into(), text(config)),
        ("herd_tokenizer.json".into(), text(note)),
    ]
}

/// Refuses a `herd_tokenizer.json` that names another kind than `bytes`.
pub fn check_note(path: &Path, content: &[u8]) -> Result<()> {
    let note: Value = serde_json::from_slice(content)
        .map_err(|e| Error::new(Exit::Data, format!("{} is not JSON: {e}", path.display())))?;
    if note["kind"] != "bytes" || note["version"] != 1 {
        let fact = format!("{} names kind {} version {}", path.display(), note["kind"], note["version"]);
        return Err(
            Error::new(Exit::Data, fact).hint("this herd knows kind \"bytes\" version 1; a newer herd wrote it")
        );
    }
    Ok(())
}

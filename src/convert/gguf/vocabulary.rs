//! The tokenizer in a GGUF file's metadata as the files that lie beside a Hugging Face model: `tokenizer.json`,
//! `tokenizer_config.json` with the chat template.
//!
//! The metadata has tokens and merges; how a text is cut before they apply it only names (`tokenizer.ggml.pre`). Those of Llama 3,
//! SmolLM and GPT-2 are known here (llama.cpp's src/llama-vocab.cpp); others are refused by name.

use super::header::{GgufHead, MetaValue};
use crate::checkpoint::SpecialTokens;
use crate::data::tokenizer::NamedFile;
use crate::error::{Error, Exit, Result};
use serde_json::{json, Map, Value};

/// Llama 3's cuts (its tokenizer.json).
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Kinds of tokens (ggml's docs/gguf.md).
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

/// Every id that begins, ends or pads a text.
pub fn special_tokens(head: &GgufHead) -> SpecialTokens {
    let id = |name: &str| head.count(&key(name)).and_then(|id| u32::try_from(id).ok());
    let mut eos = Vec::new();
    for id in ["eos_token_id", "eot_token_id", "eom_token_id"].iter().filter_map(|name| id(name)) {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    SpecialTokens { bos: id("bos_token_id"), eos, pad: id("padding_token_id") }
}

/// The files. Errors ([`Exit::Model`]): another kind of tokenizer, or lists that do not fit each other.
pub fn files(head: &GgufHead) -> Result<Vec<NamedFile>> {
    let kind = head.text(&key("model")).unwrap_or("missing");
    if kind != "gpt2" {
        let what = if kind == "llama" { "llama (SentencePiece)" } else { kind };
        return Err(wrong(format!("its tokenizer is {what}; herd takes gpt2 (byte-level BPE) only"))
            .hint("give the model's own tokenizer.json with --tokenizer"));
    }
    let tokens = head.texts(&key("tokens")).ok_or_else(|| wrong("tokenizer.ggml.tokens is no list of texts".into()))?;
    let merges = head.texts(&key("merges")).ok_or_else(|| wrong("tokenizer.ggml.merges is no list of texts".into()))?;
    let kinds: Vec<u64> = match head.list(&key("token_type")) {
        Some(all) => all
            .iter()
            .map(|v| match v {
                MetaValue::Unsigned(n) => *n,
                MetaValue::Signed(n) => *n as u64,
                _ => 1,
            })
            .collect(),
        None => vec![1; tokens.len()],
    };
    if kinds.len() != tokens.len() {
        return Err(wrong(format!("{} kinds for {} tokens", kinds.len(), tokens.len())));
    }
    let (pre, llama3) = pre_tokenizer(head.text(&key("pre")).unwrap_or("default"))?;
    let added: Vec<Value> = tokens
        .iter()
        .zip(&kinds)
        .enumerate()
        .filter(|(_, (_, &kind))| kind == CONTROL || kind == USER_DEFINED)
        .map(|(id, (token, &kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": kind == CONTROL})
        })
        .collect();
    let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(id, t)| (t.to_string(), json!(id))).collect();
    if vocab.len() != tokens.len() {
        return Err(wrong(format!("{} tokens have {} names", tokens.len(), vocab.len())));
    }
    let name = |id: &str| head.count(&key(id)).and_then(|id| tokens.get(id as usize).copied());
    let bos = name("bos_token_id").filter(|_| head.flag(&key("add_bos_token")).unwrap_or(llama3));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let post = match bos {
        Some(bos) => json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [head.count(&key("bos_token_id"))], "tokens": [bos]}}}),
        None => byte_level.clone(),
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": pre, "post_processor": post, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": llama3,
                  "vocab": vocab, "merges": merges},
    });
    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
    if let Some(length) = head.count("llama.context_length") {
        config["model_max_length"] = json!(length);
    }
    for (ours, theirs) in [
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
        ("pad_token", "padding_token_id"),
    ] {
        if let Some(name) = name(theirs) {
            config[ours] = json!(name);
        }
    }
    if let Some(template) = head.text("tokenizer.chat_template") {
        config["chat_template"] = json!(template);
    }
    let file = |name: &str, value: Value| (name.to_string(), format!("{value:#}\n").into_bytes());
    Ok(vec![file("tokenizer.json", tokenizer), file("tokenizer_config.json", config)])
}

/// How a text is cut, and whether it is Llama 3's way.
fn pre_tokenizer(name: &str) -> Result<(Value, bool)> {
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    Ok(match name {
        "llama-bpe" | "llama3" | "llama-v3" => {
            let split = json!({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": false});
            (json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]}), true)
        }
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}), false)
        }
        "gpt-2" => (bytes(true), false),
        other => {
            return Err(wrong(format!(
                "its tokenizer cuts texts by `{other}` (tokenizer.ggml.pre); herd knows llama-bpe, smollm and gpt-2"
            ))
            .hint("give the model's own tokenizer.json with --tokenizer"))
        }
    })
}

fn wrong(fact: String) -> Error {
    Error::new(Exit::Model, fact)
}

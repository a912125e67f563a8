//! What each token of a `tokenizer.json` is in a text, in bytes.

use super::bytes::stand_in;
use serde_json::Value;
use std::collections::HashMap;

/// The bytes of each of `vocab` ids; none for special tokens and for ids that no token has. Errors: a decoder whose tokens are no
/// fixed bytes, in words.
pub fn of(tokenizer_json: &[u8], vocab: usize) -> Result<Vec<Vec<u8>>, String> {
    let json: Value = serde_json::from_slice(tokenizer_json).map_err(|e| e.to_string())?;
    let decoder = &json["decoder"];
    let parts = match decoder["decoders"].as_array() {
        Some(parts) => parts.iter().collect(),
        None => vec![decoder],
    };
    let has = |kind: &str| parts.iter().any(|d| d["type"] == kind);
    let reads = match (has("ByteLevel"), has("ByteFallback")) {
        (true, _) => Reads::StandIns((0..=255u8).map(|b| (stand_in(b), b)).collect()),
        // SentencePiece's: a sign for space, and bytes by name.
        (_, true) => Reads::Fallback,
        _ => return Err(format!("its decoder is {}, neither ByteLevel nor ByteFallback", decoder["type"])),
    };
    let mut pieces = vec![vec![]; vocab];
    let mut put = |id: &Value, piece: Vec<u8>| {
        if let Some(place) = id.as_u64().and_then(|id| pieces.get_mut(id as usize)) {
            *place = piece;
        }
    };
    let names = json["model"]["vocab"].as_object().ok_or("its model has no vocabulary of names")?;
    for (name, id) in names {
        // A name that is no bytes is an added token's, which comes below, or never written.
        put(id, reads.piece(name).unwrap_or_default());
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let text = match added["special"].as_bool() {
            Some(false) => added["content"].as_str().unwrap_or_default(),
            _ => "",
        };
        put(&added["id"], text.as_bytes().to_vec());
    }
    Ok(pieces)
}

enum Reads {
    StandIns(HashMap<char, u8>),
    Fallback,
}

impl Reads {
    fn piece(&self, name: &str) -> Option<Vec<u8>> {
        match self {
            Reads::StandIns(bytes) => name.chars().map(|c| bytes.get(&c).copied()).collect(),
            Reads::Fallback => {
                let byte = name.strip_prefix("<0x").and_then(|hex| u8::from_str_radix(hex.strip_suffix('>')?, 16).ok());
                Some(byte.map_or_else(|| name.replace('\u{2581}', " ").into_bytes(), |b| vec![b]))
            }
        }
    }
}

use super::*;
use std::path::Path;

/// A BPE over bytes that learns a few merges, saved as tokenizer.json.
pub fn tiny_bpe(dir: &Path) -> String {
    use tokenizers::models::bpe::{BpeTrainerBuilder, BPE};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::AddedToken;
    let mut t = tokenizers::Tokenizer::new(BPE::default());
    t.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    t.with_decoder(Some(ByteLevel::default()));
    let specials = ["<|begin_of_text|>", "<|end_of_text|>"].map(|s| AddedToken::from(s, true)).to_vec();
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(300)
        .show_progress(false)
        .special_tokens(specials)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let text = "the theory of the thing is that the other thinks\n".repeat(50);
    let mut trainer = tokenizers::models::TrainerWrapper::from(trainer);
    t.train(&mut trainer, text.lines().map(str::to_string).collect::<Vec<_>>().into_iter().flat_map(Ok::<_, ()>))
        .unwrap();
    let path = dir.join("tokenizer.json");
    t.save(&path, false).unwrap();
    path.display().to_string()
}

/// All single bytes, then merges that make " the" and "ing".
fn tiny_tiktoken(dir: &Path) -> String {
    use base64::{engine::general_purpose::STANDARD, Engine};
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
    tokens.extend([" t", "he", " the", "in", "ing", "éé", "12", "123"].map(|s| s.as_bytes().to_vec()));
    let lines: String = tokens.iter().enumerate().map(|(i, t)| format!("{} {i}\n", STANDARD.encode(t))).collect();
    let path = dir.join("tokenizer.model");
    std::fs::write(&path, lines).unwrap();
    path.display().to_string()
}

const TEXTS: &[&str] =
    &["", "the thing", " the  other\n\n\tthing's 12345", "Grüße, 世界! 🦀", "a\0b\r\n", "   ", "x<|end_of_text|>y"];

#[test]
fn bytes_are_bytes() {
    let t = Tokenizer::open("bytes").unwrap();
    assert_eq!((t.vocab_size(), t.bos(), t.eos()), (258, Some(256), Some(257)));
    assert_eq!(t.encode("hé\0").unwrap(), [104, 0xc3, 0xa9, 0]);
    assert_eq!(t.decode(&[104, 0xc3, 105, 257, 258]), "h\u{fffd}i<|end_of_text|>\u{fffd}");
    for text in TEXTS {
        assert_eq!(&t.decode(&t.encode(text).unwrap()), text);
    }
    assert_eq!(t.fingerprint().len(), 32);
}

/// What herd exports for `bytes` must be the same tokenizer again, both by herd's note and by the tokenizer.json alone.
#[test]
fn exported_bytes_are_the_same_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = Tokenizer::open("bytes").unwrap();
    for (name, content) in bytes.files() {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let again = Tokenizer::open(dir.path().to_str().unwrap()).unwrap();
    assert_eq!((again.kind(), again.fingerprint()), ("bytes", bytes.fingerprint()));

    let hf = Tokenizer::open(dir.path().join("tokenizer.json").to_str().unwrap()).unwrap();
    assert_eq!((hf.kind(), hf.vocab_size(), hf.bos(), hf.eos()), ("huggingface", 258, Some(256), Some(257)));
    let all: String = (0..0x500).chain([0x20ac, 0x1f980]).filter_map(char::from_u32).collect();
    for text in TEXTS.iter().chain(&[all.as_str()]) {
        assert_eq!(hf.encode(text).unwrap(), bytes.encode(text).unwrap(), "{text:?}");
        assert_eq!(&hf.decode(&hf.encode(text).unwrap()), text);
    }
}

#[test]
fn a_newer_note_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("herd_tokenizer.json"), r#"{"kind":"runes","version":2}"#).unwrap();
    let e = Tokenizer::open(dir.path().to_str().unwrap()).err().unwrap();
    assert!(e.exit == Exit::Data && e.fact.contains("runes"), "{e}");
}

#[test]
fn huggingface_round_trip_and_names() {
    let dir = tempfile::tempdir().unwrap();
    let spec = tiny_bpe(dir.path());
    let t = Tokenizer::open(&spec).unwrap();
    assert_eq!((t.kind(), t.bos(), t.eos()), ("huggingface", Some(0), Some(1)));
    assert!(t.encode(" the thing").unwrap().len() < 5, "the merges are used");
    for text in TEXTS {
        let ids = t.encode(text).unwrap();
        assert_eq!(&t.decode(&ids), text);
        assert!(ids.iter().all(|&id| id > 1 && (id as usize) < t.vocab_size()), "text never yields a special token");
    }
    assert_eq!(t.decode(&[1, 9999]), "<|end_of_text|>\u{fffd}");

    // The directory finds it; tokenizer_config.json decides which token ends a text, and is copied.
    let config = r#"{"bos_token": null, "eos_token": {"content": "<|begin_of_text|>"}}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let t2 = Tokenizer::open(dir.path().to_str().unwrap()).unwrap();
    assert_eq!((t2.eos(), t2.fingerprint()), (Some(0), t.fingerprint()));
    let names: Vec<String> = t2.files().into_iter().map(|f| f.0).collect();
    assert_eq!(names, ["tokenizer.json", "tokenizer_config.json"]);
}

/// Truncation and padding stored in the file would cut documents.
#[test]
fn stored_truncation_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny_bpe(dir.path());
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    std::fs::write(&path, json.to_string()).unwrap();
    assert!(Tokenizer::open(&path).unwrap().encode(&"zq ".repeat(100)).unwrap().len() > 100);
}

#[test]
fn tiktoken_merges_by_rank_and_splits_like_llama() {
    let dir = tempfile::tempdir().unwrap();
    let t = Tokenizer::open(&tiny_tiktoken(dir.path())).unwrap();
    assert_eq!((t.kind(), t.vocab_size(), t.bos(), t.eos()), ("tiktoken", 264 + 256, Some(264), Some(265)));
    assert_eq!(t.encode(" the").unwrap(), [258]);
    assert_eq!(t.encode("thing").unwrap(), [b't' as u32, b'h' as u32, 260]);
    // Digits are cut in threes before merging: 1234 is 123 + 4.
    assert_eq!(t.encode("1234").unwrap(), [263, b'4' as u32]);
    for text in TEXTS {
        let ids = t.encode(text).unwrap();
        assert_eq!(&t.decode(&ids), text);
        assert!(ids.iter().all(|&id| id < 264));
    }
    assert_eq!(t.decode(&[264, 104, 0xc3, 273, 999_999]), "<|begin_of_text|>h\u{fffd}<|eot_id|>\u{fffd}");
    // A run long enough to trouble a backtracking pattern.
    let spaces = " ".repeat(200_000);
    assert_eq!(t.encode(&spaces).unwrap().len(), 200_000);
}

#[test]
fn bad_files_say_where() {
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read_to_string(tiny_tiktoken(dir.path())).unwrap();
    let open = |name: &str, content: &str| {
        let p = dir.path().join(name);
        std::fs::write(&p, content).unwrap();
        Tokenizer::open(p.to_str().unwrap()).err().unwrap_or_else(|| panic!("{name} was accepted"))
    };
    let cases = [
        ("no-space", good.replacen("QQ== 65", "QQ==65", 1), ":66: no space"),
        ("bad-base64", good.replacen("QQ== 65", "Q*== 65", 1), ":66: token is not base64"),
        ("bad-rank", good.replacen("QQ== 65", "QQ== -1", 1), ":66: rank `-1` is not a number"),
        ("twice", good.replacen("QQ== 65", "QQ== 64", 1), ":66: rank 64 was given on line 65"),
        ("gap", good.replacen("MTIz 263", "MTIz 300", 1), "264 tokens, but none has rank 263"),
        (
            "no-byte",
            good.lines().skip(1).enumerate().map(|(i, l)| format!("{} {i}\n", l.split(' ').next().unwrap())).collect(),
            "no token for the single byte 0x00",
        ),
        ("empty", String::new(), "no token for the single byte"),
        ("broken.json", "{\"version\": \"1.0\"".into(), "is not a tokenizer.json"),
    ];
    for (name, content, want) in cases {
        let e = open(name, &content);
        assert!(e.exit == Exit::Data && e.fact.contains(want), "{name}: {e}");
    }
    let e = Tokenizer::open(dir.path().join("absent").to_str().unwrap()).err().unwrap();
    assert!(e.exit == Exit::Data && e.fact.contains("no such file"), "{e}");
    let empty = tempfile::tempdir().unwrap();
    assert!(Tokenizer::open(empty.path().to_str().unwrap()).err().unwrap().fact.contains("holds no tokenizer"));
}

#[test]
fn pieces_are_the_bytes_of_the_text() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for spec in ["bytes".into(), tiny_bpe(dirs[0].path()), tiny_tiktoken(dirs[1].path())] {
        let t = Tokenizer::open(&spec).unwrap();
        let pieces = t.pieces().unwrap();
        assert_eq!(pieces.len(), t.vocab_size());
        for text in TEXTS {
            let bytes: Vec<u8> = t.encode(text).unwrap().iter().flat_map(|&id| pieces[id as usize].clone()).collect();
            assert_eq!(bytes, text.as_bytes(), "{spec}");
        }
        assert!((0..pieces.len()).all(|id| pieces[id].is_empty() == t.is_special(id as u32)), "{spec}");
    }
}

#[test]
fn sentencepiece_names_are_bytes_too_and_other_decoders_are_refused() {
    let json = |decoder: &str| {
        let vocab = r#"{"<s>": 0, "<0xE2>": 1, "▁the": 2, "x": 3}"#;
        let added = r#"[{"id": 0, "content": "<s>", "special": true}, {"id": 4, "content": "▁y", "special": false}]"#;
        format!(r#"{{"decoder": {decoder}, "model": {{"vocab": {vocab}}}, "added_tokens": {added}}}"#)
    };
    let fallback = json(r#"{"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]}"#);
    let got = pieces::of(fallback.as_bytes(), 6).unwrap();
    assert_eq!(got, [&b""[..], &[0xe2], b" the", b"x", "▁y".as_bytes(), b""]);
    let why = pieces::of(json(r#"{"type": "WordPiece"}"#).as_bytes(), 6).unwrap_err();
    assert!(why.contains("WordPiece"), "{why}");
}

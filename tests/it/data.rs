//! Tests of `data`: the real binary on real files, Megatron's format both ways, tokenizers against other implementations.

use crate::support::{herd, python, text};
use herd::data::indexed::Indexed;
use herd::data::Tokenizer;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

/// `herd data …` with `args` split at spaces, in `dir`, with `stdin`.
fn data(dir: &Path, args: &str, stdin: &[u8]) -> Output {
    let mut child = herd()
        .arg("data")
        .args(args.split_whitespace())
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn ok(dir: &Path, args: &str) -> String {
    let out = data(dir, args, b"");
    assert!(out.status.success(), "{args}: {}", text(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// The one line of a refusal, whose code must be `code` and which must say `want`.
fn refused(dir: &Path, args: &str, code: i32, want: &str) {
    let out = data(dir, args, b"");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args}: {said}");
    assert!(said.contains(want) && said.lines().count() == 1, "{args}: {said}");
}

fn oracle(script: &str, args: &[&str]) -> Value {
    let out = python().arg(format!("tests/oracle/{script}")).args(args).output().unwrap();
    assert!(out.status.success(), "{script} {args:?}: {}", text(&out));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Ids of each document.
fn documents(prefix: &Path) -> Vec<Vec<i64>> {
    let f = Indexed::open(prefix).unwrap();
    let mut at = 0;
    f.document_lengths()
        .map(|n| {
            let (n, mut ids) = (n.unwrap(), Vec::new());
            f.read(at, n as usize, 1 << 31, &mut ids).unwrap();
            at += n;
            ids
        })
        .collect()
}

fn ids(v: &Value) -> Vec<Vec<i64>> {
    serde_json::from_value(v.clone()).unwrap()
}

fn gzip(path: &Path, content: &str) {
    let f = std::fs::File::create(path).unwrap();
    let mut w = flate2::write::GzEncoder::new(f, flate2::Compression::fast());
    w.write_all(content.as_bytes()).unwrap();
    w.finish().unwrap();
}

/// Files of both formats and all packings, several threads: the ids are those of the texts in order.
#[test]
fn tokenizes_every_kind_of_input_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let jsonl = |from: u32, to: u32| -> String {
        (from..to)
            .map(|i| format!("{{\"id\": {i}, \"body\": \"document {i} {}\"}}\n", "x".repeat(i as usize % 977)))
            .collect()
    };
    std::fs::write(d.join("a.jsonl"), jsonl(0, 1000)).unwrap();
    gzip(&d.join("b"), &jsonl(1000, 2000));
    std::fs::write(d.join("c"), zstd::encode_all(jsonl(2000, 3000).as_bytes(), 1).unwrap()).unwrap();
    let want: Vec<Vec<i64>> = (0..3000usize)
        .map(|i| format!("document {i} {}", "x".repeat(i % 977)).bytes().map(i64::from).chain([257]).collect())
        .collect();
    for threads in [1, 3] {
        ok(d, &format!("tokenize -t bytes -o out/t{threads} --text-key body --threads {threads} a.jsonl b c"));
        assert_eq!(documents(&d.join(format!("out/t{threads}"))), want);
    }
    let report = ok(d, "tokenize -t bytes -o out/again --text-key body a.jsonl b c");
    assert!(
        report.contains("3,000 documents") && report.contains("tokens per byte") && report.contains("MB/s"),
        "{report}"
    );
    // The same input gives the same bytes, whatever the threads.
    let bin = |name: &str| std::fs::read(d.join(name)).unwrap();
    assert_eq!(bin("out/t1.bin"), bin("out/t3.bin"));
    assert_eq!(bin("out/t1.idx"), bin("out/again.idx"));
    assert_eq!(std::fs::read_dir(d.join("out")).unwrap().count(), 9, "no temporary file stays");

    let out = data(d, "tokenize -t bytes -o out/stdin --format text --split-documents line --no-eos -", b"hi\n\nho\n");
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(documents(&d.join("out/stdin")), [[104, 105], [104, 111]]);
}

#[test]
fn holdout_splits_whole_documents_the_same_way_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let paragraph = |i: u32| format!("paragraph {i}\nof two lines\n");
    let text: String = (0..4000).map(|i| paragraph(i) + "\n").collect();
    std::fs::write(d.join("a.txt"), &text).unwrap();
    ok(d, "tokenize -t bytes -o s --holdout 0.05 --split-documents blank-lines a.txt");
    let (train, held) = (documents(&d.join("s_train")), documents(&d.join("s_validation")));
    assert_eq!(train.len() + held.len(), 4000);
    assert!((140..260).contains(&held.len()), "{} of 4000 held out at 5%", held.len());
    let mut all: Vec<_> = train.iter().chain(&held).cloned().collect();
    let mut want: Vec<Vec<i64>> =
        (0..4000).map(|i| paragraph(i).bytes().map(i64::from).chain([257]).collect()).collect();
    all.sort();
    want.sort();
    assert_eq!(all, want);

    // The side depends on the text alone: with the lines reversed in order, the same documents are held out.
    let reversed: String = (0..4000).rev().map(|i| paragraph(i) + "\n").collect();
    std::fs::write(d.join("r.txt"), reversed).unwrap();
    ok(d, "tokenize -t bytes -o r --holdout 0.05 --split-documents blank-lines r.txt");
    let mut again = documents(&d.join("r_validation"));
    again.reverse();
    assert_eq!(again, held);

    // A single document gives its tail, from a line start.
    ok(d, "tokenize -t bytes -o one --holdout 0.25 a.txt");
    let (train, held) = (documents(&d.join("one_train")), documents(&d.join("one_validation")));
    assert_eq!((train.len(), held.len()), (1, 1));
    let joined: Vec<i64> = [&train[0][..train[0].len() - 1], &held[0][..held[0].len() - 1]].concat();
    assert_eq!(joined, text.bytes().map(i64::from).collect::<Vec<_>>());
    let share = held[0].len() as f64 / joined.len() as f64;
    assert!((share - 0.25).abs() < 0.01 && train[0][train[0].len() - 2] == 10, "share {share}");

    std::fs::write(d.join("two.txt"), "one\n\ntwo\n").unwrap();
    refused(
        d,
        "tokenize -t bytes -o two --holdout 0.0001 --split-documents blank-lines two.txt",
        11,
        "leaves none for two_validation",
    );
    refused(d, "tokenize -t bytes -o two --holdout 1.5 two.txt", 2, "1.5 is not a share");
}

#[test]
fn refusals_name_file_line_and_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::write(d.join("bad.jsonl"), "{\"text\": \"fine\"}\n{\"text\": \"fi\n{\"text\": \"good\"}\n").unwrap();
    std::fs::write(d.join("latin.txt"), b"caf\xe9\n").unwrap();
    std::fs::write(d.join("empty.txt"), "\n\n").unwrap();
    std::fs::write(d.join("good.txt"), "text\n").unwrap();
    gzip(&d.join("cut.gz"), &"some text to be cut off\n".repeat(100_000));
    let whole = std::fs::read(d.join("cut.gz")).unwrap();
    std::fs::write(d.join("cut.gz"), &whole[..whole.len() / 2]).unwrap();

    refused(d, "tokenize -t bytes -o o good.txt bad.jsonl", 11, "bad.jsonl:2: not JSON");
    refused(d, "tokenize -t bytes -o o latin.txt", 11, "latin.txt:1: byte 0xe9 at column 4 is not UTF-8");
    refused(d, "tokenize -t bytes -o o cut.gz", 11, "cannot decompress cut.gz");
    refused(d, "tokenize -t bytes -o o empty.txt", 11, "no document in empty.txt");
    refused(d, "tokenize -t bytes -o o good.txt absent.txt", 11, "cannot read absent.txt: no such file");
    refused(d, "tokenize -t absent.json -o o good.txt", 11, "absent.json");
    refused(d, "tokenize -t good.txt -o o good.txt", 11, "good.txt:1: no space in the line");
    refused(d, "tokenize -t bytes -o o .", 11, "is a directory");
    let left: Vec<_> = std::fs::read_dir(d)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|n| n.to_string_lossy().starts_with("o."))
        .collect();
    assert!(left.is_empty(), "a refusal leaves no file: {left:?}");

    let report = ok(d, "tokenize -t bytes -o o --skip-bad bad.jsonl latin.txt good.txt");
    assert!(report.contains("3 documents") && report.contains("2 skipped as bad"), "{report}");
    refused(d, "tokenize -t bytes -o o good.txt", 2, "o.bin exists");
    ok(d, "tokenize -t bytes -o o --force good.txt");
    assert_eq!(documents(&d.join("o")).len(), 1);
}

#[test]
fn inspect_shows_and_checks() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    std::fs::write(d.join("a.txt"), "first document\n\nsecond, longer document\n").unwrap();
    ok(d, "tokenize -t bytes -o a --split-documents blank-lines a.txt");
    let shown = ok(d, "inspect a.idx --show 16 --check");
    for want in [
        "u16",
        "documents    2",
        "tokens       41",
        "a.txt",
        "max 25",
        "first document\n<|end_of_text|>",
        "highest 257",
        "checksum right",
    ] {
        assert!(shown.contains(want), "no {want:?} in:\n{shown}");
    }
    refused(d, "inspect a --check --vocab-size 200", 11, "a.bin: token 15 is id 257, outside the vocabulary of 200");

    let flip = |name: &str, at: usize| {
        let mut b = std::fs::read(d.join(name)).unwrap();
        b[at] ^= 1;
        std::fs::write(d.join(name), b).unwrap();
    };
    flip("a.bin", 2);
    refused(d, "inspect a --check", 11, "checksum");
    flip("a.bin", 2);
    let cut = |name: &str, by: usize| {
        let b = std::fs::read(d.join(name)).unwrap();
        std::fs::write(d.join(name), &b[..b.len() - by]).unwrap();
        b
    };
    let whole = cut("a.idx", 3);
    refused(d, "inspect a", 11, "a.idx: cut off: has 79 bytes, 2 sequences and 3 document entries take 82");
    std::fs::write(d.join("a.idx"), whole).unwrap();
    cut("a.bin", 2);
    refused(d, "inspect a", 11, "a.bin has 80 bytes, shorter than the 82 its index says");
    std::fs::remove_file(d.join("a.bin")).unwrap();
    refused(d, "inspect a", 11, "cannot read a.bin: no such file");
}

/// Whatever herd writes, readers of Megatron's format read, and the other way round. The readers are one written from the
/// published layout and, where it is installed, Megatron-LM's own IndexedDataset.
#[test]
fn megatron_files_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let readers: Vec<String> = serde_json::from_value(oracle("data_megatron.py", &["readers"])).unwrap();
    println!("readers: {readers:?}");
    let made = oracle("data_tokenizer.py", &["make", d.to_str().unwrap()]);
    ok(d, "tokenize -t bytes -o u16 texts.jsonl");
    let big = d.join("big.model");
    std::fs::write(&big, big_tiktoken()).unwrap();
    ok(d, "tokenize -t big.model -o i32 texts.jsonl");

    for reader in &readers {
        for (prefix, dtype) in [("u16", "uint16"), ("i32", "int32")] {
            let path = d.join(prefix);
            let read = oracle("data_megatron.py", &["read", reader, path.to_str().unwrap()]);
            assert_eq!((read["dtype"].as_str(), ids(&read["documents"])), (Some(dtype), documents(&path)), "{reader}");
        }
        for dtype in ["uint16", "int32"] {
            let path = d.join(format!("{reader}-{dtype}"));
            let wrote = oracle("data_megatron.py", &["write", reader, path.to_str().unwrap(), dtype]);
            assert_eq!(documents(&path), ids(&wrote["documents"]), "{reader} {dtype}");
            let f = Indexed::open(&path).unwrap();
            assert_eq!(Some(f.sequences()), wrote["sequences"].as_u64());
            assert!(f.sidecar.is_none());
        }
    }
    let with_eos: Vec<Vec<i64>> = ids(&made["bytes"]).into_iter().map(|d| [d, vec![257]].concat()).collect();
    assert_eq!(documents(&d.join("u16")), with_eos);
}

/// A tiktoken model of more than 65,536 tokens: the bytes, then all pairs of them.
fn big_tiktoken() -> String {
    use base64::{engine::general_purpose::STANDARD, Engine};
    let single = (0..=255u8).map(|b| vec![b]);
    let pairs = (0..=255u8).flat_map(|a| (0..=255u8).map(move |b| vec![a, b]));
    single.chain(pairs).enumerate().map(|(i, t)| format!("{} {i}\n", STANDARD.encode(t))).collect()
}

/// The ids of all three kinds equal those of other implementations: the tokenizers package, a plain byte-pair encoder
/// over the published pattern (and the tiktoken package, where installed), transformers on the exported bytes.
#[test]
fn tokenizers_agree_with_others() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let want = oracle("data_tokenizer.py", &["make", d.to_str().unwrap()]);
    println!("tiktoken ids by: {}", want["by"]);
    for (kind, spec) in
        [("hf", "hf"), ("hf", "hf/tokenizer.json"), ("tiktoken", "tiktoken/tokenizer.model"), ("bytes", "bytes")]
    {
        ok(d, &format!("tokenize -t {spec} -o ids --no-eos --no-bos --force texts.jsonl"));
        let (got, want) = (documents(&d.join("ids")), ids(&want[kind]));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!(g == w, "{spec}: text {i} differs");
        }
        assert_eq!(got.len(), want.len());
    }

    let bytes = Tokenizer::open("bytes").unwrap();
    std::fs::create_dir(d.join("export")).unwrap();
    for (name, content) in bytes.files() {
        std::fs::write(d.join("export").join(name), content).unwrap();
    }
    let loaded = oracle("data_tokenizer.py", &["load", d.to_str().unwrap()]);
    assert_eq!(ids(&loaded["ids"]), ids(&want["bytes"]));
    assert_eq!(loaded["same_text"], true);
    assert_eq!(
        (loaded["bos"].as_u64(), loaded["eos"].as_u64(), loaded["size"].as_u64()),
        (Some(256), Some(257), Some(258))
    );
}

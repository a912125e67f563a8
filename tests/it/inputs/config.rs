//! Configurations and tokenizers: what people write in paths, marks of editors, files that are malformed or do not fit.

use super::table::{case, put, Case};
use crate::support::herd;
use serde_json::{json, Value};
use std::path::Path;

const CHECK: &str = "config check run.yaml --ranks 1";
const TOKENIZE: &str = "data tokenize -t tokenizer.json -o out owl.txt";

/// A configuration whose run directory and tokenizer are these; its corpus is `corpus`, of 50 tokens.
fn config(dir: &Path, run_dir: &str, tokenizer: &str) -> String {
    put(dir, "owl.txt", "the owl and the elk\n".repeat(5));
    let made = herd().args(["data", "tokenize", "-t", "bytes", "-o", "corpus", "owl.txt"]).current_dir(dir).output();
    assert!(made.unwrap().status.success());
    format!(
        "name: t\nrun_dir: {run_dir}\nmodel:\n  shape: {{vocab_size: 258, hidden_size: 16, intermediate_size: 32, \
         num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1}}\ndata: {{tokenizer: {tokenizer}, \
         sequence_length: 16, train: [{{path: corpus}}]}}\nbatch: {{global: 2, micro: 1}}\ntrain: {{steps: 2}}\n\
         optim: {{warmup_steps: 1}}\n"
    )
}

fn plain(dir: &Path) {
    put(dir, "run.yaml", config(dir, "runs/t", "bytes"));
}

fn marked(dir: &Path) {
    put(dir, "run.yaml", ["\u{feff}".to_string(), config(dir, "runs/t", "bytes")].concat());
}

fn home(dir: &Path) {
    put(dir, "run.yaml", config(dir, "~/runs/t", "bytes"));
}

fn variables(dir: &Path) {
    put(dir, "run.yaml", config(dir, "$HERD_TEST_PLACE/${HERD_TEST_NAME}-$$1", "bytes"));
}

fn short(dir: &Path) {
    put(dir, "run.yaml", config(dir, "runs/t", "bytes").replace("sequence_length: 16", "sequence_length: 4000"));
}

fn no_corpora(dir: &Path) {
    let two = "train: [{path: corpus}, {path: absent}], validation: [{path: gone}]";
    put(dir, "run.yaml", config(dir, "runs/t", "nowhere.json").replace("train: [{path: corpus}]", two));
}

/// A tokenizer of three letters and a space, changed by `change`.
fn tokenizer(dir: &Path, change: fn(&mut Value)) {
    put(dir, "owl.txt", "owl owl\n");
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "added_tokens": [{"id": 5, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"o": 0, "w": 1, "l": 2, " ": 3, "ow": 4}, "merges": ["o w"]},
    });
    change(&mut json);
    put(dir, "tokenizer.json", json.to_string());
}

fn whole_tokenizer(dir: &Path) {
    tokenizer(dir, |_| {});
    let text = std::fs::read_to_string(dir.join("tokenizer.json")).unwrap();
    put(dir, "tokenizer.json", ["\u{feff}", &text].concat());
}

fn broken_companion(dir: &Path) {
    tokenizer(dir, |_| {});
    put(dir, "tokenizer_config.json", "{\"eos_token\": \"</s>\"");
}

fn more_ids(dir: &Path) {
    tokenizer(dir, |t| t["model"]["vocab"]["z"] = 300.into());
    put(dir, "run.yaml", config(dir, "runs/t", "tokenizer.json"));
}

pub fn rows() -> Vec<Case> {
    let malformed = |name, make: fn(&Path), words: &[&'static str]| {
        case(name, make, TOKENIZE).refused(11).says(&["tokenizer.json"]).says(words)
    };
    let tokenizers = [
        malformed(
            "a prefix longer than its tokens",
            |d| tokenizer(d, |t| t["model"]["continuing_subword_prefix"] = "#####".into()),
            &["is not a tokenizer.json"],
        ),
        malformed(
            "a table of characters that is none",
            |d| tokenizer(d, |t| t["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
            &["is not a tokenizer.json"],
        ),
        malformed(
            "a replacement of nothing",
            |d| {
                tokenizer(d, |t| {
                    t["normalizer"] = json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"});
                    t["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
                })
            },
            &["cannot encode a text"],
        ),
        malformed(
            "words of no length",
            |d| tokenizer(d, |t| t["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0})),
            &[],
        ),
        malformed(
            "a merge of unknown tokens",
            |d| tokenizer(d, |t| t["model"]["merges"] = json!(["o z"])),
            &["is not a tokenizer.json"],
        ),
    ];
    let mut rows = vec![
        case("a configuration as it should be", plain, CHECK).says(&["ok", "corpus: 101 tokens, 6 samples of 16"]),
        case("a byte order mark before a configuration", marked, CHECK).says(&["ok"]),
        case("the home directory", home, "config show run.yaml")
            .variable("HOME", "DIR/me")
            .says(&["/me/runs/t"])
            .never(&["~"]),
        case("the home directory, which nobody knows", home, CHECK)
            .variable("HOME", "")
            .refused(10)
            .says(&["run_dir", "HOME", "is empty"]),
        case("variables", variables, "config show run.yaml")
            .variable("HERD_TEST_PLACE", "DIR/x")
            .variable("HERD_TEST_NAME", "owl")
            // written so that it reads back as the same
            .says(&["/x/owl-$$1"]),
        case("a variable that is not set", variables, CHECK)
            .variable("HERD_TEST_NAME", "owl")
            .refused(10)
            .says(&["run_dir", "$HERD_TEST_PLACE is not set"]),
        case("a variable that is not set, when it trains", variables, "train run.yaml")
            .refused(10)
            .says(&["$HERD_TEST_PLACE is not set"]),
        case("a corpus that is too short", short, CHECK).refused(11).says(&["data.train.0.path", "101 tokens", "4001"]),
        case("what is not there, all at once", no_corpora, "config check run.yaml --ranks 1").fails(11).says(&[
            "3 problems",
            "data.tokenizer: ",
            "nowhere.json",
            "data.train.1.path: ",
            "absent.idx",
            "data.validation.0.path: ",
            "gone.idx",
        ]),
        case("the same, where the data is elsewhere", no_corpora, "config check run.yaml --ranks 1 --no-data")
            .says(&["ok"]),
        case("a tokenizer with ids beyond the model", more_ids, CHECK).fails(11).says(&[
            "301 ids",
            "258",
            "data.train.0.path",
            "was made with tokenizer bytes",
        ]),
        case("a byte order mark before a tokenizer", whole_tokenizer, TOKENIZE).says(&["1 documents, 6 tokens"]),
        case("a note beside a tokenizer that is cut off", broken_companion, TOKENIZE)
            .refused(11)
            .says(&["tokenizer_config.json is not JSON"]),
    ];
    rows.extend(tokenizers);
    rows
}

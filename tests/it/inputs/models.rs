//! Models of other programs: weights that are incomplete, what people find in place of them, and what herd has made of them.

use super::described::config;
use super::table::{case, put, Case};
use crate::models_in_out::model;
use crate::support::{herd, text};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{json, Value};
use std::path::Path;

pub const IMPORT: &str = "checkpoint import m run";
const WEIGHTS: &str = "m/model.safetensors";
const INDEX: &str = "m/model.safetensors.index.json";
const NORM: &str = "model.norm.weight";
const FREQUENCIES: &str = "model.layers.0.self_attn.rotary_emb.inv_freq";

pub fn whole(dir: &Path) {
    model(&dir.join("m"), &[(97, 98)]);
}

/// One tensor of a file: name, type, shape, bytes.
type Raw = (String, Dtype, Vec<usize>, Vec<u8>);

/// The model with other weights.
fn weights(dir: &Path, change: fn(&mut Vec<Raw>)) {
    whole(dir);
    let bytes = std::fs::read(dir.join(WEIGHTS)).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let raw = |(name, t): (String, TensorView)| (name, t.dtype(), t.shape().to_vec(), t.data().to_vec());
    let mut all: Vec<Raw> = read.tensors().into_iter().map(raw).collect();
    change(&mut all);
    let views = all.iter().map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join(WEIGHTS)).unwrap();
}

/// The model with other bytes in place of its file of weights.
fn bytes(dir: &Path, change: fn(Vec<u8>) -> Vec<u8>) {
    whole(dir);
    let old = std::fs::read(dir.join(WEIGHTS)).unwrap();
    put(dir, WEIGHTS, change(old));
}

fn imported(dir: &Path) {
    whole(dir);
    let made = herd().args(IMPORT.split(' ')).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", text(&made));
}

fn damaged(dir: &Path) {
    imported(dir);
    let name = "run/checkpoints/step-00000000/rank-00000.h5";
    let mut file = std::fs::read(dir.join(name)).unwrap();
    let middle = file.len() / 2;
    file[middle] ^= 1;
    put(dir, name, file);
}

fn half_saved(dir: &Path) {
    imported(dir);
    std::fs::remove_file(dir.join("run/checkpoints/step-00000000/manifest.json")).unwrap();
}

fn described_only(dir: &Path) {
    whole(dir);
    std::fs::remove_file(dir.join(WEIGHTS)).unwrap();
}

fn of_pytorch(dir: &Path) {
    described_only(dir);
    put(dir, "m/pytorch_model.bin", "PK");
}

fn weights_only(dir: &Path) {
    whole(dir);
    std::fs::remove_file(dir.join("m/config.json")).unwrap();
}

fn indexed(dir: &Path, map: Value) {
    whole(dir);
    put(dir, INDEX, json!({ "weight_map": map }).to_string());
}

fn elsewhere(dir: &Path) {
    indexed(dir, json!({ NORM: "../elsewhere.safetensors" }));
    std::fs::remove_file(dir.join(WEIGHTS)).unwrap();
}

fn other_half(dir: &Path) {
    indexed(dir, json!({ NORM: "model.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors" }));
}

fn of_meta(dir: &Path) {
    put(dir, "m/params.json", json!({ "dim": 16, "n_layers": 1, "n_heads": 4, "vocab_size": 259 }).to_string());
}

fn of_meta_cut(dir: &Path) {
    of_meta(dir);
    put(dir, "m/consolidated.00.pth", "PK\x03\x04");
}

/// What lies in the files of weights, or in their place.
fn files() -> Vec<Case> {
    let refused = |name, make: fn(&Path), words: &[&'static str]| case(name, make, IMPORT).refused(12).says(words);
    vec![
        refused("a directory of nothing", |d| std::fs::create_dir(d.join("m")).unwrap(), &["m holds no weights"]),
        refused("no directory", |_| {}, &["there is no m"]),
        refused("weights without a config.json", weights_only, &["m holds no weights", "config.json"]),
        refused("a config.json without weights", described_only, &["neither model.safetensors nor"]),
        refused("weights of PyTorch alone", of_pytorch, &["neither model.safetensors nor", "*.bin is not read"]),
        refused(
            "a pointer of Git LFS in place of weights",
            |d| bytes(d, |_| b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 98765\n".to_vec()),
            &["model.safetensors is no safetensors file"],
        ),
        refused(
            "a page of a web server in place of weights",
            |d| bytes(d, |_| b"<!DOCTYPE html><html>404</html>".to_vec()),
            &["model.safetensors is no safetensors file"],
        ),
        refused("an empty file of weights", |d| bytes(d, |_| Vec::new()), &["cut off: it has 0 bytes"]),
        refused("weights that are cut off", |d| bytes(d, |b| b[..b.len() - 100].to_vec()), &["cut off", "incomplete"]),
        refused("weights with something behind", |d| bytes(d, |b| [b, vec![0; 8]].concat()), &["accounts for"]),
        refused(
            "weights with a damaged header",
            |d| {
                bytes(d, |mut b| {
                    b[8] = b'?';
                    b
                })
            },
            &["damaged header"],
        ),
        refused(
            "weights of integers",
            |d| {
                weights(d, |all| {
                    all.iter_mut().for_each(|t| {
                        (t.1, t.3) = (Dtype::I32, vec![0; t.3.len()]);
                    })
                })
            },
            &["has type I32", "F32, BF16 and F16"],
        ),
        refused(
            "a tensor that is missing",
            |d| weights(d, |all| all.retain(|t| t.0 != NORM)),
            &["the weights lack", NORM],
        ),
        refused(
            "a tensor too many",
            |d| {
                weights(d, |all| {
                    all.push(("model.layers.0.self_attn.q_proj.bias".into(), Dtype::F32, vec![1], vec![0; 4]))
                })
            },
            &["q_proj.bias", "has not"],
        ),
        case(
            "rotary frequencies of old files",
            |d| weights(d, |all| all.push((FREQUENCIES.into(), Dtype::F32, vec![2], vec![0; 8]))),
            IMPORT,
        )
        .says(&["imported"]),
        refused(
            "a tensor of another shape",
            |d| {
                weights(d, |all| {
                    let norm = all.iter_mut().find(|t| t.0 == NORM).unwrap();
                    norm.2 = vec![4, 4];
                })
            },
            &[NORM, "has shape [4, 4]", "says [16]"],
        ),
        refused(
            "no head, and not tied",
            |d| weights(d, |all| all.retain(|t| t.0 != "lm_head.weight")),
            &["lack lm_head.weight", "tie_word_embeddings"],
        ),
        case(
            "a head that is not the embedding, though tied",
            |d| config(d, |c| c["tie_word_embeddings"] = json!(true)),
            IMPORT,
        )
        .says(&["WARN", "not tied"]),
        refused("half of the files", other_half, &["model-00002-of-00002.safetensors", "not there", "incomplete"]),
        refused("an index that points elsewhere", elsewhere, &["outside the directory"]),
        refused(
            "two sets of weights",
            |d| indexed(d, json!({ NORM: "model-00001-of-00001.safetensors" })),
            &["two sets of weights"],
        ),
        refused(
            "an index that is cut off",
            |d| {
                whole(d);
                put(d, INDEX, "{\"weight_map\": {");
            },
            &["index.json is damaged"],
        ),
        case(
            "weights of another program beside",
            |d| {
                whole(d);
                put(d, "m/consolidated.00.pth", "x");
            },
            IMPORT,
        )
        .says(&["WARN", "consolidated.00.pth not"]),
        refused("Meta's description alone", of_meta, &["no consolidated.*.pth"]),
        refused("Meta's weights cut off", of_meta_cut, &["consolidated.00.pth"]),
    ]
}

/// What herd has made of them, and where it is to go.
fn copies() -> Vec<Case> {
    vec![
        case("what came in is what is there", imported, "checkpoint diff m run --json")
            .says(&["\"same\": true", "\"different\": 0"]),
        case("a run that has begun", imported, IMPORT).refused(2).says(&["has checkpoints already"]),
        case("an export over something", imported, "checkpoint export run m")
            .fails(2)
            .says(&["not an empty directory"]),
        case(
            "a value that fp16 cannot hold",
            |d| {
                weights(d, |all| {
                    all.iter_mut().filter(|t| t.0 == NORM).for_each(|t| t.3[..4].copy_from_slice(&1e6f32.to_le_bytes()))
                })
            },
            "checkpoint export m out --dtype fp16",
        )
        .refused(12)
        .says(&["model.norm.weight holds 1000000", "65504", "bf16 or fp32"]),
        case("a checkpoint with another bit", damaged, "checkpoint export run out")
            .fails(20)
            .says(&["no whole checkpoint"]),
        case("the same, verified", damaged, "checkpoint verify run").refused(20).says(&["DAMAGED", "checksum"]),
        case("a checkpoint without its manifest", half_saved, "checkpoint verify run/checkpoints/step-00000000")
            .refused(20)
            .says(&["DAMAGED", "has no manifest.json"]),
        case("a conversation without a template", whole, "generate -m m --chat -p x")
            .fails(11)
            .says(&["no chat template"]),
        case(
            "messages that are none",
            |d| {
                whole(d);
                put(d, "m/chat_template.jinja", "{{ messages[0].content }}");
                put(d, "talk.json", "{\"role\": \"user\"}");
            },
            "generate -m m --chat --messages talk.json",
        )
        .fails(11)
        .says(&["talk.json", "no list of messages"]),
        case(
            "a template that is cut off",
            |d| {
                whole(d);
                put(d, "m/chat_template.jinja", "{% for m in messages %}");
            },
            "generate -m m --chat -p x",
        )
        .fails(11)
        .says(&["chat_template.jinja"]),
    ]
}

pub fn rows() -> Vec<Case> {
    files().into_iter().chain(copies()).collect()
}

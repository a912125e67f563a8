//! Import and export without Python: every dtype, every shard size, every kind of broken input.

use crate::checkpoint::{newest_valid_alone, Group};
use crate::config::ModelConfig;
use crate::convert::hf::*;
use crate::convert::weights::{self, Weights};
use crate::error::{Exit, Result};
use crate::layout::{units, Layout};
use crate::topology::Topology;
use serde_json::{json, Value};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 60,
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 64,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32},
        "bos_token_id": 1, "eos_token_id": [2, 3]
    })
}

/// Values that bf16 and fp16 hold exactly, different in every tensor.
fn values(name: &str, n: usize) -> Vec<f32> {
    let seed = name.bytes().map(u32::from).sum::<u32>();
    (0..n as u32).map(|i| ((i * 7 + seed) % 255) as f32 / 16.0 - 8.0).collect()
}

fn tensors(config: &Value) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let model = config::parse(config).unwrap().model;
    let all = units(&model).into_iter().flat_map(|(_, params)| params);
    all.map(|(name, shape)| (name.clone(), (shape.clone(), values(&name, shape.iter().product())))).collect()
}

fn write_shard(path: &Path, tensors: &HashMap<String, (Vec<usize>, Vec<f32>)>, dtype: Dtype) {
    let raw: HashMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, data))| {
            let bytes = match dtype {
                Dtype::Fp32 => bytemuck::cast_slice(data).to_vec(),
                Dtype::Bf16 => data.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
                Dtype::Fp16 => data.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            };
            (name, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (name, safetensors::tensor::TensorView::new(dtype.tag(), shape.clone(), &raw[name]).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A Hugging Face directory in one file.
fn directory(config: &Value, dtype: Dtype) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    write_shard(&dir.path().join("model.safetensors"), &tensors(config), dtype);
    dir
}

fn assert_holds(w: &Weights, config: &Value) {
    for (name, (shape, data)) in tensors(config) {
        let mut out = vec![0.0; data.len()];
        w.read(&name, &vec![0; shape.len()], &shape, &mut out).unwrap();
        assert_eq!(out, data, "{name}");
    }
}

fn refused(result: Result<Weights>, words: &[&str]) {
    let e = result.err().expect("must be refused");
    assert_eq!(e.exit, Exit::Model, "{e}");
    words.iter().for_each(|w| assert!(e.to_string().contains(w), "{e} does not say {w:?}"));
}

#[test]
fn every_type_goes_in_and_out_unchanged_in_any_number_of_files() {
    for dtype in [Dtype::Fp32, Dtype::Bf16, Dtype::Fp16] {
        let dir = directory(&config(), dtype);
        let source = weights::open(dir.path()).unwrap();
        assert_holds(&source, &config());
        for (shard_size, shards) in [(u64::MAX, 1), (6000 * dtype.size() as u64 / 4, 5), (1, 21)] {
            let out = dir.path().join(format!("out-{shards}"));
            let done =
                export(&source, &out, &ExportOptions { dtype, shard_size, tokenizer: None, meter: Default::default() })
                    .unwrap();
            assert_eq!(out.join("model.safetensors.index.json").exists(), shards > 1);
            assert_eq!(done.shards, shards);
            let again = weights::open(&out).unwrap();
            let explicit = ModelConfig { head_dim: Some(4), ..source.model().clone() };
            assert_eq!(*again.model(), explicit);
            assert_eq!(again.special_tokens(), source.special_tokens());
            assert_holds(&again, &config());
        }
    }
}

#[test]
fn an_import_is_a_checkpoint_that_exports_the_same() {
    let dir = directory(&config(), Dtype::Bf16);
    let tokenizer = crate::data::Tokenizer::open("bytes").unwrap().files().remove(0).1;
    fs::write(dir.path().join("tokenizer.json"), &tokenizer).unwrap();
    let source = weights::open(dir.path()).unwrap();
    let run = dir.path().join("run");
    import(&source, &run.join("checkpoints"), &Default::default()).unwrap();
    let c = newest_valid_alone(&run.join("checkpoints"), &Default::default(), &mut |_| ()).unwrap().unwrap();
    assert_eq!(c.meta().step, 0);
    assert!(!c.has(Group::ExpAvg));
    let w = weights::open(&run).unwrap();
    assert_eq!(w.model(), source.model());
    assert_holds(&w, &config());
    let out = dir.path().join("out");
    let options = ExportOptions { dtype: Dtype::Bf16, shard_size: 1 << 30, tokenizer: None, meter: Default::default() };
    assert_eq!(export(&w, &out, &options).unwrap().tokenizer, ["tokenizer.json", "tokenizer_config.json"]);
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), tokenizer);
    assert_eq!(c.meta().tokenizer_fingerprint.len(), 32);
    assert_holds(&weights::open(&out).unwrap(), &config());
    let written: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(written["eos_token_id"], json!([2, 3]));
    assert_eq!(written["torch_dtype"], "bfloat16");
}

#[test]
fn fill_hands_out_every_local_slice() {
    let dir = directory(&config(), Dtype::Fp32);
    let w = weights::open(dir.path()).unwrap();
    let layout = Layout::new(w.model(), &Topology::solo());
    let mut seen = 0;
    w.fill(&layout, &mut |_, param, data| {
        assert_eq!(data, values(&param.name, param.len()));
        seen += data.len();
    })
    .unwrap();
    assert_eq!(seen, layout.len());
}

#[test]
fn columns_of_a_matrix_are_read_alone() {
    let dir = directory(&config(), Dtype::Bf16);
    let w = weights::open(dir.path()).unwrap();
    let mut out = vec![0.0; 5 * 3];
    w.read("model.layers.1.mlp.down_proj.weight", &[2, 20], &[5, 3], &mut out).unwrap();
    let all = values("model.layers.1.mlp.down_proj.weight", 16 * 24);
    let expected: Vec<f32> = (2..7).flat_map(|r| all[r * 24 + 20..r * 24 + 23].to_vec()).collect();
    assert_eq!(out, expected);
}

#[test]
fn tied_models_need_no_head_and_one_with_other_values_unties_them() {
    let mut tied = config();
    tied["tie_word_embeddings"] = json!(true);
    assert_holds(&weights::open(directory(&tied, Dtype::Fp32).path()).unwrap(), &tied);
    let with_head = directory(&config(), Dtype::Fp32);
    fs::write(with_head.path().join("config.json"), tied.to_string()).unwrap();
    let w = weights::open(with_head.path()).unwrap();
    assert!(!w.model().tie_word_embeddings);
    assert_holds(&w, &config());
    // One value in the last place is enough to untie, and a copy of the embedding is none.
    for (change, stays) in [(0.0, true), (0.25, false)] {
        let mut all = tensors(&config());
        let mut head = all["model.embed_tokens.weight"].clone();
        *head.1.last_mut().unwrap() += change;
        all.insert("lm_head.weight".into(), head);
        write_shard(&with_head.path().join("model.safetensors"), &all, Dtype::Fp32);
        assert_eq!(weights::open(with_head.path()).unwrap().model().tie_word_embeddings, stays);
    }
    // Neither tied nor a head: said by name.
    let headless = directory(&tied, Dtype::Fp32);
    fs::write(headless.path().join("config.json"), config().to_string()).unwrap();
    refused(weights::open(headless.path()), &["lack lm_head.weight", "tie_word_embeddings"]);
}

#[test]
fn of_two_sets_of_weights_none_is_chosen() {
    let dir = directory(&config(), Dtype::Fp32);
    write_shard(&dir.path().join("model-00001-of-00001.safetensors"), &tensors(&config()), Dtype::Fp32);
    let map: serde_json::Map<String, Value> =
        tensors(&config()).into_keys().map(|name| (name, json!("model-00001-of-00001.safetensors"))).collect();
    let index = dir.path().join("model.safetensors.index.json");
    fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    refused(weights::open(dir.path()), &["two sets of weights", "model.safetensors,", "1 files named by"]);
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_holds(&weights::open(dir.path()).unwrap(), &config());
    // An index may name the single file itself.
    fs::rename(dir.path().join("model-00001-of-00001.safetensors"), dir.path().join("model.safetensors")).unwrap();
    fs::write(&index, fs::read_to_string(&index).unwrap().replace("model-00001-of-00001", "model")).unwrap();
    assert_holds(&weights::open(dir.path()).unwrap(), &config());
}

#[test]
fn broken_directories_are_refused_in_one_line() {
    type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;
    let change = |f: &dyn Fn(&mut Tensors)| {
        let dir = directory(&config(), Dtype::Fp32);
        let mut all = tensors(&config());
        f(&mut all);
        write_shard(&dir.path().join("model.safetensors"), &all, Dtype::Fp32);
        weights::open(dir.path())
    };
    refused(change(&|t| drop(t.remove("model.norm.weight"))), &["lack model.norm.weight"]);
    refused(change(&|t| t.retain(|n, _| !n.contains("layers.1"))), &["layers.1", "and 8 more of 21"]);
    refused(
        change(&|t| t.get_mut("lm_head.weight").unwrap().0 = vec![16, 60]),
        &["lm_head.weight has shape [16, 60]", "says [60, 16]"],
    );
    refused(
        change(&|t| drop(t.insert("model.layers.0.self_attn.q_proj.bias".into(), (vec![1], vec![0.0])))),
        &["q_proj.bias", "has not"],
    );

    let dir = directory(&config(), Dtype::Fp32);
    let file = dir.path().join("model.safetensors");
    let good = fs::read(&file).unwrap();
    for len in [0, 5, 100, good.len() - 1] {
        fs::write(&file, &good[..len]).unwrap();
        refused(weights::open(dir.path()), &["model.safetensors is cut off", &format!("has {len} bytes of")]);
    }
    fs::write(&file, [&good[..], b"more"].concat()).unwrap();
    refused(weights::open(dir.path()), &["accounts for"]);
    fs::write(&file, [b"\xff".repeat(8), good.clone()].concat()).unwrap();
    refused(weights::open(dir.path()), &["no safetensors file"]);
    let mut bad = good;
    bad[20] = b'\n';
    fs::write(&file, bad).unwrap();
    refused(weights::open(dir.path()), &["damaged header"]);
    fs::remove_file(&file).unwrap();
    refused(weights::open(dir.path()), &["has neither model.safetensors nor", "*.pth"]);
    let index = dir.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#).unwrap();
    refused(weights::open(dir.path()), &["model-00001-of-00002.safetensors is named by", "not there"]);
    fs::write(&index, r#"{"weight_map": {"x": "../x.safetensors"}}"#).unwrap();
    refused(weights::open(dir.path()), &["outside the directory"]);
    write_shard(&dir.path().join("a.safetensors"), &tensors(&config()), Dtype::Fp32);
    fs::write(&index, r#"{"weight_map": {"nowhere": "a.safetensors"}}"#).unwrap();
    refused(weights::open(dir.path()), &["lists nowhere"]);
    fs::write(&index, "{").unwrap();
    refused(weights::open(dir.path()), &["index.json is damaged"]);
    refused(weights::open(&dir.path().join("absent")), &["there is no"]);
    refused(weights::open(tempfile::tempdir().unwrap().path()), &["holds no weights"]);
}

#[test]
fn other_models_are_refused_by_name() {
    let with = |key: &str, value: Value| {
        let mut c = config();
        c[key] = value;
        config::parse(&c).map(|c| c.model)
    };
    let cases = [
        ("architectures", json!(["MistralForCausalLM"]), "MistralForCausalLM"),
        ("architectures", json!(["LlamaForSequenceClassification"]), "LlamaForCausalLM only"),
        ("hidden_act", json!("gelu"), "\"gelu\""),
        ("attention_bias", json!(true), "attention_bias"),
        ("mlp_bias", json!(true), "mlp_bias"),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0}), "\"linear\""),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 2.0}), "lacks"),
        ("rope_scaling", json!({"factor": 8.0, "low_freq_factor": 1.0}), "factor, low_freq_factor but no rope_type"),
        ("rope_scaling", json!({"rope_type": 3, "factor": 8.0}), "rope_type 3, which is no name"),
        ("rope_scaling", json!({"rope_type": "default", "type": "yarn"}), "\"default\" and the type \"yarn\""),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": 1e4}), "but rope_scaling is"),
        ("original_max_position_embeddings", json!(16), "is 16, but 32"),
        ("quantization_config", json!({"bits": 4}), "quantized"),
        ("num_key_value_heads", json!(3), "not a multiple of num_key_value_heads 3"),
        ("num_attention_heads", json!(0), "num_attention_heads is 0"),
        ("vocab_size", json!(-1), "vocab_size is -1"),
        ("vocab_size", Value::Null, "vocab_size is missing"),
        ("head_dim", json!(5), "odd"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
    ];
    for (key, value, word) in cases {
        let e = with(key, value).expect_err(key);
        assert_eq!(e.exit, Exit::Model);
        assert!(e.to_string().contains(word), "{e} does not say {word}");
    }
    let mut nameless = config();
    nameless.as_object_mut().unwrap().remove("architectures");
    assert!(config::parse(&nameless).is_ok());
    nameless["model_type"] = json!("mistral");
    assert!(config::parse(&nameless).is_err());
}

#[test]
fn both_spellings_of_the_rotary_parameters_mean_the_same() {
    let old = config();
    let mut new = config();
    let map = new.as_object_mut().unwrap();
    let mut rope = map.remove("rope_scaling").unwrap();
    rope["rope_theta"] = map.remove("rope_theta").unwrap();
    map.insert("rope_parameters".into(), rope);
    assert_eq!(config::parse(&old).unwrap(), config::parse(&new).unwrap());
    new["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 10000.0});
    let plain: ModelConfig = config::parse(&new).unwrap().model;
    assert_eq!((plain.rope_theta, plain.rope_scaling), (10000.0, None));
}

#[test]
fn what_is_guessed_or_left_out_of_a_configuration_is_noted() {
    let notes = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut c = config();
        change(c.as_object_mut().unwrap());
        config::parse(&c).unwrap().notes
    };
    let set = |key: &'static str, value: Value| notes(&move |c| drop(c.insert(key.into(), value.clone())));
    assert!(notes(&|_| ()).is_empty());
    // An object without a type scales nothing if it has nothing to scale by; a type by its old name is one.
    assert!(notes(&|c| {
        c.remove("rope_scaling");
        c.remove("rope_theta");
        c.insert("rope_parameters".into(), json!({"rope_theta": 1e4}));
    })
    .is_empty());
    let old = json!({"type": "llama3", "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    assert!(set("rope_scaling", old.clone()).is_empty());
    assert!(set("rope_parameters", old).is_empty(), "both spellings, of one meaning");
    assert!(set("rope_scaling", json!({})).is_empty());
    let one =
        |notes: Vec<String>, word: &str| assert!(notes.len() == 1 && notes[0].contains(word), "{notes:?}: {word}");
    one(
        set("rope_scaling", json!({"type": "default", "factor": 8.0})),
        "factor, which rope_type \"default\" does not use",
    );
    one(notes(&|c| drop(c.remove("rope_theta"))), "rope_theta is missing: 10000 is taken");
    one(notes(&|c| drop(c.remove("rms_norm_eps"))), "rms_norm_eps is missing: 0.000001 is taken");
    one(notes(&|c| drop(c.remove("max_position_embeddings"))), "2048 is taken");
    one(set("pad_token_id", json!(-1)), "pad_token_id is -1");
    one(set("eos_token_id", json!([2, "x"])), "[2] is kept");
    one(notes(&|c| c["rope_scaling"]["rope_theta"] = json!(1e6)), "rope_theta is 500000, but 1000000 in rope_scaling");
}

#[test]
fn what_fp16_cannot_hold_is_an_error_and_leaves_nothing() {
    let dir = directory(&config(), Dtype::Fp32);
    let mut all = tensors(&config());
    all.get_mut("model.norm.weight").unwrap().1[3] = 1e6;
    write_shard(&dir.path().join("model.safetensors"), &all, Dtype::Fp32);
    let w = weights::open(dir.path()).unwrap();
    let options = ExportOptions { dtype: Dtype::Fp16, shard_size: 1 << 30, tokenizer: None, meter: Default::default() };
    let e = export(&w, &dir.path().join("out"), &options).unwrap_err();
    assert!(e.fact.contains("model.norm.weight holds 1000000"), "{e}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    let e = export(&w, dir.path(), &options).unwrap_err();
    assert_eq!(e.exit, Exit::Usage);
}

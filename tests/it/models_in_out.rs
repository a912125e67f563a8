//! Models of others, in and out: what contradicts itself is refused or said, and what a model knows about its own texts (where
//! they begin and end, how it is sampled from, its tokenizer) comes out as it went in.

use crate::support::{herd, names, text};
use herd::data::Tokenizer;
use safetensors::tensor::TensorView;
use serde_json::{json, Value};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

const HIDDEN: usize = 16;
const VOCAB: usize = 259;
/// Beside the 258 ids of `bytes`.
const TURN_END: (u32, &str) = (258, "<|turn_end|>");

type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 128,
        "bos_token_id": 256, "eos_token_id": [257, 258]
    })
}

/// Weights of a model that follows one letter by another: `after` maps a token to the next.
fn tensors(after: &[(u32, u32)]) -> Tensors {
    let shape = |name: &str, shape: &[usize]| {
        let fill = if name.contains("norm") { 1.0 } else { 0.0 };
        (name.to_string(), (shape.to_vec(), vec![fill; shape.iter().product()]))
    };
    let layer = [
        ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
        ("self_attn.k_proj", vec![HIDDEN / 2, HIDDEN]),
        ("self_attn.v_proj", vec![HIDDEN / 2, HIDDEN]),
        ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
        ("mlp.gate_proj", vec![24, HIDDEN]),
        ("mlp.up_proj", vec![24, HIDDEN]),
        ("mlp.down_proj", vec![HIDDEN, 24]),
        ("input_layernorm", vec![HIDDEN]),
        ("post_attention_layernorm", vec![HIDDEN]),
    ];
    let mut all: Tensors = layer.iter().map(|(n, s)| shape(&format!("model.layers.0.{n}.weight"), s)).collect();
    all.extend([shape("model.norm.weight", &[HIDDEN])]);
    all.extend(["model.embed_tokens.weight", "lm_head.weight"].map(|n| shape(n, &[VOCAB, HIDDEN])));
    for (i, (a, b)) in after.iter().enumerate() {
        all.get_mut("model.embed_tokens.weight").unwrap().1[*a as usize * HIDDEN + i] = 1.0;
        all.get_mut("lm_head.weight").unwrap().1[*b as usize * HIDDEN + i] = 1.0;
    }
    all
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let view = |(name, (shape, data)): (&String, &(Vec<usize>, Vec<f32>))| {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        (name.clone(), shape.clone(), bytes)
    };
    let raw: Vec<_> = tensors.iter().map(view).collect();
    let views = raw.iter().map(|(n, s, b)| (n, TensorView::new(safetensors::Dtype::F32, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

pub fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

pub fn put(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

/// The byte-level tokenizer with one more special token, as Hugging Face files.
pub fn tokenizer(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    for (name, content) in Tokenizer::open("bytes").unwrap().files() {
        let mut file: Value = serde_json::from_slice(&content).unwrap();
        if name == "tokenizer.json" {
            let mut extra = file["added_tokens"][0].clone();
            (extra["id"], extra["content"]) = (TURN_END.0.into(), TURN_END.1.into());
            file["added_tokens"].as_array_mut().unwrap().push(extra);
        }
        if name != "herd_tokenizer.json" {
            put(&directory.join(name), &file);
        }
    }
}

/// A model directory with tokenizer and generation settings.
pub fn model(directory: &Path, after: &[(u32, u32)]) -> PathBuf {
    tokenizer(directory);
    put(&directory.join("config.json"), &config());
    put(&directory.join("generation_config.json"), &generation());
    write_tensors(&directory.join("model.safetensors"), &tensors(after));
    directory.into()
}

fn generation() -> Value {
    json!({"bos_token_id": 256, "eos_token_id": [258, 257, 10], "do_sample": true, "temperature": 0.7, "top_p": 0.9})
}

pub fn run(at: &Path, args: &[&str]) -> Output {
    herd().current_dir(at).args(args).env_remove("SLURM_JOB_ID").output().unwrap()
}

/// Both streams of a command that succeeds.
pub fn ok(at: &Path, args: &[&str]) -> String {
    let out = run(at, args);
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    text(&out)
}

/// One line of a command that fails with `exit`, which holds all of `words`.
pub fn refused(at: &Path, args: &[&str], exit: i32, words: &[&str]) {
    let out = run(at, args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(exit), "{args:?}: {said}");
    let line = said.lines().find(|l| l.starts_with("herd: error")).unwrap_or_else(|| panic!("no error line: {said}"));
    words.iter().for_each(|w| assert!(said.contains(w), "{line} does not say {w:?}"));
}

pub fn said(output: &str, words: &[&str]) {
    let line = output.lines().find(|l| words.iter().all(|w| l.contains(w)));
    assert!(line.is_some(), "no line has all of {words:?}: {output}");
}

/// A corpus and a configuration of two steps at `at`, with a tokenizer as it is named there.
fn training(at: &Path, tokenizer: &str, model: &str) {
    fs::write(at.join("words.txt"), "some words to learn, and some more. ".repeat(60)).unwrap();
    ok(at, &["data", "tokenize", "-t", tokenizer, "-o", "words", "--force", "words.txt"]);
    let yaml = format!(
        "name: t\nrun_dir: run\nmodel: {model}\ndata: {{tokenizer: {tokenizer}, sequence_length: 16, train: [{{path: words}}]}}\n\
         batch: {{global: 2, micro: 2}}\ntrain: {{steps: 2, device: cpu, precision: fp32, threads: 1}}\noptim: {{warmup_steps: 1}}\n"
    );
    fs::write(at.join("c.yaml"), yaml).unwrap();
}

#[test]
fn every_end_and_the_generation_settings_come_out_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    model(&d.join("base"), &[]);
    // Decoys where a careless look would find them: the parent of the named directory, and where the command runs.
    let decoy = json!({"eos_token_id": 9, "temperature": 0.1});
    put(&d.join("generation_config.json"), &decoy);
    put(&d.join("tokenizer_config.json"), &json!({"eos_token": "<|turn_end|>"}));
    let elsewhere = d.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    put(&elsewhere.join("generation_config.json"), &decoy);
    training(d, "base/tokenizer.json", "{weights: base}");
    ok(d, &["checkpoint", "import", "base", "run-imported"]);
    for (run, sets) in [
        ("run-file", &[][..]),
        ("run-dir", &["--set", "data.tokenizer=base"]),
        ("run-shape", &["--set", "model.config=base/config.json"]),
        ("run-imported", &["--set", "model.weights=", "--set", "model.config=base/config.json"]),
    ] {
        let dir_set = format!("run_dir={run}");
        ok(d, &[&["train", "c.yaml", "--set", &dir_set], sets].concat());
        // And once more from its own checkpoint.
        ok(d, &[&["train", "c.yaml", "--set", &dir_set, "--set", "train.steps=3"], sets].concat());
        let base = d.join("base").display().to_string();
        let file = format!("{base}/tokenizer.json");
        let forms: [&[&str]; 5] = [
            &[],
            &["--tokenizer", &base],
            &["--tokenizer", "../base"],
            &["--tokenizer", &file],
            &["--tokenizer", "bytes"],
        ];
        for (i, form) in forms.iter().enumerate() {
            let out = format!("{run}-{i}");
            ok(&elsewhere, &[&["checkpoint", "export", &format!("../{run}"), &out], *form].concat());
            let out = elsewhere.join(out);
            let written = json_file(&out.join("config.json"));
            assert_eq!(
                (&written["eos_token_id"], &written["bos_token_id"]),
                (&json!([257, 258]), &json!(256)),
                "{run} {form:?}"
            );
            assert_eq!(json_file(&out.join("generation_config.json")), generation(), "{run} {form:?}");
            let ends = json_file(&out.join("tokenizer_config.json"))["eos_token"].clone();
            assert_eq!(ends, "<|end_of_text|>", "{run} {form:?}: the file of the named directory");
        }
    }
    // Trained with a tokenizer in which those ids are others: nothing is taken over, and that is said.
    let mut other = json_file(&d.join("base/tokenizer.json"));
    other["added_tokens"][2]["content"] = "<|other|>".into();
    fs::create_dir(d.join("other")).unwrap();
    put(&d.join("other/tokenizer.json"), &other);
    training(d, "other", "{weights: base}");
    let told = ok(d, &["train", "c.yaml", "--set", "run_dir=run-other"]);
    said(&told, &["WARN", "not taken over", "258 is <|turn_end|>", "<|other|>"]);
    ok(d, &["checkpoint", "export", "run-other", "out-other"]);
    assert_eq!(json_file(&d.join("out-other/config.json"))["eos_token_id"], 257);
}

#[test]
fn generation_stops_at_every_end() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let letter = |c: char| c as u32;
    // a b c and then an end that the tokenizer, config.json or generation_config.json alone knows of.
    for (name, end) in [("by-config", 258), ("by-generation", 10), ("by-tokenizer", 257)] {
        let chain = [(letter('a'), letter('b')), (letter('b'), letter('c')), (letter('c'), end), (end, letter('x'))];
        let m = model(&d.join(name), &chain);
        let mut c = config();
        c["eos_token_id"] = if name == "by-config" { json!([33, 258]) } else { json!(33) };
        put(&m.join("config.json"), &c);
        let ends = if name == "by-generation" { json!([34, 10]) } else { json!(34) };
        put(&m.join("generation_config.json"), &json!({"eos_token_id": ends}));
        ok(d, &["checkpoint", "import", name, &format!("{name}-run")]);
        for place in [name.to_string(), format!("{name}-run")] {
            let out = run(d, &["generate", "-m", &place, "-p", "a", "--no-bos", "-n", "5", "--threads", "1"]);
            assert_eq!(String::from_utf8_lossy(&out.stdout), "abc\n", "{place}: {}", text(&out));
        }
    }
}

#[test]
fn a_run_keeps_its_own_tokenizer_wherever_it_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let (home, away) = (dir.path().join("home"), dir.path().join("away"));
    tokenizer(&home);
    tokenizer(&away);
    let mut other = json_file(&away.join("tokenizer.json"));
    other["added_tokens"][2]["content"] = "<|away|>".into();
    put(&away.join("tokenizer.json"), &other);
    let shape = "{shape: {vocab_size: 259, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1}}";
    training(&home, "tokenizer.json", shape);
    ok(&home, &["train", "c.yaml"]);
    ok(&away, &["checkpoint", "export", "../home/run", "out"]);
    assert_eq!(fs::read(away.join("out/tokenizer.json")).unwrap(), fs::read(home.join("tokenizer.json")).unwrap());
    ok(&away, &["generate", "-m", "../home/run", "-p", "w", "-n", "1", "--threads", "1"]);
    let shown = ok(&away, &["checkpoint", "show", "../home/run"]);
    assert!(shown.contains(home.join("tokenizer.json").to_str().unwrap()), "{shown}");
    // Another in its place is not its own.
    fs::copy(away.join("tokenizer.json"), home.join("tokenizer.json")).unwrap();
    refused(
        &home,
        &["generate", "-m", "run", "-p", "w", "-n", "1"],
        11,
        &["not the one", "fingerprint", "--tokenizer"],
    );
    let told = ok(&home, &["checkpoint", "export", "run", "out"]);
    said(&told, &["exported out", "no tokenizer", "fingerprint", "--tokenizer"]);
    assert!(!home.join("out/tokenizer.json").exists());
    let told = ok(&home, &["checkpoint", "export", "run", "out2", "--tokenizer", "tokenizer.json"]);
    said(&told, &["WARN", "not the one", "fingerprint"]);
    assert!(home.join("out2/tokenizer.json").exists());
    fs::remove_file(home.join("tokenizer.json")).unwrap();
    refused(&home, &["generate", "-m", "run", "-p", "w", "-n", "1"], 11, &["tokenizer.json is gone"]);
}

#[test]
fn models_that_contradict_themselves_are_refused_or_said() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let m = model(&d.join("m"), &[(97, 98)]);
    let with = |key: &str, value: Value| {
        let mut c = config();
        c[key] = value;
        put(&m.join("config.json"), &c);
    };
    let imported = |name: &str| ok(d, &["checkpoint", "import", "m", name]);
    assert_eq!(imported("as-it-is").lines().count(), 1, "nothing to say");

    with("tie_word_embeddings", json!(true));
    said(&imported("untied"), &["WARN", "tie_word_embeddings", "lm_head.weight", "not tied"]);
    ok(d, &["checkpoint", "export", "untied", "untied-out", "--dtype", "fp32"]);
    assert_eq!(json_file(&d.join("untied-out/config.json"))["tie_word_embeddings"], false);
    let same = ok(d, &["checkpoint", "diff", "as-it-is", "untied-out"]);
    assert!(same.contains("0 of "), "{same}");

    with("rope_scaling", json!({"factor": 4.0}));
    refused(d, &["checkpoint", "import", "m", "x"], 12, &["factor but no rope_type"]);
    with("rope_scaling", json!({"rope_type": "default", "factor": 4.0}));
    said(&imported("default"), &["WARN", "factor", "\"default\" does not use"]);
    training(d, "m", "{config: m/config.json}");
    said(&ok(d, &["config", "check", "c.yaml"]), &["note", "factor"]);
    put(&m.join("config.json"), &config());

    // Weights of other programs beside those that are read.
    fs::write(m.join("pytorch_model-00001-of-00002.bin"), "x").unwrap();
    fs::write(m.join("consolidated.00.pth"), "x").unwrap();
    said(
        &imported("beside"),
        &["WARN", "model.safetensors is read", "consolidated.00.pth, pytorch_model-00001-of-00002.bin not"],
    );
    let index = json!({"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}});
    put(&m.join("model.safetensors.index.json"), &index);
    refused(d, &["checkpoint", "import", "m", "x"], 12, &["two sets of weights"]);
    fs::remove_file(m.join("model.safetensors.index.json")).unwrap();

    // A shape that is not the weights' own: sizes are refused, even where every tensor would fit; the rest is said.
    let shape = |heads: usize, theta: f64| {
        format!("{{vocab_size: 259, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: {heads}, num_key_value_heads: {}, max_position_embeddings: 128, rope_theta: {theta}}}", heads / 2)
    };
    for (weights, exit, word) in [
        ("m", 10, "num_attention_heads is 8, but 4"),
        ("as-it-is", 10, "num_attention_heads: is 8, but the weights have 4"),
    ] {
        training(d, "m", &format!("{{weights: {weights}, shape: {}}}", shape(8, 10000.0)));
        refused(d, &["train", "c.yaml", "--set", "run_dir=run-heads"], exit, &[word]);
        if weights == "m" {
            refused(d, &["config", "check", "c.yaml"], exit, &[word]);
        }
        training(d, "m", &format!("{{weights: {weights}, shape: {}}}", shape(4, 20000.0)));
        let told = ok(d, &["train", "c.yaml", "--set", &format!("run_dir=run-theta-{weights}")]);
        said(&told, &["WARN", "rope_theta: is 20000.0, but the weights have 10000.0"]);
    }
    assert!(!names(d).contains(&"x".to_string()), "nothing is left of what was refused");
}

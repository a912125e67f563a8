//! herd's model against transformers' LlamaForCausalLM: logits, loss and every gradient, in fp32.

use crate::support;
use herd::config::ModelConfig;
use herd::layout::Layout;
use herd::model::{Accumulate, Llama, Params, StepOptions};
use herd::topology::Topology;
use safetensors::SafeTensors;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// One of the oracle's models and what transformers computed with it.
pub struct Case {
    pub config: ModelConfig,
    tensors: BTreeMap<String, Tensor>,
}

impl Case {
    /// The cases by name; the oracle runs once a process.
    pub fn get(name: &str) -> Case {
        static FILES: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
        let cases = cases();
        let read = |dir: &Path, name: &String| std::fs::read(dir.join(format!("{name}.safetensors"))).unwrap();
        let files = FILES.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            ask_oracle(&cases, dir.path());
            cases.as_object().unwrap().keys().map(|name| (name.clone(), read(dir.path(), name))).collect()
        });
        Case::new(&cases[name], &files[name])
    }

    /// A case and the safetensors file that the oracle wrote for it.
    pub fn new(case: &Value, file: &[u8]) -> Case {
        Case { config: serde_json::from_value(case["model"].clone()).unwrap(), tensors: tensors(file) }
    }

    pub fn tensor(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    /// The oracle's weights in herd's buffers.
    pub fn params(&self) -> Params {
        let p = Params::zeros(&Layout::new(&self.config, &Topology::solo()), Kind::Float, Device::Cpu);
        for unit in &p.units {
            for param in &unit.layout.params {
                unit.param(&param.name).copy_(self.tensor(&format!("weight.{}", param.name)));
            }
        }
        p
    }
}

/// Grouped queries untied; tied; llama3 scaling at positions beyond the original context; head width ≠ hidden / heads.
fn cases() -> Value {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32});
    let case = |change: Value| {
        let mut model = json!({
            "vocab_size": 211, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 3,
            "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": false, "initializer_range": 0.15,
        });
        model.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!({"model": model, "batch": 2, "sequence": 96, "prompt": 40, "new": 50})
    };
    json!({
        "grouped": case(json!({})),
        "tied": case(json!({"tie_word_embeddings": true, "num_key_value_heads": 6})),
        "scaled": case(json!({"rope_scaling": scaling})),
        "wide_heads": case(json!({"head_dim": 20, "rope_scaling": scaling, "tie_word_embeddings": true})),
    })
}

/// Writes a safetensors file for every case, and what else a case asks for, into `dir`.
pub fn ask_oracle(cases: &Value, dir: &Path) {
    let list = dir.join("cases.json");
    std::fs::write(&list, cases.to_string()).unwrap();
    let out = support::python().arg("tests/oracle/model_oracle.py").arg(&list).arg(dir).output().unwrap();
    assert!(out.status.success(), "{}", support::text(&out));
}

fn tensors(file: &[u8]) -> BTreeMap<String, Tensor> {
    let file = SafeTensors::deserialize(file).unwrap();
    let tensor = |view: safetensors::tensor::TensorView| {
        let kind = match view.dtype() {
            safetensors::Dtype::F32 => Kind::Float,
            safetensors::Dtype::I64 => Kind::Int64,
            other => panic!("the oracle writes no {other:?}"),
        };
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        Tensor::from_data_size(view.data(), &shape, kind)
    };
    file.tensors().into_iter().map(|(name, view)| (name, tensor(view))).collect()
}

fn largest(x: &Tensor) -> f64 {
    x.abs().max().double_value(&[])
}

fn matches_transformers(name: &str) {
    let case = Case::get(name);
    let p = case.params();
    let (tokens, targets) = (case.tensor("tokens"), case.tensor("targets"));
    let model = Llama::new(&case.config, tokens.size()[1] as usize, Device::Cpu, &herd::model::Axes::solo());

    let logits = case.tensor("logits");
    let error = largest(&(model.logits(&p, tokens).unwrap() - logits));
    assert!(error < 1e-4, "{name}: logits differ by {error:.2e}");
    assert!(largest(logits) > 1.0, "{name}: logits too small to tell");

    let counted = targets.ge(0).sum(Kind::Int64).int64_value(&[]);
    let step = StepOptions { grad_scale: 1.0 / counted as f64, z_loss: 0.0, grads: Accumulate::Replace };
    let sums = model.forward_backward(&p, tokens, targets, &step, &mut |_| Ok(())).unwrap();
    let loss = case.tensor("loss").double_value(&[0]);
    assert_eq!(sums.tokens as i64, counted);
    assert!((sums.loss / loss - 1.0).abs() < 1e-6, "{name}: loss {} against {loss}", sums.loss);
    let alone = model.loss(&p, tokens, targets).unwrap();
    assert!((alone.loss / loss - 1.0).abs() < 1e-6, "{name}: loss alone {} against {loss}", alone.loss);

    let mut seen = 0;
    for unit in &p.units {
        for param in &unit.layout.params {
            let want = case.tensor(&format!("grad.{}", param.name));
            let error = largest(&(unit.grad(&param.name) - want)) / largest(want);
            assert!(error < 2e-5, "{name}: gradient of {}: relative error {error:.2e}", param.name);
            seen += 1;
        }
    }
    assert_eq!(seen, case.tensors.keys().filter(|k| k.starts_with("grad.")).count());
}

#[test]
fn grouped_queries_match_transformers() {
    matches_transformers("grouped");
}

#[test]
fn tied_embeddings_match_transformers() {
    matches_transformers("tied");
}

#[test]
fn scaled_rope_matches_transformers_beyond_the_original_context() {
    matches_transformers("scaled");
    // The case tells scaling from none, late positions most of all.
    let case = Case::get("scaled");
    let plain = ModelConfig { rope_scaling: None, ..case.config.clone() };
    let tokens = case.tensor("tokens");
    let logits =
        Llama::new(&plain, 96, Device::Cpu, &herd::model::Axes::solo()).logits(&case.params(), tokens).unwrap();
    assert!(largest(&(logits - case.tensor("logits")).narrow(1, 64, 32)) > 0.1);
}

#[test]
fn wide_heads_match_transformers() {
    matches_transformers("wide_heads");
}

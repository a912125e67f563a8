//! The model's shape, from wherever the configuration says it comes from.

use crate::config::{check, ModelConfig, ModelSection, Problem};
use crate::error::{Error, Exit, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// A shape and where it was read, to name its keys in problems.
pub struct Shape {
    pub model: ModelConfig,
    /// `model.shape`, or `model.config` or `model.weights` for a file.
    section: &'static str,
    /// The file, where there is one.
    file: Option<String>,
}

impl Shape {
    /// A problem of the shape's keys: named one by one where the shape is inline, by the file otherwise.
    pub fn problem(&self, keys: &[&str], fact: String) -> Problem {
        match &self.file {
            None => Problem::new(keys.iter().map(|k| format!("{}.{k}", self.section)), fact),
            Some(file) => Problem::new([self.section], format!("{file}: {fact}")),
        }
    }
}

/// The shape that `section` names.
///
/// # Errors
/// None or several are given, the file cannot be read ([`Exit::Model`]) or holds no Llama 3.
pub fn resolve(section: &ModelSection) -> std::result::Result<Shape, Vec<Problem>> {
    let from_file = |section: &'static str, path: &Path| {
        let file = path.display().to_string();
        match hugging_face(path) {
            Ok(model) => Ok(Shape { model, section, file: Some(file) }),
            Err(e) => {
                let mut problem = Problem::new([section], e.fact).exit(e.exit);
                problem.hint = e.hint;
                Err(vec![problem])
            }
        }
    };
    match (&section.shape, &section.config, &section.weights) {
        (Some(_), Some(_), _) => {
            let fact = "the shape is given twice, by model.shape and by model.config";
            Err(vec![Problem::new(["model.shape", "model.config"], fact).hint("remove one of the two")])
        }
        (Some(shape), None, _) => Ok(Shape { model: shape.clone(), section: "model.shape", file: None }),
        (None, Some(path), _) => from_file("model.config", path),
        (None, None, Some(dir)) => from_file("model.weights", &dir.join("config.json")),
        (None, None, None) => {
            let hint =
                "give model.shape inline, model.config (a Hugging Face config.json) or model.weights (a directory)";
            Err(vec![Problem::new(["model"], "no shape is given").hint(hint)])
        }
    }
}

/// The shape in a Hugging Face `config.json`. Keys that do not change the computation of a Llama are passed over.
fn hugging_face(path: &Path) -> Result<ModelConfig> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", &e, Exit::Model))?;
    let wrong = |fact: String| Error::new(Exit::Model, format!("{}: {fact}", path.display()));
    let json: Value = serde_json::from_str(&text).map_err(|e| wrong(format!("not JSON: {e}")))?;
    let kind = json["model_type"].as_str().unwrap_or("not given");
    if kind != "llama" {
        return Err(wrong(format!("model_type is {kind}, not llama")).hint("herd trains Llama 3, 3.1 and 3.2"));
    }
    for (key, only) in
        [("attention_bias", Value::from(false)), ("mlp_bias", false.into()), ("hidden_act", "silu".into())]
    {
        if json.get(key).is_some_and(|v| !v.is_null() && *v != only) {
            return Err(
                wrong(format!("{key} is {}, but herd supports {only} only", json[key])).hint("this is no Llama 3")
            );
        }
    }
    // transformers 5 writes rope_theta and the scaling together as rope_parameters.
    let rope = if json["rope_parameters"].is_object() { &json["rope_parameters"] } else { &json["rope_scaling"] };
    let mut own = Map::new();
    let known = crate::config::schema::model_shape()["properties"].as_object();
    for key in known.into_iter().flat_map(Map::keys).filter(|k| *k != "rope_scaling") {
        let value = json.get(key).or_else(|| rope.get(key).filter(|_| key == "rope_theta"));
        if let Some(value) = value.filter(|v| !v.is_null()) {
            own.insert(key.clone(), value.clone());
        }
    }
    if let Some(heads) = own.get("num_attention_heads").cloned() {
        own.entry("num_key_value_heads").or_insert(heads);
    }
    match rope["rope_type"].as_str().or(rope["type"].as_str()) {
        None | Some("default") => {}
        Some("llama3") => {
            let keys = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];
            let mut scaling: Map<String, Value> = keys.iter().map(|k| (k.to_string(), rope[*k].clone())).collect();
            scaling.insert("rope_type".into(), "llama3".into());
            own.insert("rope_scaling".into(), scaling.into());
        }
        Some(other) => return Err(wrong(format!("rope_type {other} is not supported")).hint("llama3 and default are")),
    }
    let mut value = Value::Object(own);
    let problems = check::model_shape(&mut value, "");
    match serde_json::from_value(value) {
        Ok(model) if problems.is_empty() => Ok(model),
        Err(e) if problems.is_empty() => Err(wrong(e.to_string())),
        _ => Err(wrong(problems.iter().map(|p| p.to_string()).collect::<Vec<_>>().join("; "))),
    }
}

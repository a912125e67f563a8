//! The model's shape, from wherever the configuration says it comes from.

use crate::checkpoint::hf;
use crate::config::{check, ModelConfig, ModelSection, Problem};
use crate::error::Exit;
use serde_json::Value;
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
        match hf::config::read(path) {
            Ok(found) => in_range(&found.model, section, &file).map(|()| {
                let model = found.model;
                Shape { model, section, file: Some(file) }
            }),
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

/// A file's shape has to keep to the schema's ranges as well: products of sizes beyond them could overflow.
fn in_range(model: &ModelConfig, section: &'static str, file: &str) -> std::result::Result<(), Vec<Problem>> {
    let mut value = serde_json::to_value(model).unwrap_or(Value::Null);
    let found = check::model_shape(&mut value, "");
    let named = |p: Problem| Problem::new([section], format!("{file}: {p}")).exit(Exit::Model);
    match found.is_empty() {
        true => Ok(()),
        false => Err(found.into_iter().map(named).collect()),
    }
}

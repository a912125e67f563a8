//! The model's shape, from wherever the configuration says it comes from.

use super::resume::{differences, SIZES};
use crate::config::{check, ModelConfig, ModelSection, Problem};
use crate::convert::hf;
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
/// None or several are given, the file cannot be read ([`Exit::Model`]) or holds no Llama 3, or the shape is another than
/// that of the weights beside which it is given.
pub fn resolve(section: &ModelSection) -> std::result::Result<Shape, Vec<Problem>> {
    let shape = read(section)?;
    let beside = section.weights.as_ref().filter(|_| shape.section != "model.weights").map(|d| d.join("config.json"));
    match beside.filter(|file| file.is_file()).and_then(|file| Some((hf::config::read(&file).ok()?, file))) {
        Some((theirs, file)) => fits(&shape, &theirs.model, &file).map(|()| shape),
        // Weights that are no Hugging Face directory, or a broken one, are looked at when the run starts.
        None => Ok(shape),
    }
}

/// The weights' own shape, which is `theirs`, is the one that was given.
fn fits(shape: &Shape, theirs: &ModelConfig, file: &Path) -> std::result::Result<(), Vec<Problem>> {
    // Whether the head is tied the tensors have to tell, when they are opened.
    let told = |key: &str| SIZES.contains(&key) && key != "tie_word_embeddings";
    let differ = differences(&shape.model, theirs).into_iter().filter(|d| told(&d.key));
    let problem = |d: super::resume::Difference| {
        let fact = format!("{} is {}, but {} in the weights' {}", d.key, d.now, d.then, file.display());
        let mut problem = shape.problem(&[&d.key], fact);
        problem.keys.push("model.weights".into());
        problem.hint("give the shape that the weights have, or leave it out: model.weights alone brings it")
    };
    match differ.map(problem).collect::<Vec<_>>() {
        none if none.is_empty() => Ok(()),
        some => Err(some),
    }
}

fn read(section: &ModelSection) -> std::result::Result<Shape, Vec<Problem>> {
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

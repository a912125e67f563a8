//! The models that `herd init` knows: the configurations in `configs/`, as they were when herd was built.

use super::super::plan::write::changed;
use crate::config::{load, Config};
use crate::error::{Error, Exit, Result};
use clap::ValueEnum;
use std::path::PathBuf;

/// A configuration to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Model {
    /// 4.5 million parameters on bytes, for a try on CPUs
    Demo,
    /// Llama 3.2 1B
    #[value(name = "llama3.2-1b")]
    Llama32Of1B,
    /// Llama 3.1 8B
    #[value(name = "llama3.1-8b")]
    Llama31Of8B,
    /// Llama 3.1 70B
    #[value(name = "llama3.1-70b")]
    Llama31Of70B,
    /// Llama 3.1 405B
    #[value(name = "llama3.1-405b")]
    Llama31Of405B,
}

impl Model {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Model::Demo => "demo",
            Model::Llama32Of1B => "llama3.2-1b",
            Model::Llama31Of8B => "llama3.1-8b",
            Model::Llama31Of70B => "llama3.1-70b",
            Model::Llama31Of405B => "llama3.1-405b",
        }
    }

    /// Runs as well without devices.
    pub fn is_small(self) -> bool {
        self == Model::Demo
    }

    fn template(self) -> &'static str {
        match self {
            Model::Demo => include_str!("../../../configs/llama3_demo.yaml"),
            Model::Llama32Of1B => include_str!("../../../configs/llama32_1b.yaml"),
            Model::Llama31Of8B => include_str!("../../../configs/llama3_8b.yaml"),
            Model::Llama31Of70B => include_str!("../../../configs/llama3_70b.yaml"),
            Model::Llama31Of405B => include_str!("../../../configs/llama3_405b.yaml"),
        }
    }

    /// Its configuration with another name, run directory and data. The comments above it speak of another site and stay out.
    ///
    /// # Errors
    /// [`Exit::Internal`] where the template has no such line.
    pub fn text(
        self, train: &Option<PathBuf>, validation: &Option<PathBuf>, tokenizer: &Option<PathBuf>,
    ) -> Result<String> {
        let mut text: String =
            self.template().lines().skip_while(|l| l.starts_with('#')).map(|l| format!("{l}\n")).collect();
        let mut set = |key: &str, value: Option<String>| -> Result<()> {
            let Some(value) = value else { return Ok(()) };
            let at = text.lines().position(|l| l.trim_start().trim_start_matches("- ").starts_with(key));
            let missing = || Error::new(Exit::Internal, format!("the template of {} has no {key}", self.name()));
            let at = at.ok_or_else(missing)?;
            let mut lines: Vec<String> = text.lines().map(String::from).collect();
            let indent = lines[at].find(key).unwrap_or(0);
            lines[at] = format!("{}{key} {value}", &lines[at][..indent]);
            text = lines.join("\n") + "\n";
            Ok(())
        };
        let quoted = |p: &PathBuf| serde_json::Value::from(p.display().to_string()).to_string();
        set("name:", Some(self.name().into()))?;
        set("run_dir:", Some(format!("runs/{}", self.name())))?;
        set("tokenizer:", tokenizer.as_ref().map(quoted))?;
        // the first path is the training corpus, the second the one held out
        let mut paths = [train.as_ref(), validation.as_ref()].into_iter();
        let mut out = Vec::new();
        for line in text.lines() {
            let at = line.find("- path:");
            match (at, at.and_then(|_| paths.next())) {
                (Some(at), Some(Some(path))) => out.push(format!("{}- path: {}", &line[..at], quoted(path))),
                (Some(_), _) => out.push(line.replace("build/demo/", "data/")),
                _ => out.push(line.to_string()),
            }
        }
        Ok(out.join("\n") + "\n")
    }
}

/// `text` with what differs in `target`, comments kept where that is possible, under a heading.
///
/// # Errors
/// Those of writing a configuration.
pub fn written(text: &str, target: &Config, model: &Model, nodes: u32) -> Result<String> {
    let before = load::from_text(text, String::new(), &[])?.finish()?;
    let reads_as =
        |t: &String| load::from_text(t, String::new(), &[]).is_ok_and(|d| d.problems.is_empty() && d.config == *target);
    let body = match changed(text, &before, target).filter(reads_as) {
        Some(body) => body,
        None => super::whole(target)?,
    };
    Ok(format!(
        "# {} on {nodes} nodes. Written by `herd init`; docs/configuration.md explains the keys.\n{body}",
        model.name()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_takes_names_and_paths_and_reads() {
        for model in Model::value_variants() {
            let paths = [Some(PathBuf::from("my data/a #1: x")), Some(PathBuf::from("b")), None];
            let text = model.text(&paths[0], &paths[1], &paths[2]).unwrap();
            let config = load::from_text(&text, "x".into(), &[]).unwrap().finish().unwrap();
            assert_eq!(
                (config.name.as_str(), config.run_dir),
                (model.name(), PathBuf::from(format!("runs/{}", model.name())))
            );
            assert_eq!(config.data.train[0].path, PathBuf::from("my data/a #1: x"));
            assert_eq!(config.data.validation[0].path, PathBuf::from("b"));
            let plain = model.text(&None, &None, &None).unwrap();
            assert!(
                plain.contains("data/corpus_train")
                    && plain.contains("data/corpus_validation")
                    && !plain.contains("build/")
            );
        }
    }
}

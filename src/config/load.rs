//! A YAML file and `--set` overrides to a [`Config`], with every mistake found in one go.
//!
//! Relative paths in a configuration are relative to the current directory, as on a command line; `~` and `$NAME` in paths are
//! expanded here.

use super::problem::{self, Problem};
use super::{check, expand, schema, sets, yaml, Config};
use crate::error::{Error, Exit, Result};
use crate::text::unmarked;
use serde_json::Value;
use std::path::Path;

/// A configuration as far as it can be read, and what is wrong with it. The plan checks the values against each other and
/// leaves out what touches a key that is already known to be wrong, so that one run reports everything.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Name of the file, for messages.
    pub place: String,
    /// What could be read; for a value that is wrong or missing, its default or a stand-in.
    pub config: Config,
    /// Every mistake found in the file and the overrides; empty where there is none.
    pub problems: Vec<Problem>,
}

impl Draft {
    /// Checks a configuration that was made in code.
    pub fn of(config: Config) -> Result<Draft> {
        // JSON has no NaN: a float that is not finite becomes null, which the schema rejects.
        Draft::new(serde_json::to_value(&config).unwrap_or(Value::Null), Vec::new(), "configuration".into())
    }

    fn new(mut value: Value, mut problems: Vec<Problem>, place: String) -> Result<Draft> {
        let found = check::config(&mut value);
        // What was found wrong before was left out: that it is missing now is no second problem.
        let news = |f: &Problem| !problems.iter().any(|p| p.keys[0] == f.keys[0]);
        let found: Vec<Problem> = found.into_iter().filter(news).collect();
        problems.extend(found);
        if !problems.is_empty() {
            check::repair(&mut value, schema::schema(), "", &problems);
        }
        let config = serde_json::from_value(value).map_err(|e| {
            // The schema and the types disagree about something: still the user's value, so still an ordinary error.
            problems.push(Problem::new([""], e.to_string()));
            problem::to_error(&place, &problems)
        })?;
        Ok(Draft { place, config, problems })
    }

    /// The configuration, or all its problems as one error.
    pub fn finish(self) -> Result<Config> {
        match self.problems.is_empty() {
            true => Ok(self.config),
            false => Err(problem::to_error(&self.place, &self.problems)),
        }
    }
}

/// Reads `path`, applies `sets` (`a.b=value`, see `--set`) and checks every key, type and range. Values are not checked
/// against each other: that is the plan.
///
/// # Errors
/// [`Exit::Config`] with all problems, one line each; [`Exit::Storage`] if the file cannot be read; [`Exit::Usage`] for a
/// malformed override.
pub fn load(path: &Path, sets: &[String]) -> Result<Config> {
    draft(path, sets)?.finish()
}

/// A configuration with every default and override, as YAML that reads back as the same.
///
/// # Errors
/// [`Exit::Internal`].
pub fn to_yaml(config: &Config) -> Result<String> {
    let internal = |e: String| Error::new(Exit::Internal, e);
    let mut value = serde_json::to_value(config).map_err(|e| internal(e.to_string()))?;
    expand::escape(&mut value, schema::schema());
    serde_yaml::to_string(&value).map_err(|e| internal(e.to_string()))
}

/// As [`load`], but problems in values are handed back with what could be read.
pub fn draft(path: &Path, sets: &[String]) -> Result<Draft> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, "read", &e, Exit::Config))?;
    let place = path.display().to_string();
    let text = str::from_utf8(unmarked(&text)).map_err(|e| {
        let at = e.valid_up_to();
        Error::new(Exit::Config, format!("{place}: byte {at} is not UTF-8")).hint("is this a YAML file?")
    })?;
    from_text(text, place, sets)
}

/// As [`draft`], of a file's text.
pub fn from_text(text: &str, place: String, sets: &[String]) -> Result<Draft> {
    let (mut value, mut problems) = yaml::parse(text, &place)?;
    sets::apply(&mut value, sets, &mut problems)?;
    expand::paths(&mut value, schema::schema(), &mut problems);
    if value.is_null() {
        return Err(
            Error::new(Exit::Config, format!("{place}: the file is empty")).hint("`herd config schema` lists the keys")
        );
    }
    Draft::new(value, problems, place)
}

#[cfg(test)]
mod tests {
    use super::super::SAMPLE as GOOD;
    use super::*;

    fn problems(text: &str, sets: &[&str]) -> Vec<String> {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        let draft = from_text(text, "x.yaml".into(), &sets).unwrap();
        draft.problems.iter().map(|p| p.to_string()).collect()
    }

    #[test]
    fn a_good_file_loads_with_its_defaults() {
        let config = from_text(GOOD, "x".into(), &[]).unwrap().finish().unwrap();
        assert_eq!((config.train.steps, config.seed, config.optim.beta2), (1000, 1234, 0.95));
        assert!(Draft::of(config.clone()).unwrap().problems.is_empty());
        let again = serde_yaml::to_string(&config).unwrap();
        assert_eq!(from_text(&again, "x".into(), &[]).unwrap().finish().unwrap(), config);
    }

    #[test]
    fn every_single_key_mistake_says_key_value_and_hint() {
        for (set, expected) in [
            ("optim.lrr=1", "optim.lrr: unknown key (hint: did you mean optim.lr?)"),
            ("steps=1", "steps: unknown key (hint: did you mean train.steps?)"),
            (
                "log.zzz=1",
                "log.zzz: unknown key (hint: known here: every, tensorboard, prometheus_s, sync_check_every)",
            ),
            ("data.train.0.wieght=2", "data.train.0.wieght: unknown key (hint: did you mean data.train.0.weight?)"),
            ("optim.lr=[1]", "optim.lr: is a list, but must be a number (hint: Peak learning rate)"),
            ("optim.lr='1e-3'", "optim.lr: is \"1e-3\", a string, but must be a number (hint: remove the quotes)"),
            ("train.steps=1.5", "train.steps: is 1.5, a number, but must be an integer (hint: give a whole number)"),
            (
                "validation=3",
                "validation: is 3, a number, but must be a section of keys (hint: see its keys: every, sequences, tasks)",
            ),
            ("train.steps=0", "train.steps: 0 is too small (hint: at least 1)"),
            ("train.steps=-3", "train.steps: -3 is too small (hint: at least 1)"),
            ("train.steps=1e18", "train.steps: 1e+18 is too large (hint: at most 1073741824)"),
            (
                "batch.global=18446744073709551615",
                "batch.global: 18446744073709551615 is too large (hint: at most 16777216)",
            ),
            ("seed=1e30", "seed: 1e+30 is too large (hint: at most 18446744073709551615, written without an exponent)"),
            ("seed=-1", "seed: -1 is too small (hint: at least 0)"),
            ("optim.lr=-1", "optim.lr: -1 is too small (hint: at least 0)"),
            ("optim.lr=.nan", "optim.lr: .nan is not a finite number (hint: give a finite number)"),
            ("optim.beta1=1", "optim.beta1: 1 is too large (hint: less than 1)"),
            ("optim.eps=0", "optim.eps: 0 is too small (hint: more than 0)"),
            ("train.precision=bf61", "train.precision: \"bf61\" is not one of bf16, fp32 (hint: did you mean bf16?)"),
            ("data.train=[]", "data.train: the list is empty (hint: at least 1 element)"),
            ("run_dir=''", "run_dir: is empty (hint: give a value, or leave the key out)"),
            ("batch=", "batch: missing (hint: a section of keys: global, micro)"),
            ("batch.micro=", "batch.micro: missing (hint: integer ≥ 1; Sequences per forward pass on one rank)"),
        ] {
            let all = problems(GOOD, &[set]);
            assert_eq!(all.len(), 1, "{set}: {all:?}");
            assert!(all[0].starts_with(expected.trim_end_matches(')')), "{set}: {}", all[0]);
        }
    }

    #[test]
    fn all_mistakes_come_at_once_and_the_rest_still_reads() {
        let sets = ["optim.lrr=1", "train.steps=no", "data.train.1.path=7", "batch.micro=", "name=x"].map(String::from);
        let draft = from_text(GOOD, "x.yaml".into(), &sets).unwrap();
        assert_eq!(draft.problems.len(), 3, "{:?}", draft.problems);
        assert_eq!((draft.config.name.as_str(), draft.config.batch.global), ("x", 8));
        let error = draft.finish().unwrap_err();
        assert!(error.to_string().starts_with("x.yaml: 3 problems\n  "), "{error}");
    }

    #[test]
    fn not_a_mapping_is_a_problem() {
        for text in ["[1, 2]", "3", "hello", "true"] {
            assert_eq!(problems(text, &[]).len(), 1, "{text}: {:?}", problems(text, &[]));
        }
        assert!(from_text("", "x".into(), &[]).unwrap_err().to_string().contains("empty"));
    }
}

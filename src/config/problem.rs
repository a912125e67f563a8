//! One mistake in a configuration: the keys that clash, the fact with their values, a hint, the exit code.

use crate::error::{Error, Exit};
use std::fmt;

/// What is wrong with one key, or with several together.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Dotted paths of every key involved (`data.train.0.path`); the first names the problem when it is printed.
    pub keys: Vec<String>,
    /// What is wrong, with the values that clash.
    pub fact: String,
    /// What can be done about it, where that is known.
    pub hint: Option<String>,
    /// Exit code that it leads to; [`Exit::Config`] unless set otherwise.
    pub exit: Exit,
}

impl Problem {
    /// A problem of `keys`, the first of which names it, with [`Exit::Config`] and no hint.
    pub fn new<K: Into<String>>(keys: impl IntoIterator<Item = K>, fact: impl Into<String>) -> Self {
        let keys = keys.into_iter().map(Into::into).collect();
        Problem { keys, fact: fact.into(), hint: None, exit: Exit::Config }
    }

    /// Adds what the reader can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Replaces the exit code.
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// Whether one of its keys is `key`, lies below it or above it.
    pub fn touches(&self, key: &str) -> bool {
        self.keys.iter().any(|k| within(k, key) || within(key, k))
    }
}

/// Whether `key` is `parent` or lies below it.
fn within(key: &str, parent: &str) -> bool {
    key.strip_prefix(parent).is_some_and(|rest| parent.is_empty() || rest.is_empty() || rest.starts_with('.'))
}

impl fmt::Display for Problem {
    /// `key: fact (hint: …)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keys.first().map(String::as_str) {
            None | Some("") => write!(f, "{}", self.fact)?,
            Some(key) => write!(f, "{key}: {}", self.fact)?,
        }
        self.hint.iter().try_for_each(|h| write!(f, " (hint: {h})"))
    }
}

/// All problems of one file as one error. A mistake in the configuration outweighs what the host lacks.
pub fn to_error(place: impl fmt::Display, problems: &[Problem]) -> Error {
    let exits = || problems.iter().map(|p| p.exit);
    let exit = exits().find(|&e| e == Exit::Config).or(exits().next()).unwrap_or(Exit::Config);
    Error::several(exit, place, problems.iter().map(|p| p.to_string()).collect())
}

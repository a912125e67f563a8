//! The keys of a config.json, each with its type.

use crate::error::{Error, Exit, Result};
use serde_json::{Map, Value};

pub(super) struct Keys<'a>(pub &'a Map<String, Value>);

impl<'a> Keys<'a> {
    /// The value, unless it is absent or null.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    /// A count of at least 1; sizes beyond 2^31 are no model's and would overflow products.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.value(key) {
            None => Ok(None),
            Some(v) => match v.as_u64().or(v.as_f64().filter(|f| f.fract() == 0.0 && *f > 0.0).map(|f| f as u64)) {
                Some(n) if (1..1 << 31).contains(&n) => Ok(Some(n as usize)),
                _ => Err(wrong(format!("{key} is {v}, not a count from 1 to 2^31"))),
            },
        }
    }

    pub fn required(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| wrong(format!("{key} is missing")))
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.value(key).map(|v| v.as_f64().ok_or_else(|| wrong(format!("{key} is {v}, not a number")))).transpose()
    }

    pub fn flag(&self, key: &str) -> Result<bool> {
        self.value(key)
            .map_or(Ok(false), |v| v.as_bool().ok_or_else(|| wrong(format!("{key} is {v}, neither true nor false"))))
    }
}

pub(super) fn wrong(fact: String) -> Error {
    Error::new(Exit::Model, fact)
}

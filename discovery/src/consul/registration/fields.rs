//! JSON objects as Consul's clients write them: keys in any case, with or without underscores, every field of theirs
//! there, most of them empty.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::{DecodeError, malformed, not_built};
use crate::consul::go_duration;

/// A JSON object whose keys are compared without case and underscores. `null` and empty values count as absent.
pub(super) struct Fields(BTreeMap<String, Value>);

impl Fields {
    pub fn of(value: Value, what: &str) -> Result<Fields, DecodeError> {
        match value {
            Value::Object(map) => {
                Ok(Fields(map.into_iter().map(|(key, value)| (folded(&key), value)).collect()))
            }
            _ => Err(malformed(what, "must be an object")),
        }
    }

    pub fn take(&mut self, key: &str) -> Option<Value> {
        let is_empty = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        self.0.remove(&folded(key)).filter(|value| !is_empty(value))
    }

    /// Refuses what is not built, unless it says the same as leaving it out.
    pub fn refuse(&mut self, key: &str, instead: &str) -> Result<(), DecodeError> {
        match self.take(key) {
            Some(value) if !says_nothing(&value) => not_built(format!("{key}: {instead}")),
            _ => Ok(()),
        }
    }

    /// Whether it is there and says something.
    pub fn has(&self, key: &str) -> bool {
        self.0.get(&folded(key)).is_some_and(|value| !says_nothing(value))
    }

    pub fn flag(&mut self, key: &str) -> Result<bool, DecodeError> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(malformed(key, "must be true or false")),
        }
    }

    pub fn text(&mut self, key: &str) -> Result<Option<String>, DecodeError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(malformed(key, "must be a string")),
        }
    }

    pub fn number(&mut self, key: &str) -> Result<Option<u64>, DecodeError> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .map(Some)
                .ok_or_else(|| malformed(key, "must be a whole number, not negative")),
        }
    }

    pub fn list(&mut self, key: &str) -> Result<Vec<Value>, DecodeError> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(_) => Err(malformed(key, "must be a list")),
        }
    }

    pub fn texts(&mut self, key: &str) -> Result<Vec<String>, DecodeError> {
        let text = |value| match value {
            Value::String(text) => Ok(text),
            _ => Err(malformed(key, "must be a list of strings")),
        };
        self.list(key)?.into_iter().map(text).collect()
    }

    pub fn text_map(&mut self, key: &str) -> Result<BTreeMap<String, String>, DecodeError> {
        let wrong = || malformed(key, "must be an object of strings");
        match self.take(key) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(map)) => map
                .into_iter()
                .map(|(key, value)| match value {
                    Value::String(text) => Ok((key, text)),
                    _ => Err(wrong()),
                })
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    /// A Go duration (`1m30s`), or a number of nanoseconds.
    pub fn duration(&mut self, key: &str) -> Result<Option<Duration>, DecodeError> {
        let parsed = match self.take(key) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_u64().map(Duration::from_nanos),
            Some(Value::String(text)) => go_duration(&text),
            Some(_) => None,
        };
        parsed.map(Some).ok_or_else(|| malformed(key, "must be a duration such as 10s or 500ms"))
    }
}

/// Whether a value is what clients that write every field write for "not this".
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty() || text == "0s",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(says_nothing),
        Value::Bool(true) => false,
    }
}

fn folded(key: &str) -> String {
    key.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect()
}

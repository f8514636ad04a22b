//! The JSON Schema of the file, for editors and for checks before a deployment.
//!
//! Made from the same table that the loader reads through, so it names the same keys. Where one place of the
//! file is compared with another only the loader can tell; the schema never refuses what the loader takes.

use serde_json::{Map, Value, json};

use crate::forms;
use crate::keys::{self, Key, Shape};
use crate::notation;

/// The schema, JSON Schema 2020-12.
#[must_use]
pub fn schema() -> Value {
    let mut root = mapping(keys::ROOT);
    root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    root.insert("title".to_owned(), json!("Evenkeel"));
    Value::Object(root)
}

fn mapping(keys: &'static [Key]) -> Map<String, Value> {
    let built = keys.iter().filter(|key| !matches!(key.shape, Shape::NotBuilt));
    let properties: Map<String, Value> =
        built.map(|key| (key.name.to_owned(), Value::Object(property(key)))).collect();
    let mut of = object(&json!({
        // Nothing but comments under a key is the same as the key left out.
        "type": ["object", "null"],
        "additionalProperties": false,
    }));
    of.insert("properties".to_owned(), Value::Object(properties));
    let required: Vec<&str> =
        keys.iter().filter(|key| key.about.starts_with("Required.")).map(|key| key.name).collect();
    if !required.is_empty() {
        of.insert("required".to_owned(), json!(required));
    }
    of
}

fn property(key: &'static Key) -> Map<String, Value> {
    let mut of = shape(&key.shape);
    of.insert("description".to_owned(), json!(key.about));
    if let Ok(default) = serde_json::from_str::<Value>(key.default) {
        of.insert("default".to_owned(), default);
    }
    of
}

fn shape(shape: &'static Shape) -> Map<String, Value> {
    let text = |pattern: &str| object(&json!({"type": "string", "pattern": pattern}));
    match shape {
        Shape::Text { pattern } => text(pattern),
        // What has no quotes is a number or a truth value to whoever checks with a schema.
        Shape::Plain { pattern } => {
            object(&json!({"type": ["string", "number", "boolean"], "pattern": pattern}))
        }
        Shape::Duration { .. } => text(forms::DURATION),
        Shape::Share => text(forms::SHARE),
        Shape::Size => text(forms::SIZE),
        Shape::After => text(forms::AFTER),
        Shape::Factor => object(&json!({
            "anyOf": [Value::Object(text(forms::FACTOR)), {"const": false}]
        })),
        Shape::Decimal { min, max } => {
            object(&json!({"type": "number", "minimum": min, "maximum": max}))
        }
        Shape::Amount => object(&amount()),
        Shape::AmountOr { words } => object(&json!({"anyOf": [amount(), {"enum": words}]})),
        Shape::Signed => object(&json!({"type": "integer"})),
        Shape::RetryOn => object(&json!({
            "type": ["string", "integer"], "pattern": forms::RETRY_ON, "minimum": 100, "maximum": 599
        })),
        Shape::Int { min, max } => {
            object(&json!({"type": "integer", "minimum": min, "maximum": max}))
        }
        Shape::Bool => object(&json!({"type": "boolean"})),
        Shape::True => object(&json!({"const": true})),
        Shape::Choice { built, .. } => {
            let mut values: Vec<Value> = built.iter().map(|name| json!(name)).collect();
            if built.contains(&"off") {
                values.push(json!(false));
            }
            object(&json!({"enum": values}))
        }
        Shape::Map(keys) => mapping(keys),
        Shape::MapOr { keys, word } => {
            let mut words = vec![json!(word)];
            if *word == "off" {
                words.push(json!(false));
            }
            object(&json!({"anyOf": [Value::Object(mapping(keys)), {"enum": words}]}))
        }
        Shape::Meta { max } => object(&json!({
            "type": ["object", "null"],
            "maxProperties": max,
            "propertyNames": {"pattern": forms::FREE},
            "additionalProperties": shape_of_meta(),
        })),
        Shape::List { of, max } => list(of, *max),
        Shape::ListOrMap { of, max, keys } => {
            object(&json!({"anyOf": [Value::Object(list(of, *max)), Value::Object(mapping(keys))]}))
        }
        Shape::NotBuilt => Map::new(),
    }
}

fn amount() -> Value {
    json!({"type": "number", "minimum": 0, "maximum": notation::AMOUNT_MAX})
}

fn shape_of_meta() -> Value {
    Value::Object(shape(&crate::section::META_VALUE))
}

fn list(of: &'static Shape, max: usize) -> Map<String, Value> {
    object(&json!({"type": ["array", "null"], "items": Value::Object(shape(of)), "maxItems": max}))
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests;

//! A policy that travels: what the host that offers a service says of it, or an operator of the whole mesh, and what
//! other hosts make of that.
//!
//! Written as JSON, and only what was written in the file: a default that nobody wrote stays each client's own.
//! The same policy is always the same text, so that hosts which agree publish the same bytes and can be counted.
//!
//! Read through the same table of keys as the file, but forgivingly, because the writer may be of a later version:
//! a key or a value that this host does not know reads as if it were not there, and [`Published::skipped`] says so.
//! A route is an exception: if its `match` says anything that is not understood, the whole route is left out,
//! since half a condition would match requests that its author meant to leave alone.
//!
//! Not YAML, although JSON is YAML: aliases let 4 KiB stand for megabytes, and nothing here needs them.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::effective::{self, Doc};
use crate::keys::{self, Key, Shape};
use crate::layer::PolicyLayer;
use crate::policy::{Balance, FIELDS, Origin, Origins, Policy, built_in_origins};
use crate::problem::Position;
use crate::read;
use crate::report::Report;
use crate::section::Section;
use crate::settings::Match;
use crate::tree::{self, Entry, Kind, Node};

/// Most bytes of a published policy.
pub const PUBLISHED_MAX: usize = 4 * 1024;

/// A policy and the routes of a service, as they travel between hosts.
#[derive(Clone)]
pub struct Published {
    text: Arc<str>,
    pub(crate) policy: PolicyLayer,
    /// First match wins.
    pub(crate) routes: Vec<(Match, PolicyLayer)>,
    skipped: Vec<String>,
}

impl Published {
    /// Reads what another host wrote. `None`: longer than [`PUBLISHED_MAX`], or no JSON object.
    #[must_use]
    pub fn read(text: &str) -> Option<Published> {
        if text.len() > PUBLISHED_MAX {
            return None;
        }
        let value: Value = serde_json::from_str(text).ok()?;
        let root = value.is_object().then(|| node(value))?;
        let report = Report::new("published", false);
        let section = Section::of(&root, keys::PUBLISHED, &report);
        let policy = usable(read::policy(&section.section("policy")));
        let routes = read::routes(&section, &report);
        let routes = routes
            .into_iter()
            .filter_map(|route| Some((route.matches?.value, usable(route.policy))))
            .collect();
        let mut skipped: Vec<String> =
            report.finish().0.into_iter().map(|problem| problem.message).collect();
        skipped.truncate(SKIPPED_MAX);
        Some(Published { text: Arc::from(text), policy, routes, skipped })
    }

    /// Writes a policy down to be published. `Err`: its length, if that is more than [`PUBLISHED_MAX`].
    pub(crate) fn write(
        policy: &PolicyLayer,
        routes: &[(Match, PolicyLayer)],
    ) -> Result<Published, usize> {
        let route = |(matches, policy): &(Match, PolicyLayer)| {
            Doc::map([("match", effective::matches(matches)), ("policy", said(policy))])
        };
        let mut parts = vec![("policy".to_owned(), said(policy))];
        if !routes.is_empty() {
            parts.push(("routes".to_owned(), Doc::List(routes.iter().map(route).collect())));
        }
        let text = serde_json::to_string(&Doc::Map(parts)).expect("text, numbers and lists");
        if text.len() > PUBLISHED_MAX {
            return Err(text.len());
        }
        Ok(Published {
            text: Arc::from(text),
            policy: policy.clone(),
            routes: routes.to_vec(),
            skipped: Vec::new(),
        })
    }

    /// Reads what an operator types: fields by their path, each with a value in the notation of the file. A section with a
    /// `mode` may be named for it: `hedge` is `hedge.mode`.
    ///
    /// # Errors
    /// Everything that is wrong with it, in sentences.
    pub fn of_fields(fields: &[(String, String)]) -> Result<Published, Vec<String>> {
        if fields.len() > FIELDS.len() {
            return Err(vec![format!("a policy has {} fields", FIELDS.len())]);
        }
        let mut problems = Vec::new();
        let mut root = Vec::new();
        for (path, text) in fields {
            // Before anything is made of it.
            if text.len() > PUBLISHED_MAX || path.matches('.').count() > 1 {
                problems.push("a field is SECTION.KEY, its value at most 4 KiB".to_owned());
                continue;
            }
            let tree = tree::read(text);
            match tree.root.filter(|_| tree.problems.is_empty()) {
                Some(value) => {
                    if let Err(why) = put(&mut root, keys::POLICY, path, value) {
                        problems.push(format!("{path}: {why}"));
                    }
                }
                None => problems.push(format!("{path}: `{text}` is not a value")),
            }
        }
        if fields.is_empty() {
            problems
                .push("nothing is said: name a field and its value, as hedge.mode=off".to_owned());
        }
        let root = Node { at: Position::START, kind: Kind::Map(root) };
        let report = Report::new("override", false);
        let policy = read::policy(&Section::of(&root, keys::POLICY, &report));
        problems.extend(report.finish().0.into_iter().map(|problem| problem.message));
        if let Some(balance) = policy.balance.as_ref().filter(|b| b.value == Balance::Hash)
            && policy.hash_key.is_none()
        {
            problems.push(format!("{}: hash takes hash.key too", balance.path));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Published::write(&policy, &[])
            .map_err(|length| vec![format!("{length} bytes, at most {PUBLISHED_MAX} are sent")])
    }

    /// As it travels.
    #[must_use]
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// What this host did not understand and left out, in sentences.
    #[must_use]
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }
}

/// The text says it all.
impl PartialEq for Published {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Published {}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Published({})", self.text)
    }
}

/// Without what only stands for a value that was refused.
fn usable(layer: PolicyLayer) -> PolicyLayer {
    PolicyLayer { hash_key: layer.hash_key.filter(|key| !key.path.is_empty()), ..layer }
}

/// Puts a value where the path says.
fn put(
    map: &mut Vec<Entry>,
    keys: &'static [Key],
    path: &str,
    value: Node,
) -> Result<(), &'static str> {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let inner = keys.iter().find(|key| key.name == name).map(|key| &key.shape);
    let inner: &'static [Key] = match inner {
        Some(Shape::Map(keys) | Shape::MapOr { keys, .. }) => keys,
        _ => &[],
    };
    let has_mode = inner.iter().any(|key| key.name == "mode");
    let is_single = matches!(value.kind, Kind::Scalar { .. });
    let rest = rest.or_else(|| (has_mode && is_single).then_some("mode"));
    let at = map.iter().position(|entry| entry.key == name);
    let Some(rest) = rest else {
        if at.is_some() {
            return Err("is said twice");
        }
        map.push(Entry { key: name.to_owned(), plain: true, at: value.at, value });
        return Ok(());
    };
    let at = at.unwrap_or_else(|| {
        let value = Node { at: Position::START, kind: Kind::Map(Vec::new()) };
        map.push(Entry { key: name.to_owned(), plain: true, at: Position::START, value });
        map.len() - 1
    });
    match &mut map[at].value.kind {
        Kind::Map(entries) => put(entries, inner, rest, value),
        _ => Err("is said twice"),
    }
}

/// A layer in the notation of the file, with the fields that it sets and no others.
pub(crate) fn said(layer: &PolicyLayer) -> Doc {
    let below = (Policy::default(), built_in_origins());
    let (policy, origins) = layer.over(&below.0, &below.1, Origin::Published);
    only_said(effective::policy(&policy), "", &origins)
}

fn only_said(doc: Doc, path: &str, origins: &Origins) -> Doc {
    let Doc::Map(entries) = doc else { return doc };
    let kept = entries.into_iter().filter_map(|(key, value)| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if let Some(origin) = origins.get(path.as_str()) {
            return (*origin == Origin::Published).then_some((key, value));
        }
        match only_said(value, &path, origins) {
            Doc::Map(inner) if inner.is_empty() => None,
            value => Some((key, value)),
        }
    });
    Doc::Map(kept.collect())
}

/// The tree of a JSON value; all of it stands at the start, for nobody looks at the text.
fn node(value: Value) -> Node {
    let scalar = |text: String, plain| Kind::Scalar { text, plain };
    let kind = match value {
        Value::Null => scalar(String::new(), true),
        Value::Bool(value) => scalar(value.to_string(), true),
        Value::Number(number) => scalar(number.to_string(), true),
        Value::String(text) => scalar(text, false),
        Value::Array(items) => Kind::List(items.into_iter().map(node).collect()),
        Value::Object(entries) => {
            let entry =
                |(key, value)| Entry { key, plain: false, at: Position::START, value: node(value) };
            Kind::Map(entries.into_iter().map(entry).collect())
        }
    };
    Node { at: Position::START, kind }
}

/// What is told of what was not understood.
const SKIPPED_MAX: usize = 16;

#[cfg(test)]
mod tests;

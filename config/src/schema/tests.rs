//! The schema, the loader and the operator's documentation agree, key by key and value by value.

use std::collections::BTreeSet;

use regex::Regex;

use super::*;
use crate::settings::Settings;
use crate::tree::{self, Kind, Node};
use crate::yaml11::{Plain, classify};
use crate::{Environment, diff, parse};

const FULL: &str = include_str!("../../tests/data/full.yaml");

const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// One of each notation and of each form, and near misses.
const SAMPLES: &[&str] = &[
    "0",
    "1",
    "2",
    "5",
    "64",
    "100",
    "503",
    "1000",
    "70000",
    "-1",
    "1.5",
    "1_0",
    "\"5\"",
    "\"503\"",
    "true",
    "false",
    "off",
    "\"off\"",
    "on",
    "yes",
    "~",
    "\"\"",
    "text",
    "Text",
    "a",
    "a.b",
    "a b",
    "a_b",
    "2s",
    "0s",
    "1.5ms",
    "10us",
    "p95",
    "p99.9",
    "3x",
    "1.0001",
    "header:X-User",
    "cookie:s",
    "path:2",
    "address",
    "widen",
    "any",
    "p0",
    "p100",
    "5%",
    "0.5%",
    "101%",
    "64KiB",
    "1KB",
    "64kb",
    "share",
    "unlimited",
    "static",
    "fair_share",
    "outbound",
    "inbound",
    "open",
    "closed",
    "GET",
    "get",
    "/",
    "/x/*",
    "10.0.0.5",
    "::1",
    "10.0.0.5:9",
    "127.0.0.1:9",
    "127.0.0.1:0",
    "\"[::1]:9\"",
    "seeds.example:7111",
    "localhost:1",
    ":80",
    "a.b/C*",
    "connect",
    "5xx",
    "lan",
    "wan",
    "p2c",
    "round_robin",
    "scout",
    "before_each",
    "observe",
    "enforce",
    "http",
    "grpc",
    "tcp",
    "info",
    "warn",
    "json",
    "errors",
    "none",
    "X-Key",
    "/var/lib/x",
    KEY,
    "AAAA",
    "2024-01-02",
    "2.10",
    "12:30",
    "1e3",
    "[]",
    "{}",
    "[a]",
    "{a: b}",
    "[[a]]",
];

fn load(text: &str) -> Option<Settings> {
    let env =
        Environment { state_directory: Some("/state".into()), ..Environment::named("host-a") };
    parse(text, "t.yaml", &env).ok().map(|loaded| loaded.settings)
}

/// Every key that is built, with its path.
fn built() -> Vec<(String, &'static Key)> {
    let mut rows = Vec::new();
    keys::each(&mut |path, key| {
        if !matches!(key.shape, Shape::NotBuilt) {
            rows.push((path.to_owned(), key));
        }
    });
    rows
}

/// A file that says `value` at `path`, and beside it only what a mapping cannot do without.
fn file_with(path: &str, value: &str) -> String {
    fn inside(done: &str, path: &str, value: &str) -> String {
        let (name, rest) =
            path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
        let key = name.trim_end_matches("[]");
        let here = format!("{done}{name}");
        let held = match rest {
            None => value.to_owned(),
            Some(rest) => inside(&format!("{here}."), rest, value),
        };
        let held = if name.ends_with("[]") && rest.is_some() { format!("[{held}]") } else { held };
        let needed: &[(&str, &str)] = match done {
            "services[]." => &[("name", "a"), ("address", "'10.0.0.1:1'")],
            "services[].check." if key.starts_with("tls_") => &[("https", "/")],
            "services[].check." if !matches!(key, "http" | "https" | "tcp") => &[("tcp", "true")],
            "upstreams[]." if matches!(key, "protocol" | "scout") => {
                &[("name", "a"), ("endpoints", "['10.0.0.1:1']")]
            }
            "upstreams[]." => &[("name", "a")],
            "services[].routes[]." | "upstreams[].routes[]." => &[("match", "{path: /}")],
            "outbound.listeners[]." => &[("listen", "'127.0.0.1:1'"), ("service", "a")],
            "ratelimit." if key == "apply" => {
                &[("resources", "[{match: '*', capacity: 1, per: 1s}]")]
            }
            "ratelimit.resources[]." if key == "burst" => {
                &[("match", "a"), ("capacity", "1"), ("per", "1s")]
            }
            "ratelimit.resources[]." => &[("match", "a"), ("capacity", "1")],
            "ratelimit.resources[].floors[]." => &[("priority", "1"), ("share", "'1%'")],
            "ratelimit.apply[]." => {
                &[("direction", "outbound"), ("service", "a"), ("resource", "a")]
            }
            _ => &[],
        };
        let beside: String = needed
            .iter()
            .filter(|(other, _)| *other != key)
            .map(|(other, value)| format!("{other}: {value}, "))
            .collect();
        format!("{{{beside}{key}: {held}}}")
    }
    inside("", path, value)
}

#[test]
fn the_schema_names_the_keys_of_the_table_and_no_other() {
    fn walk(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            assert!(inner["description"].as_str().is_some_and(|about| !about.is_empty()), "{path}");
            walk(inner, &path, found);
            walk(&inner["items"], &format!("{path}[]"), found);
            for other in inner["anyOf"].as_array().into_iter().flatten() {
                walk(other, &path, found);
            }
            found.insert(path);
        }
    }
    let mut found = BTreeSet::new();
    walk(&schema(), "", &mut found);
    let expected: BTreeSet<String> = built().into_iter().map(|(path, _)| path).collect();
    assert_eq!(found, expected);
    assert!(
        expected.contains("services[].check.http") && expected.contains("mesh.gossip.keys.file")
    );
}

#[test]
fn the_loader_reads_every_key_of_the_schema() {
    let env = Environment::named("host-a");
    for (path, key) in built() {
        let wrong = if matches!(key.shape, Shape::Map(_) | Shape::MapOr { .. }) {
            "[x]"
        } else {
            "{surprise: [x]}"
        };
        let Err(problems) = parse(&file_with(&path, wrong), "t.yaml", &env) else {
            panic!("{path}: {wrong} is taken");
        };
        let expected = path.replace("[]", "[0]");
        assert!(
            problems.0.iter().any(|problem| problem.message.contains(&expected)),
            "{path}: {problems}"
        );
    }
}

/// A key that could be set to anything and changed nothing would be a promise without a deed.
#[test]
fn every_key_changes_the_settings() {
    for (path, key) in built() {
        let samples: Vec<String> = match &key.shape {
            Shape::Map(_) | Shape::MapOr { .. } => continue,
            Shape::List { of: Shape::Map(_), .. } => continue,
            Shape::List { .. } | Shape::ListOrMap { .. } => {
                SAMPLES.iter().map(|one| format!("[{one}]")).collect()
            }
            _ => SAMPLES.iter().map(|one| (*one).to_owned()).collect(),
        };
        let taken: Vec<Settings> =
            samples.iter().filter_map(|sample| load(&file_with(&path, sample))).collect();
        match path.as_str() {
            // The only profile there is; a file that would have to exist.
            "mesh.gossip.profile" => assert_eq!(taken.len(), 1),
            "mesh.gossip.keys.file" => assert_eq!(taken.len(), 0),
            // `tcp: true` beside nothing has nothing to differ from.
            "services[].check.tcp" => assert_eq!(taken.len(), 1),
            "outbound.listeners[].listen" | "outbound.listeners[].service" => {
                assert!(taken.len() > 1, "{path}");
            }
            _ => {
                let differ = taken.iter().any(|settings| *settings != taken[0]);
                // One value may be all that the samples hold: then it differs from the key left out.
                let without = path.rsplit_once('.').map_or("", |(parent, _)| parent);
                let differs =
                    || load(&file_with(without, "{}")).is_none_or(|plain| plain != taken[0]);
                assert!(!taken.is_empty(), "{path}: no sample is taken");
                assert!(differ || differs(), "{path} changes nothing");
            }
        }
    }
}

#[test]
fn the_schema_takes_what_the_loader_takes() {
    let schema = schema();
    let mut taken = 0;
    for (path, key) in built() {
        let list = matches!(key.shape, Shape::List { .. } | Shape::ListOrMap { .. });
        let forms: &[&str] = if list { &["SAMPLE", "[SAMPLE]"] } else { &["SAMPLE"] };
        for (sample, form) in
            SAMPLES.iter().flat_map(|sample| forms.iter().map(move |form| (sample, form)))
        {
            let text = file_with(&path, &form.replace("SAMPLE", sample));
            if load(&text).is_some() {
                taken += 1;
                check(&schema, &to_json(&text)).unwrap_or_else(|why| panic!("{text}: {why}"));
            }
        }
    }
    assert!(taken > 500, "{taken}");
    for text in ["", "{}", FULL, include_str!("../../tests/data/full.rewritten.yaml")] {
        assert!(load(text).is_some(), "{text}");
        check(&schema, &to_json(text)).unwrap_or_else(|why| panic!("{text}: {why}"));
    }
    let effective = load(FULL).expect("loads").to_effective_yaml().replace("<redacted>", KEY);
    check(&schema, &to_json(&effective)).expect("the effective configuration");
}

#[test]
fn the_schema_refuses_what_can_be_seen_at_one_place() {
    let schema = schema();
    let refused = [
        "servces: []",
        "policy: {timeout: 10}",
        "policy: {tie: off}",
        "policy: {shard: off}",
        "policy: {probation: {slower_than: 3}}",
        "policy: {hash: {bound: 0}}",
        "policy: {hedge: {max: 6}}",
        "policy: {hedge: {mode: true}}",
        "policy: {retry: {when: [5xx]}}",
        "policy: {retry: {when: [600]}}",
        "workers: 0",
        "workers: \"2\"",
        "mesh: {insecure: \"true\"}",
        "mesh: {gossip: {keys: [AAAA]}}",
        "mesh: {gossip: {keys: {files: x}}}",
        "services: [{name: a}]",
        "services: [{name: A, address: \"127.0.0.1:1\"}]",
        "services: [{name: a, address: \"127.0.0.1\"}]",
        "services: [{name: a, address: \"127.0.0.1:1\", check: {tcp: false}}]",
        "services: [{name: a, address: \"127.0.0.1:1\", meta: {a: [b]}}]",
        "outbound: {listeners: [{listen: \"127.0.0.1:1\"}]}",
        "ratelimit: {resources: [{match: a}]}",
        "ratelimit: {resources: [{match: a, capacity: -1}]}",
        "ratelimit: {resources: [{match: a, capacity: 1, safe: all}]}",
        "ratelimit: {resources: [{match: a, capacity: 1, floors: [{priority: 1.5, share: 1%}]}]}",
        "ratelimit: {apply: [{direction: both, service: a, resource: a}]}",
        "log: info",
    ];
    for text in refused {
        assert!(load(text).is_none(), "{text}");
        assert!(check(&schema, &to_json(text)).is_err(), "{text}");
    }
}

#[test]
fn defaults_are_what_an_empty_file_means() {
    let empty = serde_json::to_value(load("").expect("loads")).expect("JSON");
    let mut seen = 0;
    for (path, key) in
        built().into_iter().filter(|(path, key)| !path.contains("[]") && !key.default.is_empty())
    {
        let default: Value =
            serde_json::from_str(key.default).unwrap_or_else(|why| panic!("{path}: {why}"));
        let pointer = format!("/{}", path.replace('.', "/"));
        assert_eq!(empty.pointer(&pointer), Some(&default), "{path}");
        seen += 1;
    }
    assert!(seen > 40, "{seen}");

    let text = "services: [{name: a, address: '10.0.0.1:1', check: {https: /}}]\nupstreams: [{name: a}]\n\
                ratelimit: {resources: [{match: a, capacity: 1}], apply: [{direction: inbound, service: a, resource: a}]}";
    let full = serde_json::to_value(load(text).expect("loads")).expect("JSON");
    for (path, key) in built().into_iter().filter(|(path, key)| {
        !key.default.is_empty()
            && path.matches("[]").count() == 1
            && !path.starts_with("outbound")
            // A field that is not written is left to the other layers.
            && !path.contains("].policy.")
    }) {
        let pointer = format!("/{}", path.replace("[]", "/0").replace('.', "/"));
        let default: Value =
            serde_json::from_str(key.default).unwrap_or_else(|why| panic!("{path}: {why}"));
        assert_eq!(full.pointer(&pointer), Some(&default), "{path}");
    }
}

/// Each key that is built has a row in the operator's documentation which says its default and, rightly, whether a
/// reload is enough. The rows of `policy` stand for those of services, upstreams and routes too, those of an upstream's
/// routes for those of a service's.
#[test]
fn the_documentation_has_every_key() {
    let text = include_str!("../../../docs/configuration.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let mut documented = BTreeSet::new();
    for (path, key) in built() {
        let elsewhere = [
            "upstreams[].policy.",
            "upstreams[].routes[].policy.",
            "services[].policy.",
            "services[].routes[].",
        ];
        if elsewhere.iter().any(|prefix| path.starts_with(prefix)) {
            continue;
        }
        let says_itself = ["services[].check", "services[].scout", "upstreams[].scout"];
        if matches!(key.shape, Shape::Map(_)) && !says_itself.contains(&path.as_str()) {
            continue;
        }
        let name = format!("`{path}`");
        let Some(row) = rows.iter().find(|row| row[0] == name) else { panic!("{path} has no row") };
        let [_, meaning, default, reload] = row[..] else {
            panic!("{path}: four columns are needed: {row:?}")
        };
        assert!(!meaning.is_empty(), "{path} has no meaning");
        let written = key.default.trim_matches('"').replace('"', "");
        if !written.is_empty() {
            assert_eq!(default, format!("`{written}`"), "{path}");
        }
        let expected = if diff::is_live(&path) { "live" } else { "restart" };
        assert_eq!(reload, expected, "{path}");
        documented.insert(name);
    }
    for row in rows.iter().filter(|row| row.len() == 4) {
        assert!(documented.contains(row[0]), "{} is documented and no key", row[0]);
    }
    let mut later = Vec::new();
    keys::each(&mut |path, key| {
        if matches!(key.shape, Shape::NotBuilt)
            && !path.starts_with("upstreams[]")
            && !path.contains("].policy.")
            && !path.contains("].routes[].")
        {
            later.push(path.to_owned());
        }
    });
    for path in later {
        assert!(text.contains(&format!("`{path}`")), "{path} is not named as not built yet");
    }
}

/// What somebody who checks YAML with a schema sees: the core schema of YAML 1.2.
fn to_json(text: &str) -> Value {
    fn convert(node: &Node) -> Value {
        match &node.kind {
            Kind::List(items) => items.iter().map(convert).collect(),
            Kind::Map(entries) => Value::Object(
                entries.iter().map(|entry| (entry.key.clone(), convert(&entry.value))).collect(),
            ),
            Kind::Scalar { .. } if node.is_null() => Value::Null,
            Kind::Scalar { text, plain: true } => match (text.as_str(), classify(text)) {
                ("true", _) => json!(true),
                ("false", _) => json!(false),
                (_, Plain::Kept("a number")) => serde_json::from_str(text).expect("a JSON number"),
                // As a tool of YAML 1.1 that checks would see it.
                (_, Plain::Rewritten("a number"))
                    if text.replace('_', "").parse::<u64>().is_ok() =>
                {
                    json!(text.replace('_', "").parse::<u64>().expect("a number"))
                }
                (_, Plain::Rewritten("a number"))
                    if text.replace('_', "").parse::<f64>().is_ok() =>
                {
                    json!(text.replace('_', "").parse::<f64>().expect("a number"))
                }
                _ => json!(text),
            },
            Kind::Scalar { text, .. } => json!(text),
        }
    }
    tree::read(text).root.as_ref().map_or(Value::Null, convert)
}

/// As much of JSON Schema 2020-12 as the schema uses; a keyword that is not known here fails.
fn check(schema: &Value, value: &Value) -> Result<(), String> {
    let rules = schema.as_object().expect("a schema is an object");
    let wrong = |rule: &str| Err(format!("{value} against {rule}: {}", rules[rule]));
    for (rule, wanted) in rules {
        let holds = match rule.as_str() {
            "$schema" | "title" | "description" | "default" => true,
            "type" => {
                let is = |name: &Value| match name.as_str() {
                    Some("object") => value.is_object(),
                    Some("array") => value.is_array(),
                    Some("string") => value.is_string(),
                    Some("integer") => value.is_u64() || value.is_i64(),
                    Some("number") => value.is_number(),
                    Some("boolean") => value.is_boolean(),
                    Some("null") => value.is_null(),
                    other => panic!("type {other:?}"),
                };
                wanted.as_array().map_or_else(|| is(wanted), |names| names.iter().any(is))
            }
            "enum" => wanted.as_array().is_some_and(|all| all.contains(value)),
            "const" => wanted == value,
            "pattern" => {
                let pattern = Regex::new(wanted.as_str().expect("text")).expect("a pattern");
                value.as_str().is_none_or(|text| pattern.is_match(text))
            }
            "minimum" => {
                value.as_f64().is_none_or(|number| number >= wanted.as_f64().expect("a number"))
            }
            "maximum" => {
                value.as_f64().is_none_or(|number| number <= wanted.as_f64().expect("a number"))
            }
            "maxItems" => value
                .as_array()
                .is_none_or(|items| items.len() as u64 <= wanted.as_u64().expect("a number")),
            "maxProperties" => value
                .as_object()
                .is_none_or(|map| map.len() as u64 <= wanted.as_u64().expect("a number")),
            "items" => {
                value.as_array().into_iter().flatten().try_for_each(|item| check(wanted, item))?;
                true
            }
            "required" => {
                let names = wanted.as_array().expect("names");
                value.as_object().is_none_or(|map| {
                    names.iter().all(|name| map.contains_key(name.as_str().expect("text")))
                })
            }
            "properties" => {
                for (name, inner) in value.as_object().into_iter().flatten() {
                    wanted.get(name).map_or(Ok(()), |rules| check(rules, inner))?;
                }
                true
            }
            "propertyNames" => {
                value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .try_for_each(|(name, _)| check(wanted, &json!(name)))?;
                true
            }
            "additionalProperties" => {
                let known = |name: &str| {
                    rules.get("properties").is_some_and(|known| known.get(name).is_some())
                };
                let others =
                    value.as_object().into_iter().flatten().filter(|(name, _)| !known(name));
                match wanted {
                    Value::Bool(false) => others.count() == 0,
                    inner => {
                        others.map(|(_, value)| value).try_for_each(|value| check(inner, value))?;
                        true
                    }
                }
            }
            "anyOf" => {
                wanted.as_array().is_some_and(|all| all.iter().any(|one| check(one, value).is_ok()))
            }
            other => panic!("{other} is not known to this test"),
        };
        if !holds {
            return wrong(rule);
        }
    }
    Ok(())
}

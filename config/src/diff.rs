//! What a reload would change, and which of it takes a restart.
//!
//! Compares the two effective configurations as they are written, so that a change has the name of a key and
//! a default that is now written out is no change. Live is what [`LIVE`] names and nothing else: a key that
//! nobody thought about asks for a restart, which is a nuisance; the other way round it would be a lie.

use crate::effective::{self, Doc, Secrets};
use crate::settings::Settings;

/// One key whose effective value differs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// The key's path; services are named by id, upstreams by name, resources by what they match: `upstreams[catalog].policy.timeout`.
    pub key: String,
    /// A reload is enough; otherwise the old value stays until the process is restarted.
    pub live: bool,
}

/// Every key that differs, in the order of the file.
#[must_use]
pub fn diff(old: &Settings, new: &Settings) -> Vec<Change> {
    let mut changes = Vec::new();
    let (old, new) =
        (effective::settings(old, Secrets::Shown), effective::settings(new, Secrets::Shown));
    compare("", Some(&old), Some(&new), &mut changes);
    changes
}

fn compare(path: &str, old: Option<&Doc>, new: Option<&Doc>, changes: &mut Vec<Change>) {
    if old == new {
        return;
    }
    match (old, new) {
        (Some(Doc::Map(old)), Some(Doc::Map(new))) => {
            let value =
                |map: &[(String, Doc)], key: &str| map.iter().position(|(name, _)| name == key);
            for (key, held) in old {
                let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&inner, Some(held), value(new, key).map(|index| &new[index].1), changes);
            }
            for (key, held) in new.iter().filter(|(key, _)| value(old, key).is_none()) {
                compare(&format!("{path}.{key}"), None, Some(held), changes);
            }
        }
        (Some(Doc::List(old_items)), Some(Doc::List(new_items))) => {
            let (Some(old_named), Some(new_named)) =
                (named(path, old_items), named(path, new_items))
            else {
                return push(path, changes);
            };
            let before = changes.len();
            for (name, item) in &old_named {
                let now = new_named.iter().find(|(other, _)| other == name).map(|(_, item)| *item);
                compare(&format!("{path}[{name}]"), Some(item), now, changes);
            }
            for (name, item) in
                new_named.iter().filter(|(name, _)| old_named.iter().all(|(old, _)| old != name))
            {
                compare(&format!("{path}[{name}]"), None, Some(item), changes);
            }
            // The same items in another order.
            if changes.len() == before {
                push(path, changes);
            }
        }
        _ => push(path, changes),
    }
}

fn push(path: &str, changes: &mut Vec<Change>) {
    changes.push(Change { key: path.to_owned(), live: is_live(path) });
}

/// The items of a list whose items have names: services, upstreams, resources.
fn named<'d>(path: &str, items: &'d [Doc]) -> Option<Vec<(&'d str, &'d Doc)>> {
    let by = match path {
        "services" => "id",
        "upstreams" => "name",
        "ratelimit.resources" => "match",
        _ => return None,
    };
    let name = |item: &'d Doc| match item {
        Doc::Map(entries) => {
            entries.iter().find(|(key, _)| key == by).and_then(|(_, value)| match value {
                Doc::Text(name) => Some((name.as_str(), item)),
                _ => None,
            })
        }
        _ => None,
    };
    items.iter().map(name).collect()
}

/// Whether a change of this key takes effect with a reload.
pub(crate) fn is_live(path: &str) -> bool {
    LIVE.iter().any(|live| match path.strip_prefix(live) {
        Some(rest) => rest.is_empty() || rest.starts_with(['.', '[']),
        None => false,
    })
}

/// Keys, with all that is under them.
const LIVE: [&str; 14] = [
    "mesh.bounds",
    "services",
    "policy",
    "upstreams",
    "outbound.passthrough",
    "outbound.listeners",
    "ratelimit.absent",
    "ratelimit.resources",
    "ratelimit.apply",
    "limits.connections",
    "limits.buffers",
    "shutdown",
    "log.level",
    "log.access",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Environment, keys, parse};

    fn changes(old: &str, new: &str) -> Vec<String> {
        let load =
            |text: &str| parse(text, "t.yaml", &Environment::named("a")).expect("loads").settings;
        let shown = |change: Change| {
            format!("{} {}", change.key, if change.live { "live" } else { "restart" })
        };
        diff(&load(old), &load(new)).into_iter().map(shown).collect()
    }

    #[test]
    fn names_each_change_and_whether_it_is_live() {
        const KEY_A: &str = "mesh: {gossip: {listen: '127.0.0.1:7111', keys: [AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]}, data: {listen: '127.0.0.1:7110'}}";
        const KEY_B: &str = "mesh: {gossip: {listen: '127.0.0.1:7111', keys: [AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=]}, data: {listen: '127.0.0.1:7110'}}";
        let table: [(&str, &str, &[&str]); 14] = [
            ("", "# the same\nlog: {level: info}\noutbound: {listen: '127.0.0.1:7080'}", &[]),
            ("", "node: {name: b, zone: z}", &["node.name restart", "node.zone restart"]),
            ("", "workers: 2", &["workers restart"]),
            (KEY_A, KEY_B, &["mesh.gossip.keys restart"]),
            (
                "",
                "mesh: {name: x, join: ['127.0.0.1:1']}",
                &["mesh.name restart", "mesh.join restart"],
            ),
            (
                "",
                "log: {level: warn, format: json, access: off}",
                &["log.level live", "log.format restart", "log.access live"],
            ),
            (
                "",
                "outbound: {passthrough: false, listeners: [{listen: '127.0.0.1:1', service: a}]}",
                &["outbound.passthrough live", "outbound.listeners live"],
            ),
            (
                "policy: {timeout: 1s}",
                "policy: {timeout: 1000ms, hedge: {mode: off}}",
                &["policy.hedge.mode live"],
            ),
            (
                "services: [{name: a, address: '127.0.0.1:1'}, {name: b, address: '127.0.0.1:2'}]",
                "services: [{name: b, address: '127.0.0.1:3'}, {name: c, address: '127.0.0.1:4', meta: {k: v}}]",
                &[
                    "services[a] live",
                    "services[b].address live",
                    "services[b].advertise live",
                    "services[c] live",
                ],
            ),
            (
                "upstreams: [{name: a}]",
                "upstreams: [{name: a, routes: [{match: {path: /}}]}]",
                &["upstreams[a].routes live"],
            ),
            (
                "upstreams: [{name: a}, {name: b}]",
                "upstreams: [{name: b}, {name: a}]",
                &["upstreams live"],
            ),
            (
                "ratelimit: {resources: [{match: a, capacity: 1}, {match: b, capacity: 1}]}",
                "ratelimit: {resources: [{match: a, capacity: 2}, {match: c, capacity: 1}], absent: 2m, listen: '127.0.0.1:1'}",
                &[
                    "ratelimit.listen restart",
                    "ratelimit.absent live",
                    "ratelimit.resources[a].capacity live",
                    "ratelimit.resources[b] live",
                    "ratelimit.resources[c] live",
                ],
            ),
            (
                "ratelimit: {resources: [{match: a, capacity: 1}]}",
                "ratelimit: {resources: [{match: a, capacity: 1}], apply: [{direction: inbound, service: s, resource: a}]}",
                &["ratelimit.apply live"],
            ),
            (
                "",
                "limits: {members: 5}\nshutdown: {settle: 1s}\nnode: {data_dir: /d}",
                &["node.data_dir restart", "limits.members restart", "shutdown.settle live"],
            ),
        ];
        for (old, new, expected) in table {
            assert_eq!(changes(old, new), expected, "{old:?} → {new:?}");
            if !expected.is_empty() {
                assert!(!changes(new, old).is_empty(), "{new:?} → {old:?}");
            }
        }
    }

    #[test]
    fn a_key_in_a_map_that_comes_and_goes_is_a_change() {
        let service =
            |meta: &str| format!("services: [{{name: a, address: '127.0.0.1:1', meta: {meta}}}]");
        assert_eq!(
            changes(&service("{x: a}"), &service("{y: a}")),
            ["services[a].meta.x live", "services[a].meta.y live"]
        );
    }

    #[test]
    fn every_live_key_is_a_key() {
        let mut paths = Vec::new();
        keys::each(&mut |path, _| paths.push(path.to_owned()));
        for live in LIVE {
            assert!(paths.iter().any(|path| path == live), "{live}");
        }
    }
}

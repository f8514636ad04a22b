//! The effective configuration, in the notation of the file.
//!
//! Written by hand over a small tree ([`Doc`]) and not by a YAML serialiser: what is written must be read back
//! by us and by YAML 1.1 tools as the same value (so text is in quotes unless it is text to all of them), and a
//! default that the system decides is shown as a comment, since there is no value to write.
//!
//! Invariants: keys are never in the output of [`Settings::to_effective_yaml`]; apart from them, and from where
//! each value came from, what it returns loads to the same settings. `diff.rs` compares the same trees, with keys.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::bounds::Bounds;
use crate::layer::PolicyLayer;
use crate::notation::{AsText, Bytes};
use crate::policy::{KeySource, Policy};
use crate::published;
use crate::ratelimit::{Apply, RateLimit, Resource, Safe};
use crate::settings::{CheckKind, DataDir, Match, Scout, Service, Settings, Upstream};
use crate::yaml11::{Plain, classify};

/// A part of the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Doc {
    /// Text, put in quotes where a YAML tool would take it for something else.
    Text(String),
    Number(u64),
    Signed(i64),
    Decimal(f64),
    Bool(bool),
    List(Vec<Doc>),
    Map(Vec<(String, Doc)>),
    /// No value: what decides instead.
    Unset(&'static str),
}

impl Doc {
    fn text(value: &(impl ToString + ?Sized)) -> Doc {
        Doc::Text(value.to_string())
    }

    fn texts<T: ToString>(values: impl IntoIterator<Item = T>) -> Doc {
        Doc::List(values.into_iter().map(|value| Doc::text(&value)).collect())
    }

    fn number(value: usize) -> Doc {
        Doc::Number(value as u64)
    }

    fn set_or(value: Option<impl ToString>, unset: &'static str) -> Doc {
        value.map_or(Doc::Unset(unset), |value| Doc::text(&value))
    }

    pub(crate) fn map<const N: usize>(entries: [(&str, Doc); N]) -> Doc {
        Doc::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    fn is_small(&self) -> bool {
        match self {
            Doc::Map(entries) => entries.is_empty(),
            Doc::List(items) => {
                items.iter().all(|item| !matches!(item, Doc::Map(_) | Doc::List(_)))
            }
            _ => true,
        }
    }

    /// Block style below `indent`; each line ends with a newline.
    fn write(&self, indent: usize, out: &mut String) {
        let pad = " ".repeat(indent);
        match self {
            Doc::Map(entries) => {
                for (key, value) in entries {
                    let _ = match value {
                        Doc::Unset(what) => writeln!(out, "{pad}# {}: {what}", scalar(key)),
                        small if small.is_small() => {
                            writeln!(out, "{pad}{}: {}", scalar(key), small.flow())
                        }
                        _ => writeln!(out, "{pad}{}:", scalar(key)),
                    };
                    if !value.is_small() {
                        value.write(indent + 2, out);
                    }
                }
            }
            Doc::List(items) => {
                for item in items {
                    let mut inner = String::new();
                    item.write(indent + 2, &mut inner);
                    // The dash takes the place of the first line's indent.
                    let _ = writeln!(
                        out,
                        "{pad}- {}",
                        inner.trim_start_matches(' ').trim_end_matches('\n')
                    );
                }
            }
            small => {
                let _ = writeln!(out, "{pad}{}", small.flow());
            }
        }
    }

    /// On one line.
    fn flow(&self) -> String {
        match self {
            Doc::Text(text) => scalar(text),
            Doc::Number(number) => number.to_string(),
            Doc::Signed(number) => number.to_string(),
            Doc::Decimal(number) => number.to_string(),
            Doc::Bool(value) => value.to_string(),
            Doc::List(items) => {
                format!("[{}]", items.iter().map(Doc::flow).collect::<Vec<_>>().join(", "))
            }
            Doc::Map(_) => "{}".to_owned(),
            Doc::Unset(what) => format!("# {what}"),
        }
    }
}

impl Serialize for Doc {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Doc::Text(text) => serializer.serialize_str(text),
            Doc::Number(number) => serializer.serialize_u64(*number),
            Doc::Signed(number) => serializer.serialize_i64(*number),
            Doc::Decimal(number) => serializer.serialize_f64(*number),
            Doc::Bool(value) => serializer.serialize_bool(*value),
            Doc::List(items) => items.serialize(serializer),
            Doc::Map(entries) => {
                let set: Vec<_> =
                    entries.iter().filter(|(_, value)| !matches!(value, Doc::Unset(_))).collect();
                let mut map = serializer.serialize_map(Some(set.len()))?;
                for (key, value) in set {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
            Doc::Unset(_) => serializer.serialize_none(),
        }
    }
}

/// Without quotes where every YAML tool takes it for this text, else in double quotes.
fn scalar(text: &str) -> String {
    let safe =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '%' | '+');
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    if starts && text.chars().all(safe) && classify(text) == Plain::Text {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            ' '..='~' => quoted.push(c),
            _ if u32::from(c) <= 0xff => _ = write!(quoted, "\\x{:02x}", u32::from(c)),
            _ if u32::from(c) <= 0xffff => _ = write!(quoted, "\\u{:04x}", u32::from(c)),
            _ => _ = write!(quoted, "\\U{:08x}", u32::from(c)),
        }
    }
    quoted.push('"');
    quoted
}

/// Whether the gossip keys are written.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Secrets {
    Redacted,
    /// For comparing only.
    Shown,
}

impl Settings {
    /// The effective configuration as YAML, every default filled in, with `<redacted>` in the place of each key. Without
    /// keys it loads again, to the same behaviour. Of what a service or an upstream says of its policy it has what is
    /// written and no default, because a field that nobody wrote is left to those who say it elsewhere.
    #[must_use]
    pub fn to_effective_yaml(&self) -> String {
        let mut out = String::new();
        settings(self, Secrets::Redacted).write(0, &mut out);
        out
    }
}

impl Serialize for Settings {
    /// The same as [`Settings::to_effective_yaml`], for JSON.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        settings(self, Secrets::Redacted).serialize(serializer)
    }
}

impl Policy {
    /// Every field in the notation of the file, as the mapping under `policy:` is written.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        policy(self).write(0, &mut out);
        out
    }
}

impl Serialize for Policy {
    /// The same as [`Policy::to_yaml`], for JSON.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        policy(self).serialize(serializer)
    }
}

pub(crate) fn settings(settings: &Settings, secrets: Secrets) -> Doc {
    let Settings {
        node,
        workers,
        mesh,
        services,
        policy: host,
        origins: _,
        upstreams,
        outbound,
        discovery,
        ratelimit: shared,
        admin,
        limits,
        shutdown,
        log,
    } = settings;
    let data_dir = match &node.data_dir {
        DataDir::Default => Doc::Unset("$STATE_DIRECTORY, else the XDG state directory"),
        DataDir::Path(path) => Doc::text(&path.display()),
        DataDir::Nothing => Doc::text(""),
    };
    let key = |key: &crate::settings::Key| match secrets {
        Secrets::Redacted => "<redacted>".to_owned(),
        Secrets::Shown => STANDARD.encode(key.0),
    };
    let listeners = outbound.listeners.iter().map(|listener| {
        Doc::map([
            ("listen", Doc::text(&listener.listen)),
            ("service", Doc::text(&listener.service)),
        ])
    });
    Doc::map([
        (
            "node",
            Doc::map([
                ("name", Doc::text(&node.name)),
                (
                    "address",
                    Doc::set_or(node.address, "the default route's source address, else 127.0.0.1"),
                ),
                ("zone", Doc::set_or(node.zone.as_ref(), "none")),
                ("data_dir", data_dir),
            ]),
        ),
        ("workers", workers.map_or(Doc::Unset("the CPU quota, at most 4"), Doc::number)),
        (
            "mesh",
            Doc::map([
                ("name", Doc::text(&mesh.name)),
                ("domain", Doc::text(&mesh.domain)),
                ("join", Doc::texts(&mesh.join)),
                (
                    "gossip",
                    Doc::map([
                        ("listen", Doc::text(&mesh.gossip.address)),
                        ("profile", Doc::text("lan")),
                        ("keys", Doc::texts(mesh.keys.iter().map(key))),
                    ]),
                ),
                ("data", Doc::map([("listen", Doc::text(&mesh.data.address))])),
                ("insecure", Doc::Bool(mesh.insecure)),
                ("bounds", bounds(&mesh.bounds)),
            ]),
        ),
        ("services", Doc::List(services.iter().map(service).collect())),
        ("policy", policy(host)),
        ("upstreams", Doc::List(upstreams.iter().map(upstream).collect())),
        (
            "outbound",
            Doc::map([
                ("listen", Doc::text(&outbound.listen.address)),
                ("passthrough", Doc::Bool(outbound.passthrough)),
                ("listeners", Doc::List(listeners.collect())),
            ]),
        ),
        (
            "discovery",
            Doc::map([
                ("http", Doc::text(&discovery.http.address)),
                ("dns", Doc::text(&discovery.dns.address)),
            ]),
        ),
        ("ratelimit", ratelimit(shared)),
        ("admin", Doc::map([("listen", Doc::text(&admin.address))])),
        (
            "limits",
            Doc::map([
                ("connections", Doc::number(limits.connections)),
                ("members", Doc::number(limits.members)),
                ("records", Doc::number(limits.records)),
                ("buffers", Doc::text(&Bytes(limits.buffers))),
            ]),
        ),
        (
            "shutdown",
            Doc::map([
                ("settle", Doc::text(&AsText(shutdown.settle))),
                ("timeout", Doc::text(&AsText(shutdown.timeout))),
            ]),
        ),
        (
            "log",
            Doc::map([
                ("level", Doc::text(&log.level)),
                ("format", Doc::text(if log.json { "json" } else { "text" })),
                ("access", Doc::text(log.access.name())),
            ]),
        ),
    ])
}

fn service(service: &Service) -> Doc {
    let meta = service.meta.iter().map(|(key, value)| (key.clone(), Doc::text(value)));
    let check = service.check.as_ref().map(|check| {
        let kind = match &check.kind {
            CheckKind::Http(path) => vec![("http", Doc::text(path))],
            CheckKind::Https { path, skip_verify, server_name } => vec![
                ("https", Doc::text(path)),
                ("tls_skip_verify", Doc::Bool(*skip_verify)),
                ("tls_server_name", Doc::set_or(server_name.as_ref(), "the address")),
            ],
            CheckKind::Tcp => vec![("tcp", Doc::Bool(true))],
        };
        let when = [
            ("interval", Doc::text(&AsText(check.interval))),
            ("timeout", Doc::text(&AsText(check.timeout))),
            ("rise", Doc::Number(check.rise.into())),
            ("fall", Doc::Number(check.fall.into())),
        ];
        Doc::Map(kind.into_iter().chain(when).map(|(key, doc)| (key.to_owned(), doc)).collect())
    });
    let protocol = service.protocol.map(crate::settings::Protocol::name);
    Doc::map([
        ("name", Doc::text(&service.name)),
        ("id", Doc::text(&service.id)),
        ("address", Doc::text(&service.address)),
        ("advertise", Doc::set_or(service.advertise, "not announced outside the mesh")),
        ("protocol", Doc::set_or(protocol, "told from the first bytes")),
        ("tags", Doc::texts(&service.tags)),
        ("meta", Doc::Map(meta.collect())),
        ("check", check.unwrap_or(Doc::Unset("always passing"))),
        ("scout", scout(service.scout.as_ref(), "told from the progress of what is in flight")),
        ("policy", service.policy.as_ref().map_or(nothing(), |said| published::said(&said.policy))),
        ("routes", routes(service.policy.as_ref().map_or(&[], |said| &said.routes))),
    ])
}

fn nothing() -> Doc {
    Doc::Map(Vec::new())
}

fn routes(routes: &[(Match, PolicyLayer)]) -> Doc {
    let route = |(which, layer): &(Match, PolicyLayer)| {
        Doc::map([("match", matches(which)), ("policy", published::said(layer))])
    };
    Doc::List(routes.iter().map(route).collect())
}

fn bounds(bounds: &Bounds) -> Doc {
    let number = |value: u32| Doc::Number(value.into());
    let hedge = Doc::map([
        ("mode", Doc::text(bounds.hedge_mode.name())),
        ("min", Doc::text(&AsText(bounds.hedge_min))),
        ("budget", Doc::text(&bounds.hedge_budget)),
        ("max", number(bounds.hedge_max)),
    ]);
    let circuit = Doc::map([
        ("connections", number(bounds.circuit_connections)),
        ("pending", number(bounds.circuit_pending)),
        ("requests", number(bounds.circuit_requests)),
    ]);
    Doc::map([
        ("timeout", Doc::text(&AsText(bounds.timeout))),
        ("idle_timeout", Doc::text(&AsText(bounds.idle_timeout))),
        ("repeat", Doc::map([("methods", Doc::texts(&bounds.repeat_methods))])),
        (
            "retry",
            Doc::map([
                ("max", number(bounds.retry_max)),
                ("budget", Doc::text(&bounds.retry_budget)),
            ]),
        ),
        ("hedge", hedge),
        (
            "scout",
            Doc::map([
                ("mode", Doc::text(bounds.scout_mode.name())),
                ("timeout", Doc::text(&AsText(bounds.scout_timeout))),
            ]),
        ),
        ("eject", Doc::map([("max", Doc::text(&bounds.eject_max))])),
        ("circuit", circuit),
        ("slow_start", Doc::text(&AsText(bounds.slow_start))),
        ("max_body_buffer", Doc::text(&Bytes(bounds.max_body_buffer))),
    ])
}

fn scout(scout: Option<&Scout>, unset: &'static str) -> Doc {
    match scout {
        Some(Scout::Http(path)) => Doc::map([("http", Doc::text(path))]),
        Some(Scout::Tcp(port)) => Doc::map([("tcp", Doc::Number((*port).into()))]),
        None => Doc::Unset(unset),
    }
}

fn upstream(upstream: &Upstream) -> Doc {
    let protocol = upstream.protocol.map(crate::settings::Protocol::name);
    let unset = if upstream.endpoints.is_empty() { "what the service says" } else { "http" };
    Doc::map([
        ("name", Doc::text(&upstream.name)),
        ("endpoints", Doc::texts(&upstream.endpoints)),
        ("protocol", Doc::set_or(protocol, unset)),
        ("scout", scout(upstream.scout.as_ref(), "not scouted by themselves")),
        ("policy", published::said(&upstream.said)),
        ("routes", routes(&upstream.routes)),
    ])
}

fn ratelimit(ratelimit: &RateLimit) -> Doc {
    Doc::map([
        ("listen", Doc::text(&ratelimit.listen.address)),
        ("absent", Doc::text(&AsText(ratelimit.absent))),
        ("resources", Doc::List(ratelimit.resources.iter().map(resource).collect())),
        ("apply", Doc::List(ratelimit.apply.iter().map(apply).collect())),
    ])
}

fn resource(resource: &Resource) -> Doc {
    let floor = |(priority, thousandths): &(i64, u16)| {
        let share = format!("{}%", f64::from(*thousandths) / 10.0);
        Doc::map([("priority", Doc::Signed(*priority)), ("share", Doc::Text(share))])
    };
    let burst =
        resource.per.map_or(Doc::Unset("only with `per`"), |_| Doc::Decimal(resource.burst));
    let safe = match resource.safe {
        Safe::Share => Doc::text("share"),
        Safe::Each(amount) => Doc::Decimal(amount),
        Safe::Unlimited => Doc::text("unlimited"),
    };
    Doc::map([
        ("match", Doc::text(&resource.pattern)),
        ("capacity", Doc::Decimal(resource.capacity)),
        ("per", Doc::set_or(resource.per.map(AsText), "held, so many at once")),
        ("burst", burst),
        ("algorithm", Doc::text(resource.algorithm.name())),
        ("lease", Doc::text(&AsText(resource.lease))),
        ("refresh", Doc::text(&AsText(resource.refresh))),
        ("learning", Doc::text(&AsText(resource.learning))),
        ("safe", safe),
        ("floors", Doc::List(resource.floors.iter().map(floor).collect())),
    ])
}

fn apply(apply: &Apply) -> Doc {
    Doc::map([
        ("direction", Doc::text(apply.direction.name())),
        ("service", Doc::text(&apply.service)),
        ("path", Doc::set_or(apply.matches.path.as_ref(), "any")),
        ("method", Doc::set_or(apply.matches.method.as_ref(), "any")),
        ("resource", Doc::text(&apply.resource)),
        ("cost", Doc::Number(apply.cost.into())),
        ("key", key_source(apply.key.as_ref())),
        ("wait", Doc::text(&AsText(apply.wait))),
        ("fail", Doc::text(apply.fail.name())),
        ("mode", Doc::text(if apply.enforce { "enforce" } else { "observe" })),
    ])
}

fn key_source(key: Option<&KeySource>) -> Doc {
    key.map_or_else(|| Doc::text("none"), Doc::text)
}

pub(crate) fn matches(matches: &Match) -> Doc {
    Doc::map([
        ("path", Doc::set_or(matches.path.as_ref(), "any")),
        ("method", Doc::set_or(matches.method.as_ref(), "any")),
    ])
}

pub(crate) fn policy(policy: &Policy) -> Doc {
    let Policy {
        timeout,
        idle_timeout,
        balance,
        hash,
        repeat,
        retry,
        hedge,
        scout,
        shard,
        zone,
        eject,
        probation,
        panic,
        circuit,
        slow_start,
        max_body_buffer,
    } = policy;
    let slower_than = probation.slower_than.map_or("off".to_owned(), |times| format!("{times}x"));
    Doc::map([
        ("timeout", Doc::text(&AsText(*timeout))),
        ("idle_timeout", Doc::text(&AsText(*idle_timeout))),
        ("balance", Doc::text(balance.name())),
        (
            "hash",
            Doc::map([
                ("key", key_source(hash.key.as_ref())),
                ("bound", Doc::Decimal(hash.bound.times())),
            ]),
        ),
        (
            "repeat",
            Doc::map([
                ("methods", Doc::texts(&repeat.methods)),
                ("grpc", Doc::texts(&repeat.grpc)),
                ("key_header", Doc::text(repeat.key_header.as_deref().unwrap_or("none"))),
            ]),
        ),
        (
            "retry",
            Doc::map([
                ("max", Doc::Number(retry.max.into())),
                ("budget", Doc::text(&retry.budget)),
                ("when", Doc::texts(&retry.when)),
            ]),
        ),
        (
            "hedge",
            Doc::map([
                ("mode", Doc::text(hedge.mode.name())),
                ("after", Doc::text(&hedge.after)),
                ("min", Doc::text(&AsText(hedge.min))),
                ("budget", Doc::text(&hedge.budget)),
                ("max", Doc::Number(hedge.max.into())),
            ]),
        ),
        (
            "scout",
            Doc::map([
                ("mode", Doc::text(scout.mode.name())),
                ("timeout", Doc::text(&AsText(scout.timeout))),
            ]),
        ),
        (
            "shard",
            Doc::map([
                ("key", key_source(shard.key.as_ref())),
                ("size", Doc::Number(shard.size.into())),
                ("fallback", Doc::text(shard.fallback.name())),
            ]),
        ),
        ("zone", Doc::text(zone.name())),
        (
            "eject",
            Doc::map([
                ("consecutive", Doc::Number(eject.consecutive.into())),
                ("base", Doc::text(&AsText(eject.base))),
                ("max", Doc::text(&eject.max)),
            ]),
        ),
        (
            "probation",
            Doc::map([
                ("slower_than", Doc::text(&slower_than)),
                ("min_requests", Doc::Number(probation.min_requests.into())),
            ]),
        ),
        ("panic", Doc::text(panic)),
        (
            "circuit",
            Doc::map([
                ("connections", Doc::Number(circuit.connections.into())),
                ("pending", Doc::Number(circuit.pending.into())),
                ("requests", Doc::Number(circuit.requests.into())),
            ]),
        ),
        ("slow_start", Doc::text(&AsText(*slow_start))),
        ("max_body_buffer", Doc::text(&Bytes(*max_body_buffer))),
    ])
}

#[cfg(test)]
mod tests;

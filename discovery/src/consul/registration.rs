//! The body of `PUT /v1/agent/service/register`, as Consul's clients write it.
//!
//! Keys come in any case, with or without underscores. What Consul has and we do not have yet is refused by name:
//! an application that asked for a check must not believe that it is checked. Keys that Consul does not know either are ignored, as it does.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use crate::health::Status;
use crate::registration::{Check, CheckKind, Origin, RegisterError, Registration, Weights};

/// A check that does not say how long it may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Checks more often than this are asked for by mistake.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Why a registration's body was not accepted; the fault is the client's, nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// Not JSON, or a field that is missing or wrong; says which.
    Malformed(String),
    /// Consul has it, we do not have it yet; says what to do instead.
    NotBuiltYet(String),
    /// Read, but not acceptable.
    Refused(RegisterError),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Malformed(what) => write!(f, "request decode failed: {what}"),
            DecodeError::NotBuiltYet(what) => write!(f, "not built yet: {what}"),
            DecodeError::Refused(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DecodeError {}

/// The body of `PUT /v1/agent/service/register`; `node_address` stands in for an empty `Address`.
///
/// A loopback `Address` is announced outside the mesh only if `node_address` is a loopback address too.
///
/// # Errors
/// A body that is not acceptable, with what to change; nothing was registered.
pub fn decode_registration(body: &[u8], node_address: IpAddr) -> Result<Registration, DecodeError> {
    let value: Value =
        serde_json::from_slice(body).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    let mut fields = Fields::of(value, "the body")?;
    for key in ["Kind", "Proxy", "Connect", "TaggedAddresses", "Locality", "Ports"] {
        fields.refuse(key, "leave it out")?;
    }
    for key in ["Namespace", "Partition"] {
        let value = fields.text(key)?;
        if !matches!(value.as_deref(), None | Some("default")) {
            return not_built(format!("{key}: register as `name.namespace` instead"));
        }
    }
    let service =
        fields.text("Name")?.ok_or_else(|| malformed("Name", "is missing"))?.to_ascii_lowercase();
    let id = fields.text("ID")?.unwrap_or_else(|| service.clone());
    let ip = match fields.text("Address")? {
        None => node_address,
        Some(text) => text.parse().map_err(|_| malformed("Address", "must be an IP address"))?,
    };
    let port =
        fields.number("Port")?.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let port =
        port.ok_or_else(|| malformed("Port", "must be 1 to 65535, where the application listens"))?;
    let address = SocketAddr::new(ip, port);
    let is_announced = !ip.is_loopback() || node_address.is_loopback();
    let mut checks = Vec::new();
    for check in fields.take("Check").into_iter().chain(fields.list("Checks")?) {
        checks.push(Fields::of(check, "a check")?);
    }
    let several = checks.len() > 1;
    let checks = checks
        .into_iter()
        .zip(1..)
        .map(|(check, number)| {
            let default_id =
                if several { format!("service:{id}:{number}") } else { format!("service:{id}") };
            decode_check(check, default_id, &service)
        })
        .collect::<Result<_, _>>()?;
    let registration = Registration {
        id,
        service,
        address,
        advertise: is_announced.then_some(address),
        protocol: None,
        tags: fields.texts("Tags")?,
        meta: fields.text_map("Meta")?,
        weights: decode_weights(&mut fields)?,
        checks,
        origin: Origin::Api,
    };
    registration.validate().map_err(DecodeError::Refused)?;
    Ok(registration)
}

fn decode_weights(fields: &mut Fields) -> Result<Weights, DecodeError> {
    let Some(value) = fields.take("Weights") else {
        return Ok(Weights::default());
    };
    let mut fields = Fields::of(value, "Weights")?;
    let mut weight = |key: &str| match fields.number(key)? {
        None => Ok(1),
        Some(weight) => u16::try_from(weight).map_err(|_| malformed(key, "must be 0 to 65535")),
    };
    Ok(Weights { passing: weight("Passing")?, warning: weight("Warning")? })
}

fn decode_check(
    mut fields: Fields,
    default_id: String,
    service: &str,
) -> Result<Check, DecodeError> {
    fields.refuse("TTL", "use an HTTP or TCP check")?;
    for key in [
        "GRPC",
        "Args",
        "Script",
        "DockerContainerID",
        "UDP",
        "H2PING",
        "AliasNode",
        "AliasService",
        "OSService",
    ] {
        fields.refuse(key, "use an HTTP or TCP check")?;
    }
    for key in ["Header", "Body", "DeregisterCriticalServiceAfter", "FailuresBeforeWarning"] {
        fields.refuse(key, "leave it out")?;
    }
    let kind = match (fields.text("HTTP")?, fields.text("TCP")?) {
        (Some(url), None) => {
            let (authority, path) = split_url(&url)?;
            let method =
                fields.text("Method")?.unwrap_or_else(|| "GET".into()).to_ascii_uppercase();
            if !method.bytes().all(|b| b.is_ascii_uppercase()) {
                return Err(malformed("Method", "must be an HTTP method"));
            }
            CheckKind::Http { authority, path, method }
        }
        (None, Some(authority)) => {
            CheckKind::Tcp { authority: with_port(&authority, None, "TCP")? }
        }
        (Some(_), Some(_)) => {
            return Err(malformed("Check", "has both HTTP and TCP: make it two checks"));
        }
        (None, None) => return Err(malformed("Check", "needs HTTP or TCP")),
    };
    let interval =
        fields.duration("Interval")?.ok_or_else(|| malformed("Interval", "is missing"))?;
    if interval < INTERVAL_MIN {
        return Err(malformed("Interval", "must be at least 100ms"));
    }
    let mut count = |key: &str| match fields.number(key)? {
        None => Ok(1),
        Some(count) => u32::try_from(count)
            .map(|count| count.max(1))
            .map_err(|_| malformed(key, "is too large")),
    };
    let (rise, fall) = (count("SuccessBeforePassing")?, count("FailuresBeforeCritical")?);
    let initial = match fields.text("Status")?.as_deref() {
        None | Some("critical") => Status::Critical,
        Some("warning") => Status::Warning,
        Some("passing") => Status::Passing,
        Some(_) => return Err(malformed("Status", "must be passing, warning or critical")),
    };
    Ok(Check {
        id: fields.text("CheckID")?.or(fields.text("ID")?).unwrap_or(default_id),
        name: fields.text("Name")?.unwrap_or_else(|| format!("Service '{service}' check")),
        kind,
        interval,
        timeout: fields.duration("Timeout")?.unwrap_or(TIMEOUT),
        rise,
        fall,
        initial,
    })
}

/// `http://host[:port][/path]` as `host:port` and path.
fn split_url(url: &str) -> Result<(String, String), DecodeError> {
    let Some(rest) = url.strip_prefix("http://") else {
        return if url.starts_with("https://") {
            not_built("HTTP: https: check over http or TCP".into())
        } else {
            Err(malformed("HTTP", "must begin with http://"))
        };
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = path.split('#').next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    if authority.contains('@') {
        return not_built("HTTP: credentials in the URL: leave them out".into());
    }
    if path.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err(malformed("HTTP", "has spaces or control characters in its path"));
    }
    Ok((with_port(authority, Some(80), "HTTP")?, path))
}

/// `host:port`, with the port that is meant if none is given.
fn with_port(authority: &str, default: Option<u16>, key: &str) -> Result<String, DecodeError> {
    let wrong = || malformed(key, "must name a host and a port");
    let is_clean = authority.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    if authority.is_empty() || !is_clean {
        return Err(wrong());
    }
    let port =
        authority.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.ends_with(':'));
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(port)) if port > 0 => Ok(authority.to_owned()),
        _ if authority.ends_with(']') || !authority.contains(':') => {
            default.map(|port| format!("{authority}:{port}")).ok_or_else(wrong)
        }
        _ => Err(wrong()),
    }
}

/// A JSON object whose keys are compared without case and underscores. `null` and empty values count as absent.
struct Fields(BTreeMap<String, Value>);

impl Fields {
    fn of(value: Value, what: &str) -> Result<Fields, DecodeError> {
        match value {
            Value::Object(map) => {
                Ok(Fields(map.into_iter().map(|(key, value)| (folded(&key), value)).collect()))
            }
            _ => Err(malformed(what, "must be an object")),
        }
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        let is_empty = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        self.0.remove(&folded(key)).filter(|value| !is_empty(value))
    }

    /// Refuses what is not built yet, unless it says the same as leaving it out.
    fn refuse(&mut self, key: &str, instead: &str) -> Result<(), DecodeError> {
        match self.take(key) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(Value::Number(number)) if number.as_i64() == Some(0) => Ok(()),
            Some(_) => not_built(format!("{key}: {instead}")),
        }
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, DecodeError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(malformed(key, "must be a string")),
        }
    }

    fn number(&mut self, key: &str) -> Result<Option<u64>, DecodeError> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .map(Some)
                .ok_or_else(|| malformed(key, "must be a whole number, not negative")),
        }
    }

    fn list(&mut self, key: &str) -> Result<Vec<Value>, DecodeError> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(_) => Err(malformed(key, "must be a list")),
        }
    }

    fn texts(&mut self, key: &str) -> Result<Vec<String>, DecodeError> {
        let text = |value| match value {
            Value::String(text) => Ok(text),
            _ => Err(malformed(key, "must be a list of strings")),
        };
        self.list(key)?.into_iter().map(text).collect()
    }

    fn text_map(&mut self, key: &str) -> Result<BTreeMap<String, String>, DecodeError> {
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
    fn duration(&mut self, key: &str) -> Result<Option<Duration>, DecodeError> {
        let parsed = match self.take(key) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_u64().map(Duration::from_nanos),
            Some(Value::String(text)) => go_duration(&text),
            Some(_) => None,
        };
        parsed.map(Some).ok_or_else(|| malformed(key, "must be a duration such as 10s or 500ms"))
    }
}

fn folded(key: &str) -> String {
    key.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect()
}

/// `1h2m3.5s`; `None` if it is not one, or longer than a century.
fn go_duration(text: &str) -> Option<Duration> {
    const MAX_SECS: f64 = 100.0 * 365.0 * 24.0 * 3600.0;
    let mut rest = text;
    let mut secs = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        secs += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    (!text.is_empty() && secs <= MAX_SECS).then(|| Duration::from_secs_f64(secs))
}

fn malformed(key: &str, what: &str) -> DecodeError {
    DecodeError::Malformed(format!("{key} {what}"))
}

fn not_built<T>(what: String) -> Result<T, DecodeError> {
    Err(DecodeError::NotBuiltYet(what))
}

#[cfg(test)]
mod tests;

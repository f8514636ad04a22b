//! One check of a registration, or the body of `PUT /v1/agent/check/register`.
//!
//! `TLSSkipVerify` and `TLSServerName` are read where the check speaks TLS (an `https` URL, `GRPCUseTLS`, `TCPUseTLS`), and mean
//! nothing elsewhere: clients write every field. `DisableRedirects` needs no reading, redirects are never followed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::fields::Fields;
use super::{DecodeError, HOST_NAME_MAX, malformed, not_built, parse};
use crate::health::Status;
use crate::registration::{Check, CheckKind, CheckTls};

/// A check that does not say how long it may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Checks more often than this are asked for by mistake.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// A check to be added to an instance of this host, or to the host itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckRegistration {
    /// The instance's id; `None`: it is for the host itself.
    pub instance: Option<String>,
    /// What is to be checked.
    pub check: Check,
}

/// The body of `PUT /v1/agent/check/register`.
///
/// # Errors
/// A body that is not acceptable, with what to change; nothing was registered.
pub fn decode_check_registration(body: &[u8]) -> Result<CheckRegistration, DecodeError> {
    let mut fields = Fields::of(parse(body)?, "the body")?;
    let instance = fields.text("ServiceID")?;
    let name = fields.text("Name")?.ok_or_else(|| malformed("Name", "is missing"))?;
    let check = decode_check(fields, name.clone(), &name)?;
    Ok(CheckRegistration { instance, check })
}

pub(super) fn decode_check(
    mut fields: Fields,
    default_id: String,
    default_name: &str,
) -> Result<Check, DecodeError> {
    for key in [
        "Args",
        "Script",
        "DockerContainerID",
        "Shell",
        "UDP",
        "H2PING",
        "AliasNode",
        "AliasService",
        "OSService",
    ] {
        fields.refuse(key, "use an HTTP, TCP, GRPC or TTL check")?;
    }
    fields.refuse("FailuresBeforeWarning", "use FailuresBeforeCritical")?;
    fields.refuse("OutputMaxSize", "leave it out, outputs are cut at 256 bytes")?;
    let kind = decode_kind(&mut fields)?;
    let interval = match (&kind, fields.duration("TTL")?, fields.duration("Interval")?) {
        (CheckKind::Ttl, Some(ttl), None) => ttl,
        (CheckKind::Ttl, ..) => {
            return Err(malformed("TTL", "stands for Interval: leave Interval out"));
        }
        (_, _, interval) => interval.ok_or_else(|| malformed("Interval", "is missing"))?,
    };
    if interval < INTERVAL_MIN {
        return Err(malformed("Interval", "and TTL must be at least 100ms"));
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
        name: fields.text("Name")?.unwrap_or_else(|| default_name.to_owned()),
        kind,
        notes: fields.text("Notes")?.unwrap_or_default(),
        interval,
        timeout: fields.duration("Timeout")?.unwrap_or(TIMEOUT),
        rise,
        fall,
        initial,
        deregister_after: fields
            .duration("DeregisterCriticalServiceAfter")?
            .filter(|d| !d.is_zero()),
    })
}

/// What is asked, and how.
fn decode_kind(fields: &mut Fields) -> Result<CheckKind, DecodeError> {
    let (http, tcp, grpc) = (fields.text("HTTP")?, fields.text("TCP")?, fields.text("GRPC")?);
    let has_ttl = fields.has("TTL");
    let method = fields.text("Method")?.unwrap_or_else(|| "GET".into()).to_ascii_uppercase();
    let body = fields.text("Body")?.unwrap_or_default();
    let headers = decode_headers(fields)?;
    let tls = decode_tls(fields)?;
    let (grpc_tls, tcp_tls) = (fields.flag("GRPCUseTLS")?, fields.flag("TCPUseTLS")?);
    if http.is_none() && !(headers.is_empty() && body.is_empty()) {
        return Err(malformed("Check", "has a Header or Body, which only an HTTP check sends"));
    }
    match (http, tcp, grpc, has_ttl) {
        (Some(url), None, None, false) => {
            let CheckUrl { is_https, authority, path } = split_url(&url)?;
            if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase()) {
                return Err(malformed("Method", "must be an HTTP method"));
            }
            let tls = is_https.then_some(tls);
            Ok(CheckKind::Http { authority, path, method, headers, body, tls })
        }
        (None, Some(authority), None, false) => {
            let authority = with_port(&authority, None, "TCP")?;
            Ok(CheckKind::Tcp { authority, tls: tcp_tls.then_some(tls) })
        }
        (None, None, Some(target), false) => {
            let (authority, service) = target.split_once('/').unwrap_or((target.as_str(), ""));
            let authority = with_port(authority, None, "GRPC")?;
            let tls = grpc_tls.then_some(tls);
            Ok(CheckKind::Grpc { authority, service: service.to_owned(), tls })
        }
        (None, None, None, true) => Ok(CheckKind::Ttl),
        (None, None, None, false) => Err(malformed("Check", "needs HTTP, TCP, GRPC or TTL")),
        _ => Err(malformed(
            "Check",
            "has more than one of HTTP, TCP, GRPC and TTL: make it several checks",
        )),
    }
}

/// What is said of the certificate that the check is shown, should it speak TLS.
fn decode_tls(fields: &mut Fields) -> Result<CheckTls, DecodeError> {
    let server_name = fields.text("TLSServerName")?;
    let is_name = |name: &String| {
        name.len() <= HOST_NAME_MAX
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b))
    };
    if !server_name.as_ref().is_none_or(is_name) {
        return Err(malformed("TLSServerName", "must be a host name or an IP address"));
    }
    Ok(CheckTls { server_name, skip_verify: fields.flag("TLSSkipVerify")? })
}

/// `{"X-Probe": ["1"]}`.
fn decode_headers(fields: &mut Fields) -> Result<BTreeMap<String, Vec<String>>, DecodeError> {
    let wrong =
        || malformed("Header", "must be an object of header names, each with a list of values");
    let mut headers = BTreeMap::new();
    let Some(value) = fields.take("Header") else { return Ok(headers) };
    let Value::Object(map) = value else { return Err(wrong()) };
    for (name, values) in map {
        let is_name = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
        if !is_name {
            return Err(wrong());
        }
        let ours = ["connection", "content-length", "transfer-encoding", "upgrade"];
        if ours.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            return not_built(format!("Header {name}: leave it out, the check sets it"));
        }
        let Value::Array(list) = values else { return Err(wrong()) };
        let text = |value: Value| match value {
            Value::String(text)
                if text.bytes().all(|b| b == b'\t' || (b' '..0x7f).contains(&b)) =>
            {
                Ok(text)
            }
            _ => Err(wrong()),
        };
        headers.insert(name, list.into_iter().map(text).collect::<Result<_, _>>()?);
    }
    Ok(headers)
}

/// A URL that a check asks for, in its parts.
#[derive(Debug)]
pub(super) struct CheckUrl {
    pub is_https: bool,
    /// `host:port`.
    pub authority: String,
    /// Begins with `/`; may carry a query.
    pub path: String,
}

/// Takes `http://host[:port][/path]` apart, or the same with `https`.
pub(super) fn split_url(url: &str) -> Result<CheckUrl, DecodeError> {
    let schemes = [("http://", false, 80), ("https://", true, 443)];
    let (rest, is_https, port) = schemes
        .into_iter()
        .find_map(|(scheme, is_https, port)| Some((url.strip_prefix(scheme)?, is_https, port)))
        .ok_or_else(|| malformed("HTTP", "must begin with http:// or https://"))?;
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
    Ok(CheckUrl { is_https, authority: with_port(authority, Some(port), "HTTP")?, path })
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

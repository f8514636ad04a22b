//! The body of `PUT /v1/agent/service/register`, as Consul's clients write it.
//!
//! Keys come in any case, with or without underscores. What Consul has and we do not have is refused by name:
//! an application that asked for a check must not believe that it is checked. Keys that Consul does not know either are ignored, as it does.
//! A host name as address is looked up once, by the shell, when the registration comes: what is gossiped and dialled is an address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use crate::registration::{Origin, RegisterError, Registration, TaggedAddresses, Weights};

mod check;
mod fields;

pub use check::{CheckRegistration, decode_check_registration};

use check::decode_check;
use fields::Fields;

/// Why a registration's body was not accepted; the fault is the client's, nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// Not JSON, or a field that is missing or wrong; says which.
    Malformed(String),
    /// Consul has it, we do not have it; says what to do instead.
    NotBuilt(String),
    /// Read, but not acceptable.
    Refused(RegisterError),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Malformed(what) => write!(f, "request decode failed: {what}"),
            DecodeError::NotBuilt(what) => write!(f, "not built: {what}"),
            DecodeError::Refused(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DecodeError {}

/// The host name that a registration's body has as `Address`, if it is one: to be looked up before the body is decoded.
#[must_use]
pub fn host_to_look_up(body: &[u8]) -> Option<String> {
    let mut fields = Fields::of(serde_json::from_slice(body).ok()?, "the body").ok()?;
    let name = fields.text("Address").ok()??;
    let is_name = name.len() <= HOST_NAME_MAX
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        && name.bytes().any(|b| b.is_ascii_alphabetic());
    (is_name && name.parse::<IpAddr>().is_err()).then_some(name)
}

/// Longest host name, as DNS has it.
const HOST_NAME_MAX: usize = 253;

/// The body of `PUT /v1/agent/service/register`; `node_address` stands in for an empty `Address`, `looked_up` for a host name
/// ([`host_to_look_up`]).
///
/// A loopback `Address` is announced outside the mesh only if `node_address` is a loopback address too.
///
/// # Errors
/// A body that is not acceptable, with what to change; nothing was registered.
pub fn decode_registration(
    body: &[u8],
    node_address: IpAddr,
    looked_up: Option<IpAddr>,
) -> Result<Registration, DecodeError> {
    let mut fields = Fields::of(parse(body)?, "the body")?;
    for key in ["Kind", "Proxy", "Connect", "Locality", "Ports", "SocketPath"] {
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
        Some(text) => text.parse().ok().or(looked_up).ok_or_else(|| {
            malformed("Address", "must be an IP address, or a host name that this host can look up")
        })?,
    };
    if ip.is_unspecified() {
        return Err(malformed(
            "Address",
            "must be one that others can dial: leave it out for this host's",
        ));
    }
    let port = u16::try_from(fields.number("Port")?.unwrap_or(0));
    let port = port
        .map_err(|_| malformed("Port", "must be at most 65535, or left out if nothing listens"))?;
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
            decode_check(check, default_id, &format!("Service '{service}' check"))
        })
        .collect::<Result<_, _>>()?;
    let registration = Registration {
        id,
        service,
        address,
        advertise: is_announced.then_some(address),
        tagged_addresses: decode_tagged_addresses(&mut fields)?,
        enable_tag_override: fields.flag("EnableTagOverride")?,
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

fn parse(body: &[u8]) -> Result<Value, DecodeError> {
    serde_json::from_slice(body).map_err(|e| DecodeError::Malformed(e.to_string()))
}

/// `{"lan": {"Address": "10.0.0.5", "Port": 80}}`.
fn decode_tagged_addresses(fields: &mut Fields) -> Result<TaggedAddresses, DecodeError> {
    let mut addresses = TaggedAddresses::new();
    let Some(value) = fields.take("TaggedAddresses") else { return Ok(addresses) };
    let Value::Object(map) = value else {
        return Err(malformed("TaggedAddresses", "must be an object"));
    };
    for (name, value) in map {
        let mut fields = Fields::of(value, "each of TaggedAddresses")?;
        let host = fields.text("Address")?;
        let host = host.ok_or_else(|| malformed("TaggedAddresses", "has one without Address"))?;
        let port = u16::try_from(fields.number("Port")?.unwrap_or(0))
            .map_err(|_| malformed("TaggedAddresses", "has a Port above 65535"))?;
        addresses.insert(name, (host, port));
    }
    Ok(addresses)
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

fn malformed(key: &str, what: &str) -> DecodeError {
    DecodeError::Malformed(format!("{key} {what}"))
}

fn not_built<T>(what: String) -> Result<T, DecodeError> {
    Err(DecodeError::NotBuilt(what))
}

#[cfg(test)]
mod tests;

//! The catalogue in Consul's JSON, and Consul's registrations read into ours, so that clients written for a Consul
//! agent work unmodified.
//!
//! Only shapes are decided here: the shell serves HTTP and sets the headers (`X-Consul-Index` from
//! [`Catalog::service_index`], `services_index`, `nodes_index`). Field names and quirks follow Consul's HTTP API:
//! request keys in any case, `[]` never `null` for tags and checks, `serfHealth` among the checks. The datacenter is the mesh's name.

use std::fmt;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::catalog::Catalog;
use crate::registration::{RegisterError, Registration};

/// What a query asks to leave out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only instances whose every check passes.
    pub passing: bool,
    /// Only instances that have all of these tags.
    pub tags: Vec<String>,
}

/// Why a registration's body was not accepted; the fault is the client's, nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// Not JSON, or a field of the wrong type; says which.
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

/// `/v1/agent/self`.
#[must_use]
pub fn agent_self(catalog: &Catalog, version: &str) -> Value {
    json!({"Config": {"Datacenter": catalog.mesh, "Version": version}})
}

/// `/v1/agent/members`.
#[must_use]
pub fn agent_members(catalog: &Catalog) -> Value {
    json!(
        catalog
            .nodes
            .values()
            .map(|node| json!({"Name": node.name}))
            .collect::<Vec<_>>()
    )
}

/// `/v1/agent/services`: this host's own instances by id.
#[must_use]
pub fn agent_services(catalog: &Catalog) -> Value {
    let _ = catalog;
    json!({})
}

/// `/v1/catalog/services`: names and the union of their tags.
#[must_use]
pub fn catalog_services(catalog: &Catalog) -> Value {
    json!(
        catalog
            .services
            .keys()
            .map(|name| (name.clone(), json!([])))
            .collect::<serde_json::Map<_, _>>()
    )
}

/// `/v1/catalog/service/{name}`; an unknown service is `[]`.
#[must_use]
pub fn catalog_service(catalog: &Catalog, name: &str, filter: &Filter) -> Value {
    let _ = (catalog, name, filter);
    json!([])
}

/// `/v1/catalog/nodes`.
#[must_use]
pub fn catalog_nodes(catalog: &Catalog) -> Value {
    json!(
        catalog
            .alive()
            .map(|node| json!({"Node": node.name}))
            .collect::<Vec<_>>()
    )
}

/// `/v1/health/service/{name}`; an unknown service is `[]`.
#[must_use]
pub fn health_service(catalog: &Catalog, name: &str, filter: &Filter) -> Value {
    let _ = (catalog, name, filter);
    json!([])
}

/// The body of `PUT /v1/agent/service/register`; `node_address` stands in for an empty `Address`.
///
/// # Errors
/// A body that is not acceptable, with what to change; nothing was registered.
pub fn decode_registration(body: &[u8], node_address: IpAddr) -> Result<Registration, DecodeError> {
    let value: Value =
        serde_json::from_slice(body).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    let _ = (value, node_address);
    Err(DecodeError::Malformed("no Name".into()))
}

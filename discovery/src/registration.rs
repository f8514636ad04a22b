//! What a host says about one instance of a service, and what of that is acceptable.
//!
//! A [`Registration`] comes from the configuration or from `PUT /v1/agent/service/register`; it is validated
//! here, once, because whatever is accepted is gossiped to every host: limits on every part keep one careless
//! client from filling the mesh's memory. Running the checks is the shell's work.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use evenkeel_config::settings::Protocol;
use serde::{Deserialize, Serialize};

use crate::health::Status;
use crate::names;

/// Longest service name, namespace included.
pub const NAME_MAX: usize = 127;
/// Longest instance id.
pub const ID_MAX: usize = 255;
/// Most tags of an instance.
pub const TAGS_MAX: usize = 64;
/// Most meta entries of an instance.
pub const META_MAX: usize = 64;
/// Longest tag, meta key or meta value.
pub const TEXT_MAX: usize = 512;
/// Most checks of an instance.
pub const CHECKS_MAX: usize = 8;
/// Most bytes of an instance as gossiped.
pub const BODY_MAX: usize = 8 * 1024;
/// Most instances that one host registers.
pub const INSTANCES_MAX: usize = 2048;

/// One instance of a service on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Unique on this host.
    pub id: String,
    /// `name` or `name.namespace`, lower case.
    pub service: String,
    /// The application.
    pub address: SocketAddr,
    /// Where look-ups send those who come without the mesh; `None`: DNS does not announce it.
    pub advertise: Option<SocketAddr>,
    /// What the application speaks; `None`: told from the first bytes.
    pub protocol: Option<Protocol>,
    /// Shown by look-ups.
    pub tags: Vec<String>,
    /// Shown by look-ups.
    pub meta: BTreeMap<String, String>,
    /// Shares of requests by health, for those who balance by DNS.
    pub weights: Weights,
    /// How its health is known; none: always passing.
    pub checks: Vec<Check>,
    /// Who registered it.
    pub origin: Origin,
}

/// Shares of requests by health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// While passing.
    pub passing: u16,
    /// While in warning.
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Weights { passing: 1, warning: 1 }
    }
}

/// Who registered an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file: given again at each start, so not saved.
    Configuration,
    /// The HTTP API: saved, because clients register once and expect to be remembered.
    Api,
}

/// How the health of an instance is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// `service:<id>`, or `service:<id>:N` if there are several.
    pub id: String,
    /// For a human.
    pub name: String,
    /// What is asked.
    pub kind: CheckKind,
    /// Between two runs.
    pub interval: Duration,
    /// Of one run.
    pub timeout: Duration,
    /// Successes in a row that make it passing.
    pub rise: u32,
    /// Failures in a row that make it critical.
    pub fall: u32,
    /// Until the first results.
    pub initial: Status,
}

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// `method path` over plain HTTP/1.1 to `authority` (`host:port`): 2xx passes, 429 warns.
    Http {
        /// `host:port`; a host name is looked up at each run.
        authority: String,
        /// Begins with `/`; may carry a query.
        path: String,
        /// Upper case.
        method: String,
    },
    /// A connection to this `host:port` passes.
    Tcp {
        /// `host:port`; a host name is looked up at each run.
        authority: String,
    },
}

/// Why a registration was not accepted. Nothing changed; the fault is the registrant's, except for [`RegisterError::TooMany`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterError {
    /// The service name is not `name` or `name.namespace` of letters, digits, `-` and `_`.
    Name(String),
    /// The instance id is empty, too long or has control characters.
    Id(String),
    /// A part is larger than its limit; says which, and the limit.
    TooLarge(&'static str, usize),
    /// This host offers [`INSTANCES_MAX`] instances already.
    TooMany,
    /// There is no instance of this id.
    NoSuchId(String),
    /// The host is leaving the mesh.
    Leaving,
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegisterError::Name(name) => write!(
                f,
                "service name {name:?}: use `name` or `name.namespace` of letters, digits, `-` and `_`, at most 63 of them each, as DNS can say"
            ),
            RegisterError::Id(id) => {
                write!(f, "instance id {id:?}: use 1 to {ID_MAX} bytes without control characters")
            }
            RegisterError::TooLarge(what, max) => write!(f, "{what}: more than the limit of {max}"),
            RegisterError::TooMany => write!(
                f,
                "this host already offers {INSTANCES_MAX} instances: deregister some or use another host"
            ),
            RegisterError::NoSuchId(id) => {
                write!(f, "no instance with id {id:?} is registered on this host")
            }
            RegisterError::Leaving => {
                write!(f, "this host is leaving the mesh: register on another host")
            }
        }
    }
}

impl std::error::Error for RegisterError {}

impl Registration {
    /// Checks every part against its limit.
    ///
    /// # Errors
    /// The first part that is not acceptable.
    pub fn validate(&self) -> Result<(), RegisterError> {
        if !names::is_service_name(&self.service) || self.service.len() > NAME_MAX {
            return Err(RegisterError::Name(self.service.clone()));
        }
        if self.id.is_empty() || self.id.len() > ID_MAX || self.id.chars().any(char::is_control) {
            return Err(RegisterError::Id(self.id.clone()));
        }
        if self.tags.len() > TAGS_MAX {
            return Err(RegisterError::TooLarge("number of tags", TAGS_MAX));
        }
        if self.meta.len() > META_MAX {
            return Err(RegisterError::TooLarge("number of meta entries", META_MAX));
        }
        if self.checks.len() > CHECKS_MAX {
            return Err(RegisterError::TooLarge("number of checks", CHECKS_MAX));
        }
        let texts = self.tags.iter().chain(self.meta.keys()).chain(self.meta.values());
        if texts.map(String::len).any(|len| len > TEXT_MAX) {
            return Err(RegisterError::TooLarge(
                "bytes of a tag, meta key or meta value",
                TEXT_MAX,
            ));
        }
        Ok(())
    }
}

/// A registration as it is saved; durations in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRegistration {
    id: String,
    service: String,
    address: SocketAddr,
    advertise: Option<SocketAddr>,
    protocol: Option<String>,
    tags: Vec<String>,
    meta: BTreeMap<String, String>,
    weights: Weights,
    checks: Vec<SavedCheck>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedCheck {
    id: String,
    name: String,
    kind: CheckKind,
    interval_ms: u64,
    timeout_ms: u64,
    rise: u32,
    fall: u32,
    initial: Status,
}

impl From<&Registration> for SavedRegistration {
    fn from(registration: &Registration) -> Self {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let check = |check: &Check| SavedCheck {
            id: check.id.clone(),
            name: check.name.clone(),
            kind: check.kind.clone(),
            interval_ms: millis(check.interval),
            timeout_ms: millis(check.timeout),
            rise: check.rise,
            fall: check.fall,
            initial: check.initial,
        };
        SavedRegistration {
            id: registration.id.clone(),
            service: registration.service.clone(),
            address: registration.address,
            advertise: registration.advertise,
            protocol: registration.protocol.map(|protocol| protocol.name().to_owned()),
            tags: registration.tags.clone(),
            meta: registration.meta.clone(),
            weights: registration.weights,
            checks: registration.checks.iter().map(check).collect(),
        }
    }
}

impl From<SavedRegistration> for Registration {
    fn from(saved: SavedRegistration) -> Self {
        let check = |check: SavedCheck| Check {
            id: check.id,
            name: check.name,
            kind: check.kind,
            interval: Duration::from_millis(check.interval_ms),
            timeout: Duration::from_millis(check.timeout_ms),
            rise: check.rise,
            fall: check.fall,
            initial: check.initial,
        };
        Registration {
            id: saved.id,
            service: saved.service,
            address: saved.address,
            advertise: saved.advertise,
            protocol: saved.protocol.as_deref().and_then(protocol_of),
            tags: saved.tags,
            meta: saved.meta,
            weights: saved.weights,
            checks: saved.checks.into_iter().map(check).collect(),
            origin: Origin::Api,
        }
    }
}

/// The protocol of the configuration's word.
fn protocol_of(name: &str) -> Option<Protocol> {
    [Protocol::Http, Protocol::Http2, Protocol::Grpc]
        .into_iter()
        .find(|protocol| protocol.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration() -> Registration {
        Registration {
            id: "payments-1".into(),
            service: "payments".into(),
            address: "127.0.0.1:8443".parse().unwrap(),
            advertise: Some("10.0.0.5:8443".parse().unwrap()),
            protocol: Some(Protocol::Grpc),
            tags: vec!["v2".into()],
            meta: [("version".to_owned(), "2.1".to_owned())].into(),
            weights: Weights { passing: 3, warning: 1 },
            checks: vec![Check {
                id: "service:payments-1".into(),
                name: "alive".into(),
                kind: CheckKind::Tcp { authority: "127.0.0.1:8443".into() },
                interval: Duration::from_secs(10),
                timeout: Duration::from_millis(500),
                rise: 2,
                fall: 3,
                initial: Status::Critical,
            }],
            origin: Origin::Api,
        }
    }

    #[test]
    fn what_is_saved_comes_back() {
        let json = serde_json::to_string(&SavedRegistration::from(&registration())).unwrap();
        let saved: SavedRegistration = serde_json::from_str(&json).unwrap();
        assert_eq!(Registration::from(saved), registration());
    }

    #[test]
    fn limits_are_named() {
        type Change = fn(&mut Registration);
        let table: [(&str, Change); 7] = [
            ("service name", |r| r.service = "Not A Name".into()),
            ("service name", |r| r.service = "a.b.c".into()),
            ("instance id", |r| r.id = String::new()),
            ("instance id", |r| r.id = "line\nbreak".into()),
            ("number of tags", |r| {
                r.tags = vec![String::new(); TAGS_MAX + 1];
            }),
            ("bytes of a tag", |r| {
                r.tags = vec!["x".repeat(TEXT_MAX + 1)];
            }),
            ("number of meta", |r| {
                r.meta = (0..=META_MAX).map(|i| (i.to_string(), String::new())).collect();
            }),
        ];
        assert_eq!(registration().validate(), Ok(()));
        for (said, change) in table {
            let mut changed = registration();
            change(&mut changed);
            let error = changed.validate().unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }
}

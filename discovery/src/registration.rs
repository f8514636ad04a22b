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
/// Most tagged addresses of an instance.
pub const TAGGED_ADDRESSES_MAX: usize = 8;
/// Most headers of a check.
pub const CHECK_HEADERS_MAX: usize = 16;
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
    /// The application. Port 0: it listens nowhere (a worker that only wants to be listed), so no request goes there.
    pub address: SocketAddr,
    /// Where look-ups send those who come without the mesh; `None`: DNS does not announce it.
    pub advertise: Option<SocketAddr>,
    /// Further addresses by the name of who should use them, for look-ups by HTTP.
    pub tagged_addresses: TaggedAddresses,
    /// Kept and shown for those who ask; nobody but the registrant can change tags here, whatever it says.
    pub enable_tag_override: bool,
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

/// Further addresses of an instance, by the name of who should use them: host and port.
pub type TaggedAddresses = BTreeMap<String, (String, u16)>;

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
    /// For a human, as registered.
    pub notes: String,
    /// Between two runs; of a [`CheckKind::Ttl`] the longest time between two reports.
    pub interval: Duration,
    /// Of one run.
    pub timeout: Duration,
    /// Successes in a row that make it passing.
    pub rise: u32,
    /// Failures in a row that make it critical.
    pub fall: u32,
    /// Until the first results.
    pub initial: Status,
    /// An instance whose check has been critical for so long is withdrawn; at least [`DEREGISTER_AFTER_MIN`].
    pub deregister_after: Option<Duration>,
}

/// No instance is withdrawn for being critical for less, whatever was registered. Consul has the same.
pub const DEREGISTER_AFTER_MIN: Duration = Duration::from_secs(60);

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// `method path` over HTTP/1.1 to `authority` (`host:port`): 2xx passes, 429 warns.
    Http {
        /// `host:port`; a host name is looked up at each run.
        authority: String,
        /// Begins with `/`; may carry a query.
        path: String,
        /// Upper case.
        method: String,
        /// Sent with the request; `Host` replaces the authority.
        #[serde(default)]
        headers: BTreeMap<String, Vec<String>>,
        /// Sent with the request.
        #[serde(default)]
        body: String,
        /// `None`: without TLS.
        #[serde(default)]
        tls: Option<CheckTls>,
    },
    /// A connection to this `host:port` passes, with TLS once the handshake is done.
    Tcp {
        /// `host:port`; a host name is looked up at each run.
        authority: String,
        /// `None`: without TLS.
        #[serde(default)]
        tls: Option<CheckTls>,
    },
    /// `grpc.health.v1.Health/Check`: `SERVING` passes.
    Grpc {
        /// `host:port`; a host name is looked up at each run.
        authority: String,
        /// What is asked about; empty: the whole server.
        service: String,
        /// `None`: without TLS.
        #[serde(default)]
        tls: Option<CheckTls>,
    },
    /// Nothing is asked: the application reports, and is critical when it has not for the check's interval.
    Ttl,
}

/// Whose certificate a check over TLS expects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckTls {
    /// Asked for with the handshake (SNI) and expected in the certificate; `None`: the host that is dialled.
    pub server_name: Option<String>,
    /// Whatever certificate is shown is taken: the check says that somebody answers, not who.
    pub skip_verify: bool,
}

impl CheckKind {
    /// Consul's word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            CheckKind::Http { .. } => "http",
            CheckKind::Tcp { .. } => "tcp",
            CheckKind::Grpc { .. } => "grpc",
            CheckKind::Ttl => "ttl",
        }
    }
}

/// Why a registration was not accepted. Nothing changed; the fault is the registrant's, except for [`RegisterError::TooMany`] and
/// [`RegisterError::MeshFull`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterError {
    /// The service name is not `name` or `name.namespace` of letters, digits, `-` and `_`.
    Name(String),
    /// The instance id is empty, too long or has control characters.
    Id(String),
    /// The id of a check is empty, too long or has control characters.
    CheckId(String),
    /// A part is larger than its limit; says which, and the limit.
    TooLarge(&'static str, usize),
    /// This host offers [`INSTANCES_MAX`] instances already.
    TooMany,
    /// The mesh has as many records as this host takes: others would not take it either.
    MeshFull,
    /// There is no instance of this id.
    NoSuchId(String),
    /// There is no check of this id.
    NoSuchCheck(String),
    /// There is a check of this id, of an instance or of the host: says whose.
    CheckIdTaken(String, String),
    /// The check of this id is run by this host: only those with a TTL are reported by applications.
    NotReported(String),
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
            RegisterError::CheckId(id) => {
                write!(f, "check id {id:?}: use 1 to {TEXT_MAX} bytes without control characters")
            }
            RegisterError::TooLarge(what, max) => write!(f, "{what}: more than the limit of {max}"),
            RegisterError::TooMany => write!(
                f,
                "this host already offers {INSTANCES_MAX} instances: deregister some or use another host"
            ),
            RegisterError::MeshFull => f.write_str(
                "the mesh has as many instances, policies and orders as limits.records allows: deregister some, or raise limits.records on every host",
            ),
            RegisterError::NoSuchId(id) => {
                write!(f, "no instance with id {id:?} is registered on this host")
            }
            RegisterError::NoSuchCheck(id) => {
                write!(
                    f,
                    "Unknown check ID {id:?}. Ensure that the check ID is passed, not the check name"
                )
            }
            RegisterError::CheckIdTaken(id, whose) => {
                write!(f, "check id {id:?} is that of a check of {whose}: use another")
            }
            RegisterError::NotReported(id) => {
                write!(
                    f,
                    "check {id:?} has no TTL: this host runs it itself, register it with a TTL to report its status"
                )
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
        if self.tagged_addresses.len() > TAGGED_ADDRESSES_MAX {
            return Err(RegisterError::TooLarge(
                "number of tagged addresses",
                TAGGED_ADDRESSES_MAX,
            ));
        }
        for check in &self.checks {
            check.validate()?;
        }
        let tagged = self.tagged_addresses.iter().flat_map(|(name, (host, _))| [name, host]);
        let texts = self.tags.iter().chain(self.meta.keys()).chain(self.meta.values());
        if texts.chain(tagged).map(String::len).any(|len| len > TEXT_MAX) {
            return Err(RegisterError::TooLarge(
                "bytes of a tag, meta key, meta value or tagged address",
                TEXT_MAX,
            ));
        }
        Ok(())
    }
}

impl Check {
    pub(crate) fn validate(&self) -> Result<(), RegisterError> {
        if self.id.is_empty() || self.id.len() > TEXT_MAX || self.id.chars().any(char::is_control) {
            return Err(RegisterError::CheckId(self.id.clone()));
        }
        let mut texts = vec![&self.name, &self.notes];
        if let CheckKind::Http { headers, body, .. } = &self.kind {
            if headers.values().map(Vec::len).sum::<usize>() > CHECK_HEADERS_MAX {
                return Err(RegisterError::TooLarge("headers of a check", CHECK_HEADERS_MAX));
            }
            texts.push(body);
            texts.extend(
                headers.iter().flat_map(|(name, values)| std::iter::once(name).chain(values)),
            );
        }
        if texts.into_iter().any(|text| text.len() > TEXT_MAX) {
            return Err(RegisterError::TooLarge(
                "bytes of a check's name, notes, header or body",
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
    #[serde(default)]
    tagged_addresses: TaggedAddresses,
    #[serde(default)]
    enable_tag_override: bool,
    protocol: Option<String>,
    tags: Vec<String>,
    meta: BTreeMap<String, String>,
    weights: Weights,
    checks: Vec<SavedCheck>,
}

/// A check as it is saved; durations in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCheck {
    id: String,
    name: String,
    kind: CheckKind,
    #[serde(default)]
    notes: String,
    interval_ms: u64,
    timeout_ms: u64,
    rise: u32,
    fall: u32,
    initial: Status,
    #[serde(default)]
    deregister_after_ms: Option<u64>,
}

impl From<&Check> for SavedCheck {
    fn from(check: &Check) -> Self {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        SavedCheck {
            id: check.id.clone(),
            name: check.name.clone(),
            kind: check.kind.clone(),
            notes: check.notes.clone(),
            interval_ms: millis(check.interval),
            timeout_ms: millis(check.timeout),
            rise: check.rise,
            fall: check.fall,
            initial: check.initial,
            deregister_after_ms: check.deregister_after.map(millis),
        }
    }
}

impl SavedCheck {
    /// What the application last reported is what is known after a restart, until its next report is due: it keeps
    /// reporting, and was well while this process was away.
    #[must_use]
    pub fn with_reported(mut self, status: Status) -> Self {
        if self.kind == CheckKind::Ttl {
            self.initial = status;
        }
        self
    }
}

impl From<SavedCheck> for Check {
    fn from(saved: SavedCheck) -> Self {
        Check {
            id: saved.id,
            name: saved.name,
            kind: saved.kind,
            notes: saved.notes,
            interval: Duration::from_millis(saved.interval_ms),
            timeout: Duration::from_millis(saved.timeout_ms),
            rise: saved.rise,
            fall: saved.fall,
            initial: saved.initial,
            deregister_after: saved.deregister_after_ms.map(Duration::from_millis),
        }
    }
}

impl From<&Registration> for SavedRegistration {
    fn from(registration: &Registration) -> Self {
        SavedRegistration {
            id: registration.id.clone(),
            service: registration.service.clone(),
            address: registration.address,
            advertise: registration.advertise,
            tagged_addresses: registration.tagged_addresses.clone(),
            enable_tag_override: registration.enable_tag_override,
            protocol: registration.protocol.map(|protocol| protocol.name().to_owned()),
            tags: registration.tags.clone(),
            meta: registration.meta.clone(),
            weights: registration.weights,
            checks: registration.checks.iter().map(SavedCheck::from).collect(),
        }
    }
}

impl SavedRegistration {
    /// With what is known of its checks, in their order: see [`SavedCheck::with_reported`].
    #[must_use]
    pub fn with_reported(mut self, statuses: impl IntoIterator<Item = Status>) -> Self {
        let checks = self.checks.into_iter().zip(statuses);
        self.checks = checks.map(|(check, status)| check.with_reported(status)).collect();
        self
    }
}

impl From<SavedRegistration> for Registration {
    fn from(saved: SavedRegistration) -> Self {
        Registration {
            id: saved.id,
            service: saved.service,
            address: saved.address,
            advertise: saved.advertise,
            tagged_addresses: saved.tagged_addresses,
            enable_tag_override: saved.enable_tag_override,
            protocol: saved.protocol.as_deref().and_then(protocol_of),
            tags: saved.tags,
            meta: saved.meta,
            weights: saved.weights,
            checks: saved.checks.into_iter().map(Check::from).collect(),
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
            tagged_addresses: [("lan".to_owned(), ("10.0.0.5".to_owned(), 8443))].into(),
            enable_tag_override: true,
            protocol: Some(Protocol::Grpc),
            tags: vec!["v2".into()],
            meta: [("version".to_owned(), "2.1".to_owned())].into(),
            weights: Weights { passing: 3, warning: 1 },
            checks: vec![Check {
                id: "service:payments-1".into(),
                name: "alive".into(),
                kind: CheckKind::Tcp { authority: "127.0.0.1:8443".into(), tls: None },
                notes: "whether it listens".into(),
                interval: Duration::from_secs(10),
                timeout: Duration::from_millis(500),
                rise: 2,
                fall: 3,
                initial: Status::Critical,
                deregister_after: Some(Duration::from_secs(1800)),
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
    fn what_builds_without_tls_saved_of_a_check_is_still_read() {
        let text = r#"{"tcp": {"authority": "a:1"}}"#;
        let kind: CheckKind = serde_json::from_str(text).unwrap();
        assert_eq!(kind, CheckKind::Tcp { authority: "a:1".into(), tls: None });
        let over_tls = CheckKind::Grpc {
            authority: "a:1".into(),
            service: String::new(),
            tls: Some(CheckTls { server_name: Some("b".into()), skip_verify: true }),
        };
        let saved = serde_json::to_string(&over_tls).unwrap();
        assert_eq!(serde_json::from_str::<CheckKind>(&saved).unwrap(), over_tls);
    }

    #[test]
    fn limits_are_named() {
        type Change = fn(&mut Registration);
        let table: [(&str, Change); 11] = [
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
            ("check id", |r| r.checks[0].id = String::new()),
            ("number of tagged addresses", |r| {
                let one = |i: usize| (i.to_string(), (String::new(), 0));
                r.tagged_addresses = (0..=TAGGED_ADDRESSES_MAX).map(one).collect();
            }),
            ("bytes of a check's", |r| r.checks[0].notes = "x".repeat(TEXT_MAX + 1)),
            ("headers of a check", |r| {
                r.checks[0].kind = CheckKind::Http {
                    authority: "a:80".into(),
                    path: "/".into(),
                    method: "GET".into(),
                    headers: [("a".to_owned(), vec![String::new(); CHECK_HEADERS_MAX + 1])].into(),
                    body: String::new(),
                    tls: None,
                };
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

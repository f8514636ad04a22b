//! The bytes of a record's entries: what a host says of itself, and of each instance that it offers.
//!
//! Each body is a list of fields (number, length, content). Fields that we do not know are skipped when read and
//! survive when passed on, because only the bytes as received are passed on: an old host does not strip what a
//! newer one says. A body that cannot be read is kept and passed on too, and shows in no look-up.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use evenkeel_config::settings::Protocol;

use crate::catalog::CheckState;
use crate::health::{Health, OUTPUT_MAX, Status};
use crate::index::PolicyHash;
use crate::registration::{Check, Registration, TaggedAddresses, Weights};
use crate::wire::{
    Malformed, Reader, fields, frame, put_address, put_bytes, put_varint, whole_text,
};

/// The key of what a host says of itself; instances are under their ids, which are not empty.
pub(crate) const NODE_KEY: &str = "";
/// Protocol versions that this build speaks, from and to.
pub(crate) const PROTOCOL_VERSIONS: (u8, u8) = (1, 1);

/// What a host says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeBody {
    pub name: String,
    pub address: SocketAddr,
    pub mesh: SocketAddr,
    pub zone: Option<String>,
    pub draining: bool,
    /// Why, if an operator said so.
    pub drain_reason: String,
    /// Of the program that runs there; empty: it does not say, as those of the first builds.
    pub version: String,
    /// Of the host itself: they count for all its instances.
    pub checks: Vec<CheckState>,
}

/// What a host says of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstanceBody {
    pub service: String,
    pub address: SocketAddr,
    pub advertise: Option<SocketAddr>,
    pub tagged_addresses: TaggedAddresses,
    pub enable_tag_override: bool,
    pub protocol: Option<Protocol>,
    pub tags: Vec<String>,
    pub meta: BTreeMap<String, String>,
    pub weights: Weights,
    pub checks: Vec<CheckState>,
    /// The policy that its host publishes for the service.
    pub policy: Option<PolicyHash>,
}

const NODE_NAME: u8 = 1;
const NODE_ADDRESS: u8 = 2;
const NODE_MESH: u8 = 3;
const NODE_ZONE: u8 = 4;
const NODE_DRAINING: u8 = 5;
/// Versions of the protocol between hosts.
const NODE_VERSIONS: u8 = 6;
/// The version of the program.
const NODE_PROGRAM: u8 = 7;
const NODE_CHECK: u8 = 8;

const SERVICE: u8 = 1;
const ADDRESS: u8 = 2;
const ADVERTISE: u8 = 3;
const PROTOCOL: u8 = 4;
const TAG: u8 = 5;
const META: u8 = 6;
const WEIGHTS: u8 = 7;
const CHECK: u8 = 8;
const POLICY: u8 = 9;
const TAGGED_ADDRESS: u8 = 10;
const ENABLE_TAG_OVERRIDE: u8 = 11;

/// Longest text that is read from another host.
const TEXT_MAX: usize = 1024;

impl NodeBody {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, NODE_NAME, |out| {
            out.extend_from_slice(self.name.as_bytes());
        });
        frame(&mut out, NODE_ADDRESS, |out| put_address(out, self.address));
        frame(&mut out, NODE_MESH, |out| put_address(out, self.mesh));
        if let Some(zone) = &self.zone {
            frame(&mut out, NODE_ZONE, |out| {
                out.extend_from_slice(zone.as_bytes());
            });
        }
        if self.draining {
            frame(&mut out, NODE_DRAINING, |out| {
                out.extend_from_slice(self.drain_reason.as_bytes());
            });
        }
        let (min, max) = PROTOCOL_VERSIONS;
        frame(&mut out, NODE_VERSIONS, |out| {
            out.extend_from_slice(&[min, max]);
        });
        if !self.version.is_empty() {
            frame(&mut out, NODE_PROGRAM, |out| out.extend_from_slice(self.version.as_bytes()));
        }
        for check in &self.checks {
            frame(&mut out, NODE_CHECK, |out| put_check(out, check));
        }
        out
    }

    pub fn decode(body: &[u8]) -> Result<NodeBody, Malformed> {
        let (mut name, mut address, mut mesh, mut zone, mut draining) =
            (None, None, None, None, None);
        let (mut version, mut checks) = (String::new(), Vec::new());
        fields(body, |field, r| {
            match field {
                NODE_NAME => name = Some(whole_text(r, TEXT_MAX)?),
                NODE_ADDRESS => address = Some(r.address()?),
                NODE_MESH => mesh = Some(r.address()?),
                NODE_ZONE => zone = Some(whole_text(r, TEXT_MAX)?),
                NODE_DRAINING => draining = Some(whole_text(r, TEXT_MAX)?),
                NODE_PROGRAM => version = whole_text(r, TEXT_MAX)?,
                NODE_CHECK => checks.push(decode_check(r)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(NodeBody {
            name: name.ok_or(Malformed)?,
            address: address.ok_or(Malformed)?,
            mesh: mesh.ok_or(Malformed)?,
            zone,
            draining: draining.is_some(),
            drain_reason: draining.unwrap_or_default(),
            version,
            checks,
        })
    }
}

impl InstanceBody {
    /// What is said of an instance registered here, with the health of its checks, in their order, why it is in
    /// maintenance (if it is), and the name of its service's policy.
    pub fn of<'a>(
        registration: &Registration,
        health: impl IntoIterator<Item = &'a Health>,
        maintenance: Option<&str>,
        policy: Option<PolicyHash>,
    ) -> InstanceBody {
        let mut checks: Vec<CheckState> = registration
            .checks
            .iter()
            .zip(health)
            .map(|(check, health)| CheckState::of(check, health))
            .collect();
        checks.extend(maintenance.map(|reason| CheckState {
            id: format!("_service_maintenance:{}", registration.id),
            name: "Service Maintenance Mode".to_owned(),
            kind: MAINTENANCE,
            notes: cut(reason, OUTPUT_MAX).to_owned(),
            status: Status::Critical,
            output: String::new(),
        }));
        InstanceBody {
            service: registration.service.clone(),
            address: registration.address,
            advertise: registration.advertise,
            tagged_addresses: registration.tagged_addresses.clone(),
            enable_tag_override: registration.enable_tag_override,
            protocol: registration.protocol,
            tags: registration.tags.clone(),
            meta: registration.meta.clone(),
            weights: registration.weights,
            checks,
            policy,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, SERVICE, |out| {
            out.extend_from_slice(self.service.as_bytes());
        });
        frame(&mut out, ADDRESS, |out| put_address(out, self.address));
        if let Some(advertise) = self.advertise {
            frame(&mut out, ADVERTISE, |out| put_address(out, advertise));
        }
        if let Some(protocol) = self.protocol {
            frame(&mut out, PROTOCOL, |out| {
                out.push(protocol_number(protocol));
            });
        }
        for tag in &self.tags {
            frame(&mut out, TAG, |out| out.extend_from_slice(tag.as_bytes()));
        }
        for (key, value) in &self.meta {
            frame(&mut out, META, |out| {
                put_bytes(out, key.as_bytes());
                put_bytes(out, value.as_bytes());
            });
        }
        if self.weights != Weights::default() {
            frame(&mut out, WEIGHTS, |out| {
                put_varint(out, self.weights.passing.into());
                put_varint(out, self.weights.warning.into());
            });
        }
        for check in &self.checks {
            frame(&mut out, CHECK, |out| put_check(out, check));
        }
        for (name, (host, port)) in &self.tagged_addresses {
            frame(&mut out, TAGGED_ADDRESS, |out| {
                put_bytes(out, name.as_bytes());
                put_bytes(out, host.as_bytes());
                put_varint(out, (*port).into());
            });
        }
        if self.enable_tag_override {
            frame(&mut out, ENABLE_TAG_OVERRIDE, |_| {});
        }
        if let Some(policy) = &self.policy {
            frame(&mut out, POLICY, |out| out.extend_from_slice(policy));
        }
        out
    }

    pub fn decode(body: &[u8]) -> Result<InstanceBody, Malformed> {
        let (mut service, mut address) = (None, None);
        let mut instance = InstanceBody {
            service: String::new(),
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            advertise: None,
            tagged_addresses: TaggedAddresses::new(),
            enable_tag_override: false,
            protocol: None,
            tags: Vec::new(),
            meta: BTreeMap::new(),
            weights: Weights::default(),
            checks: Vec::new(),
            policy: None,
        };
        fields(body, |field, r| {
            match field {
                SERVICE => service = Some(whole_text(r, TEXT_MAX)?),
                ADDRESS => address = Some(r.address()?),
                ADVERTISE => instance.advertise = Some(r.address()?),
                // One that we do not know: told from the first bytes, as if it were not given.
                PROTOCOL => instance.protocol = protocol_of(r.u8()?),
                TAG => instance.tags.push(whole_text(r, TEXT_MAX)?),
                META => {
                    let key = r.text(TEXT_MAX)?.to_owned();
                    instance.meta.insert(key, r.text(TEXT_MAX)?.to_owned());
                }
                WEIGHTS => {
                    let mut weight = || u16::try_from(r.varint()?).map_err(|_| Malformed);
                    instance.weights = Weights { passing: weight()?, warning: weight()? };
                }
                CHECK => instance.checks.push(decode_check(r)?),
                TAGGED_ADDRESS => {
                    let name = r.text(TEXT_MAX)?.to_owned();
                    let host = r.text(TEXT_MAX)?.to_owned();
                    let port = u16::try_from(r.varint()?).map_err(|_| Malformed)?;
                    instance.tagged_addresses.insert(name, (host, port));
                }
                ENABLE_TAG_OVERRIDE => instance.enable_tag_override = true,
                POLICY => instance.policy = Some(r.array()?),
                _ => {}
            }
            Ok(())
        })?;
        instance.service =
            service.filter(|name| crate::names::is_service_name(name)).ok_or(Malformed)?;
        instance.address = address.ok_or(Malformed)?;
        Ok(instance)
    }

    /// The worst of the checks.
    pub fn status(&self) -> Status {
        worst(&self.checks)
    }
}

impl CheckState {
    /// What is said of a check that is registered here.
    pub(crate) fn of(check: &Check, health: &Health) -> CheckState {
        CheckState {
            id: check.id.clone(),
            name: check.name.clone(),
            kind: check.kind.name(),
            notes: cut(&check.notes, OUTPUT_MAX).to_owned(),
            status: health.status,
            output: cut(&health.output, OUTPUT_MAX).to_owned(),
        }
    }
}

/// The status of what has these checks.
pub(crate) fn worst(checks: &[CheckState]) -> Status {
    checks.iter().map(|check| check.status).max().unwrap_or(Status::Passing)
}

fn put_check(out: &mut Vec<u8>, check: &CheckState) {
    put_bytes(out, check.id.as_bytes());
    put_bytes(out, check.name.as_bytes());
    put_bytes(out, check.kind.as_bytes());
    out.push(check.status as u8);
    put_bytes(out, check.output.as_bytes());
    put_bytes(out, check.notes.as_bytes());
}

fn decode_check(r: &mut Reader<'_>) -> Result<CheckState, Malformed> {
    let id = r.text(TEXT_MAX)?.to_owned();
    let name = r.text(TEXT_MAX)?.to_owned();
    let kind = r.text(TEXT_MAX)?;
    let known = ["http", "tcp", "grpc", "ttl", MAINTENANCE];
    let kind = known.into_iter().find(|known| *known == kind).unwrap_or("other");
    let status = match r.u8()? {
        0 => Status::Passing,
        1 => Status::Warning,
        2 => Status::Critical,
        _ => return Err(Malformed),
    };
    let output = r.text(TEXT_MAX)?.to_owned();
    // Hosts of the first builds do not send notes.
    let notes = if r.is_empty() { String::new() } else { r.text(TEXT_MAX)?.to_owned() };
    Ok(CheckState { id, name, kind, notes, status, output })
}

/// The kind of the check that stands for an operator's maintenance.
pub(crate) const MAINTENANCE: &str = "maintenance";

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Http => 1,
        Protocol::Http2 => 2,
        Protocol::Grpc => 3,
    }
}

fn protocol_of(number: u8) -> Option<Protocol> {
    Some(match number {
        1 => Protocol::Http,
        2 => Protocol::Http2,
        3 => Protocol::Grpc,
        _ => return None,
    })
}

/// At most `max` bytes of a text, cut at a character.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instance() -> InstanceBody {
        InstanceBody {
            service: "payments.shop".into(),
            address: "127.0.0.1:8443".parse().unwrap(),
            advertise: Some("[2001:db8::1]:8443".parse().unwrap()),
            tagged_addresses: [("wan".to_owned(), ("web.example".to_owned(), 443))].into(),
            enable_tag_override: true,
            protocol: Some(Protocol::Grpc),
            tags: vec!["v2".into(), "größe".into()],
            meta: [("version".to_owned(), "2.1".to_owned())].into(),
            weights: Weights { passing: 10, warning: 1 },
            checks: vec![CheckState {
                id: "service:payments".into(),
                name: "alive".into(),
                kind: "http",
                notes: "why".into(),
                status: Status::Warning,
                output: "429".into(),
            }],
            policy: Some([7; 16]),
        }
    }

    fn node() -> NodeBody {
        NodeBody {
            name: "host-a".into(),
            address: "10.0.0.5:7111".parse().unwrap(),
            mesh: "10.0.0.5:7110".parse().unwrap(),
            zone: Some("eu-west-1a".into()),
            draining: true,
            drain_reason: "new disk".into(),
            version: "0.2.0".into(),
            checks: Vec::new(),
        }
    }

    #[test]
    fn bodies_survive_the_wire() {
        assert_eq!(InstanceBody::decode(&instance().encode()), Ok(instance()));
        assert_eq!(instance().status(), Status::Warning);
        assert_eq!(NodeBody::decode(&node().encode()), Ok(node()));
        let plain = NodeBody { zone: None, draining: false, drain_reason: String::new(), ..node() };
        assert_eq!(NodeBody::decode(&plain.encode()), Ok(plain));
    }

    #[test]
    fn checks_of_a_host_stand_behind_what_older_hosts_read() {
        let checked = NodeBody { checks: instance().checks, ..node() };
        let bytes = checked.encode();
        assert_eq!(NodeBody::decode(&bytes), Ok(checked));
        assert!(bytes.starts_with(&node().encode()));
    }

    #[test]
    fn a_host_that_says_no_version_of_its_program_is_read_as_before() {
        let silent = NodeBody { version: String::new(), ..node() };
        let bytes = silent.encode();
        assert_eq!(NodeBody::decode(&bytes), Ok(silent));
        // What an older host reads is the same bytes with one more field, which it skips.
        assert!(node().encode().starts_with(&bytes));
    }

    #[test]
    fn fields_of_a_newer_host_are_skipped() {
        let mut body = instance().encode();
        frame(&mut body, 200, |out| {
            out.extend_from_slice(b"from the future");
        });
        assert_eq!(InstanceBody::decode(&body), Ok(instance()));
        let mut body = node().encode();
        frame(&mut body, 200, |out| {
            out.extend_from_slice(b"from the future");
        });
        assert_eq!(NodeBody::decode(&body), Ok(node()));
    }

    #[test]
    fn outputs_are_cut_at_a_character() {
        assert_eq!(cut("größe", 3), "gr");
        assert_eq!(cut("größe", 4), "grö");
        assert_eq!(cut("größe", 99), "größe");
    }

    proptest! {
        #[test]
        fn random_and_mutated_bodies_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let _ = InstanceBody::decode(&bytes);
            let _ = NodeBody::decode(&bytes);
            for mut body in [instance().encode(), node().encode()] {
                let at = at.index(body.len());
                body[at] = byte;
                let _ = InstanceBody::decode(&body);
                let _ = NodeBody::decode(&body[..at]);
            }
        }
    }
}

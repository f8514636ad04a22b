//! Membership, registry, and the answers to look-ups: how the hosts of a mesh know of each other and of
//! what they offer, with nothing central.
//!
//! [`Discovery`] is the one owner of all state that travels between hosts. It does no IO and reads no clock:
//! bytes, time and a seed come in as arguments, and bytes to send, addresses to dial and events come out of
//! `poll_*` functions, so that a simulation runs the code that production runs. Readers (DNS, the catalogue,
//! the balancers) see an immutable [`Catalog`] snapshot.
//!
//! Two hosts, one registration, no sockets:
//!
//! ```
//! use std::time::{Duration, Instant};
//! use evenkeel_discovery::{
//!     Config, Discovery, Limits, NodeInfo, Origin, Profile, Registration, Weights, consul,
//! };
//!
//! let host = |id: u64, now: Instant| {
//!     let node = NodeInfo {
//!         id,
//!         name: format!("host-{id}"),
//!         address: format!("10.0.0.{id}:7111").parse().unwrap(),
//!         mesh_port: 7110,
//!         zone: None,
//!         version: "0.1.0".into(),
//!     };
//!     let config = Config {
//!         mesh: "prod".into(),
//!         domain: "mesh".into(),
//!         node,
//!         keys: vec![[7; 32]],
//!         profile: Profile::LAN,
//!         limits: Limits { members: 100, records: 1000 },
//!     };
//!     Discovery::new(config, None, now, 1_800_000_000_000, [id as u8; 32], [id as u8; 16])
//! };
//! let (now, wall_ms) = (Instant::now(), 1_800_000_000_000);
//! let (mut a, mut b) = (host(1, now), host(2, now));
//! a.register(now, wall_ms, Registration {
//!     id: "payments-1".into(),
//!     service: "payments".into(),
//!     address: "127.0.0.1:8443".parse().unwrap(),
//!     advertise: Some("10.0.0.1:8443".parse().unwrap()),
//!     tagged_addresses: Default::default(),
//!     enable_tag_override: false,
//!     protocol: None,
//!     tags: vec![],
//!     meta: Default::default(),
//!     weights: Weights::default(),
//!     checks: vec![],
//!     origin: Origin::Configuration,
//! }).unwrap();
//!
//! // What a shell does with sockets: b asks a for all that it knows.
//! b.join(now, a.node().address);
//! while let Some(dial) = b.poll_dial() {
//!     let response = a.handle_request(now, wall_ms, b.node().address, &dial.request).unwrap();
//!     b.handle_response(now, wall_ms, dial.id, Ok(&response));
//! }
//! b.handle_timeout(now + Duration::from_millis(20), wall_ms);
//!
//! let seen = b.snapshot();
//! assert_eq!(seen.service("payments").unwrap().instances[0].node.name, "host-1");
//! let json = consul::health_service(&seen, "payments", &consul::Selection { passing: true, ..Default::default() });
//! assert_eq!(json[0]["Service"]["Address"], "10.0.0.1");
//! ```
//!
//! Reading order: [`discovery`] (the owner), then what it is made of, from the wire up to the answers.
#![forbid(unsafe_code)]

mod seal;
mod session;
mod wire;

mod index;
mod membership;
mod publish;
mod record;
mod refusal;
mod registry;
mod spread;

pub mod discovery;
pub mod order;
pub mod registration;
pub mod scout;

pub mod catalog;
pub mod health;
pub mod names;

pub mod answers;
pub mod consul;
pub mod filter;

#[cfg(test)]
mod sample;

pub use catalog::{
    Catalog, HostNotes, Instance, Node, NodeStatus, Policies, PolicyVote, ServiceView,
};
pub use discovery::{
    Config, Counters, Dial, DialError, DialId, Discovery, Event, Found, Limits, NodeInfo, Profile,
    Readiness, Saved, SavedMember, Transmit,
};
pub use health::{Health, Status};
pub use index::PolicyHash;
pub use order::{Instruction, Order, OrderError, Subject};
pub use registration::{Check, CheckKind, CheckTls, Origin, RegisterError, Registration, Weights};

//! Membership, registry, and the answers to look-ups: how the hosts of a mesh know of each other and of
//! what they offer, with nothing central.
//!
//! [`Discovery`] is the one owner of all state that travels between hosts. It does no IO and reads no clock:
//! bytes, time and a seed come in as arguments, and bytes to send, addresses to dial and events come out of
//! `poll_*` functions, so that a simulation runs the code that production runs. Readers (DNS, the catalogue,
//! the balancers) see an immutable [`Catalog`] snapshot.
//!
//! Reading order: [`discovery`] (the owner), then what it is made of, from the wire up to the answers.
#![forbid(unsafe_code)]

mod seal;
mod session;
mod wire;

mod membership;
mod publish;
mod record;
mod refusal;
mod registry;
mod spread;

pub mod discovery;
pub mod registration;

pub mod catalog;
pub mod health;
pub mod names;

pub mod answers;
pub mod consul;

#[cfg(test)]
mod sample;

pub use catalog::{Catalog, Instance, Node, NodeStatus, ServiceView};
pub use discovery::{
    Config, Counters, Dial, DialError, DialId, Discovery, Event, Limits, NodeInfo, Profile, Saved,
    SavedMember, Transmit,
};
pub use health::{Health, Status};
pub use registration::{Check, CheckKind, Origin, RegisterError, Registration, Weights};

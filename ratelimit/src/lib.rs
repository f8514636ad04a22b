//! Leases on shared capacity, and the local limiter that spends them.
//!
//! The crate does no IO, starts no task, reads no clock and draws no random numbers: a simulation runs the code that production runs.
//! On the hot path stand [`Bucket`] (units for each second), [`Concurrency`] (units held) and [`KeyTable`] (a bucket for each key);
//! [`Demand`] measures what is offered to them.
#![forbid(unsafe_code)]

mod quantity;

mod bucket;
mod concurrency;
mod demand;
mod keys;

mod algorithm;
mod election;
mod lease;
mod store;
mod template;
mod wire;

mod client;
mod root;

mod quotas;
mod spending;

pub use algorithm::{Algorithm, Allocation, BANDS_MAX, BadFloors, Claim, Floors, SUBCLIENTS_MAX};
pub use bucket::{Bucket, Pace, Refused};
pub use client::{BASE, Client, REFRESH};
pub use concurrency::{Concurrency, Place};
pub use demand::Demand;
pub use election::{BadRoster, MEMBERS_MAX, ROSTERS_MAX, Roster, Rosters, root_of};
pub use keys::{KEYS_MAX, KeyTable};
pub use lease::{DRIFT, LOAN_MAX, Ledger, Loan, Party, Room, Word};
pub use quantity::{BadQuantity, Micros};
pub use quotas::{
    AskError, Counters, Event, Grant, HostShare, Quotas, RESOURCES_MAX, Report, Serving, Transmit,
};
pub use root::{HOLDERS_MAX, LEASE, Root};
pub use spending::{Fail, Spending};
pub use store::{CLIENTS_MAX, Request, Store, StoreFull, Terms};
pub use template::{BadTemplate, LEASE_LENGTH_MAX, Safe, TEMPLATES_MAX, Template, Templates, Why};
pub use wire::{Answer, Ask, Malformed, Message, RESOURCE_ID_MAX, Wants};

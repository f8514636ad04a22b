//! Leases on shared capacity, and the local limiter that spends them.
//!
//! A resource (a database, an API, a tenant's quota) has one capacity for the whole mesh. Each host owns a part of it, its right. What a host does not
//! need it lends to the resource's root, a host like any other; the root lends it to those who need it. So a request is decided
//! locally, in nanoseconds, and the hosts together never have more than there is, whatever the network does ([`Ledger`] says why).
//!
//! The crate does no IO, starts no task, reads no clock and draws no random numbers: `now` comes in as an argument, bytes and events come out. A
//! simulation therefore runs the code that production runs (`tests/simulation`), and a model checker the ledger itself (`tests/model.rs`).
//!
//! Reading order: `quantity`; on the hot path `bucket`, `concurrency`, `keys` and `demand`; then sharing, from the bottom up: `algorithm` (who gets
//! how much), `election` (who is root, who owns what), `registrar` (who writes that down), `lease` (why it is safe), `template`, `store` (Doorman clients), `wire`, `client` and `root` (the two
//! sides of a lease), `quotas` (the owner of it all, which a shell drives), `spending` (what goes while the root does not answer).
//!
//! ```
//! use std::time::{Duration, Instant};
//! use evenkeel_ratelimit::{
//!     Algorithm, Bucket, Event, Floors, Micros, Party, Quotas, Roster, Safe, Template, Templates,
//! };
//!
//! # #[allow(clippy::disallowed_methods)]
//! let now = Instant::now();
//! let template = Template {
//!     pattern: "db.*".into(),
//!     capacity: Micros::units(500),
//!     per: Some(Duration::from_secs(1)),
//!     burst: Micros::units(50),
//!     algorithm: Algorithm::FairShare,
//!     floors: Floors::default(),
//!     lease: Duration::from_secs(20),
//!     refresh: Duration::from_secs(5),
//!     learning: Duration::from_secs(20),
//!     safe: Safe::Share,
//! };
//! let mut hosts = [1, 2].map(|host| {
//!     let mut quotas = Quotas::new(now, Party { host, life: 1 }, None);
//!     quotas.set_templates(now, Templates::new(vec![template.clone()]).unwrap());
//!     let members = [(1, 1), (2, 1)].into();
//!     quotas.set_roster(now, Roster { epoch: 1, members, settled: true, ..Roster::default() }).unwrap();
//!     quotas.set_live(now, [1, 2].into());
//!     quotas
//! });
//!
//! // The first host is asked for 400 a second, the second for nothing.
//! hosts[0].offer(now, b"db.payments", Micros::units(400)).unwrap();
//!
//! // What a shell does with sockets and timers, for a tenth of a second.
//! for millis in 0..100 {
//!     let now = now + Duration::from_millis(millis);
//!     for from in [1, 2] {
//!         while let Some(datagram) = hosts[from - 1].poll_transmit() {
//!             hosts[datagram.to as usize - 1].handle_datagram(now, from as u64, &datagram.bytes).unwrap();
//!         }
//!     }
//!     hosts.iter_mut().for_each(|quotas| quotas.handle_timeout(now));
//! }
//!
//! // The first one's bucket gets the pace that it may spend.
//! let Some(Event::Spend { resource, spending }) = std::iter::from_fn(|| hosts[0].poll_event()).last() else { panic!() };
//! assert_eq!(spending.amount, Micros::units(400));
//! let bucket = Bucket::new(now, hosts[0].rules(&resource).unwrap().pace(spending.amount));
//! assert!(bucket.try_acquire(now, 1).is_ok());
//! ```
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
mod registrar;
mod spending;

pub use algorithm::{Algorithm, Allocation, BANDS_MAX, BadFloors, Claim, Floors, SUBCLIENTS_MAX};
pub use bucket::{Bucket, Pace, Refused};
pub use client::{BASE, Client, REFRESH};
pub use concurrency::{Concurrency, NoPlace, Place};
pub use demand::Demand;
pub use election::{BadRoster, MEMBERS_MAX, ROSTERS_MAX, Roster, Rosters, root_of};
pub use keys::{KEYS_MAX, KeyTable};
pub use lease::{DRIFT, LOAN_MAX, Ledger, Loan, Party, Room, Word};
pub use quantity::{BadQuantity, Micros};
pub use quotas::{
    AskError, Counters, Event, Grant, HostShare, Quotas, RESOURCES_MAX, Report, Serving, Transmit,
};
pub use registrar::{Census, REGISTRAR, Registrar};
pub use root::{HOLDERS_MAX, LEASE, Root};
pub use spending::{Fail, Spending};
pub use store::{CLIENTS_MAX, Request, Store, StoreFull, Terms};
pub use template::{BadTemplate, LEASE_LENGTH_MAX, Safe, TEMPLATES_MAX, Template, Templates, Why};
pub use wire::{
    Answer, Ask, Malformed, Message, RESOURCE_ID_MAX, Wants, decode_rosters, encode_rosters,
};

//! Which endpoint gets a request, and when a second copy of it is worth sending.
//!
//! One [`Balancer`] stands for one upstream and is shared by all workers. Choosing ([`Balancer::pick`]) takes no lock: the set
//! of endpoints is an immutable snapshot, and what changes while requests run is a handful of atomics inside each endpoint.
//! A [`Ticket`] is a pick in flight: whatever becomes of the request, dropping it gives back what it held, once.
//!
//! The crate does no IO, starts no task and reads no clock: `now` and a seeded generator come in as arguments. So a simulation
//! with a seed runs the code that production runs (`tests/simulation`).
//!
//! ```
//! use std::{sync::Arc, time::{Duration, Instant}};
//! use evenkeel_balancer::{Balancer, EndpointSpec, Hop, Verdict, Wish};
//! use evenkeel_config::policy::Policy;
//! use rand::{SeedableRng, rngs::SmallRng};
//!
//! # #[allow(clippy::disallowed_methods)]
//! let start = Instant::now();
//! let balancer = Balancer::new(start);
//! let address = "127.0.0.1:9101".parse()?;
//! balancer.update(start, vec![EndpointSpec {
//!     node: 0, instance: Arc::from("catalog-1"), address, dial: address, hop: Hop::Direct, protocol: None, weight: 1, zone: None, serving: true, preserved: false,
//! }], None);
//! let mut rng = SmallRng::seed_from_u64(1);
//! let policy = Policy::default();
//! let mut ticket = balancer.pick(start, &mut rng, &policy, &Wish::FIRST).expect("one endpoint serves");
//! assert_eq!(ticket.endpoint().in_flight(), 1);
//! ticket.head(start + Duration::from_millis(2), Verdict::Success);
//! drop(ticket);
//! let endpoint = &balancer.endpoints()[0];
//! assert_eq!(endpoint.in_flight(), 0);
//! assert_eq!(endpoint.latency(start + Duration::from_millis(2)), Some(Duration::from_millis(2)));
//! # Ok::<(), std::net::AddrParseError>(())
//! ```
#![forbid(unsafe_code)]

mod advice;
mod balancer;
mod budget;
mod choice;
mod circuit;
mod ejection;
mod endpoint;
mod epoch;
mod explain;
mod hash;
mod hedge;
mod key;
mod latency;
mod logarithm;
mod p2c;
mod peak_ewma;
mod probation;
mod rendezvous;
pub mod repeat;
mod scout;
mod set;
mod shuffle_shard;
mod stall;
mod ticket;
mod zone;

pub use advice::Advice;
pub use balancer::{Attempt, Balancer, NoEndpoint, Wish};
pub use budget::{Budget, RETRY_FLOOR_PER_SEC};
pub use circuit::{Circuit, Guard};
pub use endpoint::{Endpoint, EndpointSpec, Hop, Redial};
pub use explain::{EndpointReport, FilterVerdict};
pub use hedge::{HedgeCounts, Hedger, MayCopy};
pub use key::key_hash;
pub use probation::ProbationCounts;
pub use scout::{Pool, Report, Served, Visit};
pub use set::{ENDPOINTS_MAX, Set};
pub use shuffle_shard::{ShardMember, ShardReport};
pub use ticket::{RETRY_AFTER_MAX, Ticket, Verdict};

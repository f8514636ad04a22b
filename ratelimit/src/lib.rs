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

pub use algorithm::{Algorithm, Allocation, BANDS_MAX, BadFloors, Claim, Floors, SUBCLIENTS_MAX};
pub use bucket::{Bucket, Pace, Refused};
pub use concurrency::{Concurrency, Place};
pub use demand::Demand;
pub use keys::{KEYS_MAX, KeyTable};
pub use quantity::{BadQuantity, Micros};

//! Leases on shared capacity, and the local limiter that spends them.
//!
//! Nothing is built yet: the configuration refuses `ratelimit` by name. The crate stands so that the
//! workspace has its final shape and its rules (no IO, no clock, no OS entropy) hold from its first line on.
#![forbid(unsafe_code)]
